//! The keys of one issuer, as last fetched: fetched once for all who wait, never again too soon, never thrown
//! away because a fetch failed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use jsonwebtoken::DecodingKey;
use kubler_core::identity::refusal::RefusalReason;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::fetch::{FetchError, Fetcher};
use super::jwks::{Found, KeySet};
use crate::clock::Clock;

/// After this many seconds known keys are fetched anew, while they go on being used.
pub(super) const KEYS_REFRESH_SECONDS: u64 = 300;
/// Keys are used for at most this many seconds after they were fetched, however long the issuer is down: a day.
const KEYS_STALE_SECONDS_MAX: i64 = 24 * 3600;
/// Least seconds between two fetches that unknown key ids cause.
const COOLDOWN_SECONDS: i64 = 30;
/// The same while there are no keys at all, so that nobody can be verified anyway.
const COOLDOWN_WITHOUT_KEYS_SECONDS: i64 = 2;
/// Callers that may wait for a fetch at once; more are refused.
const WAITING_MAX: usize = 256;

/// How the keys of one issuer are.
#[derive(Debug)]
pub struct KeyHealth {
    /// `fresh`, `stale` or `missing`.
    pub state: &'static str,
    /// How many, how old, and why there are no newer ones: for whoever runs the server.
    pub detail: String,
}

/// The keys of one issuer. Cheap to clone.
#[derive(Clone)]
pub(super) struct Keys(Arc<Inner>);

struct Inner {
    fetcher: Fetcher,
    algorithms: &'static [&'static str],
    clock: Arc<dyn Clock>,
    known: ArcSwapOption<Known>,
    flight: tokio::sync::Mutex<()>,
    /// Fetches that ended.
    ended: AtomicU64,
    last: Mutex<Option<Attempt>>,
    waiting: Arc<Semaphore>,
}

struct Known {
    keys: KeySet,
    fetched_at: Timestamp,
}

/// The last fetch that ended.
struct Attempt {
    at: Timestamp,
    /// In words; absent after a success.
    failure: Option<String>,
}

/// What makes a fetch due.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// A token named a key that is not known: anybody can do that, so not too often.
    UnknownKey,
    /// Time has passed, or the server has just started.
    Schedule,
}

impl Keys {
    pub(super) fn new(
        fetcher: Fetcher,
        algorithms: &'static [&'static str],
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self(Arc::new(Inner {
            fetcher,
            algorithms,
            clock,
            known: ArcSwapOption::empty(),
            flight: tokio::sync::Mutex::default(),
            ended: AtomicU64::new(0),
            last: Mutex::default(),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
        }))
    }

    /// Takes over the keys that were fetched from the same place before.
    pub(super) fn inherit(&self, before: &Self) {
        self.0.known.store(before.0.known.load_full());
    }

    /// The key a token names. When it is not known, the issuer is asked, if it was not asked just now.
    ///
    /// # Errors
    /// `KeyNotNamed`, `KeyUnknown`, `KeysUnavailable`, `Busy`.
    pub(super) async fn find(&self, id: Option<&str>) -> Result<DecodingKey, RefusalReason> {
        match self.0.look(id) {
            Err(RefusalReason::KeyUnknown | RefusalReason::KeysUnavailable) => {}
            known => {
                self.refresh_in_background();
                return known;
            }
        }
        if !self.0.is_cooling() {
            let permit = Arc::clone(&self.0.waiting)
                .try_acquire_owned()
                .map_err(|_| RefusalReason::Busy)?;
            self.fetch(Cause::UnknownKey, Some(permit)).await;
        }
        self.0.look(id)
    }

    /// Fetches the keys now, unless a fetch is under way: then waits for that one.
    pub(super) async fn refresh(&self) {
        self.fetch(Cause::Schedule, None).await;
    }

    /// Runs to its end even when the caller goes away: else callers that give up could keep the keys from ever
    /// being fetched.
    async fn fetch(&self, cause: Cause, permit: Option<OwnedSemaphorePermit>) {
        let inner = Arc::clone(&self.0);
        let ended_before = inner.ended.load(Ordering::Acquire);
        let task = tokio::spawn(async move {
            let _permit = permit;
            let _flight = inner.flight.lock().await;
            let done_meanwhile = inner.ended.load(Ordering::Acquire) != ended_before;
            let too_soon = match cause {
                Cause::UnknownKey => inner.is_cooling(),
                Cause::Schedule => false,
            };
            if !done_meanwhile && !too_soon {
                inner.fetch().await;
            }
        });
        if task.await.is_err() {
            tracing::error!(
                issuer = self.0.fetcher.issuer(),
                "a fetch of keys broke off"
            );
        }
    }

    fn refresh_in_background(&self) {
        if self.0.is_due() && self.0.flight.try_lock().is_ok() {
            let keys = self.clone();
            tokio::spawn(async move { keys.fetch(Cause::UnknownKey, None).await });
        }
    }

    /// How they are.
    pub(super) fn health(&self) -> KeyHealth {
        let now = self.0.clock.now();
        let failure = self.0.last().as_ref().and_then(|last| last.failure.clone());
        let failure = failure.map(|failure| format!("the last fetch failed: {failure}"));
        match self.0.known.load().as_ref() {
            None => KeyHealth {
                state: "missing",
                detail: failure.unwrap_or_default(),
            },
            Some(known) => {
                let age = age(known.fetched_at, now);
                let state = match age {
                    ..=KEYS_STALE_SECONDS_MAX if age < 2 * KEYS_REFRESH_SECONDS.cast_signed() => {
                        "fresh"
                    }
                    ..=KEYS_STALE_SECONDS_MAX => "stale",
                    _ => "missing",
                };
                let keys = format!("{} keys, fetched {age} s ago", known.keys.len());
                let detail: Vec<_> = [Some(keys), failure].into_iter().flatten().collect();
                KeyHealth {
                    state,
                    detail: detail.join("; "),
                }
            }
        }
    }
}

