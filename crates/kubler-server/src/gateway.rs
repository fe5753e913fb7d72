//! The identity-aware proxy in front of every environment's Kubernetes API: `/k8s/{environment}/…`.
//!
//! A session decides everything: who asks, and for which environment. Nothing is sent on before it was admitted
//! by policy and its start is in the ledger; no credential of a client reaches an API server, and none of an
//! API server reaches a client. Upgrades (exec, attach, port-forward) take a connection of their own and the same
//! admission, record and gate; their bytes pass through a `tunnel`.

mod admission;
mod artifacts;
mod body;
mod checks;
mod direction;
mod forward;
mod framing;
mod gate;
mod guardrails;
mod load;
mod pool;
mod protobuf;
mod protocol;
mod refusals;
mod status;
mod stream;
mod tunnel;
mod upgrade;
mod whole;
mod wire;

use std::collections::HashMap;
use std::error::Error;
use std::net::IpAddr;
use std::num::NonZero;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::header;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body::Body as HttpBody;
use jiff::Timestamp;
use kubler_core::environment::{Environment, Phase};
use kubler_core::ids::{EnvironmentId, RequestId};
use kubler_core::ledger::record::{Body as RecordBody, Kind, LedgerAction};
use kubler_core::request::{ApiRequest, Effect, RequestFault};
use tokio_util::sync::CancellationToken;

use crate::approvals::Approvals;
use crate::clock::Clock;
use crate::directory::Directory;
use crate::engine::Engine;
use crate::entropy;
use crate::ledger::{Durability, Ledger, LedgerError};
use crate::policy::Policies;
use crate::session::Sessions;
use crate::store::Store;
use direction::Patience;
use forward::forward;
use gate::Gate;
use pool::Destination;
use refusals::{Refusal, Refusals};
use status::{Refused, Shown};
use upgrade::Crossing;
pub use upgrade::Held;
use whole::Whole;

/// Marks an answer of the gateway's own: nothing was sent on.
#[derive(Debug, Clone, Copy)]
pub struct RefusedHere;

/// What the gateway works with.
pub struct GatewayParts {
    /// What every environment is like now.
    pub directory: Arc<Directory>,
    /// Who may speak for which job.
    pub sessions: Arc<Sessions>,
    /// Who may do what.
    pub policies: Arc<Policies>,
    /// What was done.
    pub ledger: Ledger,
    /// Which images ran where.
    pub store: Arc<Store>,
    /// What operators said to single requests.
    pub approvals: Arc<Approvals>,
    /// Where the API servers are.
    pub engines: Vec<Arc<dyn Engine>>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Ends every open answer when the server stops.
    pub shutdown: CancellationToken,
}

/// The gateway. Cheap to clone.
#[derive(Clone)]
pub struct Gateway {
    shared: Arc<Shared>,
}

struct Shared {
    parts: GatewayParts,
    bounds: Bounds,
    gates: RwLock<HashMap<EnvironmentId, Arc<Gate>>>,
    refusals: Refusals,
}

/// Short requests of one environment at once, for each processor.
const IN_FLIGHT_PER_PROCESSOR: usize = 8;
/// And at most, however many processors there are.
const IN_FLIGHT_MAX: usize = 64;

/// What nobody can have without end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bounds {
    /// Most answers of one environment that go on at once: watches, followed logs, connections.
    open_max: usize,
    /// Longest wait for the head of an answer that should come soon.
    answer_max: Duration,
    /// Longest silence in the middle of a request's body.
    silence_max: Duration,
    /// Most short requests of one environment that its API server works on at once.
    in_flight_max: usize,
    /// Longest wait for a turn.
    wait_max: Duration,
    /// How long a changed connection may be without a byte.
    patience: Patience,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            // Controllers and a few dozen people with dashboards need fewer; each one costs a connection.
            open_max: 256,
            // The API server's own bound is 60 s.
            answer_max: Duration::from_secs(75),
            silence_max: Duration::from_secs(30),
            in_flight_max: in_flight_max(
                std::thread::available_parallelism().map_or(1, NonZero::get),
            ),
            wait_max: Duration::from_secs(5),
            patience: Patience {
                ping_every: Duration::from_secs(20),
                // A person who reads a page of a command's output is slow, too.
                stall_max: Duration::from_secs(300),
            },
        }
    }
}

