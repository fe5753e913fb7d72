//! Answers of the gateway's own, as Kubernetes `Status` objects, so that kubectl shows people the reason.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use jiff::Timestamp;
use kubler_core::ids::{EnvironmentId, RequestId};
use kubler_core::ledger::record::Outcome;
use kubler_core::request::headers::AUDIT_ID;
use kubler_core::tombstone::Tombstone;
use serde_json::{Value, json};

/// Seconds after which an environment that is being made is asked for again.
pub(super) const NOT_READY_RETRY_SECONDS: u32 = 1;
/// Seconds after which it is tried again whether fewer answers are open.
const TOO_MANY_RETRY_SECONDS: u32 = 1;
/// Most seconds after which whoever asked for too much is told to come back.
const TOO_MANY_RETRY_SECONDS_MAX: u32 = 10;

/// One refusal: what the caller is told, and what the ledger calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    /// HTTP status, and the Status object's code.
    pub(super) status: StatusCode,
    /// Kubernetes' word for it.
    pub(super) reason: &'static str,
    /// Our stable code: the cause's reason, and the ledger's.
    pub(super) code: &'static str,
    /// Plain words, the next step included.
    pub(super) message: String,
    /// When to come back, in seconds.
    pub(super) retry_seconds: Option<u32>,
}

/// Whether clients show people the Status of an answer. Of discovery they keep only the number, and print a
/// sentence of their own; a warning they always print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    /// They do.
    Status,
    /// They do not, so the message also travels as a warning.
    OnlyWarnings,
}

impl Refused {
    fn new(
        status: StatusCode,
        reason: &'static str,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            status,
            reason,
            code,
            message: message.into(),
            retry_seconds: None,
        }
    }

    /// 400: a request that cannot be taken as it is.
    pub(super) fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", code, message)
    }

    /// 401: no session, or none that this server signed.
    pub(super) fn unauthorized(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", code, message)
    }

    /// 401 of an expired session: clients run `kubler credential` again and go on.
    pub(super) fn session_expired(at: Timestamp) -> Self {
        Self::unauthorized(
            "SessionExpired",
            format!("the session expired at {at:.0}; `kubler credential` gets a new one"),
        )
    }

    /// 403.
    pub(super) fn forbidden(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden", code, message)
    }

    /// 404 of an environment that ended: when, why, and of which run.
    pub(super) fn ended(tombstone: &Tombstone) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            "EnvironmentEnded",
            format!("{}; a new job gets a new environment", tombstone.sentence()),
        )
    }

    /// 404 of an environment whose tombstone is no longer kept.
    pub(super) fn forgotten(id: &str) -> Self {
        let message = format!(
            "environment {id} ended so long ago that nothing is known of it any more; a new job gets a new environment"
        );
        Self::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            "EnvironmentEnded",
            message,
        )
    }

    /// 413.
    pub(super) fn too_large(bytes_max: u64) -> Self {
        let message = format!(
            "the request's body has more than {bytes_max} bytes, the bound of this environment's profile"
        );
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            "TooLarge",
            message,
        )
    }

    /// 429: as much is open as may be.
    pub(super) fn too_many_open(id: EnvironmentId, open_max: usize) -> Self {
        let message = format!(
            "environment {id} has {open_max} watches and followed logs open, as many as it may; end one and try again"
        );
        Self {
            retry_seconds: Some(TOO_MANY_RETRY_SECONDS),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "TooManyRequests",
                "TooManyOpen",
                message,
            )
        }
    }

    /// 429: more was asked for than there is in this time, so that clients come back by themselves.
    pub(super) fn too_many(code: &'static str, message: impl Into<String>, wait: Duration) -> Self {
        let seconds = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX);
        let retry_seconds = seconds.saturating_add(1).min(TOO_MANY_RETRY_SECONDS_MAX);
        Self {
            retry_seconds: Some(retry_seconds),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "TooManyRequests",
                code,
                message,
            )
        }
    }

    /// 503: not now.
    pub(super) fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        let retry_seconds = Some(NOT_READY_RETRY_SECONDS);
        Self {
            retry_seconds,
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "ServiceUnavailable",
                code,
                message,
            )
        }
    }

    /// Any other status.
    pub(super) fn other(
        status: StatusCode,
        reason: &'static str,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self::new(status, reason, code, message)
    }

    /// As the ledger records it.
    pub(super) fn outcome(&self) -> Outcome {
        Outcome {
            status: self.status.as_u16(),
            code: Some(self.code.to_owned()),
            message: Some(self.message.clone()),
            ..Outcome::default()
        }
    }

    /// The Status object.
    pub(super) fn object(&self, request_id: RequestId) -> Value {
        let mut details = json!({
            "causes": [
                { "reason": self.code, "message": self.message },
                { "reason": "RequestId", "message": request_id.to_string() },
            ],
        });
        if let (Some(seconds), Some(details)) = (self.retry_seconds, details.as_object_mut()) {
            details.insert("retryAfterSeconds".into(), seconds.into());
        }
        json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "details": details,
            "code": self.status.as_u16(),
        })
    }

    /// The last line of a watch that is ended: the event that says why.
    pub(super) fn watch_event(&self, request_id: RequestId) -> Bytes {
        let mut line = json!({ "type": "ERROR", "object": self.object(request_id) }).to_string();
        line.push('\n');
        line.into()
    }

    /// The whole answer.
    pub(super) fn response(&self, request_id: RequestId, shown: Shown) -> Response<Body> {
        let mut response = Response::new(Body::from(self.object(request_id).to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(AUDIT_ID, audit_id(request_id));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer error=\"invalid_token\""),
            );
        }
        if let Some(seconds) = self.retry_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if shown == Shown::OnlyWarnings
            && let Ok(value) =
                HeaderValue::from_str(&format!("299 - \"{}\"", quoted(&self.message)))
        {
            headers.insert(HeaderName::from_static("warning"), value);
        }
        response
    }
}

/// The request's id as a header.
pub(super) fn audit_id(request_id: RequestId) -> HeaderValue {
    // An id is a prefix and hex digits: always a header's value.
    HeaderValue::from_str(&request_id.to_string())
        .unwrap_or_else(|_| HeaderValue::from_static("req"))
}

/// The inside of a quoted string of a header: ASCII without quotes and backslashes.
fn quoted(text: &str) -> String {
    text.chars()
        .map(|c| {
            if (c.is_ascii_graphic() || c == ' ') && !matches!(c, '"' | '\\') {
                c
            } else {
                '?'
            }
        })
        .collect()
}
