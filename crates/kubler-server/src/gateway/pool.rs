//! The connections to one environment's API server: taken for one request, given back when its answer is over.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::HeaderValue;
use kubler_core::request::headers::Seal;
use tokio::time::Instant;

use super::wire::{ConnectError, Wire};
use crate::engine::Upstream;

/// Most connections kept while nobody uses them.
const IDLE_CONNECTIONS_MAX: usize = 64;
/// How long one is kept while nobody uses it, in seconds. An API server closes after 90: we go first, so that
/// a request is rarely sent into a closing connection.
const IDLE_SECONDS_MAX: u64 = 45;

/// An API server with everything that is the same for every request to it.
pub(super) struct Destination {
    upstream: Arc<Upstream>,
    tls: Arc<rustls::ClientConfig>,
    host: HeaderValue,
}

/// What the engine gave cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the environment's own name cannot be sent as a header")]
pub(super) struct UnusableUpstream;

impl Destination {
    /// Takes an engine's upstream. Only HTTP/1.1 is spoken, whatever else the engine offers.
    pub(super) fn new(upstream: Arc<Upstream>) -> Result<Self, UnusableUpstream> {
        let mut tls = (*upstream.tls).clone();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let host =
            HeaderValue::from_str(&upstream.server_name.to_str()).map_err(|_| UnusableUpstream)?;
        Ok(Self {
            upstream,
            tls: Arc::new(tls),
            host,
        })
    }

    /// What goes last onto every request.
    pub(super) fn seal(&self, audit_id: HeaderValue) -> Seal {
        Seal {
            // Read anew for each request: the engine may have put another one there.
            authorization: self.upstream.token.header(),
            audit_id,
            host: self.host.clone(),
        }
    }

    /// Whether it is what the engine gives now.
    pub(super) fn is(&self, upstream: &Arc<Upstream>) -> bool {
        Arc::ptr_eq(&self.upstream, upstream)
    }
}

/// The connections to one destination.
pub(super) struct Pool {
    destination: Destination,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    wires: Vec<Wire>,
    is_closed: bool,
}

impl Pool {
    /// An empty pool.
    pub(super) fn new(destination: Destination) -> Self {
        Self {
            destination,
            idle: Mutex::default(),
        }
    }

    /// Where it leads.
    pub(super) fn destination(&self) -> &Destination {
        &self.destination
    }

    /// A connection that was used before and can be used again, the one that rested least.
    pub(super) async fn reuse(&self) -> Option<Wire> {
        while let Some(mut wire) = self.pop() {
            if std::future::poll_fn(|context| std::task::Poll::Ready(wire.is_free(context))).await {
                return Some(wire);
            }
        }
        None
    }

    /// A new connection.
    pub(super) async fn connect(&self) -> Result<Wire, ConnectError> {
        Wire::connect(
            &self.destination.upstream,
            Arc::clone(&self.destination.tls),
        )
        .await
    }

    /// Gives one back whose answer is over.
    pub(super) fn give_back(&self, mut wire: Wire) {
        wire.idle_since = Instant::now();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if !idle.is_closed && idle.wires.len() < IDLE_CONNECTIONS_MAX {
            idle.wires.push(wire);
        }
    }

    /// Closes what has rested too long.
    pub(super) fn sweep(&self) {
        let stale: Vec<Wire> = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            // They lie in the order in which they were given back.
            let fresh = idle
                .wires
                .iter()
                .position(|wire| !is_stale(wire))
                .unwrap_or(idle.wires.len());
            idle.wires.drain(..fresh).collect()
        };
        drop(stale);
    }

    /// Closes everything, and what comes back later too.
    pub(super) fn close(&self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.is_closed = true;
        idle.wires.clear();
    }

    fn pop(&self) -> Option<Wire> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.wires.pop().filter(|wire| !is_stale(wire))
    }
}

fn is_stale(wire: &Wire) -> bool {
    wire.idle_since.elapsed() > Duration::from_secs(IDLE_SECONDS_MAX)
}
