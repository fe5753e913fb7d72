//! Who may do what: Cedar policies over callers, actions and targets. Deny by default; every answer carries its reasons.
//!
//! [`PolicySet::decide`] is the only place where a [`Permit`] is made. What changes the world takes one by value.
//! No type of the policy engine leaves this module.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::environment::Environment;
use crate::identity::Identity;
use crate::profile::ResolvedProfile;

mod attributes;
mod decide;
mod example;
mod explain;
mod expression;
mod golden;
mod lint;
mod nearest;
mod parse;
mod scope;
mod starter;
mod statements;

pub use decide::{Denial, NearMiss, Permit, WrongPermit};
pub use example::ExampleEnvironment;
pub use explain::{ExplainFault, Explanation, Question, Subject, explain, offered_to};
pub use golden::{CASES_MAX, CaseOutcome, TestFault, TestReport, test};
pub use parse::{
    Checked, Effect, POLICY_ID_BYTES_MAX, PolicyFault, PolicySet, PolicySummary, check,
};
pub use starter::{starter, starter_cases};

/// Most policies in one set.
pub const POLICIES_MAX: usize = 1000;
/// Longest policy file, in bytes.
pub const POLICY_FILE_BYTES_MAX: usize = 256 * 1024;
/// Most policy files in one set.
pub const POLICY_FILES_MAX: usize = 100;

/// The schema that policies are checked against, as people read it.
pub const SCHEMA: &str = include_str!("policy/kubler.cedarschema");

/// Who asks, after verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A CI job.
    Job(Box<Identity>),
    /// A person or program with a client certificate of the operators' CA.
    Operator(Operator),
}

/// An operator: the common name of a verified client certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    /// The certificate's common name.
    pub name: String,
}

macro_rules! actions {
    ($($(#[$doc:meta])* $name:ident = $word:literal on $target:ident;)+) => {
        /// Everything that can be asked. Every HTTP route has one.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Action {
            $($(#[$doc])* $name,)+
        }

        impl Action {
            /// Every action.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The word in policies, test files and the ledger.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)+ }
            }

            /// What it can be about.
            pub const fn target(self) -> TargetKind {
                match self { $(Self::$name => TargetKind::$target,)+ }
            }
        }
    };
}

actions! {
    /// Make an environment of a profile.
    CreateEnvironment = "create_environment" on Profile;
    /// See an environment.
    ReadEnvironment = "read_environment" on Environment;
    /// Prove life.
    RenewEnvironment = "renew_environment" on Environment;
    /// End an environment.
    ReleaseEnvironment = "release_environment" on Environment;
    /// Get a credential for an environment.
    IssueSession = "issue_session" on Environment;
    /// Send a request to an environment's Kubernetes API.
    UseKubernetes = "use_kubernetes" on Environment;
    /// Search environments by pipeline, build, job, commit. Each one found still needs [`Action::ReadEnvironment`].
    ReadTrace = "read_trace" on Server;
    /// Read the ledger's records.
    ReadLedger = "read_ledger" on Server;
    /// Read the ledger's latest signed checkpoint, which says nothing of what is in it.
    ReadCheckpoint = "read_checkpoint" on Server;
    /// Read metrics.
    ReadMetrics = "read_metrics" on Server;
    /// See which requests wait for an approval.
    ReadApprovals = "read_approvals" on Server;
    /// Approve or refuse one of them. No job ever may, whatever policy says.
    AnswerApproval = "answer_approval" on Server;
}

impl Action {
    /// Reads the word back.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|action| action.as_str() == word)
    }

    /// Whether a job may only ever do it with an environment that is its own, or its build's by scope (rule C8).
    /// Policy narrows this and cannot widen it.
    pub const fn needs_ownership(self) -> bool {
        match self {
            Self::RenewEnvironment
            | Self::ReleaseEnvironment
            | Self::IssueSession
            | Self::UseKubernetes => true,
            Self::CreateEnvironment
            | Self::ReadEnvironment
            | Self::ReadTrace
            | Self::ReadLedger
            | Self::ReadCheckpoint
            | Self::ReadMetrics
            | Self::ReadApprovals
            | Self::AnswerApproval => false,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an action is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A profile, to make an environment of.
    Profile(Box<ResolvedProfile>),
    /// An environment.
    Environment(Box<Environment>),
    /// The server itself.
    Server,
}

/// The kinds of [`Target`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetKind {
    /// A profile.
    Profile,
    /// An environment.
    Environment,
    /// The server itself.
    Server,
}

impl Target {
    /// Which kind it is.
    pub const fn kind(&self) -> TargetKind {
        match self {
            Self::Profile(_) => TargetKind::Profile,
            Self::Environment(_) => TargetKind::Environment,
            Self::Server => TargetKind::Server,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Profile(resolved) => write!(f, "profile `{}`", resolved.profile.name),
            Self::Environment(environment) => write!(f, "environment `{}`", environment.id),
            Self::Server => f.write_str("the server"),
        }
    }
}

/// Why a decision is what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grounds {
    /// The policies that decided, by `@id` or `file:line`.
    pub policies: Vec<String>,
    /// Digest of the whole set of policies.
    pub policy_digest: String,
}

#[cfg(test)]
mod tests;
