//! An environment's life: its phases, and the one function that changes them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::identity::{Identity, Owner};
use crate::ids::EnvironmentId;
use crate::profile::{EngineKind, ResolvedProfile};

/// Longest name of an environment, in bytes.
pub const NAME_BYTES_MAX: usize = 40;

/// Where an environment is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Intended; nothing exists in the world yet.
    Requested,
    /// Being made.
    Provisioning,
    /// Usable.
    Ready,
    /// Could not be made, or broke. Its remains are still to be ended.
    Failed,
    /// Ending: credentials are dead, things are being taken away.
    Releasing,
    /// Looked for, and not found.
    Gone,
}

impl Phase {
    /// Every phase, in the order of life.
    pub const ALL: [Self; 6] = [
        Self::Requested,
        Self::Provisioning,
        Self::Ready,
        Self::Failed,
        Self::Releasing,
        Self::Gone,
    ];

    /// The word in API, store and ledger.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Provisioning => "provisioning",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Releasing => "releasing",
            Self::Gone => "gone",
        }
    }

    /// Reads the word back.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == word)
    }

    /// Whether it may still become or be usable.
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Requested | Self::Provisioning | Self::Ready)
    }
}

/// Who may use an environment besides the job that made it.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Nobody.
    #[default]
    Job,
    /// Any job of the same build, by name.
    Build,
}

impl Scope {
    /// The word in API, store and ledger.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Job => "job",
            Self::Build => "build",
        }
    }
}

/// What of the world can be looked at by itself, and fail by itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// This machine.
    Here,
    /// A host cluster, by its name in the configuration.
    Host(String),
}

impl std::fmt::Display for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Here => f.write_str("this machine"),
            Self::Host(name) => write!(f, "host `{name}`"),
        }
    }
}

/// Where on a host cluster an environment is. Chosen once, and written down before anything is made there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The host, by its name in the configuration.
    pub host: String,
    /// The environment's namespace there.
    pub namespace: String,
    /// Where the tenant's service account lives there, which has the same name as the namespace.
    pub accounts_namespace: String,
    /// The host's Kubernetes version when the place was chosen; empty when the host had not said it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kubernetes_version: String,
}

/// Why an environment ended or is ending. The first reason stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum EndReason {
    /// A job that may use it asked for the end.
    Released,
    /// No proof of life for one lease.
    Lapsed,
    /// Its longest permitted life was over.
    DeadlineReached,
    /// The CI said that the job finished.
    JobFinished,
    /// The CI said that the job's agent was lost.
    AgentLost,
    /// An operator asked for the end.
    Revoked,
    /// It could not be made, or broke while it was used.
    Failed {
        /// What happened, for people.
        message: String,
    },
}

impl EndReason {
    /// The stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Lapsed => "lapsed",
            Self::DeadlineReached => "deadline_reached",
            Self::JobFinished => "job_finished",
            Self::AgentLost => "agent_lost",
            Self::Revoked => "revoked",
            Self::Failed { .. } => "failed",
        }
    }

    /// One sentence for the late caller.
    pub fn sentence(&self) -> String {
        match self {
            Self::Released => "its job released it".into(),
            Self::Lapsed => "its job gave no sign of life for one lease".into(),
            Self::DeadlineReached => "its deadline was reached".into(),
            Self::JobFinished => "its job finished".into(),
            Self::AgentLost => "its job's agent was lost".into(),
            Self::Revoked => "an operator ended it".into(),
            Self::Failed { message } => format!("it failed: {message}"),
        }
    }
}

/// An environment as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Its identifier.
    pub id: EnvironmentId,
    /// Its name within its job (or build, by scope).
    pub name: String,
    /// Who may use it besides its owner.
    pub scope: Scope,
    /// The job that made it.
    pub identity: Identity,
    /// What it is made of.
    pub resolved: ResolvedProfile,
    /// Digest of `resolved`.
    pub digest: String,
    /// Where on a host cluster it is; absent on this machine, and until a place is chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// Where it is in its life.
    pub phase: Phase,
    /// Why it ended or is ending; from the first failure or release on.
    pub reason: Option<EndReason>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it first was usable.
    pub ready_at: Option<Timestamp>,
    /// How long the last proof of life carries.
    pub lease_end: Timestamp,
    /// When it ends whatever happens.
    pub deadline: Timestamp,
    /// When its credentials died.
    pub dead_at: Option<Timestamp>,
    /// When nothing of it was found any more.
    pub gone_at: Option<Timestamp>,
    /// Counts changes, so that nobody overwrites what they did not see.
    pub version: u64,
}

/// What happens to an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An engine begins on this machine.
    ProvisioningStarted,
    /// An engine begins in this place on a host.
    Placed(Placement),
    /// It is usable.
    BecameReady,
    /// It could not be made, or broke.
    Broke(EndReason),
    /// It shall end.
    ReleaseRequested(EndReason),
    /// It was looked for and not found.
    FoundGone,
}

