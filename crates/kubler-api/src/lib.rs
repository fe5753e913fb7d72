//! What travels between `kubler` and `kubler-server`: wire types and error codes. Both sides use these, so
//! neither can drift.

pub mod error;
pub mod ledger;
pub mod paths;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Longest time a request may wait for an environment, in seconds.
pub const WAIT_SECONDS_MAX: u64 = 60;
/// Name of an environment when the caller does not choose one.
pub const NAME_DEFAULT: &str = "main";
/// RFC 8693's name for the exchange.
pub const GRANT_TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
/// RFC 8693's name for a JWT.
pub const TOKEN_TYPE_JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
/// RFC 8693's name for an access token.
pub const TOKEN_TYPE_ACCESS: &str = "urn:ietf:params:oauth:token-type:access_token";

/// Who may use an environment besides the job that made it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Nobody.
    #[default]
    Job,
    /// Any job of the same build, by name.
    Build,
}

/// Where an environment is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Intended.
    Requested,
    /// Being made.
    Provisioning,
    /// Usable.
    Ready,
    /// Could not be made, or broke.
    Failed,
    /// Ending; credentials are dead.
    Releasing,
    /// Looked for, and not found.
    Gone,
}

/// `POST /v1/environments`: asks for an environment. Bearer: the CI's identity token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateEnvironment {
    /// The profile to make it of.
    pub profile: String,
    /// Its name within the job (or the build, by scope): a DNS label.
    #[schema(pattern = "^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")]
    #[serde(default = "name_default")]
    pub name: String,
    /// Who may use it besides this job.
    #[serde(default)]
    pub scope: Scope,
    /// Make nothing: attach to the environment of this name that another job of the same build has made. Needs scope
    /// `build`, and goes without `like`.
    #[serde(default)]
    pub attach: bool,
    /// Make the same again: refused, with what differs, when the profile has changed since this environment (`env_…`)
    /// was made.
    #[schema(pattern = "^env_[0-9a-f]{32}$")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub like: Option<String>,
    /// With `like`: make it all the same.
    #[serde(default)]
    pub despite_differences: bool,
    /// Seconds to wait until it is usable, at most 60; 0 answers at once.
    #[serde(default, deserialize_with = "seconds")]
    pub wait_seconds: u64,
}

/// Within what the OpenAPI document can say of a number: 64 bits with a sign.
fn seconds<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    use serde::de::Error as _;
    let seconds = u64::deserialize(deserializer)?;
    if i64::try_from(seconds).is_ok() {
        Ok(seconds)
    } else {
        Err(D::Error::custom("so many seconds are no number of seconds"))
    }
}

fn name_default() -> String {
    NAME_DEFAULT.to_owned()
}

/// An environment, as its job sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Environment {
    /// `env_…`.
    pub id: String,
    /// Its name within its job or build.
    pub name: String,
    /// Who may use it besides its job.
    pub scope: Scope,
    /// Where it is in its life.
    pub phase: Phase,
    /// The profile it was made of.
    pub profile: String,
    /// What makes and destroys it.
    pub engine: String,
    /// The exact Kubernetes version; of an environment on a host cluster the host's, empty until a place is chosen.
    pub kubernetes_version: String,
    /// The host cluster that it is on, if it is on one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Its namespace there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Digest of all it is made of: same digest, same environment.
    pub digest: String,
    /// The job it belongs to.
    pub owner: Owner,
    /// The other jobs of its build that attached to it, in the order in which they came.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attached: Vec<AttachedJob>,
    /// In traces, and in lists by image: the images that the pod templates sent to it named, in the order in which they
    /// came.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    /// Not all images are told: there are more than are told at once or kept, and the ledger has them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub images_truncated: bool,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it first was usable.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ready_at: Option<Timestamp>,
    /// How long the last proof of life carries.
    #[schema(value_type = String, format = DateTime)]
    pub lease_end: Timestamp,
    /// How long one proof of life carries, in seconds.
    pub lease_seconds: u64,
    /// When it ends whatever happens.
    #[schema(value_type = String, format = DateTime)]
    pub deadline: Timestamp,
    /// Why it ended or is ending.
    pub end: Option<End>,
    /// Why the last try to make or end it failed, or why it waits for a place, while it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
    /// When its credentials died.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub dead_at: Option<Timestamp>,
    /// When nothing of it was found any more.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub gone_at: Option<Timestamp>,
    /// Where its Kubernetes API is.
    pub gateway: Gateway,
    /// What the job calls, and when.
    pub hooks: Hooks,
    /// A kubeconfig without secrets, as YAML (JSON is YAML).
    pub kubeconfig: String,
}

