//! How the ledger hears of what was refused: by records while they are few, by counts when somebody repeats
//! themselves. A session can be used without end, and so must not be able to write without end.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use kubler_core::ids::{RequestId, SessionId};
use kubler_core::ledger::record::{
    Body as RecordBody, Decision, Kind, KubernetesRequest, LedgerAction,
};

use super::status::Refused;
use crate::ledger::{Durability, Ledger, RefusalBeforeVerification};
use crate::session::Session;

/// One session's refusals of one code are recorded at most this often; the others are counted.
const RECORD_EVERY: SignedDuration = SignedDuration::from_secs(1);
/// Most refusals, by session and code, that are recorded within that time; the others are counted.
const RECORDED_MAX: usize = 4096;

/// How the ledger hears of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recorded {
    /// By a record of its own, unless one like it was written just now.
    Itself,
    /// Counted with others of its kind: anybody can cause these without end, with no living session.
    Counted,
}

/// A refusal before anything was sent on.
pub(super) struct Stop {
    pub(super) refused: Refused,
    pub(super) recorded: Recorded,
    pub(super) session: Option<Arc<Session>>,
    pub(super) decision: Option<Decision>,
}

impl Stop {
    /// One that gets a record of its own.
    pub(super) fn of(session: &Arc<Session>, refused: Refused) -> Box<Self> {
        Box::new(Self {
            refused,
            recorded: Recorded::Itself,
            session: Some(Arc::clone(session)),
            decision: None,
        })
    }

    /// One that is only counted.
    pub(super) fn counted(session: &Arc<Session>, refused: Refused) -> Box<Self> {
        Box::new(Self {
            recorded: Recorded::Counted,
            ..*Self::of(session, refused)
        })
    }
}

/// What a refused request was, as far as anybody knows.
pub(super) struct Refusal<'a> {
    pub(super) stop: &'a Stop,
    pub(super) request_id: RequestId,
    pub(super) peer: IpAddr,
    pub(super) now: Timestamp,
    pub(super) request: Option<KubernetesRequest>,
}

/// Which refusals were recorded a moment ago.
#[derive(Default)]
pub(super) struct Refusals {
    recorded: Mutex<HashMap<(SessionId, &'static str), Timestamp>>,
}

impl Refusals {
    /// The record of a refusal, when it gets one of its own; else it is counted.
    pub(super) fn take(&self, ledger: &Ledger, refusal: Refusal<'_>) -> Option<RecordBody> {
        let stop = refusal.stop;
        let session = stop.session.as_ref().filter(|session| {
            stop.recorded == Recorded::Itself
                && self.is_due(session.id, stop.refused.code, refusal.now)
        });
        match session {
            Some(session) => Some(record(refusal, session)),
            None => {
                let counted = RefusalBeforeVerification {
                    peer: refusal.peer,
                    reason: stop.refused.code,
                };
                ledger.refuse_request(refusal.request_id, counted);
                None
            }
        }
    }

    fn is_due(&self, session: SessionId, code: &'static str, now: Timestamp) -> bool {
        let mut recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that was set back makes old entries look like those of just now, and not for ever.
        let is_recent = |at: &Timestamp| now.duration_since(*at).abs() < RECORD_EVERY;
        if recorded.get(&(session, code)).is_some_and(is_recent) {
            return false;
        }
        if recorded.len() >= RECORDED_MAX {
            recorded.retain(|_, at| is_recent(at));
        }
        if recorded.len() >= RECORDED_MAX {
            return false;
        }
        recorded.insert((session, code), now);
        true
    }
}

fn record(refusal: Refusal<'_>, session: &Session) -> RecordBody {
    let Stop {
        refused, decision, ..
    } = refusal.stop;
    let mut record = RecordBody::new(Kind::Event, LedgerAction::KubernetesRequest);
    record.request_id = Some(refusal.request_id);
    record.environment_id = Some(session.environment);
    record.session_id = Some(session.id);
    record.identity = Some(Box::new(session.identity.clone()));
    record.peer = Some(refusal.peer.to_string());
    record.decision.clone_from(decision);
    record.request = refusal.request;
    record.outcome = Some(refused.outcome());
    record
}

/// Writes it down.
pub(super) async fn write(ledger: &Ledger, record: Option<RecordBody>) {
    let Some(record) = record else { return };
    // Nothing was sent on, so the answer does not wait for the ledger to be well again.
    if let Err(error) = ledger.event(record, Durability::Process).await {
        tracing::error!(%error, "a refusal could not be recorded");
    }
}
