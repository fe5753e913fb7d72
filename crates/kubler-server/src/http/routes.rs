//! Every route, in one table: path, handler, and who may call it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Form, Json, Router};
use bytes::Bytes;
use kubler_api::error::{ErrorCode, Problem};
use kubler_api::ledger::{Checkpoint, Records};
use kubler_api::{
    CreateEnvironment, Environment, Environments, GRANT_TOKEN_EXCHANGE, Health, IssuedToken,
    ReleaseEnvironment, TOKEN_TYPE_ACCESS, TOKEN_TYPE_JWT, TokenExchange, Tombstone,
};
use kubler_core::environment::Phase;
use kubler_core::ids::EnvironmentId;
use kubler_core::ledger::record::LedgerAction;
use kubler_core::policy::Action;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Api, ApiError, Arrival, view};
use crate::broker::webhook::{self, WEBHOOK_BYTES_MAX};
use crate::broker::{BrokerError, Call, Found};
use crate::store::Search;

/// Longest body of an ordinary request, in bytes.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anybody: the answer holds nothing that needs protection.
    Anybody,
    /// Whoever signs the request with a shared secret.
    Signed,
    /// Whom policy allows this action.
    Policy(Action),
}

/// One route and who may call it. A test fails for a route without a row here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteAccess {
    /// HTTP method.
    pub method: &'static str,
    /// Path as in the OpenAPI document.
    pub path: &'static str,
    /// Who may.
    pub access: Access,
}

const fn row(method: &'static str, path: &'static str, access: Access) -> RouteAccess {
    RouteAccess {
        method,
        path,
        access,
    }
}

/// Who may call what.
pub const ACCESS: &[RouteAccess] = &[
    row(
        "post",
        "/v1/environments",
        Access::Policy(Action::CreateEnvironment),
    ),
    row("get", "/v1/environments", Access::Policy(Action::ReadTrace)),
    row(
        "get",
        "/v1/environments/{id}",
        Access::Policy(Action::ReadEnvironment),
    ),
    row(
        "post",
        "/v1/environments/{id}/renew",
        Access::Policy(Action::RenewEnvironment),
    ),
    row(
        "post",
        "/v1/environments/{id}/release",
        Access::Policy(Action::ReleaseEnvironment),
    ),
    row(
        "get",
        "/v1/trace/{anything}",
        Access::Policy(Action::ReadTrace),
    ),
    row("post", "/v1/token", Access::Policy(Action::IssueSession)),
    row(
        "get",
        "/v1/ledger/checkpoint",
        Access::Policy(Action::ReadCheckpoint),
    ),
    row(
        "get",
        "/v1/ledger/records",
        Access::Policy(Action::ReadLedger),
    ),
    row("get", "/metrics", Access::Policy(Action::ReadMetrics)),
    row("post", "/v1/hooks/buildkite", Access::Signed),
    row("get", "/v1/tombstones/{id}", Access::Anybody),
    row("get", "/healthz", Access::Anybody),
    row("get", "/readyz", Access::Anybody),
    row("get", "/openapi.json", Access::Anybody),
];

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "Kubler",
    description = "A broker between CI jobs and Kubernetes. Bearer: the OIDC token that the CI signs for the job; operators use a client certificate."
))]
struct Document;

fn documented() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(create_environment, list_environments))
        .routes(routes!(read_environment))
        .routes(routes!(renew_environment))
        .routes(routes!(release_environment))
        .routes(routes!(trace))
        .routes(routes!(exchange_token))
        .routes(routes!(read_checkpoint))
        .routes(routes!(read_records))
        .routes(routes!(metrics))
        .routes(routes!(buildkite_webhook))
        .routes(routes!(read_tombstone))
        .routes(routes!(healthz))
        .routes(routes!(readyz))
        .routes(routes!(openapi_document))
}

/// The OpenAPI document.
pub fn openapi() -> utoipa::openapi::OpenApi {
    documented().split_for_parts().1
}