/// Why an environment ended or is ending.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct End {
    /// `released`, `lapsed`, `deadline_reached`, `job_finished`, `agent_lost`, `revoked`, `failed`.
    pub code: String,
    /// One sentence.
    pub message: String,
}

/// The job an environment belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Owner {
    /// Who signed the job's identity.
    pub issuer: String,
    /// Organization id.
    pub organization_id: String,
    /// Organization slug.
    pub organization: String,
    /// Pipeline id.
    pub pipeline_id: String,
    /// Pipeline slug.
    pub pipeline: String,
    /// Build id.
    pub build_id: String,
    /// Build number.
    pub build_number: u64,
    /// Job id.
    pub job_id: String,
    /// Step key, as its author wrote it.
    pub step_key: Option<String>,
    /// Branch, as its author wrote it.
    pub branch: Option<String>,
    /// Commit.
    pub commit: String,
    /// The job's page.
    pub url: String,
}

/// A job that uses an environment which another job of its build has made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AttachedJob {
    /// Job id.
    pub job_id: String,
    /// Step key, as its author wrote it.
    pub step_key: Option<String>,
    /// The agent it runs on.
    pub agent_id: String,
    /// The job's page.
    pub url: String,
    /// When it attached.
    #[schema(value_type = String, format = DateTime)]
    pub attached_at: Timestamp,
}

/// Where an environment's Kubernetes API is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Gateway {
    /// `https://…/k8s/env_…`.
    pub url: String,
    /// PEM of the CA to trust; absent: the caller's own trust.
    pub ca: Option<String>,
}

/// What a job calls, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Hooks {
    /// Where to send objects: the gateway, with a session.
    pub deploy: Hook,
    /// How to get a session.
    pub credential: Hook,
    /// How to prove life.
    pub renew: Hook,
    /// How to end it.
    pub teardown: Hook,
}

/// One call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Hook {
    /// HTTP method.
    pub method: String,
    /// URL.
    pub url: String,
    /// The `kubler` command that does it.
    pub command: String,
    /// Call it at least this often, in seconds; absent: when needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_seconds: Option<u64>,
}

/// `GET /v1/environments` and `GET /v1/trace/{anything}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Environments {
    /// Newest first.
    pub environments: Vec<Environment>,
    /// Whether older ones were left out.
    pub truncated: bool,
}

/// `GET /v1/environments/{id}/differences/{other}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Differences {
    /// The first.
    pub before: Environment,
    /// The second.
    pub after: Environment,
    /// Whether both are made of the same: their digests are equal.
    pub same: bool,
    /// What differs: what they are made of, then whose they are.
    pub differences: Vec<Difference>,
}

/// One thing that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Difference {
    /// A key of the profile, an object of a manifest, a fact of the job.
    pub what: String,
    /// How it is in the first; absent: it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// How it is in the second; absent: it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// `POST /v1/environments/{id}/release`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReleaseEnvironment {
    /// Seconds to wait until it is verified gone, at most 60; 0 answers at once.
    #[serde(deserialize_with = "seconds")]
    pub wait_seconds: u64,
}

/// `GET /v1/environments/{id}/drift`: what of an environment on a host was found to be another than was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Drifts {
    /// Found since the server started, oldest first, at most 50. The ledger has all of them.
    pub drifts: Vec<Drift>,
}

