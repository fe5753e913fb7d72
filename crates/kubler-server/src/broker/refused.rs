//! Refusals of jobs that are known: each is two records, so a job may cause so many and no more.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kubler_core::bucket::Bucket;
use moka::sync::Cache;

use super::{BrokerError, Call, Who};

/// Refusals of one job that are recorded in a row.
const REFUSALS_MAX: u32 = 100;
/// One more is recorded after so many seconds.
const REFUSAL_SECONDS: u32 = 2;
/// Jobs that are remembered; a job that nobody heard of for as long as its bucket fills is forgotten.
const JOBS_MAX: u64 = 10_000;
const JOB_IDLE: Duration = Duration::from_secs(REFUSALS_MAX as u64 * REFUSAL_SECONDS as u64);
/// Longest memory of a refusal, in characters.
const LAST_CHARACTERS_MAX: usize = 300;

/// What jobs may still cause.
pub struct RefusedJobs(Cache<String, Arc<Mutex<Refused>>>);

struct Refused {
    bucket: Bucket,
    last: String,
}

impl Default for RefusedJobs {
    fn default() -> Self {
        let jobs = Cache::builder()
            .max_capacity(JOBS_MAX)
            .time_to_idle(JOB_IDLE);
        Self(jobs.build())
    }
}

impl RefusedJobs {
    /// The refusal of a job that has caused too many.
    pub(super) fn too_often(&self, call: &Call) -> Option<BrokerError> {
        let refused = self.0.get(&job(call)?)?;
        let mut refused = refused.lock().unwrap_or_else(PoisonError::into_inner);
        let last = refused.last.clone();
        (!refused.bucket.has_one(call.now)).then_some(BrokerError::RefusedTooOften { last })
    }

    /// Counts a refusal that has its records.
    pub(super) fn note(&self, call: &Call, error: &BrokerError) {
        let Some(job) = job(call) else { return };
        let fresh = || {
            Arc::new(Mutex::new(Refused {
                bucket: Bucket::full(REFUSALS_MAX, REFUSAL_SECONDS, call.now),
                last: String::new(),
            }))
        };
        let refused = self.0.get_with(job, fresh);
        let mut refused = refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.bucket.take(call.now);
        refused.last = error.told().0.chars().take(LAST_CHARACTERS_MAX).collect();
    }
}

/// Operators are trusted, and few.
fn job(call: &Call) -> Option<String> {
    match &call.who {
        Who::Job(token) => {
            let identity = &token.identity;
            Some(format!("{} {}", identity.issuer, identity.job.id))
        }
        Who::Operator(_) => None,
    }
}
