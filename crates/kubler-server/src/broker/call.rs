//! Who calls, from where, when: what every operation is told before it does anything.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use kubler_core::identity::VerifiedToken;
use kubler_core::ids::RequestId;
use kubler_core::ledger::record::{Body, Kind, LedgerAction};
use kubler_core::policy::{Caller, Operator};

use crate::in_force::InForce;

/// One request by one verified caller.
#[derive(Clone)]
pub struct Call {
    /// Names it in the ledger and in every answer.
    pub request_id: RequestId,
    /// Where it came from.
    pub peer: IpAddr,
    /// When it arrived.
    pub now: Timestamp,
    /// What the configuration said then: the same until the answer is written.
    pub in_force: Arc<InForce>,
    /// Who calls.
    pub who: Who,
}

/// A verified caller, with what proved it.
#[derive(Debug, Clone)]
pub enum Who {
    /// A CI job, by its identity token.
    Job(Box<VerifiedToken>),
    /// An operator, by a client certificate.
    Operator(Operator),
}

impl Call {
    /// As policy sees the caller.
    pub fn caller(&self) -> Caller {
        match &self.who {
            Who::Job(token) => Caller::Job(Box::new(token.identity.clone())),
            Who::Operator(operator) => Caller::Operator(operator.clone()),
        }
    }

    /// A ledger record that says who asked.
    pub fn body(&self, kind: Kind, action: LedgerAction) -> Body {
        let mut body = Body::new(kind, action);
        body.request_id = Some(self.request_id);
        body.peer = Some(self.peer.to_string());
        match &self.who {
            Who::Job(token) => {
                body.identity = Some(Box::new(token.identity.clone()));
                body.token_sha256 = Some(token.digest.to_string());
                body.token_id.clone_from(&token.token_id);
                body.note_clock_skew(token.clock_skew_seconds(self.now));
            }
            Who::Operator(operator) => body.operator = Some(operator.name.clone()),
        }
        body
    }
}
