//! The identity-aware proxy in front of every environment's Kubernetes API: `/k8s/{environment}/…`.
//!
//! A session decides everything: who asks, and for which environment. Nothing is sent on before it was admitted
//! by policy and its start is in the ledger; no credential of a client reaches an API server, and none of an
//! API server reaches a client. Upgrades (exec, attach, port-forward) are refused with an explanation: they
//! would take a connection of their own from `wire`, and the same admission, record and gate.

mod admission;
mod body;
mod forward;
mod framing;
mod gate;
mod load;
mod notes;
mod pool;
mod protobuf;
mod status;
mod stream;
mod wire;

use std::collections::HashMap;
use std::error::Error;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body::Body as HttpBody;
use jiff::Timestamp;
use kubler_core::environment::{Environment, Phase};
use kubler_core::ids::{EnvironmentId, RequestId};
use kubler_core::ledger::record::{Body as RecordBody, Kind, LedgerAction};
use kubler_core::request::{ApiRequest, Effect, RequestFault, Span};
use tokio_util::sync::CancellationToken;

use crate::bearer::{self, Bearer};
use crate::clock::Clock;
use crate::directory::Directory;
use crate::engine::Engine;
use crate::entropy;
use crate::ledger::{Durability, Ledger, LedgerError};
use crate::policy::Policies;
use crate::session::{Session, Sessions};
use admission::Denied;
use forward::{Admitted, Outgoing, forward};
use gate::Gate;
use load::{Demand, Turn};
use notes::{Note, Notes, Refusal, Stop};
use pool::Destination;
use status::{Refused, Shown};

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
    notes: Notes,
}

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
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            // Controllers and a few dozen people with dashboards need fewer; each one costs a connection.
            open_max: 256,
            // The API server's own bound is 60 s.
            answer_max: Duration::from_secs(75),
            silence_max: Duration::from_secs(30),
            // Most of what an API server does at once on few cores is waiting.
            in_flight_max: 64,
            wait_max: Duration::from_secs(5),
        }
    }
}

