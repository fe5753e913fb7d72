//! Bodies of requests, read whole before anybody is asked anything: bounded in length, in time, and in how many are
//! read at once, since they come from callers whom nobody knows yet.

use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use http_body::Body as _;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use kubler_api::error::ErrorCode;
use kubler_api::paths;
use tokio::sync::Semaphore;

use super::error::ApiError;
use super::reading::BODY_BYTES_MAX;
use crate::broker::webhook::WEBHOOK_BYTES_MAX;

/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Ordinary bodies that are read at once: 64 MiB at most.
const BODIES_MAX: usize = 1024;
/// Webhooks that are read at once: 16 MiB at most.
const WEBHOOKS_MAX: usize = 16;

/// Room for bodies on their way.
pub(super) struct Bodies {
    ordinary: Semaphore,
    webhooks: Semaphore,
}

impl Default for Bodies {
    fn default() -> Self {
        Self {
            ordinary: Semaphore::new(BODIES_MAX),
            webhooks: Semaphore::new(WEBHOOKS_MAX),
        }
    }
}

impl Bodies {
    /// The request with its whole body.
    ///
    /// # Errors
    /// When it is too long, too slow, breaks off, or there is no room for it.
    pub(super) async fn read(&self, request: Request<Incoming>) -> Result<Request<Body>, ApiError> {
        let (head, body) = request.into_parts();
        if body.is_end_stream() {
            return Ok(Request::from_parts(head, Body::empty()));
        }
        let is_webhook = head.uri.path() == paths::BUILDKITE_WEBHOOK;
        let (room, bytes_max) = if is_webhook {
            (&self.webhooks, WEBHOOK_BYTES_MAX)
        } else {
            (&self.ordinary, BODY_BYTES_MAX)
        };
        let whole = async {
            let Ok(_room) = room.acquire().await else {
                return Err(ApiError::internal());
            };
            let collected = Limited::new(body, bytes_max).collect().await;
            collected.map_err(|error| {
                if error.is::<LengthLimitError>() {
                    let detail = format!("the body is longer than {bytes_max} bytes");
                    ApiError::new(ErrorCode::TooLarge, detail)
                } else {
                    ApiError::new(ErrorCode::InvalidRequest, "the body broke off")
                }
            })
        };
        let read = tokio::time::timeout(BODY_TIMEOUT, whole).await;
        let slow = || {
            let detail = format!("the body did not come within {} s", BODY_TIMEOUT.as_secs());
            ApiError::new(ErrorCode::InvalidRequest, detail).hint("send the request again")
        };
        let bytes = read.unwrap_or_else(|_| Err(slow()))?.to_bytes();
        Ok(Request::from_parts(head, Body::from(bytes)))
    }
}
