//! What one known job may ask: each deed is two records, each of them on disk before it begins, and a turn at the
//! store's only writer. So a job may do so much and no more, and be refused so often.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kubler_core::bucket::Bucket;
use moka::sync::Cache;

use super::{BrokerError, Call, Who};

/// Deeds of one job in a row: more than a job with hundreds of steps of `kubectl` needs, which share a session.
const DEEDS_MAX: u32 = 500;
/// So many more with each second.
const DEEDS_PER_SECOND: u32 = 10;
/// Refusals of one job that are recorded in a row.
const REFUSALS_MAX: u32 = 100;
/// One more is recorded after so many seconds.
const REFUSAL_SECONDS: u32 = 2;
/// Jobs that are remembered; a job that nobody heard of for as long as its buckets fill is forgotten.
const JOBS_MAX: u64 = 10_000;
const JOB_IDLE: Duration = Duration::from_secs(REFUSALS_MAX as u64 * REFUSAL_SECONDS as u64);
/// Longest memory of a refusal, in characters.
const LAST_CHARACTERS_MAX: usize = 300;

/// What jobs may still cause.
pub struct JobBounds(Cache<String, Arc<Mutex<Standing>>>);

struct Standing {
    deeds: Bucket,
    refusals: Bucket,
    last: String,
}

impl Standing {
    fn new(now: Timestamp) -> Self {
        Self {
            deeds: Bucket::refilled(DEEDS_MAX, DEEDS_PER_SECOND, 1, now),
            refusals: Bucket::full(REFUSALS_MAX, REFUSAL_SECONDS, now),
            last: String::new(),
        }
    }
}

impl Default for JobBounds {
    fn default() -> Self {
        let jobs = Cache::builder()
            .max_capacity(JOBS_MAX)
            .time_to_idle(JOB_IDLE);
        Self(jobs.build())
    }
}

impl JobBounds {
    /// Why a job may ask nothing now, when it has done, or was refused, too much. A deed is counted.
    pub(super) fn fault(&self, call: &Call, is_deed: bool) -> Option<BrokerError> {
        self.with(call, |standing| {
            if !standing.refusals.has_one(call.now) {
                let last = standing.last.clone();
                return Some(BrokerError::RefusedTooOften { last });
            }
            if is_deed && !standing.deeds.has_one(call.now) {
                return Some(BrokerError::AskedTooOften);
            }
            if is_deed {
                standing.deeds.take(call.now);
            }
            None
        })?
    }

    /// Counts a refusal that has its records.
    pub(super) fn refused(&self, call: &Call, error: &BrokerError) {
        self.with(call, |standing| {
            standing.refusals.take(call.now);
            standing.last = error.told().0.chars().take(LAST_CHARACTERS_MAX).collect();
        });
    }

    /// Nothing for operators: they are trusted, and few.
    fn with<T>(&self, call: &Call, look: impl FnOnce(&mut Standing) -> T) -> Option<T> {
        let Who::Job(token) = &call.who else {
            return None;
        };
        let job = format!("{} {}", token.identity.issuer, token.identity.job.id);
        let fresh = || Arc::new(Mutex::new(Standing::new(call.now)));
        let standing = self.0.get_with(job, fresh);
        let mut standing = standing.lock().unwrap_or_else(PoisonError::into_inner);
        Some(look(&mut standing))
    }
}
