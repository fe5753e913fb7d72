//! The decision. Nothing else makes a [`Permit`].

use std::fmt;

use cedar_policy as cedar;

use super::attributes::{self, Described, ForkBranches};
use super::nearest;
use super::parse::PolicySet;
use super::{Action, Caller, Grounds, Target};
use crate::ids::EnvironmentId;
use crate::ledger::record::Decision;
use crate::profile::ResolvedProfile;

/// A positive decision: one action, on one target. What changes the world takes one by value, and learns from it alone
/// what it may change.
#[derive(Debug, PartialEq, Eq)]
pub struct Permit {
    action: Action,
    target: Target,
    grounds: Grounds,
}

impl Permit {
    /// Why it was given.
    pub const fn grounds(&self) -> &Grounds {
        &self.grounds
    }

    /// Spends it on the environment that it was given for.
    ///
    /// # Errors
    /// When it was given for another action.
    pub fn spend_on_environment(self, action: Action) -> Result<EnvironmentId, WrongPermit> {
        match self.target {
            Target::Environment(environment) if self.action == action => Ok(environment.id),
            _ => Err(WrongPermit {
                given: self.action,
                needed: action,
            }),
        }
    }

    /// Spends it on a new environment of the profile that it was given for.
    ///
    /// # Errors
    /// When it was given for another action, or for another profile than `resolved`.
    pub fn spend_on_profile(self, resolved: &ResolvedProfile) -> Result<(), WrongPermit> {
        let needed = Action::CreateEnvironment;
        match self.target {
            Target::Profile(profile) if self.action == needed && *profile == *resolved => Ok(()),
            _ => Err(WrongPermit {
                given: self.action,
                needed,
            }),
        }
    }

    /// As the ledger writes it.
    pub fn decision(&self) -> Decision {
        Decision::Allow {
            grounds: self.grounds.clone(),
        }
    }
}

/// A permit was spent on something that it was not given for. A fault of ours, and nothing is done then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a permit for `{}` was spent on `{}`", .given.as_str(), .needed.as_str())]
pub struct WrongPermit {
    given: Action,
    needed: Action,
}

/// A negative decision and what would change it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The policies that forbade it; none when nothing permitted it.
    pub grounds: Grounds,
    /// The permits that came closest, fewest failed conditions first.
    pub closest: Vec<NearMiss>,
    /// One sentence: what was denied and by what.
    pub detail: String,
    /// What to do next, for people.
    pub hint: String,
}

/// A permit that would have allowed it, had these conditions held.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct NearMiss {
    /// The policy, by `@id` or `file:line`.
    pub policy: String,
    /// The conditions that did not hold, as they stand in the policy.
    pub failed: Vec<String>,
}