/// All routes but the gateway's.
pub fn router(api: Arc<Api>) -> Router {
    let (router, _) = documented().split_for_parts();
    router
        .fallback(async |arrival: Arrival| {
            ApiError::new(ErrorCode::NotFound, "there is no such path")
                .hint("see `/openapi.json`")
                .of(&arrival)
        })
        .method_not_allowed_fallback(async |arrival: Arrival| {
            ApiError::new(ErrorCode::MethodNotAllowed, "this path has no such method").of(&arrival)
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(api)
}

type Answer<T> = Result<T, ApiError>;
type Shared = State<Arc<Api>>;

impl Api {
    fn show(&self, environment: &kubler_core::environment::Environment) -> Json<Environment> {
        Json(view::environment(
            environment,
            &self.configuration,
            self.ca.as_deref(),
        ))
    }

    fn show_all(&self, found: &Found) -> Json<Environments> {
        let environments = found
            .environments
            .iter()
            .map(|environment| self.show(environment).0)
            .collect();
        Json(Environments {
            environments,
            truncated: found.truncated,
        })
    }
}

fn refused(call: &Call) -> impl FnOnce(BrokerError) -> ApiError {
    let request_id = call.request_id;
    move |error| ApiError::from_broker(&error, request_id)
}

fn environment_id(text: &str, call: &Call) -> Answer<EnvironmentId> {
    text.parse().map_err(|error: kubler_core::ids::InvalidId| {
        ApiError::new(ErrorCode::NotFound, error.to_string()).with_id(call.request_id)
    })
}

fn json<T>(body: Result<Json<T>, JsonRejection>, call: &Call) -> Answer<T> {
    body.map(|Json(body)| body).map_err(|rejection| {
        unreadable(rejection.status(), &rejection.body_text()).with_id(call.request_id)
    })
}

fn unreadable(status: StatusCode, text: &str) -> ApiError {
    if status == StatusCode::PAYLOAD_TOO_LARGE {
        return ApiError::new(
            ErrorCode::TooLarge,
            format!("the body is longer than {BODY_BYTES_MAX} bytes"),
        );
    }
    let text: String = text.chars().take(300).collect();
    ApiError::new(ErrorCode::InvalidRequest, text)
}

/// Asks for an environment; repeats by the same job and name return the first.
#[utoipa::path(post, path = "/v1/environments", request_body = CreateEnvironment, responses(
    (status = 200, body = Environment), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
async fn create_environment(
    State(api): Shared,
    call: Call,
    body: Result<Json<CreateEnvironment>, JsonRejection>,
) -> Answer<Json<Environment>> {
    let request = json(body, &call)?;
    let made = api
        .broker
        .request_environment(&call, &request)
        .await
        .map_err(refused(&call))?;
    Ok(api.show(
        &api.broker
            .wait_until_settled(made, request.wait_seconds)
            .await,
    ))
}

/// What to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
struct ListQuery {
    /// Pipeline slug or id.
    pipeline: Option<String>,
    /// Build number.
    build: Option<u64>,
    /// Job id.
    job: Option<String>,
    /// Commit, or its beginning.
    commit: Option<String>,
    /// Phase.
    phase: Option<String>,
}

/// The environments the caller may see, newest first.
#[utoipa::path(get, path = "/v1/environments", params(ListQuery), responses(
    (status = 200, body = Environments), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
async fn list_environments(
    State(api): Shared,
    call: Call,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Answer<Json<Environments>> {
    let Query(query) = query.map_err(|rejection| {
        unreadable(rejection.status(), &rejection.body_text()).with_id(call.request_id)
    })?;
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
    let search = Search {
        pipeline: query.pipeline,
        build_number: query.build,
        job_id: query.job,
        commit: query.commit,
        phase,
        ..Search::default()
    };
    Ok(api.show_all(
        &api.broker
            .search(&call, &search)
            .await
            .map_err(refused(&call))?,
    ))
}

/// One environment.
#[utoipa::path(get, path = "/v1/environments/{id}", params(("id" = String, Path)), responses(
    (status = 200, body = Environment), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
async fn read_environment(
    State(api): Shared,
    call: Call,
    Path(id): Path<String>,
) -> Answer<Json<Environment>> {
    let id = environment_id(&id, &call)?;
    Ok(api.show(
        &api.broker
            .environment(&call, id)
            .await
            .map_err(refused(&call))?,
    ))
}

/// Proof of life.
#[utoipa::path(post, path = "/v1/environments/{id}/renew", params(("id" = String, Path)), responses(
    (status = 200, body = Environment), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
async fn renew_environment(
    State(api): Shared,
    call: Call,
    Path(id): Path<String>,
) -> Answer<Json<Environment>> {
    let id = environment_id(&id, &call)?;
    Ok(api.show(
        &api.broker
            .renew_environment(&call, id)
            .await
            .map_err(refused(&call))?,
    ))
}

/// Ends an environment: credentials are dead when this answers, the rest follows at once.
#[utoipa::path(post, path = "/v1/environments/{id}/release", params(("id" = String, Path)), request_body = ReleaseEnvironment, responses(
    (status = 200, body = Environment), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
async fn release_environment(
    State(api): Shared,
    call: Call,
    Path(id): Path<String>,
    body: Bytes,
) -> Answer<Json<Environment>> {
    let id = environment_id(&id, &call)?;
    // A hook that is called without a body means the same as one with an empty object.
    let request: ReleaseEnvironment = if body.is_empty() {
        ReleaseEnvironment::default()
    } else {
        serde_json::from_slice(&body).map_err(|error| {
            unreadable(StatusCode::BAD_REQUEST, &error.to_string()).with_id(call.request_id)
        })?
    };
    let released = api
        .broker
        .release_environment(&call, id)
        .await
        .map_err(refused(&call))?;
    Ok(api.show(
        &api.broker
            .wait_until_gone(released, request.wait_seconds)
            .await,
    ))
}

/// Finds environments by id, job, build (`pipeline/number` or id), pipeline or commit.
#[utoipa::path(get, path = "/v1/trace/{anything}", params(("anything" = String, Path)), responses(
    (status = 200, body = Environments), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
async fn trace(
    State(api): Shared,
    call: Call,
    Path(anything): Path<String>,
) -> Answer<Json<Environments>> {
    if let Ok(id) = anything.parse::<EnvironmentId>() {
        let found = api
            .broker
            .environment(&call, id)
            .await
            .map_err(refused(&call))?;
        return Ok(api.show_all(&Found {
            environments: vec![found],
            truncated: false,
        }));
    }
    let mut found = Found::default();
    for search in meanings(&anything) {
        found = api
            .broker
            .search(&call, &search)
            .await
            .map_err(refused(&call))?;
        if !found.environments.is_empty() {
            break;
        }
    }
    Ok(api.show_all(&found))
}

/// What somebody may mean who types one word, most exact first.
fn meanings(anything: &str) -> Vec<Search> {
    let text = anything.trim();
    let one = |change: &dyn Fn(&mut Search)| {
        let mut search = Search::default();
        change(&mut search);
        search
    };
    let mut meanings = Vec::new();
    if let Some((pipeline, number)) = text.rsplit_once(['/', '#'])
        && let Ok(number) = number.parse()
    {
        meanings.push(one(&|search| {
            search.pipeline = Some(pipeline.to_owned());
            search.build_number = Some(number);
        }));
    }
    if let Ok(number) = text.parse() {
        meanings.push(one(&|search| search.build_number = Some(number)));
    }
    meanings.push(one(&|search| search.job_id = Some(text.to_owned())));
    meanings.push(one(&|search| search.build_id = Some(text.to_owned())));
    meanings.push(one(&|search| search.pipeline = Some(text.to_owned())));
    if text.len() >= 7 {
        meanings.push(one(&|search| search.commit = Some(text.to_owned())));
    }
    meanings
}

/// Exchanges the CI's identity token for a session (RFC 8693).
#[utoipa::path(post, path = "/v1/token", request_body(content = TokenExchange, content_type = "application/x-www-form-urlencoded"), responses(
    (status = 200, body = IssuedToken), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
async fn exchange_token(
    State(api): Shared,
    arrival: Arrival,
    body: Result<Form<TokenExchange>, axum::extract::rejection::FormRejection>,
) -> Answer<Response> {
    let Form(request) = body
        .map_err(|rejection| unreadable(rejection.status(), &rejection.body_text()).of(&arrival))?;
    let wrong = |field: &str, expected: &str| {
        ApiError::new(
            ErrorCode::InvalidRequest,
            format!("`{field}` must be `{expected}`"),
        )
        .of(&arrival)
    };
    if request.grant_type != GRANT_TOKEN_EXCHANGE {
        return Err(wrong("grant_type", GRANT_TOKEN_EXCHANGE));
    }
    if request.subject_token_type != TOKEN_TYPE_JWT {
        return Err(wrong("subject_token_type", TOKEN_TYPE_JWT));
    }
    let who = api
        .job(&arrival, &SecretString::from(request.subject_token))
        .await?;
    let call = Call {
        request_id: arrival.request_id,
        peer: arrival.peer.address,
        now: api.clock.now(),
        who,
    };
    let id = environment_id(&request.resource, &call)?;
    let issued = api
        .broker
        .issue_session(&call, id)
        .await
        .map_err(refused(&call))?;
    let expires_at = issued.exchange.session_end;
    let answer = IssuedToken {
        access_token: issued.token.expose_secret().to_owned(),
        issued_token_type: TOKEN_TYPE_ACCESS.into(),
        token_type: "Bearer".into(),
        expires_in: u64::try_from(expires_at.as_second() - call.now.as_second()).unwrap_or(0),
        expires_at,
        session_id: issued.exchange.session_id.to_string(),
    };
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(answer)).into_response())
}

/// The latest signed checkpoint of the ledger, to be kept elsewhere.
#[utoipa::path(get, path = "/v1/ledger/checkpoint", responses(
    (status = 200, body = Checkpoint), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
async fn read_checkpoint(State(api): Shared, call: Call) -> Answer<Json<Checkpoint>> {
    let read = async || Ok(api.broker.ledger.checkpoint()?);
    api.broker
        .read_server(
            &call,
            Action::ReadCheckpoint,
            LedgerAction::LedgerRead,
            read,
        )
        .await
        .map(Json)
        .map_err(refused(&call))
}

/// Which records.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
struct RecordsQuery {
    /// Environment id.
    environment: Option<String>,
    /// Job id.
    job: Option<String>,
    /// First sequence.
    from: Option<u64>,
    /// At most so many.
    limit: Option<usize>,
}

/// Records of the ledger.
#[utoipa::path(get, path = "/v1/ledger/records", params(RecordsQuery), responses(
    (status = 200, body = Records), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
async fn read_records(
    State(api): Shared,
    call: Call,
    query: Result<Query<RecordsQuery>, QueryRejection>,
) -> Answer<Json<Records>> {
    let Query(query) = query.map_err(|rejection| {
        unreadable(rejection.status(), &rejection.body_text()).with_id(call.request_id)
    })?;
    let environment = query
        .environment
        .as_deref()
        .map(|id| environment_id(id, &call))
        .transpose()?;
    let query = crate::ledger::Query {
        environment,
        job: query.job,
        from: query.from.unwrap_or(0),
        limit: query.limit,
    };
    let read = async || Ok(api.broker.ledger.read(&query)?);
    api.broker
        .read_server(&call, Action::ReadLedger, LedgerAction::LedgerRead, read)
        .await
        .map(Json)
        .map_err(refused(&call))
}

/// OpenMetrics.
#[utoipa::path(get, path = "/metrics", responses(
    (status = 200, body = String, content_type = "application/openmetrics-text"), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
async fn metrics(State(api): Shared, call: Call) -> Answer<Response> {
    let read = async || Ok(crate::metrics::render(&api.broker.directory, &api.gauges));
    let text = api
        .broker
        .read_server(&call, Action::ReadMetrics, LedgerAction::MetricsRead, read)
        .await
        .map_err(refused(&call))?;
    Ok((
        [(
            header::CONTENT_TYPE,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        )],
        text,
    )
        .into_response())
}

/// Buildkite's webhooks, signed form only.
#[utoipa::path(post, path = "/v1/hooks/buildkite", request_body = serde_json::Value, responses(
    (status = 204), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
async fn buildkite_webhook(
    State(api): Shared,
    arrival: Arrival,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<StatusCode> {
    if body.len() > WEBHOOK_BYTES_MAX {
        return Err(ApiError::new(
            ErrorCode::TooLarge,
            format!("the body is longer than {WEBHOOK_BYTES_MAX} bytes"),
        )
        .of(&arrival));
    }
    let now = api.clock.now();
    let signature = headers
        .get("x-buildkite-signature")
        .and_then(|value| value.to_str().ok());
    let verified =
        webhook::verify(&api.webhook_secrets, signature, &body, now).map_err(|reason| {
            api.refuse(&arrival, reason);
            ApiError::unauthenticated(None).of(&arrival)
        })?;
    let received = api
        .broker
        .receive_webhook(verified, arrival.request_id, arrival.peer.address, now)
        .await;
    received.map_err(|error| ApiError::from_broker(&error, arrival.request_id))?;
    Ok(StatusCode::NO_CONTENT)
}

/// When and why a dead environment ended. Needs no identity: its job may not have one any more.
#[utoipa::path(get, path = "/v1/tombstones/{id}", params(("id" = String, Path)), responses(
    (status = 200, body = Tombstone), (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json")))]
async fn read_tombstone(
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

/// Whether the process answers.
#[utoipa::path(get, path = "/healthz", responses((status = 200, body = Health)))]
async fn healthz(State(api): Shared) -> Json<Health> {
    Json(api.health(BTreeMap::new()))
}

/// Whether it can do its work: store, ledger, engine.
#[utoipa::path(get, path = "/readyz", responses((status = 200, body = Health), (status = 503, body = Health)))]
async fn readyz(State(api): Shared) -> (StatusCode, Json<Health>) {
    let say = |result: Result<(), String>| result.err().unwrap_or_else(|| "ok".into());
    let mut checks = BTreeMap::new();
    checks.insert(
        "store".to_owned(),
        say(api
            .broker
            .store
            .check(api.clock.now())
            .await
            .map_err(|_| "cannot be written".into())),
    );
    checks.insert(
        "ledger".to_owned(),
        say(if api.broker.ledger.is_writable() {
            Ok(())
        } else {
            Err("cannot be written".into())
        }),
    );
    checks.insert(
        "engine".to_owned(),
        say(if api.gauges.engine_works() {
            Ok(())
        } else {
            Err("cannot look at the world".into())
        }),
    );
    let health = api.health(checks);
    let status = if health.status == "ok" {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(health))
}

impl Api {
    fn health(&self, checks: BTreeMap<String, String>) -> Health {
        let well = checks.values().all(|check| check == "ok");
        Health {
            status: if well { "ok" } else { "unavailable" }.into(),
            checks,
            version: env!("CARGO_PKG_VERSION").into(),
            now: self.clock.now(),
        }
    }
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", responses((status = 200, body = serde_json::Value)))]
async fn openapi_document() -> Json<utoipa::openapi::OpenApi> {
    Json(openapi())
}
