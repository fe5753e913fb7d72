//! Requests that wait for a second pair of eyes: which there are, and what operators say to them.

use kubler_core::guardrails::approvals::{Approval, Unanswerable};
use kubler_core::ids::ApprovalId;
use kubler_core::ledger::record::LedgerAction;
use kubler_core::policy::{Action, Target};

use super::{Broker, BrokerError, Call, Result, Who};

impl Broker {
    /// The approvals that are asked for or answered, and not over.
    ///
    /// # Errors
    /// `Denied`.
    pub async fn approvals(&self, call: &Call) -> Result<Vec<Approval>> {
        self.recorded(call, LedgerAction::ApprovalRead, None, async |body| {
            self.decide(call, body, Action::ReadApprovals, Target::Server)?;
            let lives = |approval: &Approval| {
                let environment = self.directory.get(approval.asked.environment);
                environment.is_some_and(|it| self.directory.tombstone(&it, call.now).is_none())
            };
            let mut all = self.approvals.with(|approvals| approvals.list(call.now));
            all.retain(lives);
            Ok(all)
        })
        .await
    }

    /// Approves or refuses one request. Never by a job, whatever policy says: nobody approves what they ask for.
    ///
    /// # Errors
    /// `Denied`; `NotFound` when nothing waits for it; `Conflict` when it is answered already.
    pub async fn answer_approval(&self, call: &Call, id: &str, approve: bool) -> Result<Approval> {
        self.recorded(call, LedgerAction::ApprovalAnswer, None, async |body| {
            self.decide(call, body, Action::AnswerApproval, Target::Server)?;
            let Who::Operator(operator) = &call.who else {
                return Err(BrokerError::only_operators("answer approvals"));
            };
            let id: ApprovalId = id.parse().map_err(|_| BrokerError::no_approval(id))?;
            body.details
                .insert("approval".into(), id.to_string().into());
            let by = operator.name.as_str();
            let answered = self
                .approvals
                .with(|approvals| approvals.answer(id, approve, by, call.now));
            let approval = answered.map_err(|error| match error {
                Unanswerable::Unknown(_) => BrokerError::no_approval(&id.to_string()),
                Unanswerable::Answered { .. } => BrokerError::Conflict {
                    detail: error.to_string(),
                    hint: "whoever repeats the request is told how it ended".into(),
                },
            })?;
            body.environment_id = Some(approval.asked.environment);
            body.details
                .insert("answer".into(), approval.state.as_str().into());
            Ok(approval)
        })
        .await
    }
}
