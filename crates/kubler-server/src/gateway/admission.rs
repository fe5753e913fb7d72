//! That a session may use its environment: decided once per session and set of policies, and remembered.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use kubler_core::environment::Environment;
use kubler_core::ids::SessionId;
use kubler_core::ledger::record::Decision;
use kubler_core::policy::{Action, Caller, Permit, PolicySet, Target};

use super::status::Refused;
use crate::policy::Policies;
use crate::session::Session;

/// Most remembered admissions of one environment. A session lives minutes, so there are few.
pub(super) const ADMISSIONS_MAX: usize = 256;

/// A positive decision about one session, under one set of policies. Made of a permit and of nothing else.
pub(super) struct Admission {
    session: Arc<Session>,
    policies: Arc<PolicySet>,
    decision: Decision,
}

/// A negative one.
pub(super) struct Denied {
    /// What the caller is told.
    pub(super) refused: Refused,
    /// What the ledger is told; none when policy was not asked.
    pub(super) decision: Option<Decision>,
}

impl Admission {
    fn new(permit: Permit, session: Arc<Session>, policies: Arc<PolicySet>) -> Self {
        let decision = permit.decision();
        // The permit is used up here; what it allowed lives on only in this value.
        drop(permit);
        Self {
            session,
            policies,
            decision,
        }
    }

    /// Who was admitted.
    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// The same, to keep.
    pub(super) fn shared_session(&self) -> &Arc<Session> {
        &self.session
    }

    /// On which grounds.
    pub(super) fn decision(&self) -> &Decision {
        &self.decision
    }

    /// Whether it was decided under these policies.
    pub(super) fn is_under(&self, policies: &Arc<PolicySet>) -> bool {
        Arc::ptr_eq(&self.policies, policies)
    }
}

/// The admissions of one environment.
#[derive(Default)]
pub(super) struct Admissions {
    by_session: RwLock<HashMap<SessionId, Arc<Admission>>>,
}

impl Admissions {
    /// Whether the session may use the environment now.
    ///
    /// # Errors
    /// When the environment is not its job's, or policy says no.
    pub(super) fn admit(
        &self,
        session: &Arc<Session>,
        environment: &Environment,
        policies: &Policies,
    ) -> Result<Arc<Admission>, Box<Denied>> {
        let current = policies.current();
        let known = self
            .by_session
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&session.id)
            .map(Arc::clone);
        if let Some(admission) = known.filter(|admission| admission.is_under(&current)) {
            return Ok(admission);
        }
        let admission = Arc::new(decide(session, environment, current)?);
        let mut by_session = self
            .by_session
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if by_session.len() >= ADMISSIONS_MAX {
            by_session.clear();
        }
        by_session.insert(session.id, Arc::clone(&admission));
        Ok(admission)
    }

    /// How many are remembered.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        let by_session = self.by_session.read();
        by_session.unwrap_or_else(PoisonError::into_inner).len()
    }
}

fn decide(
    session: &Arc<Session>,
    environment: &Environment,
    policies: Arc<PolicySet>,
) -> Result<Admission, Box<Denied>> {
    if session.environment != environment.id || !environment.is_open_to(&session.identity.owner()) {
        let message = format!("environment {} belongs to another job", environment.id);
        return Err(Box::new(Denied {
            refused: Refused::forbidden("NotYours", message),
            decision: None,
        }));
    }
    let caller = Caller::Job(Box::new(session.identity.clone()));
    let target = Target::Environment(Box::new(environment.clone()));
    match policies.decide(&caller, Action::UseKubernetes, target) {
        Ok(permit) => Ok(Admission::new(permit, Arc::clone(session), policies)),
        Err(denial) => {
            let refused =
                Refused::forbidden("Denied", format!("{}; {}", denial.detail, denial.hint));
            Err(Box::new(Denied {
                refused,
                decision: Some(denial.decision()),
            }))
        }
    }
}
