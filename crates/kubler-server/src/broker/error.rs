//! Why an operation did not happen, with what the caller may know and what to do next.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kubler_api::error::ErrorCode;
use kubler_core::difference::Difference;
use kubler_core::environment::Environment;
use kubler_core::ids::EnvironmentId;
use kubler_core::ledger::record::Outcome;
use kubler_core::policy::Denial;
use kubler_core::profile::ResolvedProfile;
use kubler_core::tombstone::Tombstone;

use crate::entropy::NoEntropy;
use crate::ledger::LedgerError;
use crate::session::SessionError;
use crate::store::{Own, StoreError};

/// What everybody is told whose request finds no room.
const FULL: &str = "the server's disk is full: nothing new is taken until there is room";

/// Why an operation did not happen.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The request cannot be what was meant.
    #[error("{detail}")]
    Invalid {
        /// What is wrong, and where.
        detail: String,
        /// What to do.
        hint: String,
    },
    /// No policy allows it, or one forbids it.
    #[error("no policy allows this")]
    Denied(Denial),
    /// There is no such thing, as far as this caller may know.
    #[error("{detail}")]
    NotFound {
        /// What was looked for.
        detail: String,
        /// What to do.
        hint: String,
    },
    /// It was there, and ended.
    #[error("the environment `{}` has ended", .0.id)]
    Ended(Box<Tombstone>),
    /// It is being made.
    #[error("the environment `{}` is {}", .0.id, .0.phase.as_str())]
    NotReady(Box<Environment>),
    /// It contradicts what exists.
    #[error("{detail}")]
    Conflict {
        /// What exists.
        detail: String,
        /// What to do.
        hint: String,
    },
    /// It was refused more often than anybody writes down.
    #[error("this job was refused too often; the last time: {last}")]
    RefusedTooOften {
        /// Why, the last time.
        last: String,
    },
    /// It asked more often than anybody has to.
    #[error("this job asks too often")]
    AskedTooOften,
    /// What was to be made again is not what it was.
    #[error("{detail}")]
    Differs {
        /// What differs.
        detail: String,
    },
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It cannot be recorded, so it does not happen.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// No session could be signed.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A part of the server broke down.
    #[error("{0}")]
    BrokeDown(String),
    /// Nothing random, nothing safe.
    #[error(transparent)]
    NoEntropy(#[from] NoEntropy),
}

impl BrokerError {
    pub(super) fn only_jobs(what: &str) -> Self {
        Self::Invalid {
            detail: format!("only jobs {what}"),
            hint: "call with the identity token of a CI job, not with an operator's certificate"
                .into(),
        }
    }

    pub(super) fn only_operators(what: &str) -> Self {
        Self::Invalid {
            detail: format!("only operators {what}"),
            hint: "call with an operator's client certificate, not with the identity token of a CI job"
                .into(),
        }
    }

    pub(super) fn no_approval(id: &str) -> Self {
        let shown: String = id.chars().take(64).collect();
        Self::NotFound {
            detail: format!("nothing waits for approval `{shown}`"),
            hint: "it may be used or over; `kubler approval list` shows those that are not, and whoever repeats the request asks anew".into(),
        }
    }

    pub(super) fn invalid_name(name: &str) -> Self {
        let shown: String = name.chars().take(64).collect();
        Self::Invalid {
            detail: format!("`{shown}` cannot be an environment's name"),
            hint: "use lower-case letters, digits and `-`, at most 40, beginning and ending with a letter or digit".into(),
        }
    }

    pub(super) fn no_profile(name: &str, profiles: &BTreeMap<String, ResolvedProfile>) -> Self {
        let shown: String = name.chars().take(64).collect();
        let offered: Vec<_> = profiles.keys().map(String::as_str).collect();
        Self::NotFound {
            detail: format!("there is no profile `{shown}`"),
            hint: format!("offered here: {}", offered.join(", ")),
        }
    }

    pub(super) fn no_environment(id: EnvironmentId) -> Self {
        Self::NotFound {
            detail: format!("there is no environment `{id}` for you"),
            hint: ErrorCode::NotFound.next_step().into(),
        }
    }

    pub(super) fn attach_needs_scope_build() -> Self {
        Self::Invalid {
            detail: "`attach` needs the scope `build`".into(),
            hint: "jobs share an environment only within their build: give `scope: build` in every step that uses it"
                .into(),
        }
    }

    pub(super) fn attach_makes_nothing() -> Self {
        Self::Invalid {
            detail: "`attach` makes nothing, so there is nothing to be `like` another".into(),
            hint: "leave one of them out; `kubler env diff` compares what is there".into(),
        }
    }

    pub(super) fn nothing_to_attach_to(name: &str) -> Self {
        Self::NotFound {
            detail: format!("no job of this build has made an environment `{name}` with scope `build`"),
            hint: "an earlier step makes it, with the same name and scope and without `attach`; let this step wait for that one (`depends_on`)".into(),
        }
    }

