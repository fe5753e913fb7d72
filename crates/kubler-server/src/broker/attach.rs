//! `scope: build`: what one job has made is used by the others of the same organization, pipeline and build, by name.

use kubler_api::CreateEnvironment;
use kubler_core::environment::Environment;
use kubler_core::identity::{Owner, VerifiedToken};
use kubler_core::ledger::record::Body;
use kubler_core::policy::{Action, Target};

use super::{Broker, BrokerError, Call, Result};

impl Broker {
    /// `existing`, the environment of this name that a job of the caller's build has made; makes nothing. It is what it
    /// was made of, whatever became of its profile since.
    pub(super) async fn attach_to(
        &self,
        call: &Call,
        body: &mut Body,
        token: &VerifiedToken,
        request: &CreateEnvironment,
        existing: Option<Environment>,
    ) -> Result<Environment> {
        if request.scope != kubler_api::Scope::Build {
            return Err(BrokerError::attach_needs_scope_build());
        }
        if request.like.is_some() {
            return Err(BrokerError::attach_makes_nothing());
        }
        let existing = open_to(&token.identity.owner(), existing)
            .ok_or_else(|| BrokerError::nothing_to_attach_to(&request.name))?;
        body.environment_id = Some(existing.id);
        if existing.resolved.profile.name != request.profile {
            return Err(BrokerError::other_profile(&existing, &request.profile));
        }
        self.attach(call, body, token, existing).await
    }

    /// Notes the caller among those who use the environment, unless it made it. Whoever may make one like it may.
    pub(super) async fn attach(
        &self,
        call: &Call,
        body: &mut Body,
        token: &VerifiedToken,
        existing: Environment,
    ) -> Result<Environment> {
        let target = Target::Profile(Box::new(existing.resolved.clone()));
        let permit = self.decide(call, body, Action::CreateEnvironment, target)?;
        if existing.owner() == token.identity.owner() {
            return Ok(existing);
        }
        body.details.insert("attached".into(), true.into());
        // A dead one is told as it is: there is nothing to use any more.
        if self.directory.tombstone(&existing, call.now).is_none() {
            self.store
                .attach(permit, &existing, &token.identity, call.now)
                .await?;
        }
        Ok(existing)
    }
}

/// What was found by its name, if the job may use it. The key of the name holds issuer, organization, pipeline and build,
/// so that it never leads to another's; nobody has to rely on it (rule C8).
fn open_to(owner: &Owner, existing: Option<Environment>) -> Option<Environment> {
    existing.filter(|existing| existing.is_open_to(owner))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::{maker_neighbour_stranger, of_job_and_build};

    #[test]
    fn c8_what_a_name_leads_to_is_looked_at_again() {
        let [of_job, of_build] = of_job_and_build();
        let [maker, neighbour, stranger] = maker_neighbour_stranger();
        let is_found = |owner: &Owner, it: &Environment| open_to(owner, Some(it.clone())).is_some();
        assert!(is_found(&maker, &of_job) && is_found(&neighbour, &of_build));
        assert!(!is_found(&neighbour, &of_job), "another job");
        assert!(!is_found(&stranger, &of_build), "another build");
    }
}
