//! Every route, in one table: path, handler, and who may call it.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use kubler_api::error::ErrorCode;
use kubler_core::policy::Action;
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Api, ApiError, Arrival, approvals, environments, health, records, sessions, webhooks};

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
        "get",
        "/v1/environments/{id}/differences/{other}",
        Access::Policy(Action::ReadEnvironment),
    ),
    row(
        "get",
        "/v1/environments/{id}/drift",
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
    row(
        "get",
        "/v1/approvals",
        Access::Policy(Action::ReadApprovals),
    ),
    row(
        "post",
        "/v1/approvals/{approval}/approve",
        Access::Policy(Action::AnswerApproval),
    ),
    row(
        "post",
        "/v1/approvals/{approval}/refuse",
        Access::Policy(Action::AnswerApproval),
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
        .routes(routes!(environments::create, environments::list))
        .routes(routes!(environments::read))
        .routes(routes!(environments::differences))
        .routes(routes!(environments::drift))
        .routes(routes!(environments::renew))
        .routes(routes!(environments::release))
        .routes(routes!(environments::trace))
        .routes(routes!(environments::read_tombstone))
        .routes(routes!(sessions::exchange))
        .routes(routes!(records::checkpoint))
        .routes(routes!(records::read))
        .routes(routes!(approvals::list))
        .routes(routes!(approvals::approve))
        .routes(routes!(approvals::refuse))
        .routes(routes!(webhooks::buildkite))
        .routes(routes!(health::metrics))
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::openapi_document))
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
        // Bodies come whole and bounded: see `bodies`.
        .layer(DefaultBodyLimit::disable())
        .with_state(api)
}