    pub(super) fn no_such_like(id: &str) -> Self {
        let shown: String = id.chars().take(64).collect();
        Self::Invalid {
            detail: format!("`like` is `{shown}`, which is no environment's id"),
            hint: "an id is `env_` and 32 digits, as `kubler env list --all` shows it".into(),
        }
    }

    pub(super) fn differs(id: EnvironmentId, differences: &[Difference]) -> Self {
        let list: Vec<_> = differences.iter().map(ToString::to_string).collect();
        Self::Differs {
            detail: format!("it would not be the same as {id}: {}", list.join("; ")),
        }
    }

    pub(super) fn other_profile(existing: &Environment, wanted: &str) -> Self {
        Self::Conflict {
            detail: format!(
                "`{}` is already the name of {} with profile `{}`, not `{wanted}`",
                existing.name, existing.id, existing.resolved.profile.name
            ),
            hint: "choose another name for the second environment".into(),
        }
    }

    pub(super) fn other_digest(existing: &Environment, wanted: &str) -> Self {
        Self::Conflict {
            detail: format!(
                "{} was made of profile `{}` with digest `{}`, and what the profile says now has digest `{wanted}`",
                existing.id, existing.resolved.profile.name, existing.digest
            ),
            hint: "the profile, its Kubernetes version or its manifests have changed since: retry the whole build, or choose another name".into(),
        }
    }

    pub(super) fn token_too_old() -> Self {
        Self::Invalid {
            detail: "the token was minted longer ago than one lease or session lasts".into(),
            hint: "mint a token right before it is used".into(),
        }
    }

    pub(crate) fn broke_down(why: &dyn std::fmt::Display) -> Self {
        Self::BrokeDown(why.to_string())
    }

    pub(super) fn token_spent() -> Self {
        Self::Conflict {
            detail: "this token was exchanged before".into(),
            hint: "mint a fresh token for each exchange".into(),
        }
    }

    /// The stable code.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Invalid { .. } => ErrorCode::InvalidRequest,
            Self::Denied(_) => ErrorCode::Denied,
            Self::NotFound { .. } | Self::Store(StoreError::NotFound(_)) => ErrorCode::NotFound,
            Self::Ended(_) => ErrorCode::EnvironmentEnded,
            Self::Differs { .. } => ErrorCode::Differs,
            Self::Conflict { .. } | Self::Store(StoreError::Transition(_)) => ErrorCode::Conflict,
            Self::RefusedTooOften { .. }
            | Self::AskedTooOften
            | Self::Store(StoreError::Full {
                own: Own::Caller, ..
            }) => ErrorCode::TooMany,
            Self::Ledger(LedgerError::Full) => ErrorCode::StorageFull,
            Self::Store(error) if error.is_full() => ErrorCode::StorageFull,
            Self::NotReady(_)
            | Self::Ledger(_)
            | Self::Store(StoreError::Database(_) | StoreError::Full { .. }) => {
                ErrorCode::Unavailable
            }
            Self::Store(_) | Self::Session(_) | Self::BrokeDown(_) | Self::NoEntropy(_) => {
                ErrorCode::Internal
            }
        }
    }

    /// What the caller is told besides the code: detail and next step. Faults of the server's own are not explained.
    pub fn told(&self) -> (String, String) {
        let next = || self.code().next_step().to_owned();
        match self {
            Self::Invalid { detail, hint }
            | Self::NotFound { detail, hint }
            | Self::Conflict { detail, hint } => (detail.clone(), hint.clone()),
            Self::Differs { detail } => (detail.clone(), next()),
            Self::Denied(denial) => (denial.to_string(), denial.hint.clone()),
            Self::RefusedTooOften { .. } => (
                self.to_string(),
                "mend what the last refusal says, and then ask less often".into(),
            ),
            Self::AskedTooOften => (
                self.to_string(),
                "ask again in a second, and keep a session for as long as it lasts".into(),
            ),
            Self::Ended(tombstone) => (tombstone.sentence(), next()),
            Self::Store(StoreError::Full { message, .. }) => (message.clone(), next()),
            Self::Ledger(LedgerError::Full) => (FULL.into(), next()),
            Self::Store(error) if error.is_full() => (FULL.into(), next()),
            Self::Ledger(_) => (
                "the request cannot be recorded, so it is not carried out".into(),
                next(),
            ),
            Self::NotReady(_)
            | Self::Store(StoreError::NotFound(_) | StoreError::Transition(_)) => {
                (self.to_string(), next())
            }
            Self::Store(_) | Self::Session(_) | Self::BrokeDown(_) | Self::NoEntropy(_) => {
                ("the server failed".into(), next())
            }
        }
    }

    /// As the ledger records it.
    pub(super) fn outcome(error: Option<&Self>, started: Timestamp, ended: Timestamp) -> Outcome {
        let duration_us =
            u64::try_from(ended.as_microsecond() - started.as_microsecond()).unwrap_or(0);
        match error {
            None => Outcome {
                status: 200,
                duration_us,
                ..Outcome::default()
            },
            Some(error) => Outcome {
                status: error.code().status(),
                code: Some(error.code().as_str().to_owned()),
                message: Some(error.to_string()),
                duration_us,
                ..Outcome::default()
            },
        }
    }
}
