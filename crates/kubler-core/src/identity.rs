//! Who is calling: verified facts, in one shape for every issuer.
//!
//! Nothing after this module knows what a Buildkite claim is called. An [`Identity`] exists only as the
//! result of a mapping from claims whose signature was checked; `sub` is never looked at.

pub mod buildkite;
pub mod claims;
pub mod json;
pub mod refusal;
pub mod token;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::TokenDigest;
use crate::text::UntrustedText;

/// Verified facts about one CI job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The issuer's URL, exactly as configured.
    pub issuer: String,
    /// The customer of the CI: immutable id, and the slug it has today.
    pub organization: Named,
    /// The pipeline.
    pub project: Named,
    /// The build.
    pub run: Run,
    /// The job: one run of one step. A retry is another job.
    pub job: Job,
    /// What the build was started for. Says what triggered it, not what code runs.
    pub source: Source,
    /// Where the job runs.
    pub runner: Runner,
}

/// Something with an immutable id and a name that people may change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Immutable.
    pub id: String,
    /// Mutable: for people, and for policy only beside the id.
    pub slug: String,
}

/// One run of a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Immutable, unique in the organization.
    pub id: String,
    /// Counts within the project.
    pub number: u64,
    /// The page of the run.
    pub url: String,
}

/// One job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Immutable and globally unique: Kubler's key.
    pub id: String,
    /// The step's key, written by the pipeline's author.
    pub step_key: Option<UntrustedText>,
    /// The page of the job.
    pub url: String,
}

/// What started the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Branch, as text of whoever pushed it.
    pub branch: Option<UntrustedText>,
    /// Tag, likewise.
    pub tag: Option<UntrustedText>,
    /// Commit, or a name such as `HEAD`.
    pub commit: UntrustedText,
    /// `webhook`, `ui`, `api`, `schedule`, `trigger_job`.
    pub trigger: String,
}

/// Where a job runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runner {
    /// `self-hosted` or `buildkite-hosted`.
    pub environment: String,
    /// The agent's id.
    pub agent_id: String,
    /// The CI cluster's id, when the token says it.
    pub cluster_id: Option<String>,
    /// The queue's id, when the token says it.
    pub queue_id: Option<String>,
    /// The queue's key, when the token says it.
    pub queue_key: Option<UntrustedText>,
}

/// The part of an identity that owns environments: equal for all tokens of one job, and for nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// Issuer URL.
    pub issuer: String,
    /// Organization id.
    pub organization_id: String,
    /// Pipeline id.
    pub project_id: String,
    /// Build id.
    pub run_id: String,
    /// Job id.
    pub job_id: String,
}

impl Owner {
    /// Whether both belong to one build of one pipeline of one organization.
    pub fn same_run(&self, other: &Self) -> bool {
        self.same_project(other) && self.run_id == other.run_id
    }

    /// Whether both belong to one pipeline of one organization.
    pub fn same_project(&self, other: &Self) -> bool {
        self.issuer == other.issuer
            && self.organization_id == other.organization_id
            && self.project_id == other.project_id
    }
}

impl Identity {
    /// What owns the environments of this job.
    pub fn owner(&self) -> Owner {
        Owner {
            issuer: self.issuer.clone(),
            organization_id: self.organization.id.clone(),
            project_id: self.project.id.clone(),
            run_id: self.run.id.clone(),
            job_id: self.job.id.clone(),
        }
    }
}

/// A token that passed every check: the identity, and what the token itself said about time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedToken {
    /// Who it speaks for.
    pub identity: Identity,
    /// The token's digest; the token itself is not kept.
    pub digest: TokenDigest,
    /// `jti`, recorded when there, never required.
    pub token_id: Option<String>,
    /// `iat`: when the job was able to mint it, which is what proves life.
    pub issued_at: Timestamp,
    /// `exp`.
    pub expires_at: Timestamp,
}
