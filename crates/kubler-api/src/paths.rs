//! Every path of the server, in one place for both sides.

/// Create and list.
pub const ENVIRONMENTS: &str = "/v1/environments";
/// Token exchange.
pub const TOKEN: &str = "/v1/token";
/// Health.
pub const HEALTHZ: &str = "/healthz";
/// Readiness.
pub const READYZ: &str = "/readyz";
/// Metrics.
pub const METRICS: &str = "/metrics";
/// The OpenAPI document.
pub const OPENAPI: &str = "/openapi.json";
/// Buildkite's webhooks.
pub const BUILDKITE_WEBHOOK: &str = "/v1/hooks/buildkite";
/// The latest signed checkpoint.
pub const CHECKPOINT: &str = "/v1/ledger/checkpoint";
/// Records.
pub const LEDGER_RECORDS: &str = "/v1/ledger/records";
/// In front of every environment's Kubernetes API.
pub const GATEWAY: &str = "/k8s/";

/// One environment.
pub fn environment(id: &str) -> String {
    format!("{ENVIRONMENTS}/{id}")
}

/// What differs in two environments.
pub fn differences(id: &str, other: &str) -> String {
    format!("{ENVIRONMENTS}/{id}/differences/{other}")
}

/// What of it is not as it was made.
pub fn drift(id: &str) -> String {
    format!("{ENVIRONMENTS}/{id}/drift")
}

/// Proof of life.
pub fn renew(id: &str) -> String {
    format!("{ENVIRONMENTS}/{id}/renew")
}

/// The end.
pub fn release(id: &str) -> String {
    format!("{ENVIRONMENTS}/{id}/release")
}

/// What is known of a dead environment.
pub fn tombstone(id: &str) -> String {
    format!("/v1/tombstones/{id}")
}

/// Search by environment, pipeline, build, job or commit.
pub fn trace(anything: &str) -> String {
    format!("/v1/trace/{anything}")
}

/// Approvals that are asked for.
pub const APPROVALS: &str = "/v1/approvals";

/// Approves a request.
pub fn approve(id: &str) -> String {
    format!("{APPROVALS}/{id}/approve")
}

/// Refuses a request.
pub fn refuse(id: &str) -> String {
    format!("{APPROVALS}/{id}/refuse")
}

/// An environment's Kubernetes API.
pub fn gateway(id: &str) -> String {
    format!("{GATEWAY}{id}")
}
