//! Downtime is not death: time that passed without us, such as a suspended machine or a stopped process, is given
//! back to every lease. Ticks come from a task that does nothing else, so that slow work never looks like downtime.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::directory::Directory;

/// Time between two ticks.
const TICK_EVERY: Duration = Duration::from_millis(500);
/// A gap between two ticks that is longer than this was downtime.
const GAP: SignedDuration = SignedDuration::from_secs(5);

/// When somebody last ticked, in microseconds of Unix time.
#[derive(Debug)]
pub struct Downtime(AtomicI64);

impl Downtime {
    /// Serving since `now`.
    pub fn new(now: Timestamp) -> Self {
        Self(AtomicI64::new(now.as_microsecond()))
    }

    /// Says that we are alive at `now`. Whoever comes first after a gap makes it known, before anybody concludes
    /// anything from a lease.
    pub fn tick(&self, directory: &Directory, now: Timestamp) {
        let last = self.0.swap(now.as_microsecond(), Ordering::AcqRel);
        let gap = SignedDuration::from_micros(now.as_microsecond().saturating_sub(last));
        if gap > GAP {
            tracing::warn!(
                seconds = gap.as_secs(),
                "time passed without a tick: leases are given one more term"
            );
            directory.resumed(now);
        }
    }

    /// Ticks until `shutdown`.
    pub async fn keep_ticking(
        self: Arc<Self>,
        directory: Arc<Directory>,
        clock: Arc<dyn Clock>,
        shutdown: CancellationToken,
    ) {
        let tick = || async { tokio::time::sleep(TICK_EVERY).await };
        while shutdown.run_until_cancelled(tick()).await.is_some() {
            self.tick(&directory, clock.now());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::clock::ManualClock;
    use crate::store::tests::at;

    #[tokio::test]
    async fn its_own_ticks_keep_slow_work_from_looking_like_downtime() {
        let clock = Arc::new(ManualClock::new(at(0)));
        let directory = Arc::new(Directory::new(at(0)));
        let downtime = Arc::new(Downtime::new(at(0)));
        let shutdown = CancellationToken::new();
        let ticking = tokio::spawn(Arc::clone(&downtime).keep_ticking(
            Arc::clone(&directory),
            Arc::<ManualClock>::clone(&clock),
            shutdown.clone(),
        ));
        // Longer than a gap in all, each part shorter: nobody else ticks meanwhile.
        for _ in 0..3 {
            clock.advance(Duration::from_secs(3));
            let deadline = Instant::now() + Duration::from_secs(60);
            while downtime.0.load(Ordering::Acquire) != clock.now().as_microsecond() {
                assert!(Instant::now() < deadline, "nobody ticks");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        downtime.tick(&directory, clock.now());
        assert_eq!(directory.serving_since().0, at(0), "time was given back");
        shutdown.cancel();
        ticking.await.unwrap();
        clock.advance(Duration::from_secs(6));
        downtime.tick(&directory, clock.now());
        assert_eq!(directory.serving_since().0, at(15), "a gap was not noticed");
    }
}
