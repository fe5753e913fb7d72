//! Meta-data of a build: any job of the organization's cluster may read it, a job writes its own build's.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::Response;
use http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{done, parse, tokens};
use crate::buildkite::refusal::Refusal;
use crate::buildkite::shared::Shared;
use crate::buildkite::world::World;

/// Longest value.
const VALUE_BYTES_MAX: usize = 100 << 10;

#[derive(Deserialize)]
struct Pair {
    key: String,
    value: String,
}

#[derive(Deserialize)]
struct Batch {
    items: Vec<Pair>,
}

#[derive(Deserialize)]
struct Key {
    key: String,
}

/// `POST /jobs/{id}/data/set`.
pub(super) async fn set(
    State(shared): State<Shared>,
    Path(path): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    shared.change(|world, _| {
        let job_id = tokens::own_job(world, &headers, &path)?;
        write(world, job_id, vec![parse(&body)?])
    })
}

/// `POST /jobs/{id}/data/set-batch`.
pub(super) async fn set_batch(
    State(shared): State<Shared>,
    Path(path): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    shared.change(|world, _| {
        let job_id = tokens::own_job(world, &headers, &path)?;
        write(world, job_id, parse::<Batch>(&body)?.items)
    })
}

fn write(world: &mut World, job_id: Uuid, pairs: Vec<Pair>) -> Result<Response, Refusal> {
    if let Some(bad) = pairs
        .iter()
        .find(|pair| pair.key.trim().is_empty() || pair.value.len() > VALUE_BYTES_MAX)
    {
        return Err(Refusal::unprocessable(format!(
            "meta-data `{}` has no name or too long a value",
            bad.key
        )));
    }
    let build_id = world.job(job_id).build_id;
    let build = world
        .builds
        .get_mut(&build_id)
        .ok_or_else(Refusal::not_found)?;
    build
        .metadata
        .extend(pairs.into_iter().map(|pair| (pair.key, pair.value)));
    Ok(done())
}

/// `POST /jobs/{id}/data/get`.
pub(super) async fn get(
    State(shared): State<Shared>,
    Path(path): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, Refusal> {
    shared.look(|world| value(world, build_of_job(world, &headers, &path)?, &body))
}

/// `POST /jobs/{id}/data/exists`.
pub(super) async fn exists(
    State(shared): State<Shared>,
    Path(path): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, Refusal> {
    shared.look(|world| presence(world, build_of_job(world, &headers, &path)?, &body))
}

/// `POST /jobs/{id}/data/keys`.
pub(super) async fn keys(
    State(shared): State<Shared>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    shared.look(|world| Ok(names(world, build_of_job(world, &headers, &path)?)))
}

/// `POST /builds/{id}/data/get`.
pub(super) async fn get_of_build(
    State(shared): State<Shared>,
    Path(path): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, Refusal> {
    shared.look(|world| value(world, build_in_path(world, &headers, &path)?, &body))
}

/// `POST /builds/{id}/data/exists`.
pub(super) async fn exists_in_build(
    State(shared): State<Shared>,
    Path(path): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, Refusal> {
    shared.look(|world| presence(world, build_in_path(world, &headers, &path)?, &body))
}

/// `POST /builds/{id}/data/keys`.
pub(super) async fn keys_of_build(
    State(shared): State<Shared>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    shared.look(|world| Ok(names(world, build_in_path(world, &headers, &path)?)))
}

fn build_of_job(world: &World, headers: &HeaderMap, path: &str) -> Result<Uuid, Refusal> {
    tokens::own_job(world, headers, path).map(|job_id| world.job(job_id).build_id)
}

fn build_in_path(world: &World, headers: &HeaderMap, path: &str) -> Result<Uuid, Refusal> {
    let reader = tokens::any_job(world, headers)?;
    let organization_id = world.context(reader).organization.id;
    let build = path
        .parse()
        .ok()
        .and_then(|build_id| world.builds.get(&build_id));
    let build = build.filter(|build| build.organization_id == organization_id);
    build.map(|build| build.id).ok_or_else(Refusal::not_found)
}

fn value(world: &World, build_id: Uuid, body: &Bytes) -> Result<Json<Value>, Refusal> {
    let Key { key } = parse(body)?;
    let value = world.builds[&build_id].metadata.get(&key);
    let value = value.ok_or_else(|| Refusal::new(404, "No key found"))?;
    Ok(Json(json!({ "key": key, "value": value })))
}

fn presence(world: &World, build_id: Uuid, body: &Bytes) -> Result<Json<Value>, Refusal> {
    let Key { key } = parse(body)?;
    Ok(Json(
        json!({ "exists": world.builds[&build_id].metadata.contains_key(&key) }),
    ))
}

fn names(world: &World, build_id: Uuid) -> Json<Value> {
    Json(json!(
        world.builds[&build_id].metadata.keys().collect::<Vec<_>>()
    ))
}
