//! How much of an environment's API server its job may use at once and in the long run, so that one job that asks
//! without end leaves room for its neighbours on the same machine.
//!
//! Who asks for too much waits for its turn, as long as that is soon; who would have to wait longer is told when to
//! come back, in the API server's own words, so that kubectl and client libraries try again by themselves.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kubler_core::profile::Profile;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::Bounds;
use super::status::Refused;

/// What each piece of an answer that goes on costs besides its bytes: an event is worked for several times, however
/// short it is.
const PIECE_BYTES: u64 = 1024;

/// For how many seconds a rest saves up changes.
const CHANGES_BURST_SECONDS: u64 = 10;
/// For how many seconds a rest saves up bytes.
const BYTES_BURST_SECONDS: u64 = 8;

/// How much one environment may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LoadBounds {
    /// Most short requests that the API server works on at once.
    in_flight_max: usize,
    /// What changes something, and what goes on.
    changes: Rate,
    /// Bytes of requests and answers together.
    bytes: Rate,
    /// Longest wait for a turn.
    wait_max: Duration,
}

impl LoadBounds {
    fn new(bounds: Bounds, profile: &Profile) -> Self {
        Self {
            in_flight_max: bounds.in_flight_max,
            changes: Rate::saved_up(profile.changes_per_second_max, CHANGES_BURST_SECONDS),
            bytes: Rate::saved_up(profile.bytes_per_second_max, BYTES_BURST_SECONDS),
            wait_max: bounds.wait_max,
        }
    }
}

/// So much in each second, and so much at once after a rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rate {
    per_second: u64,
    burst: u64,
}

impl Rate {
    const fn saved_up(per_second: u64, seconds: u64) -> Self {
        Self {
            per_second,
            burst: per_second.saturating_mul(seconds),
        }
    }

    fn time_for(self, amount: u64) -> Duration {
        let nanoseconds = u128::from(amount) * 1_000_000_000 / u128::from(self.per_second.max(1));
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

/// What was used of a rate. Pure: told the time. Who waits is not kept anywhere, since everybody's turn is known
/// when they come.
#[derive(Debug, Clone, Copy)]
struct Meter {
    rate: Rate,
    /// When everything that was used until now will have been earned.
    even_at: Instant,
}

impl Meter {
    fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, even_at: now }
    }

    /// How long to wait until the next may begin; nothing as long as the burst is not used up.
    fn wait(&self, now: Instant) -> Duration {
        let owed = self.even_at.saturating_duration_since(now);
        owed.saturating_sub(self.rate.time_for(self.rate.burst))
    }

    /// Writes down what is used.
    fn use_up(&mut self, amount: u64, now: Instant) {
        self.even_at = self.even_at.max(now) + self.rate.time_for(amount);
    }
}

/// What one request is, as far as its environment's load goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Demand {
    /// Whether it changes something, or goes on.
    pub(super) is_change: bool,
    /// Whether it is over with its answer.
    pub(super) is_short: bool,
    /// The bytes of its body, as far as they were announced.
    pub(super) bytes: u64,
}

/// The load of one environment.
pub(super) struct Load {
    bounds: LoadBounds,
    in_flight: Arc<Semaphore>,
    meters: Mutex<Meters>,
}

struct Meters {
    changes: Meter,
    bytes: Meter,
}

/// That a request's turn has come. Its place is free again when this is dropped.
pub(super) struct Turn {
    load: Arc<Load>,
    _place: Option<OwnedSemaphorePermit>,
    is_short: bool,
    announced: u64,
    /// Whether it had to wait, so that what was true before has to be looked at again.
    pub(super) waited: bool,
}

impl Load {
    pub(super) fn new(bounds: Bounds, profile: &Profile) -> Arc<Self> {
        let (bounds, now) = (LoadBounds::new(bounds, profile), Instant::now());
        Arc::new(Self {
            bounds,
            in_flight: Arc::new(Semaphore::new(bounds.in_flight_max)),
            meters: Mutex::new(Meters {
                changes: Meter::new(bounds.changes, now),
                bytes: Meter::new(bounds.bytes, now),
            }),
        })
    }

