//! Bodies of requests, read whole before anybody is asked anything: bounded in length, in time, and in how many are
//! read at once, since they come from callers whom nobody knows yet. The only place that bounds them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use kubler_api::error::ErrorCode;
use kubler_api::paths;

use super::error::ApiError;
use super::places::Places;

/// Longest body of an ordinary request, in bytes.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Longest body of a webhook, in bytes.
const WEBHOOK_BYTES_MAX: usize = 1024 * 1024;
/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// What is read of a body past its bound, in bytes.
const DISCARDED_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Ordinary bodies that are read at once, and of one address: 64 MiB at most.
const BODIES_MAX: [usize; 2] = [1024, 512];
/// Webhooks that are read at once, and of one address: 16 MiB at most.
const WEBHOOKS_MAX: [usize; 2] = [16, 8];

/// Room for bodies on their way.
pub(super) struct Bodies {
    ordinary: Arc<Places>,
    webhooks: Arc<Places>,
}

impl Default for Bodies {
    fn default() -> Self {
        Self {
            ordinary: Arc::new(Places::of(BODIES_MAX)),
            webhooks: Arc::new(Places::of(WEBHOOKS_MAX)),
        }
    }
}

impl Bodies {
    /// The request of somebody at `address` with its whole body. Nobody waits for room: their headers would.
    ///
    /// # Errors
    /// When it is too long, too slow, breaks off, or there is no room for it.
    pub(super) async fn read(
        &self,
        request: Request<Incoming>,
        address: IpAddr,
    ) -> Result<Request<Body>, ApiError> {
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
        let _place = room.take(address).map_err(|_| {
            let detail = "too many requests with a body are on their way";
            ApiError::new(ErrorCode::Unavailable, detail).hint("try again in a moment")
        })?;
        let read = tokio::time::timeout(BODY_TIMEOUT, collect(body, bytes_max)).await;
        let slow = || {
            let detail = format!("the body did not come within {} s", BODY_TIMEOUT.as_secs());
            ApiError::new(ErrorCode::InvalidRequest, detail).hint("send the request again")
        };
        let bytes = read.unwrap_or_else(|_| Err(slow()))?;
        Ok(Request::from_parts(head, Body::from(bytes)))
    }
}

/// All of a body. Of one that is too long some more is read and thrown away: most clients read no answer before they
/// have written everything, and would only see a connection that broke.
async fn collect(mut body: Incoming, bytes_max: usize) -> Result<Vec<u8>, ApiError> {
    let (mut bytes, mut length) = (Vec::new(), 0_usize);
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|_| ApiError::new(ErrorCode::InvalidRequest, "the body broke off"))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        length = length.saturating_add(data.len());
        if length <= bytes_max {
            bytes.extend_from_slice(&data);
        } else {
            bytes = Vec::new();
        }
        if length > bytes_max.saturating_add(DISCARDED_BYTES_MAX) {
            break;
        }
    }
    if length > bytes_max {
        let detail = format!("the body is longer than {bytes_max} bytes");
        return Err(ApiError::new(ErrorCode::TooLarge, detail));
    }
    Ok(bytes)
}
