//! Errors on the wire: RFC 9457 problem details with a stable code.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Media type of [`Problem`].
pub const PROBLEM_JSON: &str = "application/problem+json";

macro_rules! codes {
    ($(#[doc = $doc:literal] $name:ident = $word:literal, $status:literal, $next:literal;)+) => {
        /// Stable codes. The reference page is generated from this list.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
        pub enum ErrorCode {
            $(#[doc = $doc] #[serde(rename = $word)] $name,)+
        }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The word on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)+ }
            }

            /// The HTTP status it travels with.
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)+ }
            }

            /// What it says, in one sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => $doc,)+ }
            }

            /// What to do when the answer has no better hint.
            pub const fn next_step(self) -> &'static str {
                match self { $(Self::$name => $next,)+ }
            }
        }
    };
}

codes! {
    /// The request cannot be read.
    InvalidRequest = "invalid_request", 400, "correct the request; `detail` names the field";
    /// No identity, or one that could not be verified.
    Unauthenticated = "unauthenticated", 401, "get a fresh token with the server's audience and try again; `kubler doctor` names the usual causes";
    /// No policy allows it.
    Denied = "denied", 403, "the answer names the policy that came closest; an operator repeats it with `kubler policy explain JOB`";
    /// There is no such thing, or the caller may not know of it.
    NotFound = "not_found", 404, "check the id; an environment is visible to jobs of its own pipeline only";
    /// The environment has ended.
    EnvironmentEnded = "environment_ended", 404, "ask for a new environment in a new job";
    /// The path exists, the method does not.
    MethodNotAllowed = "method_not_allowed", 405, "see `/openapi.json` for the methods of this path";
    /// The request contradicts what exists.
    Conflict = "conflict", 409, "`detail` says what exists already; choose another name";
    /// What was to be made again is not what it was.
    Differs = "differs", 409, "`detail` lists what has changed; `kubler env create --like … --despite-differences` makes it all the same";
    /// The request is larger than it may be.
    TooLarge = "too_large", 413, "send less; `detail` names the bound";
    /// Too many requests or environments of this caller.
    TooMany = "too_many", 429, "wait for the time in `Retry-After`, or release what is not needed";
    /// A fault of the server's own.
    Internal = "internal", 500, "try again; give the operator the `request_id`";
    /// The disk of the server is full: nothing new is taken, what exists can still end.
    StorageFull = "storage_full", 507, "tell the operator: as soon as there is room on the disk of the server's data folder, it goes on by itself";
    /// Not now: starting, at a limit, or unable to record the request.
    Unavailable = "unavailable", 503, "wait for the time in `Retry-After` and try again";
}

/// Problem details, as `application/problem+json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `about:blank#code`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The code in words.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// Stable code.
    pub code: ErrorCode,
    /// What was wrong, and where.
    pub detail: String,
    /// What to do next.
    pub hint: String,
    /// Names this request in the ledger.
    pub request_id: String,
}
