//! One module per group of commands.

pub mod approval;
pub mod completions;
pub mod credential;
pub mod doctor;
pub mod environment;
pub mod kubeconfig;
pub mod ledger;
pub mod policy;
pub mod reference;
pub mod run;
pub mod trace;

/// How long commands wait for an environment unless told otherwise, in seconds.
pub const WAIT_SECONDS_DEFAULT: u64 = 120;
/// Longest that anybody may wait for an environment, in seconds.
pub const WAIT_SECONDS_MAX: u64 = 900;
/// Longest time for a command that only asks, in seconds.
pub const ASK_SECONDS_MAX: u64 = 30;