    fn meters(&self) -> std::sync::MutexGuard<'_, Meters> {
        self.meters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the request's turn.
    ///
    /// # Errors
    /// When it would come too late.
    pub(super) async fn turn(self: &Arc<Self>, demand: Demand) -> Result<Turn, Refused> {
        let wait = self.reserve(demand, Instant::now())?;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        let mut waited = !wait.is_zero();
        let place = match (
            demand.is_short,
            Arc::clone(&self.in_flight).try_acquire_owned(),
        ) {
            (false, _) => None,
            (true, Ok(place)) => Some(place),
            (true, Err(_)) => {
                waited = true;
                Some(self.place().await?)
            }
        };
        Ok(Turn {
            load: Arc::clone(self),
            _place: place,
            is_short: demand.is_short,
            announced: demand.bytes,
            waited,
        })
    }

    async fn place(&self) -> Result<OwnedSemaphorePermit, Refused> {
        let free = Arc::clone(&self.in_flight).acquire_owned();
        match tokio::time::timeout(self.bounds.wait_max, free).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) | Err(_) => Err(Refused::too_many(
                "TooManyInFlight",
                format!(
                    "this environment works on {} requests at once, as many as it may, and none was over within {} s; try again in a moment",
                    self.bounds.in_flight_max,
                    self.bounds.wait_max.as_secs()
                ),
                Duration::ZERO,
            )),
        }
    }

    /// How long the next change would wait.
    #[cfg(test)]
    pub(super) fn owed(&self) -> Duration {
        self.meters().changes.wait(Instant::now())
    }

    /// Takes what the request needs, and says how long to wait for it; takes nothing when that is too long.
    fn reserve(&self, demand: Demand, now: Instant) -> Result<Duration, Refused> {
        let wait_max = self.bounds.wait_max;
        let mut meters = self.meters();
        let for_changes = if demand.is_change {
            meters.changes.wait(now)
        } else {
            Duration::ZERO
        };
        let for_bytes = meters.bytes.wait(now);
        if for_changes > wait_max {
            let message = format!(
                "this environment was asked for more than the {} changes a second that its profile allows (`changes_per_second_max`); try again in a moment",
                self.bounds.changes.per_second
            );
            return Err(Refused::too_many(
                "TooManyChanges",
                message,
                for_changes - wait_max,
            ));
        }
        if for_bytes > wait_max {
            let message = format!(
                "this environment sends and gets more than the {} bytes a second that its profile allows (`bytes_per_second_max`); try again in a moment",
                self.bounds.bytes.per_second
            );
            return Err(Refused::too_many(
                "TooManyBytes",
                message,
                for_bytes - wait_max,
            ));
        }
        if demand.is_change {
            meters.changes.use_up(1, now);
        }
        meters.bytes.use_up(demand.bytes, now);
        Ok(for_changes.max(for_bytes))
    }
}

impl Turn {
    /// A piece of the answer came.
    pub(super) fn answered(&self, bytes: u64) {
        let piece = if self.is_short { 0 } else { PIECE_BYTES };
        self.load
            .meters()
            .bytes
            .use_up(bytes + piece, Instant::now());
    }

    /// So much was sent in all.
    pub(super) fn sent(&self, bytes: u64) {
        let more = bytes.saturating_sub(self.announced);
        self.load.meters().bytes.use_up(more, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_earns_a_burst_and_no_more() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let rate = Rate {
            per_second: 10,
            burst: 20,
        };
        let mut meter = Meter::new(rate, start);
        for _ in 0..21 {
            assert_eq!(meter.wait(start), Duration::ZERO);
            meter.use_up(1, start);
        }
        assert_eq!(meter.wait(start), Duration::from_millis(100));
        meter.use_up(10, start);
        assert_eq!(meter.wait(start), Duration::from_millis(1100));
        assert_eq!(meter.wait(at(1)), Duration::from_millis(100));
        // However long the rest was.
        for _ in 0..21 {
            assert_eq!(meter.wait(at(3600)), Duration::ZERO);
            meter.use_up(1, at(3600));
        }
        assert_eq!(meter.wait(at(3600)), Duration::from_millis(100));
    }
}
