//! A job's life: acquire or accept, start, state, log, finish.

use std::collections::BTreeMap;
use std::io::Read;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use flate2::read::GzDecoder;
use http::{HeaderMap, header};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{done, parse, tokens};
use crate::buildkite::job_token;
use crate::buildkite::record::AgentRecord;
use crate::buildkite::refusal::Refusal;
use crate::buildkite::shared::Shared;
use crate::buildkite::world::{Finish, JobContext, World};

/// Largest log chunk, before compression.
const CHUNK_BYTES_MAX: u64 = 100 << 10;
/// Largest log.
const LOG_BYTES_MAX: u64 = 10 << 20;
/// Seconds between two chunks of one log.
const CHUNK_INTERVAL_SECONDS: u64 = 1;

/// `PUT /jobs/{id}/acquire`: an agent asks for one job by its id.
pub(super) async fn acquire(
    State(shared): State<Shared>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    if headers
        .get("x-buildkite-lock-acquire-job")
        .is_none_or(|value| value != "1")
    {
        return Err(Refusal::bad_request(
            "header `X-Buildkite-Lock-Acquire-Job: 1` is missing",
        ));
    }
    take(&shared, &path, &headers)
}

/// `PUT /jobs/{id}/accept`: an agent takes what a ping offered.
pub(super) async fn accept(
    State(shared): State<Shared>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    take(&shared, &path, &headers)
}

fn take(shared: &Shared, path: &str, headers: &HeaderMap) -> Result<Json<Value>, Refusal> {
    shared.change(|world, now| {
        let agent_id = tokens::session(world, headers)?;
        let job_id = tokens::job_in_path(world, path)?;
        if world.context(job_id).organization.id != world.agents[&agent_id].organization_id {
            return Err(Refusal::not_found());
        }
        world.accept_job(job_id, agent_id, job_token(), now)?;
        Ok(Json(job_document(world, job_id)))
    })
}

fn job_document(world: &World, job_id: Uuid) -> Value {
    let context = world.context(job_id);
    json!({
        "id": job_id,
        "state": context.job.state.as_str(),
        "env": environment(&context),
        "step": {},
        "token": context.job.token,
        "chunks_max_size_bytes": CHUNK_BYTES_MAX,
        "chunks_interval_seconds": CHUNK_INTERVAL_SECONDS,
        "log_max_size_bytes": LOG_BYTES_MAX,
        "runnable_at": context.job.timeline.created.to_string(),
    })
}

/// The variables that the service sets, then those of the job itself.
fn environment(context: &JobContext<'_>) -> BTreeMap<String, String> {
    let JobContext {
        organization,
        pipeline,
        build,
        job,
        agent,
    } = context;
    let build_url = format!(
        "https://buildkite.com/{}/{}/builds/{}",
        organization.slug, pipeline.slug, build.number
    );
    let agent_name = agent.map_or("", |agent: &AgentRecord| agent.name.as_str());
    let text = |value: &str| value.to_owned();
    let set = [
        ("CI", text("true")),
        ("BUILDKITE", text("true")),
        ("BUILDKITE_ORGANIZATION_SLUG", organization.slug.clone()),
        ("BUILDKITE_ORGANIZATION_ID", organization.id.to_string()),
        ("BUILDKITE_CLUSTER_ID", organization.cluster_id.to_string()),
        ("BUILDKITE_PIPELINE_SLUG", pipeline.slug.clone()),
        ("BUILDKITE_PIPELINE_NAME", pipeline.slug.clone()),
        ("BUILDKITE_PIPELINE_ID", pipeline.id.to_string()),
        ("BUILDKITE_PIPELINE_PROVIDER", text("git")),
        ("BUILDKITE_PIPELINE_DEFAULT_BRANCH", text("main")),
        ("BUILDKITE_REPO", text("file:///nowhere")),
        ("BUILDKITE_SKIP_CHECKOUT", text("true")),
        ("BUILDKITE_BUILD_ID", build.id.to_string()),
        ("BUILDKITE_BUILD_NUMBER", build.number.to_string()),
        ("BUILDKITE_BUILD_URL", build_url),
        ("BUILDKITE_BUILD_CREATOR", build.creator.clone()),
        ("BUILDKITE_BRANCH", build.branch.clone()),
        ("BUILDKITE_COMMIT", build.commit.clone()),
        ("BUILDKITE_TAG", build.tag.clone().unwrap_or_default()),
        ("BUILDKITE_SOURCE", build.source.clone()),
        ("BUILDKITE_MESSAGE", text("a build of the stand-in")),
        ("BUILDKITE_PULL_REQUEST", text("false")),
        ("BUILDKITE_JOB_ID", job.id.to_string()),
        (
            "BUILDKITE_STEP_KEY",
            job.step_key.clone().unwrap_or_default(),
        ),
        ("BUILDKITE_LABEL", job.step_key.clone().unwrap_or_default()),
        (
            "BUILDKITE_RETRY_COUNT",
            text(if job.retry_of.is_some() { "1" } else { "0" }),
        ),
        (
            "BUILDKITE_AGENT_ID",
            job.agent_id.map(|id| id.to_string()).unwrap_or_default(),
        ),
        ("BUILDKITE_AGENT_NAME", agent_name.to_owned()),
        ("BUILDKITE_COMMAND", text("")),
    ];
    let mut environment: BTreeMap<String, String> =
        set.map(|(name, value)| (name.to_owned(), value)).into();
    environment.extend(job.env.clone());
    environment
}

