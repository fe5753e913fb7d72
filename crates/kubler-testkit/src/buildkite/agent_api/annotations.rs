//! Annotations of a build or of one job.

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use http::HeaderMap;
use serde::Deserialize;
use uuid::Uuid;

use super::{done, parse, tokens};
use crate::buildkite::record::{Annotation, AnnotationScope};
use crate::buildkite::refusal::Refusal;
use crate::buildkite::shared::Shared;

/// Longest body, appended parts included.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Longest context.
const CONTEXT_CHARACTERS_MAX: usize = 100;
const STYLES: [&str; 5] = ["default", "success", "info", "warning", "error"];
const PRIORITY_DEFAULT: u8 = 3;
const CONTEXT_DEFAULT: &str = "default";

#[derive(Deserialize)]
struct Request {
    body: String,
    #[serde(default)]
    context: String,
    #[serde(default)]
    style: String,
    #[serde(default)]
    append: bool,
    #[serde(default)]
    priority: u8,
    #[serde(default)]
    scope: String,
}

/// `POST /jobs/{id}/annotations`.
pub(super) async fn annotate(
    State(shared): State<Shared>,
    Path(path): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    shared.change(|world, _| {
        let job_id = tokens::own_job(world, &headers, &path)?;
        let request: Request = parse(&body)?;
        let scope = scope(&request.scope, job_id)?;
        let context = non_empty(request.context, CONTEXT_DEFAULT);
        let build_id = world.job(job_id).build_id;
        let build = world
            .builds
            .get_mut(&build_id)
            .ok_or_else(Refusal::not_found)?;
        let known = build.annotations.get(&(scope, context.clone()));
        let mut annotation = Annotation {
            body: request.body,
            context: context.clone(),
            style: non_empty(request.style, known.map_or("default", |known| &known.style)),
            priority: if request.priority == 0 {
                PRIORITY_DEFAULT
            } else {
                request.priority
            },
            scope,
            written_by: job_id,
        };
        if let (true, Some(known)) = (request.append, known) {
            annotation.body.insert_str(0, &known.body);
        }
        check(&annotation)?;
        build.annotations.insert((scope, context), annotation);
        Ok(done())
    })
}

fn check(annotation: &Annotation) -> Result<(), Refusal> {
    let fault = if annotation.body.len() > BODY_BYTES_MAX {
        "body is longer than 1 MiB"
    } else if annotation.context.chars().count() > CONTEXT_CHARACTERS_MAX {
        "context is longer than 100 characters"
    } else if !STYLES.contains(&annotation.style.as_str()) {
        "style is unknown"
    } else if !(1..=10).contains(&annotation.priority) {
        "priority is not between 1 and 10"
    } else {
        return Ok(());
    };
    Err(Refusal::unprocessable(fault))
}

fn scope(text: &str, job_id: Uuid) -> Result<AnnotationScope, Refusal> {
    match text {
        "" | "build" => Ok(AnnotationScope::Build),
        "job" => Ok(AnnotationScope::Job(job_id)),
        _ => Err(Refusal::unprocessable("scope is unknown")),
    }
}

fn non_empty(text: String, default: &str) -> String {
    if text.is_empty() {
        default.to_owned()
    } else {
        text
    }
}

#[derive(Deserialize)]
pub(super) struct RemoveQuery {
    #[serde(default)]
    scope: String,
}

/// `DELETE /jobs/{id}/annotations/{context}`.
pub(super) async fn remove(
    State(shared): State<Shared>,
    Path((path, context)): Path<(String, String)>,
    Query(query): Query<RemoveQuery>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    shared.change(|world, _| {
        let job_id = tokens::own_job(world, &headers, &path)?;
        let scope = scope(&query.scope, job_id)?;
        let build_id = world.job(job_id).build_id;
        let build = world
            .builds
            .get_mut(&build_id)
            .ok_or_else(Refusal::not_found)?;
        build
            .annotations
            .remove(&(scope, context))
            .map(|_| done())
            .ok_or_else(Refusal::not_found)
    })
}
