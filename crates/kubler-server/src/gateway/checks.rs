//! Everything that has to be so before a request may go on, in the order of promise 6: who asks, which environment,
//! whether it lives, whether the session does, and only then whether it may.

use std::sync::{Arc, PoisonError};

use http::StatusCode;
use http::header::HeaderMap;
use http_body::Body as _;
use jiff::Timestamp;
use kubler_core::environment::Environment;
use kubler_core::ids::EnvironmentId;
use kubler_core::request::upgrade;
use kubler_core::request::{ApiRequest, Effect, RequestFault, Span};

use super::admission::Denied;
use super::forward::{Admitted, Outgoing, stopped};
use super::gate::Gate;
use super::guardrails;
use super::load::{Demand, Turn};
use super::refusals::{Recorded, Stop};
use super::status::Refused;
use super::upgrade::refused as refused_upgrade;
use super::{Arrival, Shared};
use crate::bearer::{self, Bearer};
use crate::session::Session;

/// A living environment, and its gate when it has one.
type Living = (Arc<Environment>, Option<Arc<Gate>>);

impl Shared {
    /// Lets a request through when its turn has come. Whoever had to wait is looked at anew: their session, or their
    /// environment, may have come to its end meanwhile.
    pub(super) async fn admit_in_turn(
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
            None => Err(gate.cut().map_or_else(stopped, |cut| cut.refused.clone())),
        };
        let turn =
            turn.map_err(|refused| Stop::of(admitted.admission.shared_session(), refused))?;
        let understood = admitted.understood.clone();
        drop(admitted);
        arrival.now = self.parts.clock.now();
        let (gate, admitted) = self.admit(arrival, id, Ok(understood))?;
        Ok((gate, admitted, turn))
    }

    /// Everything that has to be so before a request may go on, in the order of promise 6: who asks, which
    /// environment, whether it lives, whether the session does, and only then whether it may.
    pub(super) fn admit(
        self: &Arc<Self>,
        arrival: &Arrival,
        id: Option<EnvironmentId>,
        understood: Result<ApiRequest, RequestFault>,
    ) -> Result<(Arc<Gate>, Admitted), Box<Stop>> {
        let session = self.verify(&arrival.head.headers)?;
        let stop = |refused| Stop::of(&session, refused);
        let (environment, known) = self.living(&session, id, arrival.now)?;
        let gate = self
            .gate(&environment, known)
            .map_err(|refused| Stop::counted(&session, refused))?;
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
        let needs = guardrails::check(&gate, profile, &understood, arrival).map_err(stop)?;
        let head = &arrival.head;
        let upgrade = upgrade::read(&head.method, head.version, &head.headers, &understood)
            .map_err(|fault| stop(refused_upgrade(fault)))?;
        if upgrade.is_some() && !arrival.body.is_end_stream() {
            let message = "a request that changes the protocol has no body";
            return Err(stop(Refused::bad_request("UpgradeMalformed", message)));
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
        .map(|outgoing| outgoing.upgrading(upgrade))
        .map_err(|fault| stop(Refused::forbidden("HeaderRefused", fault.to_string())))?;
        let room = match understood.span() {
            Span::Short => None,
            Span::Watch | Span::Long => Some(gate.room().map_err(stop)?),
        };
        let admitted = Admitted {
            request_id: arrival.request_id,
            admission,
            outgoing,
            bytes_max: guardrails::bytes_max(profile, &understood),
            needs,
            understood,
            room,
            crossing: None,
        };
        Ok((gate, admitted))
    }

    /// The environment that a request names, which must be its session's, and its gate when it has one.
    fn living(
        &self,
        session: &Arc<Session>,
        id: Option<EnvironmentId>,
        now: Timestamp,
    ) -> Result<Living, Box<Stop>> {
        let standing = self
            .standing(session.environment, now)
            .and_then(|standing| match session.has_expired(now) {
                true => Err(Refused::session_expired(session.expires_at)),
                false => Ok(standing),
            });
        if id == Some(session.environment) {
            return standing.map_err(|refused| Stop::counted(session, refused));
        }
        let message = format!(
            "the session is for environment {}, and the path names another",
            session.environment
        );
        let refused = Refused::forbidden("WrongEnvironment", message);
        // A session that is over is good for nothing, also not for records.
        Err(match standing {
            Ok(_) => Stop::of(session, refused),
            Err(_) => Stop::counted(session, refused),
        })
    }

    /// The environment of a session and its gate, when it lives and has one.
    fn standing(&self, id: EnvironmentId, now: Timestamp) -> Result<Living, Refused> {
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
                recorded: Recorded::Counted,
                session: None,
                decision: None,
            }))
        };
        // A browser can set no header of its own, and hides it among the subprotocols.
        let hidden = upgrade::bearer(headers);
        let token = match (bearer::token(headers), &hidden) {
            (Bearer::Token(token), Ok(None)) => token,
            (Bearer::Absent, Ok(Some(token))) => token.as_str(),
            (Bearer::Absent | Bearer::Malformed, Ok(None)) => {
                return stop(
                    "NoSession",
                    "no session was given; `kubler kubeconfig` writes a kubeconfig that gets one",
                );
            }
            (_, Ok(Some(_)) | Err(_)) => {
                return stop(
                    "InvalidSession",
                    "the session is given in more than one way, or in a broken one",
                );
            }
        };
        match self.parts.sessions.verify(token) {
            Ok(session) => Ok(session),
            Err(_) => stop(
                "InvalidSession",
                "this is no session of this server; `kubler credential` gets one",
            ),
        }
    }
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