/// One request from its arrival on.
struct Arrival {
    request_id: RequestId,
    peer: IpAddr,
    now: Timestamp,
    head: Parts,
    body: Body,
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
                notes: Notes::default(),
            }),
        }
    }

    /// Answers one request to `/k8s/{environment}/…`; `peer` is the address it came from. Answers that go on
    /// end by themselves when the environment does.
    pub async fn handle<B>(&self, request: Request<B>, peer: IpAddr) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let Ok(request_id) = entropy::request_id() else {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            return response;
        };
        let (head, body) = request.into_parts();
        let arrival = Arrival {
            request_id,
            peer,
            now: self.shared.parts.clock.now(),
            head,
            body: Body::new(body),
        };
        let (id, understood) = read(&arrival.head);
        let shown = match &understood {
            Ok(understood) if understood.record().path.is_some() => Shown::OnlyWarnings,
            Ok(_) | Err(_) => Shown::Status,
        };
        match self.shared.pass(arrival, id, understood).await {
            Ok(response) => response,
            Err(refused) => refused.response(request_id, shown),
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
        let noted = understood.as_ref().ok().map(ApiRequest::record).cloned();
        let (gate, admitted, turn) = match self.admit_in_turn(&mut arrival, id, understood).await {
            Ok(passed) => passed,
            Err(stop) => {
                let refusal = Refusal {
                    stop: &stop,
                    request_id: arrival.request_id,
                    peer: arrival.peer,
                    now: arrival.now,
                    request: noted,
                };
                let record = self.notes.take(&self.parts.ledger, refusal);
                drop(arrival);
                notes::write(&self.parts.ledger, record).await;
                return Err(stop.refused);
            }
        };
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
        forward(gate, admitted, turn, arrival.body, entry).await
    }

    /// Lets a request through when its turn has come. Whoever had to wait is looked at anew: their session, or their
    /// environment, may have come to its end meanwhile.
    async fn admit_in_turn(
        self: &Arc<Self>,
        arrival: &mut Arrival,
        id: Option<EnvironmentId>,
        understood: Result<ApiRequest, RequestFault>,
    ) -> Result<(Arc<Gate>, Admitted, Turn), Box<Stop>> {
        let (gate, admitted) = self.admit(arrival, id, understood)?;
        let demand = Demand {
            is_change: admitted.understood.effect() != Effect::Read || admitted.room.is_some(),
            is_short: admitted.room.is_none(),
            bytes: arrival.body.size_hint().lower(),
        };
        let turn = tokio::select! {
            turn = gate.load().turn(demand) => Some(turn),
            () = gate.closed() => None,
        };
        let turn = match turn {
            Some(Ok(turn)) if !turn.waited => return Ok((gate, admitted, turn)),
            Some(Ok(turn)) => Ok(turn),
            Some(Err(refused)) => Err(refused),
            None => Err(gate
                .cut()
                .map_or_else(forward::stopped, |cut| cut.refused.clone())),
        };
        let turn = turn.map_err(|refused| {
            Box::new(Stop {
                refused,
                note: Note::Record,
                session: Some(Arc::clone(admitted.admission.shared_session())),
                decision: None,
            })
        })?;
        let understood = admitted.understood.clone();
        drop(admitted);
        arrival.now = self.parts.clock.now();
        let (gate, admitted) = self.admit(arrival, id, Ok(understood))?;
        Ok((gate, admitted, turn))
    }

    /// Everything that has to be so before a request may go on, in the order of promise 6: who asks, which
    /// environment, whether it lives, whether the session does, and only then whether it may.
    fn admit(
        self: &Arc<Self>,
        arrival: &Arrival,
        id: Option<EnvironmentId>,
        understood: Result<ApiRequest, RequestFault>,
    ) -> Result<(Arc<Gate>, Admitted), Box<Stop>> {
        let session = self.verify(&arrival.head.headers)?;
        let stop = |refused| {
            Box::new(Stop {
                refused,
                note: Note::Record,
                session: Some(Arc::clone(&session)),
                decision: None,
            })
        };
        let count = |refused| {
            Box::new(Stop {
                note: Note::Count,
                ..*stop(refused)
            })
        };
        let standing = self
            .standing(session.environment, arrival.now)
            .and_then(|standing| match session.has_expired(arrival.now) {
                true => Err(Refused::session_expired(session.expires_at)),
                false => Ok(standing),
            });
        if id != Some(session.environment) {
            let message = format!(
                "the session is for environment {}, and the path names another",
                session.environment
            );
            let refused = Refused::forbidden("WrongEnvironment", message);
            // A session that is over is good for nothing, also not for records.
            return Err(match standing {
                Ok(_) => stop(refused),
                Err(_) => count(refused),
            });
        }
        let (environment, known) = standing.map_err(count)?;
        let gate = self.gate(&environment, known).map_err(count)?;
        let admission = gate
            .admit(&session, &environment, &self.parts)
            .map_err(|denied| {
                let Denied { refused, decision } = *denied;
                Box::new(Stop {
                    decision,
                    ..*stop(refused)
                })
            })?;
        let profile = &environment.resolved.profile;
        let understood = understood.map_err(|fault| stop(refused_fault(&fault)))?;
        if arrival.head.headers.contains_key(header::UPGRADE) || is_upgrade(&understood) {
            return Err(stop(no_upgrade(&understood)));
        }
        if arrival.body.size_hint().lower() > profile.request_bytes_max {
            return Err(stop(Refused::too_large(profile.request_bytes_max)));
        }
        let outgoing = Outgoing::build(
            &arrival.head,
            &understood,
            &gate,
            profile.engine,
            arrival.request_id,
        )
        .map_err(|fault| stop(Refused::forbidden("HeaderRefused", fault.to_string())))?;
        let room = match understood.span() {
            Span::Short => None,
            Span::Watch | Span::Long => Some(gate.room().map_err(stop)?),
        };
        let admitted = Admitted {
            request_id: arrival.request_id,
            admission,
            understood,
            outgoing,
            bytes_max: profile.request_bytes_max,
            room,
        };
        Ok((gate, admitted))
    }

    /// The environment of a session and its gate, when it lives and has one.
    fn standing(
        &self,
        id: EnvironmentId,
        now: Timestamp,
    ) -> Result<(Arc<Environment>, Option<Arc<Gate>>), Refused> {
        let environment = self
            .parts
            .directory
            .get(id)
            .ok_or_else(|| Refused::forgotten(&id.to_string()))?;
        let known = self
            .gates
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .map(Arc::clone);
        match self.parts.directory.tombstone(&environment, now) {
            Some(tombstone) => Err(Refused::ended(&tombstone)),
            None => Ok((environment, known)),
        }
    }

    /// Who asks. Whether the session is still alive is asked later: a dead environment comes first.
    fn verify(&self, headers: &HeaderMap) -> Result<Arc<Session>, Box<Stop>> {
        let stop = |code, message| {
            let refused = Refused::unauthorized(code, message);
            Err(Box::new(Stop {
                refused,
                note: Note::Count,
                session: None,
                decision: None,
            }))
        };
        let Bearer::Token(token) = bearer::token(headers) else {
            return stop(
                "NoSession",
                "no session was given; `kubler kubeconfig` writes a kubeconfig that gets one",
            );
        };
        match self.parts.sessions.verify(token) {
            Ok(session) => Ok(session),
            Err(_) => stop(
                "InvalidSession",
                "this is no session of this server; `kubler credential` gets one",
            ),
        }
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
        let kind = environment.resolved.profile.engine;
        let engine = self
            .parts
            .engines
            .iter()
            .find(|engine| engine.kind() == kind);
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

fn is_upgrade(understood: &ApiRequest) -> bool {
    let subresource = understood.record().subresource.as_deref();
    understood.effect() == Effect::Connect && subresource.is_some_and(|word| word != "proxy")
}

fn no_upgrade(understood: &ApiRequest) -> Refused {
    let what = understood
        .record()
        .subresource
        .as_deref()
        .unwrap_or("a changed protocol");
    let message = format!(
        "`{what}` is not carried by this gateway yet: it takes a connection that is not HTTP; logs, watches and all other requests are"
    );
    Refused::other(
        StatusCode::NOT_IMPLEMENTED,
        "NotImplemented",
        "UpgradeNotSupported",
        message,
    )
}

fn refused_fault(fault: &RequestFault) -> Refused {
    match fault {
        RequestFault::TooLong { .. } => Refused::other(
            StatusCode::URI_TOO_LONG,
            "BadRequest",
            "TargetTooLong",
            fault.to_string(),
        ),
        RequestFault::Path(_) | RequestFault::Query(_) => {
            Refused::bad_request("NotNormal", fault.to_string())
        }
        RequestFault::Method { .. } => Refused::other(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "MethodNotAllowed",
            fault.to_string(),
        ),
    }
}

#[cfg(test)]
mod tests;