/// A processor works on one request at a time, while others of the same environment wait for etcd; whatever is more
/// only stands in the way of the neighbours.
fn in_flight_max(processors: usize) -> usize {
    (IN_FLIGHT_PER_PROCESSOR * processors).min(IN_FLIGHT_MAX)
}

/// One request from its arrival on.
struct Arrival {
    request_id: RequestId,
    peer: IpAddr,
    now: Timestamp,
    head: Parts,
    body: Body,
    /// When it asks for another protocol.
    crossing: Option<Crossing>,
}

impl Gateway {
    /// A gateway that has let nobody through yet.
    pub fn new(parts: GatewayParts) -> Self {
        Self::with_bounds(parts, Bounds::default())
    }

    fn with_bounds(parts: GatewayParts, bounds: Bounds) -> Self {
        Self {
            shared: Arc::new(Shared {
                parts,
                bounds,
                gates: RwLock::default(),
                refusals: Refusals::default(),
            }),
        }
    }

    /// Answers one request to `/k8s/{environment}/…`; `peer` is the address it came from. Answers that go on
    /// end by themselves when the environment does.
    pub async fn handle<B>(&self, mut request: Request<B>, peer: IpAddr) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let Ok(request_id) = entropy::request_id() else {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            return response;
        };
        let crossing = Crossing::of(&mut request);
        let (head, body) = request.into_parts();
        let arrival = Arrival {
            request_id,
            peer,
            now: self.shared.parts.clock.now(),
            head,
            body: Body::new(body),
            crossing,
        };
        let (id, understood) = read(&arrival.head);
        let shown = match &understood {
            Ok(understood) if understood.record().path.is_some() => Shown::OnlyWarnings,
            Ok(_) | Err(_) => Shown::Status,
        };
        match self.shared.pass(arrival, id, understood).await {
            Ok(response) => response,
            Err(refused) => {
                let mut response = refused.response(request_id, shown);
                response.extensions_mut().insert(RefusedHere);
                response
            }
        }
    }
}

/// Reads the environment and what is asked of it. Pure, and done before anything is known of the caller.
fn read(head: &Parts) -> (Option<EnvironmentId>, Result<ApiRequest, RequestFault>) {
    let target = head
        .uri
        .path_and_query()
        .map_or("", |target| target.as_str());
    let below = target
        .strip_prefix(kubler_api::paths::GATEWAY)
        .unwrap_or_default();
    let end = below.find(['/', '?']).unwrap_or(below.len());
    let (id, rest) = below.split_at_checked(end).unwrap_or_default();
    let user_agent = head
        .headers
        .get(header::USER_AGENT)
        .and_then(|value| value.to_str().ok());
    let rest = if rest.starts_with('/') {
        std::borrow::Cow::Borrowed(rest)
    } else {
        format!("/{rest}").into()
    };
    let understood =
        ApiRequest::parse(&head.method, &rest).map(|understood| understood.by(user_agent));
    (id.parse().ok(), understood)
}

