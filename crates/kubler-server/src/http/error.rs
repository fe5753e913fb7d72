//! Turns every refusal of the HTTP API into RFC 9457 problem details, with the status that `kubler-api` gives its code.

use axum::Json;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use kubler_api::error::{ErrorCode, PROBLEM_JSON, Problem};
use kubler_core::ids::RequestId;

use super::Arrival;
use crate::broker::BrokerError;
use crate::identity::Disclosed;

/// When to try again, in seconds.
const RETRY_SECONDS: u32 = 2;

/// A refusal on its way out.
#[derive(Debug)]
pub struct ApiError {
    code: ErrorCode,
    detail: String,
    hint: String,
    request_id: Option<RequestId>,
}

impl ApiError {
    /// A refusal with its own words.
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            hint: code.next_step().into(),
            request_id: None,
        }
    }

    /// With another next step than the code's.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Names the request it answers.
    #[must_use]
    pub fn of(mut self, arrival: &Arrival) -> Self {
        self.request_id = Some(arrival.request_id);
        self
    }

    /// Names the request it answers.
    #[must_use]
    pub const fn with_id(mut self, request_id: RequestId) -> Self {
        self.request_id = Some(request_id);
        self
    }

    /// The one 401. `disclosed` only for a validly signed token for us, of an organization of ours.
    pub fn unauthenticated(disclosed: Option<Disclosed>) -> Self {
        let error = Self::new(
            ErrorCode::Unauthenticated,
            "the caller could not be verified",
        );
        match disclosed {
            None => error,
            Some(disclosed) => Self {
                detail: disclosed.detail,
                hint: disclosed.hint,
                ..error
            },
        }
    }

    /// A fault of ours, which is not explained.
    pub fn internal() -> Self {
        Self::new(ErrorCode::Internal, "the server failed")
    }

    /// From the broker's refusal.
    pub fn from_broker(error: &BrokerError, request_id: RequestId) -> Self {
        let code = error.code();
        if code == ErrorCode::Internal {
            tracing::error!(%error, %request_id, "an operation failed");
        }
        let (detail, hint) = error.told();
        Self {
            code,
            detail,
            hint,
            request_id: Some(request_id),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let problem = Problem {
            kind: format!("about:blank#{}", self.code.as_str()),
            title: self.code.as_str().replace('_', " "),
            status: status.as_u16(),
            code: self.code,
            detail: self.detail,
            hint: self.hint,
            request_id: self.request_id.map(|id| id.to_string()).unwrap_or_default(),
        };
        let mut response = (status, Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        match self.code {
            ErrorCode::Unauthenticated => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            ErrorCode::TooMany | ErrorCode::StorageFull | ErrorCode::Unavailable => {
                headers.insert(RETRY_AFTER, HeaderValue::from(RETRY_SECONDS));
            }
            _ => {}
        }
        response
    }
}