impl Inner {
    fn look(&self, id: Option<&str>) -> Result<DecodingKey, RefusalReason> {
        let known = self.known.load();
        let known = known
            .as_ref()
            .filter(|known| age(known.fetched_at, self.clock.now()) <= KEYS_STALE_SECONDS_MAX);
        match known.ok_or(RefusalReason::KeysUnavailable)?.keys.find(id) {
            Found::Key(key) => Ok(key.clone()),
            Found::NotNamed => Err(RefusalReason::KeyNotNamed),
            Found::Unknown => Err(RefusalReason::KeyUnknown),
        }
    }

    /// Whether the issuer was asked so recently that an unknown key is no reason to ask again.
    fn is_cooling(&self) -> bool {
        let now = self.clock.now();
        let usable = self
            .known
            .load()
            .as_ref()
            .is_some_and(|known| age(known.fetched_at, now) <= KEYS_STALE_SECONDS_MAX);
        let cooldown = if usable {
            COOLDOWN_SECONDS
        } else {
            COOLDOWN_WITHOUT_KEYS_SECONDS
        };
        self.last()
            .as_ref()
            .is_some_and(|last| last.at <= now && age(last.at, now) < cooldown)
    }

    fn is_due(&self) -> bool {
        let now = self.clock.now();
        let old =
            self.known.load().as_ref().is_some_and(|known| {
                age(known.fetched_at, now) >= KEYS_REFRESH_SECONDS.cast_signed()
            });
        old && !self.is_cooling()
    }

    /// Asks the issuer. A failure changes nothing but the record of it; a success replaces the keys, so that a
    /// key the issuer has withdrawn is not used any longer.
    async fn fetch(&self) {
        let outcome = self.fetcher.keys(self.algorithms).await;
        let at = self.clock.now();
        let failure = match outcome {
            Ok(keys) => {
                tracing::debug!(
                    issuer = self.fetcher.issuer(),
                    keys = keys.len(),
                    "fetched keys"
                );
                self.known.store(Some(Arc::new(Known {
                    keys,
                    fetched_at: at,
                })));
                None
            }
            Err(error) => {
                let failure = describe(&error);
                let issuer = self.fetcher.issuer();
                if self.known.load().is_some() {
                    tracing::warn!(
                        issuer,
                        failure,
                        "keys could not be fetched; known ones stay in use"
                    );
                } else {
                    tracing::error!(
                        issuer,
                        failure,
                        "keys could not be fetched and none are known: its jobs are refused until they can be"
                    );
                }
                Some(failure)
            }
        };
        *self.last() = Some(Attempt { at, failure });
        self.ended.fetch_add(1, Ordering::Release);
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Option<Attempt>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whole seconds from `since` to `now`; 0 when the clock went back.
fn age(since: Timestamp, now: Timestamp) -> i64 {
    now.duration_since(since).as_secs().max(0)
}

fn describe(error: &FetchError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}
