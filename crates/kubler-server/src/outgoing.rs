//! How the server asks others: an issuer for its keys, a sink to keep a checkpoint.

use std::time::Duration;

use reqwest::{Client, ClientBuilder, redirect};

/// A client that goes where it is told and nowhere else: HTTPS only, no proxy, no redirect, no second try.
pub(crate) fn client(timeout: Duration) -> ClientBuilder {
    Client::builder()
        .https_only(true)
        .no_proxy()
        .redirect(redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .timeout(timeout)
        .connect_timeout(timeout)
        .pool_max_idle_per_host(1)
        .user_agent(concat!("kubler-server/", env!("CARGO_PKG_VERSION")))
}