/// One object that was not as it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Drift {
    /// Its kind and name, as `networkpolicies/kubler`.
    pub object: String,
    /// When it was found.
    #[schema(value_type = String, format = DateTime)]
    pub found_at: Timestamp,
    /// What was another; empty when it was not there, or is somebody else's that was put there.
    pub changes: Vec<DriftChange>,
    /// Who did it, as far as the host knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<DriftAuthor>,
    /// `repaired`, `reported` or `failed`.
    pub answer: String,
    /// Why it could not be put right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// One field that was another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DriftChange {
    /// Where, as `spec.hard.pods`.
    pub path: String,
    /// What was made, as JSON, cut.
    pub applied: String,
    /// What was found, as JSON, cut; absent when nothing was there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
}

/// Who changed an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DriftAuthor {
    /// The field manager: the client's name, which the client chooses.
    pub manager: String,
    /// `Apply` or `Update`.
    pub operation: String,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub at: Option<Timestamp>,
}

/// `GET /v1/approvals`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Approvals {
    /// Oldest first.
    pub approvals: Vec<Approval>,
}

/// A request that needs the approval of an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Approval {
    /// `apr_…`.
    pub id: String,
    /// `pending`, `approved` or `refused`.
    pub state: String,
    /// The operator who answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// What was asked for, in one line.
    pub what: String,
    /// The verb: of Kubernetes, or `connect` or `proxy`.
    pub verb: String,
    /// API group; empty for the core group.
    pub group: Option<String>,
    /// Resource.
    pub resource: Option<String>,
    /// Subresource.
    pub subresource: Option<String>,
    /// Namespace.
    pub namespace: Option<String>,
    /// Name.
    pub name: Option<String>,
    /// SHA-256 of the request's body, in hex; none for a Secret.
    pub body_sha256: Option<String>,
    /// `env_…`.
    pub environment_id: String,
    /// The job that asks.
    pub job_id: String,
    /// Its page.
    pub job_url: String,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub asked_at: Timestamp,
    /// Until when it can be answered; once approved, until when the request can be repeated.
    #[schema(value_type = String, format = DateTime)]
    pub until: Timestamp,
}

/// `GET /v1/tombstones/{id}`: what anybody who knows the id may know of a dead environment, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tombstone {
    /// `env_…`.
    pub id: String,
    /// When its credentials died.
    #[schema(value_type = String, format = DateTime)]
    pub ended_at: Timestamp,
    /// Whether nothing of it is left.
    pub gone: bool,
    /// Why.
    pub end: End,
    /// The run it belonged to.
    pub run_url: String,
}

/// `POST /v1/token`, form-encoded: RFC 8693 token exchange.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenExchange {
    /// [`GRANT_TOKEN_EXCHANGE`].
    #[schema(pattern = "^urn:ietf:params:oauth:grant-type:token-exchange$")]
    pub grant_type: String,
    /// The CI's identity token.
    pub subject_token: String,
    /// [`TOKEN_TYPE_JWT`].
    #[schema(pattern = "^urn:ietf:params:oauth:token-type:jwt$")]
    pub subject_token_type: String,
    /// The environment: `env_…`.
    pub resource: String,
}

/// Answer to a token exchange.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IssuedToken {
    /// The session's credential.
    pub access_token: String,
    /// [`TOKEN_TYPE_ACCESS`].
    pub issued_token_type: String,
    /// `Bearer`.
    pub token_type: String,
    /// Seconds until it ends.
    pub expires_in: u64,
    /// When it ends.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    /// The session's name in the ledger: `ses_…`.
    pub session_id: String,
}

/// `GET /healthz`, `GET /readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok` or `unavailable`.
    pub status: String,
    /// Each thing that was checked: `ok`, or what is wrong.
    pub checks: BTreeMap<String, String>,
    /// What stops nothing and deserves a look all the same, such as a sink of the ledger that is behind.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub remarks: BTreeMap<String, String>,
    /// The server's version.
    pub version: String,
    /// The server's clock, so that a caller can compare its own.
    #[schema(value_type = String, format = DateTime)]
    pub now: Timestamp,
}
