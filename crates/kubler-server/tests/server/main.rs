//! The real server as a whole: real processes, real Kubernetes, the strict stand-in for Buildkite.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "tests stop at the first surprise"
)]

mod access;
mod bad_input;
mod buildkite_jobs;
mod builds;
mod commands;
mod connections;
mod crash;
mod create;
mod demo;
mod environments;
mod explain;
mod faults;
mod gateway;
mod kubectl;
mod lease;
mod ledger;
mod likeness;
mod refusals;
mod release;
mod reload;
mod secrets;
mod sessions;
mod webhooks;

use std::time::Duration;

/// How long anything that should happen soon may take on a busy machine.
const SOON: Duration = Duration::from_secs(30);