impl fmt::Display for NearMiss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` failed on: {}", self.policy, self.failed.join("; "))
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Denial {}

impl Denial {
    /// As the ledger writes it.
    pub fn decision(&self) -> Decision {
        Decision::Deny {
            grounds: self.grounds.clone(),
            closest: self.closest.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Why the answer is no, before anybody asks what came close.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The action cannot be about this kind of target.
    WrongTarget,
    /// The environment belongs to another job (rule C8), whatever policies say.
    NotTheirs,
    /// These policies forbid it.
    Forbidden(Vec<String>),
    /// These policies could not be evaluated, so nothing is allowed.
    Broken(Vec<String>),
    /// Nothing permits it.
    NotPermitted,
}

/// A question in the engine's terms.
pub(super) struct Asked {
    pub(super) principal: Described,
    pub(super) resource: Described,
    pub(super) request: cedar::Request,
    pub(super) entities: cedar::Entities,
}

impl PolicySet {
    /// Whether `caller` may do `action` with `target`. Pure; costs tens of microseconds, more for a denial.
    ///
    /// # Errors
    /// A denial when no policy permits it, when one forbids it, when one cannot be evaluated, when the
    /// environment is not the job's own (see [`Action::needs_ownership`]), or when action and target do not fit.
    pub fn decide(
        &self,
        caller: &Caller,
        action: Action,
        target: Target,
    ) -> Result<Permit, Denial> {
        if let Err(refusal) = permitted_at_all(caller, action, &target) {
            return Err(nearest::denial(
                self, refusal, None, caller, action, &target,
            ));
        }
        let asked = match self.ask(caller, action, &target) {
            Ok(asked) => asked,
            Err(error) => {
                let refusal = Refusal::Broken(vec![error]);
                return Err(nearest::denial(
                    self, refusal, None, caller, action, &target,
                ));
            }
        };
        match self.evaluate(action, &asked) {
            Ok(policies) => {
                let grounds = self.grounds(policies);
                Ok(Permit {
                    action,
                    target,
                    grounds,
                })
            }
            Err(refusal) => Err(nearest::denial(
                self,
                refusal,
                Some(&asked),
                caller,
                action,
                &target,
            )),
        }
    }

    pub(super) fn grounds(&self, policies: Vec<String>) -> Grounds {
        Grounds {
            policies,
            policy_digest: self.digest().to_owned(),
        }
    }

    /// What the operator states about the caller's organization.
    pub(super) fn forks(&self, caller: &Caller) -> ForkBranches {
        match caller {
            Caller::Job(identity) => {
                let key = (identity.issuer.clone(), identity.organization.id.clone());
                if self.prefixed.contains(&key) {
                    ForkBranches::Prefixed
                } else {
                    ForkBranches::LikeOurs
                }
            }
            Caller::Operator(_) => ForkBranches::LikeOurs,
        }
    }

    fn ask(&self, caller: &Caller, action: Action, target: &Target) -> Result<Asked, String> {
        let principal = attributes::principal(caller, self.forks(caller));
        let resource = attributes::resource(target);
        let (principal_uid, resource_uid) = (self.uid(&principal)?, self.uid(&resource)?);
        let action_uid = self
            .engine
            .actions
            .get(&action)
            .ok_or_else(|| format!("action `{action}` is unknown"))?;
        let entities = [
            principal.entity(principal_uid.clone())?,
            resource.entity(resource_uid.clone())?,
        ];
        let entities =
            cedar::Entities::from_entities(entities, None).map_err(|error| error.to_string())?;
        let context = cedar::Context::empty();
        let request = cedar::Request::new(
            principal_uid,
            action_uid.clone(),
            resource_uid,
            context,
            None,
        )
        .map_err(|error| error.to_string())?;
        Ok(Asked {
            principal,
            resource,
            request,
            entities,
        })
    }

    fn uid(&self, described: &Described) -> Result<cedar::EntityUid, String> {
        let name = self.engine.types.get(described.kind);
        let name = name.ok_or_else(|| format!("type `{}` is unknown", described.kind))?;
        let id = cedar::EntityId::new(&described.id);
        Ok(cedar::EntityUid::from_type_name_and_id(name.clone(), id))
    }

    fn evaluate(&self, action: Action, asked: &Asked) -> Result<Vec<String>, Refusal> {
        let Some(policies) = self.by_action.get(&action) else {
            return Err(Refusal::NotPermitted);
        };
        let response =
            self.engine
                .authorizer
                .is_authorized(&asked.request, policies, &asked.entities);
        // The engine passes over a policy that fails, also over a forbid: here that must deny.
        let broken = response.diagnostics().errors().map(|error| match error {
            cedar::AuthorizationError::PolicyEvaluationError(error) => name(error.policy_id()),
        });
        let broken = sorted(broken);
        if !broken.is_empty() {
            return Err(Refusal::Broken(broken));
        }
        let reasons = sorted(response.diagnostics().reason().map(name));
        match response.decision() {
            cedar::Decision::Allow if reasons.is_empty() => Err(Refusal::NotPermitted),
            cedar::Decision::Allow => Ok(reasons),
            cedar::Decision::Deny if reasons.is_empty() => Err(Refusal::NotPermitted),
            cedar::Decision::Deny => Err(Refusal::Forbidden(reasons)),
        }
    }
}

/// The id as it was given; the engine's own display escapes it.
pub(super) fn name(id: &cedar::PolicyId) -> String {
    AsRef::<str>::as_ref(id).to_owned()
}

fn sorted(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// What holds before and above all policies.
fn permitted_at_all(caller: &Caller, action: Action, target: &Target) -> Result<(), Refusal> {
    if action.target() != target.kind() {
        return Err(Refusal::WrongTarget);
    }
    match (caller, target) {
        (Caller::Job(identity), Target::Environment(environment))
            if action.needs_ownership() && !environment.is_open_to(&identity.owner()) =>
        {
            Err(Refusal::NotTheirs)
        }
        (Caller::Job(_) | Caller::Operator(_), _) => Ok(()),
    }
}