impl Shared {
    /// One request, from the session to the answer.
    async fn pass(
        self: &Arc<Self>,
        mut arrival: Arrival,
        id: Option<EnvironmentId>,
        understood: Result<ApiRequest, RequestFault>,
    ) -> Result<Response<Body>, Refused> {
        let mut noted = understood.as_ref().ok().map(ApiRequest::record).cloned();
        // Of a deletion with a body, the API server takes all options from there: nobody makes a real one look tried.
        if let Some(deletion) = noted.as_mut().filter(|it| it.verb.starts_with("delete")) {
            deletion.dry_run &= arrival.body.is_end_stream();
        }
        let whole = match self.admit_whole(&mut arrival, id, understood).await {
            Ok(passed) => passed,
            Err(stop) => {
                let refusal = Refusal {
                    stop: &stop,
                    request_id: arrival.request_id,
                    peer: arrival.peer,
                    now: arrival.now,
                    request: noted,
                };
                let record = self.refusals.take(&self.parts.ledger, refusal);
                drop(arrival);
                refusals::write(&self.parts.ledger, record).await;
                return Err(stop.refused);
            }
        };
        let Whole {
            gate,
            mut admitted,
            turn,
            artifact,
            approval,
        } = whole;
        admitted.crossing = arrival.crossing.take();
        let session = admitted.admission.session();
        let mut record = RecordBody::new(Kind::Start, LedgerAction::KubernetesRequest);
        record.request_id = Some(arrival.request_id);
        record.environment_id = Some(session.environment);
        record.session_id = Some(session.id);
        // A copy for each request: some 20 short texts, which is nothing beside writing them down.
        record.identity = Some(Box::new(session.identity.clone()));
        record.peer = Some(arrival.peer.to_string());
        record.decision = Some(admitted.admission.decision().clone());
        record.request = noted;
        record.artifact = artifact.clone();
        let approved = approval.map(|id| ("approval".to_owned(), id.to_string().into()));
        record.details.extend(approved);
        let durability = match admitted.understood.effect() {
            Effect::Read => Durability::Process,
            Effect::Change | Effect::Connect => Durability::Disk,
        };
        let entry = self.parts.ledger.start(record, durability).await.map_err(|error| {
            tracing::error!(%error, "a request was refused because it could not be recorded");
            match error {
                LedgerError::Full => Refused::unavailable("StorageFull", "the server's disk is full, so the request was not sent on; it goes on by itself when there is room"),
                _ => Refused::unavailable("NotRecorded", "the request could not be recorded, so it was not sent on; try again in a moment"),
            }
        })?;
        let Some(artifact) = artifact else {
            return forward(gate, admitted, turn, arrival.body, entry).await;
        };
        let noted = self.named(&gate, &admitted, *artifact, arrival.now).await;
        let noted = match noted {
            Ok(noted) => noted,
            Err(refused) => {
                entry.end(refused.outcome()).await;
                return Err(refused);
            }
        };
        let answered = forward(gate, admitted, turn, arrival.body, entry).await;
        noted.answered(
            answered
                .as_ref()
                .is_ok_and(|answer| answer.status().is_success()),
        );
        answered
    }

    /// The gate of a living environment, opened when it is first used and again when its API server moved.
    fn gate(
        self: &Arc<Self>,
        environment: &Environment,
        known: Option<Arc<Gate>>,
    ) -> Result<Arc<Gate>, Refused> {
        let not_ready = || {
            let message = format!(
                "environment {} is {}; try again in a moment",
                environment.id,
                environment.phase.as_str()
            );
            Refused::unavailable("NotReady", message)
        };
        if environment.phase != Phase::Ready {
            return Err(not_ready());
        }
        let site = environment.site();
        let engine = self
            .parts
            .engines
            .iter()
            .find(|engine| Some(engine.site()) == site);
        let upstream = engine
            .and_then(|engine| engine.upstream(environment.id))
            .ok_or_else(not_ready)?;
        let leads_there =
            |gate: &Arc<Gate>| gate.cut().is_none() && gate.pool().destination().is(&upstream);
        if let Some(gate) = known.filter(leads_there) {
            return Ok(gate);
        }
        let mut gates = self.gates.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(gate) = gates.get(&environment.id).filter(|gate| leads_there(gate)) {
            return Ok(Arc::clone(gate));
        }
        let destination = Destination::new(upstream)
            .map_err(|error| Refused::unavailable("UnusableUpstream", error.to_string()))?;
        let gate = Arc::new(Gate::new(environment, destination, self.bounds));
        gates.insert(environment.id, Arc::clone(&gate));
        drop(gates);
        tokio::spawn(Arc::clone(self).keep(Arc::clone(&gate)));
        Ok(gate)
    }

    /// Stands at a gate until its environment ends.
    async fn keep(self: Arc<Self>, gate: Arc<Gate>) {
        gate.watch(&self.parts).await;
        let mut gates = self.gates.write().unwrap_or_else(PoisonError::into_inner);
        if gates
            .get(&gate.id())
            .is_some_and(|current| Arc::ptr_eq(current, &gate))
        {
            gates.remove(&gate.id());
        }
    }
}

#[cfg(test)]
mod tests;
