//! The way from an answer that changes the protocol to a tunnel: what the API server agreed to is checked, the client
//! is told, and when both have put HTTP away their bytes are carried.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use kubler_core::ids::RequestId;
use kubler_core::request::headers::AUDIT_ID;
use kubler_core::request::upgrade::{Agreed, UpgradeFault};
use tokio::time::Instant;

use super::admission::Admission;
use super::gate::{Gate, Room, Watched};
use super::load::Turn;
use super::status::Refused;
use super::tunnel::{OpenTunnel, Tunnel};
use super::wire::Wire;
use crate::ledger::Entry;

/// Longest time from our answer to the first byte of the new protocol.
const SWITCH_MAX: Duration = Duration::from_secs(10);

/// What is kept for as long as a changed connection is open: its place at the door.
#[derive(Clone)]
pub struct Held(pub Arc<dyn Any + Send + Sync>);

/// The client's side of a change of protocol.
pub(super) struct Crossing {
    client: OnUpgrade,
    held: Option<Held>,
}

impl Crossing {
    /// The client's side, when the request asks for a change of protocol.
    pub(super) fn of<B>(request: &mut http::Request<B>) -> Option<Self> {
        let asks = request.headers().contains_key(http::header::UPGRADE);
        asks.then(|| Self {
            held: request.extensions_mut().remove(),
            client: hyper::upgrade::on(request),
        })
    }
}

/// Everything that a tunnel is made of besides the connection to the API server.
pub(super) struct Ready {
    pub(super) gate: Arc<Gate>,
    pub(super) admission: Arc<Admission>,
    pub(super) request_id: RequestId,
    pub(super) audit_id: HeaderValue,
    pub(super) entry: Entry,
    pub(super) started: Instant,
    pub(super) shares: (Turn, Option<Room>),
}

/// Tells the client that the protocol changes, and carries what is spoken then.
pub(super) fn cross(
    ready: Ready,
    crossing: Option<Crossing>,
    headers: HeaderMap,
    agreed: Agreed,
    wire: Wire,
) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers;
    response.headers_mut().insert(AUDIT_ID, ready.audit_id);
    let open = OpenTunnel::new(ready.admission);
    let place = ready.gate.enter(Watched::Tunnel(Arc::clone(&open)));
    let tunnel = Tunnel {
        open,
        gate: ready.gate,
        place,
        agreed,
        request_id: ready.request_id,
        entry: ready.entry,
        started: ready.started,
        shares: ready.shares,
    };
    tokio::spawn(carry(tunnel, crossing, wire));
    response
}

async fn carry(tunnel: Tunnel, crossing: Option<Crossing>, wire: Wire) {
    let Some(crossing) = crossing else {
        return tunnel.nobody_came();
    };
    // The client hears of an end only when it listens, and the API server at once.
    match tokio::time::timeout(SWITCH_MAX, crossing.client).await {
        Ok(Ok(client)) => {
            let (upstream, early) = wire.into_parts();
            tunnel.run(TokioIo::new(client), upstream, &early).await;
        }
        Ok(Err(_)) | Err(_) => tunnel.nobody_came(),
    }
    drop(crossing.held);
}

/// What a client is told whose wish is not granted.
pub(super) fn refused(fault: UpgradeFault) -> Refused {
    match fault {
        UpgradeFault::Required => Refused::bad_request("UpgradeRequired", fault.to_string()),
        UpgradeFault::Malformed(_) => Refused::bad_request("UpgradeMalformed", fault.to_string()),
        UpgradeFault::NotHere | UpgradeFault::Unknown => Refused::other(
            StatusCode::NOT_IMPLEMENTED,
            "NotImplemented",
            "UpgradeNotSupported",
            fault.to_string(),
        ),
    }
}
