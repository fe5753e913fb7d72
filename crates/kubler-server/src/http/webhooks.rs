//! `/v1/hooks`: what the CI says by itself.

use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;

use super::Arrival;
use super::error::ApiError;
use super::reading::{Answer, Refused, Shared, unreadable};
use crate::broker::webhook;

/// Buildkite's webhooks, signed form only.
#[utoipa::path(post, operation_id = "buildkite_webhook", path = "/v1/hooks/buildkite", request_body = serde_json::Value, responses((status = 204), Refused))]
pub(super) async fn buildkite(
    State(api): Shared,
    arrival: Arrival,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Answer<StatusCode> {
    let body = body.map_err(|rejection| unreadable(&rejection.body_text()).of(&arrival))?;
    let now = api.clock.now();
    let signature = headers
        .get("x-buildkite-signature")
        .and_then(|value| value.to_str().ok());
    let in_force = api.in_force.load_full();
    let verified =
        webhook::verify(&in_force.webhook_secrets, signature, &body, now).map_err(|reason| {
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
