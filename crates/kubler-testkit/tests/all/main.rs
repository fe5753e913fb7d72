//! The stand-in is as strict as the service, and the real agent takes it for one.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod agent;
mod cluster;
mod forge;
mod issuer;
mod lab;
mod leaks;
mod routes;
mod strictness;
mod webhooks;
