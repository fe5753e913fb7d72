//! Who is calling, and the route that gives OIDC tokens.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use serde_json::json;
use uuid::Uuid;

use super::{done, hold, parse};
use crate::buildkite::faults::OidcAnswer;
use crate::buildkite::oidc::{self, OidcRequest};
use crate::buildkite::refusal::Refusal;
use crate::buildkite::shared::Shared;
use crate::buildkite::world::World;

/// The holder of a token. Each kind opens other routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    Registration(Uuid),
    Session(Uuid),
    Job(Uuid),
}

fn caller(world: &World, headers: &HeaderMap) -> Result<Caller, Refusal> {
    let value = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let token = value
        .and_then(|value| value.strip_prefix("Token "))
        .filter(|token| !token.is_empty());
    let token = token.ok_or_else(Refusal::unauthorized)?;
    let mut organizations = world.organizations.iter();
    if let Some(found) = organizations.find(|organization| organization.registration_token == token)
    {
        return Ok(Caller::Registration(found.id));
    }
    if let Some(found) = world
        .agents
        .values()
        .find(|agent| agent.session_token.as_deref() == Some(token))
    {
        return Ok(Caller::Session(found.id));
    }
    let job = world
        .jobs
        .values()
        .find(|job| job.token.as_deref() == Some(token));
    job.map(|job| Caller::Job(job.id))
        .ok_or_else(Refusal::unauthorized)
}

/// The organization whose registration token is shown.
pub(super) fn registration(world: &World, headers: &HeaderMap) -> Result<Uuid, Refusal> {
    match caller(world, headers)? {
        Caller::Registration(organization_id) => Ok(organization_id),
        _ => Err(Refusal::forbidden()),
    }
}

/// The agent whose session token is shown.
pub(super) fn session(world: &World, headers: &HeaderMap) -> Result<Uuid, Refusal> {
    match caller(world, headers)? {
        Caller::Session(agent_id) => Ok(agent_id),
        _ => Err(Refusal::forbidden()),
    }
}

/// The job whose token is shown.
pub(super) fn any_job(world: &World, headers: &HeaderMap) -> Result<Uuid, Refusal> {
    match caller(world, headers)? {
        Caller::Job(job_id) => Ok(job_id),
        _ => Err(Refusal::forbidden()),
    }
}

/// The job in the path, if the token shown is its own.
pub(super) fn own_job(world: &World, headers: &HeaderMap, path: &str) -> Result<Uuid, Refusal> {
    let caller = caller(world, headers)?;
    let job_id = job_in_path(world, path)?;
    match caller {
        Caller::Job(own) if own == job_id => Ok(job_id),
        _ => Err(Refusal::forbidden()),
    }
}

/// The job in the path.
pub(super) fn job_in_path(world: &World, path: &str) -> Result<Uuid, Refusal> {
    let job_id = path
        .parse()
        .ok()
        .filter(|job_id| world.jobs.contains_key(job_id));
    job_id.ok_or_else(Refusal::not_found)
}

/// `POST /jobs/{id}/oidc/tokens`.
pub(super) async fn oidc(
    State(shared): State<Shared>,
    Path(path): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    let told = shared.change(|world, _| {
        own_job(world, &headers, &path)?;
        let request: OidcRequest = parse(&body)?;
        let answers = world.faults.oidc_answers.get_mut(&request.audience);
        Ok(answers
            .and_then(std::collections::VecDeque::pop_front)
            .unwrap_or(OidcAnswer::Honest))
    })?;
    match told {
        OidcAnswer::Honest => {}
        OidcAnswer::Status(status) => return Err(Refusal::new(status, "told to answer this")),
        OidcAnswer::Empty => return Ok(done()),
        OidcAnswer::Garbage => return Ok((StatusCode::OK, "not JSON").into_response()),
        OidcAnswer::Hold => hold(&shared).await,
    }
    // Looked at again: the job may have ended while the answer was held.
    shared.change(|world, now| {
        let job_id = own_job(world, &headers, &path)?;
        let token = oidc::mint(world, job_id, &parse(&body)?, now)?;
        Ok(Json(json!({ "token": token })).into_response())
    })
}
