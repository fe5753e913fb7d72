//! Approvals: one request of one job, seen by an operator before it goes on. Kept in memory alone: a server that was
//! started again knows of none, and asks anew.

use std::collections::HashMap;

use http::header::{self, HeaderMap};
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};

use crate::ids::{ApprovalId, EnvironmentId};
use crate::ledger::record::KubernetesRequest;
use crate::request::ApiRequest;
use crate::request::headers::looks_like_impersonation;

/// Most approvals of one environment that are kept at once.
pub const APPROVALS_PER_ENVIRONMENT_MAX: usize = 20;
/// Most approvals that are kept at once.
pub const APPROVALS_MAX: usize = 1000;

/// Exactly one request: whatever could make it another one is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of a request of a job to an environment: verb, path and query, media type, as whom, and the body. Not the method:
    /// exec is tried with two of them.
    pub fn of(
        environment: EnvironmentId,
        job_id: &str,
        request: &ApiRequest,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Self {
        let mut digest = Sha256::new();
        let mut add = |part: &[u8]| {
            digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            digest.update(part);
        };
        add(environment.to_string().as_bytes());
        add(job_id.as_bytes());
        add(request.record().verb.as_bytes());
        add(request.target().as_str().as_bytes());
        let media_type = headers.get(header::CONTENT_TYPE);
        add(media_type.map_or(&[], |value| value.as_bytes()));
        let mut as_whom: Vec<_> = headers
            .iter()
            .filter(|(name, _)| looks_like_impersonation(name.as_str()))
            .map(|(name, value)| [name.as_str().as_bytes(), b"=", value.as_bytes()].concat())
            .collect();
        as_whom.sort_unstable();
        for header in as_whom {
            add(&header);
        }
        add(body);
        Self(digest.finalize().into())
    }
}

/// What an approval was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// In which environment.
    pub environment: EnvironmentId,
    /// By which job.
    pub job_id: String,
    /// The job's page.
    pub job_url: String,
    /// What it asks for.
    pub request: KubernetesRequest,
    /// SHA-256 of the body, in hex; none for a Secret, whose content could be guessed from it.
    pub body_sha256: Option<String>,
}

/// Where an approval is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nobody has answered.
    Pending,
    /// It may go on, once.
    Approved {
        /// The operator.
        by: String,
    },
    /// It may not.
    Refused {
        /// The operator.
        by: String,
    },
}

impl State {
    /// The word in API, CLI and ledger.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Approved { .. } => "approved",
            Self::Refused { .. } => "refused",
        }
    }
}

/// One approval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approval {
    /// Its name.
    pub id: ApprovalId,
    /// What for.
    pub asked: Asked,
    /// Where it is.
    pub state: State,
    /// When it was asked for.
    pub asked_at: Timestamp,
    /// Until when it can be given; then, until when it can be used.
    pub until: Timestamp,
    seconds: u64,
    fingerprint: Fingerprint,
}

/// What becomes of a request that needs an approval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It was approved, and goes on; the approval is used up.
    Granted(Box<Approval>),
    /// Nobody has approved it yet.
    Waits {
        /// The approval that is waited for.
        approval: Box<Approval>,
        /// Whether it is asked for now, for the first time.
        is_new: bool,
    },
    /// It was refused.
    Refused(Box<Approval>),
}

/// Why an approval cannot be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("as many approvals are waited for as may be; wait until one is answered or over")]
pub struct TooMany;

/// Why an approval cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unanswerable {
    /// There is none of this name, or no more.
    #[error("nothing waits for approval `{0}` (any more)")]
    Unknown(ApprovalId),
    /// Somebody was faster.
    #[error("approval `{id}` was {state} by `{by}` already")]
    Answered {
        /// Its name.
        id: ApprovalId,
        /// Where it is.
        state: &'static str,
        /// Who answered.
        by: String,
    },
}

/// All approvals.
#[derive(Debug, Default)]
pub struct Approvals {
    all: HashMap<ApprovalId, Approval>,
}

impl Approvals {
    /// What becomes of this request now. A new approval is called `id`; it can be given for `seconds`, and then used
    /// for as long.
    ///
    /// # Errors
    /// When too many are waited for.
    pub fn ask(
        &mut self,
        fingerprint: Fingerprint,
        asked: Asked,
        id: ApprovalId,
        seconds: u64,
        now: Timestamp,
    ) -> Result<Answer, TooMany> {
        self.forget(now);
        let known = self.all.values().find(|it| it.fingerprint == fingerprint);
        if let Some(known) = known.cloned().map(Box::new) {
            return Ok(match known.state {
                State::Pending => Answer::Waits {
                    approval: known,
                    is_new: false,
                },
                State::Refused { .. } => Answer::Refused(known),
                State::Approved { .. } => {
                    self.all.remove(&known.id);
                    Answer::Granted(known)
                }
            });
        }
        let of_environment = |it: &&Approval| it.asked.environment == asked.environment;
        let own = self.all.values().filter(of_environment).count();
        if own >= APPROVALS_PER_ENVIRONMENT_MAX || self.all.len() >= APPROVALS_MAX {
            return Err(TooMany);
        }
        let approval = Approval {
            id,
            asked,
            state: State::Pending,
            asked_at: now,
            until: after(now, seconds),
            seconds,
            fingerprint,
        };
        self.all.insert(id, approval.clone());
        Ok(Answer::Waits {
            approval: Box::new(approval),
            is_new: true,
        })
    }

    /// Answers one, and gives it as it is then.
    ///
    /// # Errors
    /// When there is none that waits.
    pub fn answer(
        &mut self,
        id: ApprovalId,
        approve: bool,
        by: &str,
        now: Timestamp,
    ) -> Result<Approval, Unanswerable> {
        self.forget(now);
        let approval = self.all.get_mut(&id).ok_or(Unanswerable::Unknown(id))?;
        match &approval.state {
            State::Approved { by } | State::Refused { by } => {
                return Err(Unanswerable::Answered {
                    id,
                    state: approval.state.as_str(),
                    by: by.clone(),
                });
            }
            State::Pending => {}
        }
        let by = by.to_owned();
        approval.until = after(now, approval.seconds);
        approval.state = if approve {
            State::Approved { by }
        } else {
            State::Refused { by }
        };
        Ok(approval.clone())
    }

    /// Takes one back that could not be asked for.
    pub fn withdraw(&mut self, id: ApprovalId) {
        self.all.remove(&id);
    }

    /// Those that are not over, oldest first.
    pub fn list(&mut self, now: Timestamp) -> Vec<Approval> {
        self.forget(now);
        let mut all: Vec<_> = self.all.values().cloned().collect();
        all.sort_by_key(|approval| (approval.asked_at, approval.id));
        all
    }

    fn forget(&mut self, now: Timestamp) {
        self.all.retain(|_, approval| now < approval.until);
    }
}

fn after(now: Timestamp, seconds: u64) -> Timestamp {
    let span = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
    now.checked_add(span).unwrap_or(Timestamp::MAX)
}
