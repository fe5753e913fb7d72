//! What is written down when an environment is asked for.

use kubler_api::CreateEnvironment;
use kubler_core::environment::{Environment, Phase, Scope};
use kubler_core::identity::{Owner, VerifiedToken};
use kubler_core::lease;
use kubler_core::ledger::record::Body;
use kubler_core::policy::{Action, Permit, Target};
use kubler_core::profile::ResolvedProfile;
use kubler_core::text::UntrustedText;

use super::{Broker, BrokerError, Call, Result};
use crate::entropy;
use crate::store::Created;

impl Broker {
    /// Writes down what was permitted, or finds what was asked for before by the same name.
    pub(super) async fn make(
        &self,
        call: &Call,
        body: &mut Body,
        token: &VerifiedToken,
        permit: Permit,
        wanted: Environment,
    ) -> Result<Environment> {
        body.environment_id = Some(wanted.id);
        let resolved = wanted.resolved.clone();
        match self.store.create_environment(permit, wanted).await? {
            Created::New(environment) => {
                self.phase_changed(Some(call.request_id), None, &environment)
                    .await;
                self.wake.wake();
                Ok(environment)
            }
            Created::Existing(environment) => {
                body.environment_id = Some(environment.id);
                let owner = token.identity.owner();
                attachable(&environment, &owner, &resolved)?;
                if environment.owner() == owner {
                    return Ok(environment);
                }
                self.attach(call, body, token, environment).await
            }
        }
    }
}

/// Profiles that are looked at for the hint of one denial.
const PROFILES_LOOKED_AT_MAX: usize = 16;

impl Broker {
    /// A denial that names the profiles which this very caller may ask for.
    pub(super) fn with_profiles(&self, call: &Call, error: BrokerError) -> BrokerError {
        let BrokerError::Denied(mut denial) = error else {
            return error;
        };
        let (policies, caller) = (self.policies.current(), call.caller());
        let may = |resolved: &&ResolvedProfile| {
            let target = Target::Profile(Box::new((*resolved).clone()));
            policies
                .decide(&caller, Action::CreateEnvironment, target)
                .is_ok()
        };
        let profiles = call.in_force.profiles.values();
        let names: Vec<_> = profiles
            .take(PROFILES_LOOKED_AT_MAX)
            .filter(may)
            .map(|resolved| format!("`{}`", resolved.profile.name))
            .collect();
        if !names.is_empty() {
            denial.hint = format!("this job may ask for {}; {}", names.join(", "), denial.hint);
        }
        BrokerError::Denied(denial)
    }
}

/// Whether a request by `owner` for `resolved` may be answered with an environment that exists already. The job that
/// made it gets it back whatever became of the profile since; another job gets only what it asked for.
fn attachable(existing: &Environment, owner: &Owner, resolved: &ResolvedProfile) -> Result<()> {
    let wanted = &resolved.profile.name;
    if existing.resolved.profile.name != *wanted || !existing.is_open_to(owner) {
        return Err(BrokerError::other_profile(existing, wanted));
    }
    let digest = resolved.digest();
    if existing.owner() != *owner && existing.digest != digest {
        return Err(BrokerError::other_digest(existing, &digest));
    }
    Ok(())
}

/// What was asked, for the record. Texts of the caller are cut.
pub(super) fn note_asked(body: &mut Body, request: &CreateEnvironment) {
    let mut note = |name: &str, text: &str| {
        let text = UntrustedText::new(text).as_str().into();
        body.details.insert(name.into(), text);
    };
    note("profile", &request.profile);
    note("name", &request.name);
    note("scope", scope_of(request.scope).as_str());
    if let Some(like) = &request.like {
        note("like", like);
    }
}

pub(super) const fn scope_of(scope: kubler_api::Scope) -> Scope {
    match scope {
        kubler_api::Scope::Job => Scope::Job,
        kubler_api::Scope::Build => Scope::Build,
    }
}

pub(super) fn new_environment(
    call: &Call,
    token: &VerifiedToken,
    resolved: &ResolvedProfile,
    request: &CreateEnvironment,
    scope: Scope,
) -> Result<Environment> {
    let deadline = lease::after(call.now, resolved.profile.deadline());
    let lease_end = lease::first(
        token.issued_at.min(call.now),
        resolved.profile.lease(),
        deadline,
    );
    if lease_end <= call.now {
        return Err(BrokerError::token_too_old());
    }
    Ok(Environment {
        id: entropy::environment_id()?,
        name: request.name.clone(),
        scope,
        identity: token.identity.clone(),
        digest: resolved.digest(),
        resolved: resolved.clone(),
        placement: None,
        phase: Phase::Requested,
        reason: None,
        created_at: call.now,
        ready_at: None,
        lease_end,
        deadline,
        dead_at: None,
        gone_at: None,
        version: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::{maker_neighbour_stranger, of_job_and_build};

    #[test]
    fn c8_what_exists_by_the_name_is_given_to_those_only_who_may_use_it() {
        let [of_job, of_build] = of_job_and_build();
        let [maker, neighbour, stranger] = maker_neighbour_stranger();
        let is_given =
            |owner: &Owner, it: &Environment| attachable(it, owner, &it.resolved).is_ok();
        assert!(is_given(&maker, &of_job) && is_given(&neighbour, &of_build));
        assert!(!is_given(&neighbour, &of_job), "another job");
        assert!(!is_given(&stranger, &of_build), "another build");
    }
}
