//! The real `kubler`, run as a job, a person or kubectl runs it.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "tests"
)]

mod bare_root;
mod credential;
mod desk;
mod doctor;
mod download;
mod help;
mod hooks;
mod messages;
mod offline;
mod plugin;
mod pre_exit;
mod real;
mod run;
