//! What Kubler's tests and its demo stand on: a stand-in Buildkite that is as strict as the real
//! service, the real `buildkite-agent` run against it, and proof that nothing is left behind.
//!
//! This crate must never depend on the server or the command line it helps to test.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::missing_panics_doc,
    reason = "a fixture that breaks must stop its test, and a stand-in of the world reads the real clock"
)]

pub mod agent;
pub mod buildkite;
pub mod cluster;
pub mod disk;
pub mod kubler;
pub mod lab;
pub mod leaks;
pub mod tls;