/// `GET /jobs/{id}`: how an agent learns of a cancel.
pub(super) async fn state(
    State(shared): State<Shared>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    shared.look(|world| {
        let job_id = tokens::own_job(world, &headers, &path)?;
        Ok(Json(
            json!({ "id": job_id, "state": world.job(job_id).state.as_str() }),
        ))
    })
}

/// `PUT /jobs/{id}/start`.
pub(super) async fn start(
    State(shared): State<Shared>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    shared.change(|world, now| {
        let job_id = tokens::own_job(world, &headers, &path)?;
        world.start_job(job_id, now)?;
        Ok(done())
    })
}

#[derive(Deserialize)]
struct FinishBody {
    exit_status: String,
    #[serde(default)]
    signal: Option<String>,
    #[serde(default)]
    signal_reason: Option<String>,
    #[serde(default)]
    ignore_agent_in_dispatches: Option<bool>,
}

/// `PUT /jobs/{id}/finish`: from here on the job token is dead.
pub(super) async fn finish(
    State(shared): State<Shared>,
    Path(path): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    shared.change(|world, now| {
        let job_id = tokens::own_job(world, &headers, &path)?;
        let FinishBody {
            exit_status,
            signal,
            signal_reason,
            ignore_agent_in_dispatches,
        } = parse(&body)?;
        if exit_status.parse::<i32>().is_err() {
            return Err(Refusal::unprocessable(format!(
                "exit status `{exit_status}` is not a number"
            )));
        }
        let agent_id = world.job(job_id).agent_id;
        let named = |text: Option<String>| text.filter(|text| !text.is_empty());
        let finish = Finish {
            exit_status,
            signal: named(signal),
            signal_reason: named(signal_reason),
        };
        world.finish_job(job_id, finish, now)?;
        let agent = agent_id.and_then(|agent_id| world.agents.get_mut(&agent_id));
        if let (Some(agent), Some(true)) = (agent, ignore_agent_in_dispatches) {
            agent.ignore_in_dispatches = true;
        }
        Ok(done())
    })
}

#[derive(Deserialize)]
pub(super) struct ChunkPlace {
    sequence: u64,
    offset: u64,
    size: u64,
}

/// `POST /jobs/{id}/chunks`: they may come in any order, and more than once.
pub(super) async fn chunk(
    State(shared): State<Shared>,
    Path(path): Path<String>,
    Query(place): Query<ChunkPlace>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    let text = decompress(&headers, &body)?;
    shared.change(|world, _| {
        let job_id = tokens::own_job(world, &headers, &path)?;
        let ChunkPlace {
            sequence,
            offset,
            size,
        } = place;
        if sequence == 0
            || text.len() as u64 != size
            || size > CHUNK_BYTES_MAX
            || offset + size > LOG_BYTES_MAX
        {
            return Err(Refusal::unprocessable(format!(
                "chunk {sequence} of {size} bytes at {offset} does not fit"
            )));
        }
        let chunks = &mut world.job_mut(job_id).chunks;
        if chunks.get(&sequence).is_some_and(|known| *known != text) {
            return Err(Refusal::unprocessable(format!(
                "chunk {sequence} was another one before"
            )));
        }
        chunks.insert(sequence, text);
        Ok(done())
    })
}

fn decompress(headers: &HeaderMap, body: &Bytes) -> Result<Vec<u8>, Refusal> {
    if headers
        .get(header::CONTENT_ENCODING)
        .is_none_or(|encoding| encoding != "gzip")
    {
        return Ok(body.to_vec());
    }
    let mut text = Vec::new();
    let read = GzDecoder::new(body.as_ref())
        .take(CHUNK_BYTES_MAX + 1)
        .read_to_end(&mut text);
    read.map_err(|error| Refusal::bad_request(format!("chunk is not gzip: {error}")))?;
    Ok(text)
}

/// `POST /jobs/{id}/header_times`: taken and forgotten.
pub(super) async fn header_times(
    State(shared): State<Shared>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    shared
        .look(|world| tokens::own_job(world, &headers, &path))
        .map(|_| done())
}
