//! The Agent API under `/v3`: what the real agent calls during the life of a job.

mod agents;
mod annotations;
mod jobs;
mod metadata;
mod tokens;

use std::io;
use std::net::TcpListener as BoundListener;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use http::StatusCode;
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;

use super::faults::ApiFault;
use super::refusal::Refusal;
use super::shared::Shared;

/// Longest time for which a held answer is held.
const HOLD_MAX: Duration = Duration::from_mins(10);
/// Largest body of any call; annotations and log chunks have bounds of their own below it.
const BODY_BYTES_MAX: usize = 8 << 20;

/// Serves the API until the runtime ends.
pub(crate) async fn serve(listener: BoundListener, shared: Shared) -> io::Result<()> {
    axum::serve(TcpListener::from_std(listener)?, router(shared)).await
}

fn router(shared: Shared) -> Router {
    let routes = Router::new()
        .route("/register", post(agents::register))
        .route("/connect", post(agents::connect))
        .route("/disconnect", post(agents::disconnect))
        .route("/heartbeat", post(agents::heartbeat))
        .route("/ping", get(agents::ping))
        .route("/jobs/{id}", get(jobs::state))
        .route("/jobs/{id}/acquire", put(jobs::acquire))
        .route("/jobs/{id}/accept", put(jobs::accept))
        .route("/jobs/{id}/start", put(jobs::start))
        .route("/jobs/{id}/finish", put(jobs::finish))
        .route("/jobs/{id}/chunks", post(jobs::chunk))
        .route("/jobs/{id}/header_times", post(jobs::header_times))
        .route("/jobs/{id}/oidc/tokens", post(tokens::oidc))
        .route("/jobs/{id}/data/set", post(metadata::set))
        .route("/jobs/{id}/data/set-batch", post(metadata::set_batch))
        .route("/jobs/{id}/data/get", post(metadata::get))
        .route("/jobs/{id}/data/exists", post(metadata::exists))
        .route("/jobs/{id}/data/keys", post(metadata::keys))
        .route("/builds/{id}/data/get", post(metadata::get_of_build))
        .route("/builds/{id}/data/exists", post(metadata::exists_in_build))
        .route("/builds/{id}/data/keys", post(metadata::keys_of_build))
        .route("/jobs/{id}/annotations", post(annotations::annotate))
        .route(
            "/jobs/{id}/annotations/{context}",
            delete(annotations::remove),
        )
        .method_not_allowed_fallback(async || Refusal::new(405, "Method Not Allowed"));
    Router::new()
        .nest("/v3", routes)
        .fallback(async || Refusal::not_found())
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(shared.clone(), fail_as_told))
        .with_state(shared)
}

async fn fail_as_told(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    match shared.look(|world| world.faults.api.clone()) {
        ApiFault::None => with_message(next.run(request).await),
        ApiFault::Status(status) => Refusal::new(status, "the service is not well").into_response(),
        ApiFault::Hold => {
            hold(&shared).await;
            with_message(next.run(request).await)
        }
    }
}

/// What the framework refuses by itself (a query that cannot be read, a body too large) speaks as the service does.
fn with_message(answer: Response) -> Response {
    let is_json = answer
        .headers()
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|kind| kind == "application/json");
    let status = answer.status();
    if !(status.is_client_error() || status.is_server_error()) || is_json {
        return answer;
    }
    Refusal::new(
        status.as_u16(),
        status.canonical_reason().unwrap_or("refused"),
    )
    .into_response()
}

/// Waits until the API is told to fail in another way.
async fn hold(shared: &Shared) {
    let before = shared.look(|world| world.faults.api.clone());
    shared
        .wait(HOLD_MAX, |world| (world.faults.api != before).then_some(()))
        .await;
}

/// A JSON body, whatever the content type says.
fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(body)
        .map_err(|error| Refusal::bad_request(format!("body is not what is expected: {error}")))
}

/// 200 with an empty object.
fn done() -> Response {
    (
        StatusCode::OK,
        [(http::header::CONTENT_TYPE, "application/json")],
        Body::from("{}"),
    )
        .into_response()
}
