//! Who may do what: Cedar policies over callers, actions and targets. Deny by default; every answer carries its reasons.
//!
//! [`PolicySet::decide`] is the only place where a [`Permit`] is made. What changes the world takes one by value.

use serde::{Deserialize, Serialize};

use crate::environment::Environment;
use crate::identity::Identity;
use crate::profile::ResolvedProfile;

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

/// Everything that can be asked. Every HTTP route has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Make an environment of a profile.
    CreateEnvironment,
    /// See an environment.
    ReadEnvironment,
    /// Prove life.
    RenewEnvironment,
    /// End an environment.
    ReleaseEnvironment,
    /// Get a credential for an environment.
    IssueSession,
    /// Send a request to an environment's Kubernetes API.
    UseKubernetes,
    /// Search environments by pipeline, build, job, commit.
    ReadTrace,
    /// Read the ledger.
    ReadLedger,
    /// Read metrics.
    ReadMetrics,
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

/// Why a decision is what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grounds {
    /// The policies that decided, by `@id` or `file:line`.
    pub policies: Vec<String>,
    /// Digest of the whole set of policies.
    pub policy_digest: String,
}
