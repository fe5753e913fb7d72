//! An agent's own life: register, connect, ping, heartbeat, disconnect.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{done, parse, tokens};
use crate::buildkite::record::{AgentRecord, Heart};
use crate::buildkite::refusal::Refusal;
use crate::buildkite::shared::Shared;

#[derive(Deserialize)]
struct Registration {
    name: String,
    #[serde(default)]
    meta_data: Option<Vec<String>>,
    #[serde(default)]
    ignore_in_dispatches: bool,
}

/// `POST /register`, with a registration token.
pub(super) async fn register(
    State(shared): State<Shared>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, Refusal> {
    shared.change(|world, now| {
        let organization_id = tokens::registration(world, &headers)?;
        let registration: Registration = parse(&body)?;
        let agent_id = Uuid::now_v7();
        let session_token = format!("bkas_{}", Uuid::new_v4().simple());
        let agent = AgentRecord {
            id: agent_id,
            name: registration.name,
            organization_id,
            session_token: Some(session_token.clone()),
            tags: registration.meta_data.unwrap_or_default(),
            ignore_in_dispatches: registration.ignore_in_dispatches,
            heart: Heart::LastBeat(now),
            job_id: None,
            lost_at: None,
        };
        let settings = &world.settings;
        let answer = json!({
            "id": agent_id,
            "name": agent.name,
            "access_token": session_token,
            "endpoint": world.agent_endpoint,
            "ping_interval": settings.ping_interval_seconds,
            "job_status_interval": settings.job_status_interval_seconds,
            "heartbeat_interval": settings.heartbeat_interval_seconds,
            "meta_data": agent.tags,
        });
        world.agents.insert(agent_id, agent);
        Ok(Json(answer))
    })
}

/// `POST /connect`.
pub(super) async fn connect(
    State(shared): State<Shared>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    beat(&shared, &headers)?;
    Ok(done())
}

/// `POST /heartbeat`.
pub(super) async fn heartbeat(
    State(shared): State<Shared>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, Refusal> {
    let received_at = beat(&shared, &headers)?;
    let mut sent: Value = parse(&body)?;
    Ok(Json(
        json!({ "sent_at": sent["sent_at"].take(), "received_at": received_at.to_string() }),
    ))
}

fn beat(shared: &Shared, headers: &HeaderMap) -> Result<jiff::Timestamp, Refusal> {
    shared.change(|world, now| {
        let agent_id = tokens::session(world, headers)?;
        let agent = world
            .agents
            .get_mut(&agent_id)
            .ok_or_else(Refusal::not_found)?;
        agent.heart = Heart::LastBeat(now);
        Ok(now)
    })
}

/// `GET /ping`: offers the oldest waiting job of the organization.
pub(super) async fn ping(
    State(shared): State<Shared>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    shared.change(|world, _| {
        let agent_id = tokens::session(world, &headers)?;
        let Some(job_id) = world.assign_job(agent_id) else {
            return Ok(Json(json!({})));
        };
        let state = world.job(job_id).state.as_str();
        Ok(Json(json!({ "job": { "id": job_id, "state": state } })))
    })
}

/// `POST /disconnect`: the session is over. A job that it still has is given up with the heartbeat time-out.
pub(super) async fn disconnect(
    State(shared): State<Shared>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    shared.change(|world, _| {
        let agent_id = tokens::session(world, &headers)?;
        let agent = world
            .agents
            .get_mut(&agent_id)
            .ok_or_else(Refusal::not_found)?;
        agent.session_token = None;
        Ok(done())
    })
}
