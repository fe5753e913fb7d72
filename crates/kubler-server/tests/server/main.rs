//! The real server as a whole: real processes, real Kubernetes, the strict stand-in for Buildkite.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "tests stop at the first surprise, and what they print is shown then"
)]

mod access;
mod bad_input;
mod buildkite_jobs;
mod builds;
mod certificates;
mod commands;
mod connections;
mod crash;
mod create;
mod demo;
mod environments;
mod explain;
mod faults;
mod full_disk;
mod gateway;
mod host_rbac;
mod hostile_network;
mod informer;
mod keeping;
mod kubectl;
mod lease;
mod ledger;
mod likeness;
mod namespace;
mod promises;
mod refusals;
mod release;
mod reload;
mod request_info;
mod secrets;
mod sessions;
mod streams;
mod tenant;
mod webhooks;

use std::time::Duration;

/// How long anything that should happen soon may take on a busy machine.
const SOON: Duration = Duration::from_secs(30);
/// How long anything may take that has to happen at some time, on a machine that does much else.
const LONG: Duration = Duration::from_secs(120);

/// What the page of metrics says of `name`, without its prefix.
async fn metric(server: &kubler_testkit::kubler::Server, name: &str) -> i64 {
    let page = server.operator(reqwest::Method::GET, "/metrics").await;
    assert_eq!(page.status, 200, "{page:?}");
    let page = page.body.as_str().unwrap().to_owned();
    let line = page
        .lines()
        .find_map(|line| line.strip_prefix(&format!("kubler_{name} ")));
    line.unwrap_or_else(|| panic!("no `{name}` in {page}"))
        .parse()
        .unwrap()
}
