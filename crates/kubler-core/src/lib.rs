//! The pure core of Kubler: it decides, and never touches the world.
//!
//! No runtime, no files, no network, no clock, no randomness: what a decision needs comes in as
//! an argument, and what should happen comes out as a value. The shell (`kubler-server`) carries it out.

pub mod artifact;
pub mod bucket;
pub mod build_facts;
pub mod configuration;
pub mod difference;
pub mod egress;
pub mod environment;
pub mod frames;
#[cfg(any(test, fuzzing))]
#[allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a property that does not hold stops the run"
)]
pub mod fuzz;
pub mod guardrails;
pub mod host;
pub mod identity;
pub mod ids;
pub mod invariants;
pub mod lease;
pub mod ledger;
pub mod plan;
pub mod policy;
pub mod profile;
pub mod request;
pub mod session;
pub mod text;
pub mod tombstone;
