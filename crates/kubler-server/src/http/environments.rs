//! `/v1/environments` and what is found by them: tombstones and traces.

use axum::Json;
use axum::extract::rejection::{BytesRejection, JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use bytes::Bytes;
use kubler_api::error::ErrorCode;
use kubler_api::{
    CreateEnvironment, Difference, Differences, Drifts, Environment, Environments,
    ReleaseEnvironment, Tombstone,
};
use kubler_core::artifact::ImageQuery;
use kubler_core::environment::Phase;
use kubler_core::ids::EnvironmentId;
use kubler_core::text::UntrustedText;
use serde::Deserialize;

use super::error::ApiError;
use super::reading::{
    Answer, Object, Refused, Shared, count, environment_id, json, refused, unreadable,
};
use super::{Arrival, view};
use crate::broker::{Call, Found};
use crate::store::{Attached, Search};

fn show(call: &Call, environment: &kubler_core::environment::Environment) -> Environment {
    show_with(call, environment, &[])
}

fn show_with(
    call: &Call,
    environment: &kubler_core::environment::Environment,
    attached: &[Attached],
) -> Environment {
    let in_force = &call.in_force;
    Environment {
        attached: attached.iter().map(view::attached).collect(),
        ..view::environment(environment, &in_force.configuration, in_force.ca.as_deref())
    }
}

fn show_all(call: &Call, found: &Found) -> Environments {
    let shown = found.environments.iter().map(|environment| {
        let attached = found.attached.get(&environment.id);
        let images = found.images.get(&environment.id).cloned();
        let images = images.unwrap_or_default();
        Environment {
            images: images.named,
            images_truncated: images.truncated,
            ..show_with(call, environment, attached.map_or(&[], Vec::as_slice))
        }
    });
    Environments {
        environments: shown.collect(),
        truncated: found.truncated,
    }
}

/// Asks for an environment; repeats by the same job and name return the first.
#[utoipa::path(post, operation_id = "create_environment", path = "/v1/environments", request_body = CreateEnvironment, responses(
    (status = 200, body = Environment), Refused))]
pub(super) async fn create(
    State(api): Shared,
    arrival: Arrival,
    call: Call,
    body: Result<Json<Object<CreateEnvironment>>, JsonRejection>,
) -> Answer<Json<Environment>> {
    let request = json(body, &call)?;
    let made = api
        .broker
        .request_environment(&call, &request)
        .await
        .map_err(refused(&call))?;
    let settled = api.broker.wait_until_settled(&made, request.wait_seconds);
    let made = arrival.while_here(settled).await.unwrap_or(made);
    Ok(Json(Environment {
        last_failure: api.broker.directory.last_failure(made.id),
        ..show(&call, &made)
    }))
}

/// What to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ListQuery {
    /// Pipeline slug or id, also with the organization's slug and `/` before it.
    pipeline: Option<String>,
    /// Build number.
    #[param(value_type = i64, minimum = 0, required = false)]
    #[serde(deserialize_with = "count")]
    build: Option<u64>,
    /// Job id.
    job: Option<String>,
    /// Commit, or its beginning.
    commit: Option<String>,
    /// Image: `name`, `name:tag`, `name@digest` or a digest, as container runtimes read names.
    image: Option<String>,
    /// Phase.
    #[param(inline, value_type = kubler_api::Phase, required = false)]
    phase: Option<String>,
    /// Only what is not gone.
    remaining: bool,
}

/// The environments the caller may see, newest first.
#[utoipa::path(get, operation_id = "list_environments", path = "/v1/environments", params(ListQuery), responses(
    (status = 200, body = Environments), Refused))]
pub(super) async fn list(
    State(api): Shared,
    call: Call,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Answer<Json<Environments>> {
    let Query(query) =
        query.map_err(|rejection| unreadable(&rejection.body_text()).with_id(call.request_id))?;
    let phase = match &query.phase {
        None => None,
        Some(word) => Some(Phase::from_word(word).ok_or_else(|| {
            let known: Vec<_> = Phase::ALL.into_iter().map(Phase::as_str).collect();
            ApiError::new(
                ErrorCode::InvalidRequest,
                format!("`{word}` is not a phase"),
            )
            .hint(format!("one of {}", known.join(", ")))
            .with_id(call.request_id)
        })?),
    };
    let image = match &query.image {
        None => None,
        Some(text) => Some(
            ImageQuery::parse(text)
                .map(ImageQuery::exactly)
                .ok_or_else(|| {
                    let shown = UntrustedText::new(text);
                    ApiError::new(
                        ErrorCode::InvalidRequest,
                        format!("`{shown}` is not the name of an image"),
                    )
                    .hint("give `name`, `name:tag`, `name@digest` or a digest such as `sha256:…`")
                    .with_id(call.request_id)
                })?,
        ),
    };
    let mut search = Search {
        build_number: query.build,
        job_id: query.job,
        commit: query.commit,
        image,
        phase,
        remaining: query.remaining,
        ..Search::default()
    };
    if let Some(pipeline) = &query.pipeline {
        search.name_pipeline(pipeline);
    }
    let found = api.broker.search(&call, &search).await;
    Ok(Json(show_all(&call, &found.map_err(refused(&call))?)))
}

/// One environment.
#[utoipa::path(get, operation_id = "read_environment", path = "/v1/environments/{id}", params(("id" = String, Path)), responses(
    (status = 200, body = Environment), Refused))]
