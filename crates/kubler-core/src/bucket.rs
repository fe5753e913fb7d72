//! A bound on how often: so many in a row, and one more after each while.

use jiff::Timestamp;

/// Holds what may still happen. Filled by time, emptied by [`Bucket::take`].
#[derive(Debug, Clone)]
pub struct Bucket {
    most: u32,
    more: u32,
    seconds: u32,
    left: u32,
    filled_at: Timestamp,
}

impl Bucket {
    /// With `most` in it, and one more each `seconds_each`.
    pub const fn full(most: u32, seconds_each: u32, now: Timestamp) -> Self {
        Self::refilled(most, 1, seconds_each, now)
    }

    /// With `most` in it, and `more` each `seconds`.
    pub const fn refilled(most: u32, more: u32, seconds: u32, now: Timestamp) -> Self {
        Self {
            most,
            more,
            seconds,
            left: most,
            filled_at: now,
        }
    }

    /// Whether there is one left.
    pub fn has_one(&mut self, now: Timestamp) -> bool {
        self.fill(now);
        self.left > 0
    }

    /// Takes one out; of an empty one nothing.
    pub fn take(&mut self, now: Timestamp) {
        self.fill(now);
        self.left = self.left.saturating_sub(1);
    }

    fn fill(&mut self, now: Timestamp) {
        let elapsed = now.as_second().saturating_sub(self.filled_at.as_second());
        // A clock that was set back fills nothing, and must not stop the filling for as long as it was set back.
        if elapsed < 0 {
            self.filled_at = now;
            return;
        }
        let each = i64::from(self.seconds.max(1));
        let more = elapsed / each;
        if more > 0 {
            let more = u32::try_from(more).unwrap_or(u32::MAX);
            let more = more.saturating_mul(self.more);
            self.left = self.left.saturating_add(more).min(self.most);
            let rest = jiff::SignedDuration::from_secs(elapsed % each);
            self.filled_at = now.checked_sub(rest).unwrap_or(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn so_many_in_a_row_and_one_more_after_each_while() {
        let mut bucket = Bucket::full(3, 10, at(0));
        for _ in 0..3 {
            assert!(bucket.has_one(at(0)));
            bucket.take(at(0));
        }
        assert!(!bucket.has_one(at(9)));
        assert!(bucket.has_one(at(10)));
        bucket.take(at(15));
        assert!(!bucket.has_one(at(19)));
        assert!(bucket.has_one(at(20)), "what passed before is not lost");
        let taken = (0..100).take_while(|_| {
            bucket.take(at(10_000));
            bucket.has_one(at(10_000))
        });
        assert_eq!(taken.count(), 2, "never more than it holds");
    }

    #[test]
    fn a_clock_that_is_set_back_neither_fills_nor_stops() {
        let mut bucket = Bucket::full(1, 10, at(1000));
        bucket.take(at(1000));
        assert!(!bucket.has_one(at(0)));
        assert!(bucket.has_one(at(10)));
    }
}