/// A change of phase that life does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an environment that is {} cannot take `{event}`", .phase.as_str())]
pub struct TransitionError {
    /// Where it was.
    pub phase: Phase,
    /// What was tried.
    pub event: &'static str,
}

impl Environment {
    /// The one way to change a phase. Gives the changed environment, or `None` when the event changes nothing
    /// because it was taken before.
    ///
    /// # Errors
    /// When an environment in this phase cannot take this event.
    pub fn transition(
        &self,
        event: Event,
        now: Timestamp,
    ) -> Result<Option<Self>, TransitionError> {
        let mut next = self.clone();
        next.version += 1;
        match (self.phase, event) {
            (Phase::Requested, Event::ProvisioningStarted) => next.phase = Phase::Provisioning,
            (Phase::Requested, Event::Placed(placement)) => {
                next.phase = Phase::Provisioning;
                next.placement = Some(placement);
            }
            (Phase::Provisioning, Event::BecameReady) => {
                next.phase = Phase::Ready;
                next.ready_at = Some(now);
            }
            (Phase::Requested | Phase::Provisioning | Phase::Ready, Event::Broke(reason)) => {
                next.phase = Phase::Failed;
                next.end(reason, now);
            }
            (
                Phase::Requested | Phase::Provisioning | Phase::Ready | Phase::Failed,
                Event::ReleaseRequested(reason),
            ) => {
                next.phase = Phase::Releasing;
                next.end(reason, now);
            }
            (Phase::Releasing, Event::FoundGone) => {
                next.phase = Phase::Gone;
                next.gone_at = Some(now);
            }
            // The first place stays: something may have been made there.
            (Phase::Provisioning, Event::ProvisioningStarted | Event::Placed(_))
            | (Phase::Ready, Event::BecameReady)
            | (Phase::Failed, Event::Broke(_))
            | (Phase::Releasing | Phase::Gone, Event::ReleaseRequested(_) | Event::Broke(_))
            | (Phase::Gone, Event::FoundGone) => return Ok(None),
            (
                phase,
                event @ (Event::ProvisioningStarted
                | Event::Placed(_)
                | Event::BecameReady
                | Event::FoundGone),
            ) => {
                return Err(TransitionError {
                    phase,
                    event: event.word(),
                });
            }
        }
        Ok(Some(next))
    }

    /// The first reason stays, and so does the moment at which credentials died: never before they could live.
    fn end(&mut self, reason: EndReason, now: Timestamp) {
        let born = self.ready_at.unwrap_or(self.created_at);
        self.reason.get_or_insert(reason);
        self.dead_at.get_or_insert(now.max(born));
    }

    /// Where in the world it is, or would be; `None` as long as no host has been chosen for it.
    pub fn site(&self) -> Option<Site> {
        match self.resolved.profile.engine {
            EngineKind::Local => Some(Site::Here),
            EngineKind::Namespace => {
                let placement = self.placement.as_ref()?;
                Some(Site::Host(placement.host.clone()))
            }
        }
    }

    /// Its namespace, where it is one of a host cluster.
    pub fn namespace(&self) -> Option<&str> {
        let placement = self.placement.as_ref()?;
        Some(&placement.namespace)
    }

    /// What owns it.
    pub fn owner(&self) -> Owner {
        self.identity.owner()
    }

    /// Whether the job `owner` may use it: its own, or one of its build's when it was made for the build.
    pub fn is_open_to(&self, owner: &Owner) -> bool {
        match self.scope {
            Scope::Job => self.owner() == *owner,
            Scope::Build => self.owner().same_run(owner),
        }
    }

    /// The text that only one living or dead environment may have: what makes creating idempotent.
    pub fn unique_key(owner: &Owner, scope: Scope, name: &str) -> String {
        let holder = match scope {
            Scope::Job => &owner.job_id,
            Scope::Build => &owner.run_id,
        };
        // JSON, so that no separator inside a part can imitate another key.
        serde_json::json!([
            owner.issuer,
            owner.organization_id,
            owner.project_id,
            scope.as_str(),
            holder,
            name
        ])
        .to_string()
    }
}

impl Event {
    const fn word(&self) -> &'static str {
        match self {
            Self::ProvisioningStarted => "provisioning started",
            Self::Placed(_) => "placed",
            Self::BecameReady => "became ready",
            Self::Broke(_) => "broke",
            Self::ReleaseRequested(_) => "release requested",
            Self::FoundGone => "found gone",
        }
    }
}

/// Whether `name` can name an environment: a DNS label of at most [`NAME_BYTES_MAX`] bytes.
pub fn is_name(name: &str) -> bool {
    let edge = |byte: Option<u8>| {
        byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    name.len() <= NAME_BYTES_MAX
        && edge(name.bytes().next())
        && edge(name.bytes().last())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

#[cfg(test)]
mod tests;