pub(super) async fn read(
    State(api): Shared,
    call: Call,
    Path(id): Path<String>,
) -> Answer<Json<Environment>> {
    let id = environment_id(&id, &call)?;
    let read = api.broker.environment(&call, id).await;
    let (environment, attached) = read.map_err(refused(&call))?;
    Ok(Json(Environment {
        last_failure: api.broker.directory.last_failure(id),
        ..show_with(&call, &environment, &attached)
    }))
}

/// What differs in two environments, alive or dead: what they are made of, and whose they are.
#[utoipa::path(get, operation_id = "compare_environments", path = "/v1/environments/{id}/differences/{other}",
    params(("id" = String, Path), ("other" = String, Path)), responses((status = 200, body = Differences), Refused))]
pub(super) async fn differences(
    State(api): Shared,
    call: Call,
    Path((id, other)): Path<(String, String)>,
) -> Answer<Json<Differences>> {
    let (id, other) = (environment_id(&id, &call)?, environment_id(&other, &call)?);
    let compared = api.broker.differences(&call, id, other).await;
    let compared = compared.map_err(refused(&call))?;
    let wire = |difference: kubler_core::difference::Difference| Difference {
        what: difference.what,
        before: difference.before,
        after: difference.after,
    };
    Ok(Json(Differences {
        same: compared.before.digest == compared.after.digest,
        before: show(&call, &compared.before),
        after: show(&call, &compared.after),
        differences: compared.differences.into_iter().map(wire).collect(),
    }))
}

/// What of an environment on a host was found to be another than was made.
#[utoipa::path(get, operation_id = "read_drift", path = "/v1/environments/{id}/drift", params(("id" = String, Path)), responses(
    (status = 200, body = Drifts), Refused))]
pub(super) async fn drift(
    State(api): Shared,
    call: Call,
    Path(id): Path<String>,
) -> Answer<Json<Drifts>> {
    let id = environment_id(&id, &call)?;
    let read = api.broker.environment(&call, id).await;
    read.map_err(refused(&call))?;
    let engines = api.engines.iter();
    let drifts = engines.flat_map(|engine| engine.drifts(id));
    Ok(Json(Drifts {
        drifts: drifts.map(view::drift).collect(),
    }))
}

/// Proof of life.
#[utoipa::path(post, operation_id = "renew_environment", path = "/v1/environments/{id}/renew", params(("id" = String, Path)), responses(
    (status = 200, body = Environment), Refused))]
pub(super) async fn renew(
    State(api): Shared,
    call: Call,
    Path(id): Path<String>,
) -> Answer<Json<Environment>> {
    let id = environment_id(&id, &call)?;
    let renewed = api.broker.renew_environment(&call, id).await;
    Ok(Json(show(&call, &renewed.map_err(refused(&call))?)))
}

/// Ends an environment: credentials are dead when this answers, the rest follows at once.
#[utoipa::path(post, operation_id = "release_environment", path = "/v1/environments/{id}/release", params(("id" = String, Path)), request_body = Option<ReleaseEnvironment>, responses(
    (status = 200, body = Environment), Refused))]
pub(super) async fn release(
    State(api): Shared,
    arrival: Arrival,
    call: Call,
    Path(id): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Answer<Json<Environment>> {
    let id = environment_id(&id, &call)?;
    let body =
        body.map_err(|rejection| unreadable(&rejection.body_text()).with_id(call.request_id))?;
    // A hook that is called without a body means the same as one with `null` or an empty object.
    let request: Option<Object<ReleaseEnvironment>> = if body.is_empty() {
        None
    } else {
        serde_json::from_slice(&body)
            .map_err(|error| unreadable(&error.to_string()).with_id(call.request_id))?
    };
    let request = request.map_or_else(ReleaseEnvironment::default, |Object(request)| request);
    let released = api
        .broker
        .release_environment(&call, id)
        .await
        .map_err(refused(&call))?;
    let gone = api.broker.wait_until_gone(&released, request.wait_seconds);
    let released = arrival.while_here(gone).await.unwrap_or(released);
    Ok(Json(show(&call, &released)))
}

/// Finds environments by id, job, build (`pipeline/number` or id), pipeline, commit or image.
#[utoipa::path(get, path = "/v1/trace/{anything}", params(("anything" = String, Path)), responses(
    (status = 200, body = Environments), Refused))]
pub(super) async fn trace(
    State(api): Shared,
    call: Call,
    Path(anything): Path<String>,
) -> Answer<Json<Environments>> {
    let found = api
        .broker
        .trace(&call, &anything)
        .await
        .map_err(refused(&call))?;
    Ok(Json(show_all(&call, &found)))
}

/// When and why a dead environment ended. Needs no identity: its job may not have one any more.
#[utoipa::path(get, path = "/v1/tombstones/{id}", params(("id" = String, Path)), responses(
    (status = 200, body = Tombstone), Refused))]
pub(super) async fn read_tombstone(
    State(api): Shared,
    arrival: Arrival,
    Path(id): Path<String>,
) -> Answer<Json<Tombstone>> {
    let not_found = |detail: String| ApiError::new(ErrorCode::NotFound, detail).of(&arrival);
    let id: EnvironmentId = id
        .parse()
        .map_err(|error: kubler_core::ids::InvalidId| not_found(error.to_string()))?;
    let environment = api
        .broker
        .tombstone(id)
        .map_err(|error| ApiError::from_broker(&error, arrival.request_id))?;
    Ok(Json(view::tombstone(&environment)))
}
