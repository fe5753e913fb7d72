//! What is known of a dead environment: when it ended, why, and of which run it was. Whoever comes too late gets this
//! instead of a riddle, and everybody gets the same.

use jiff::Timestamp;

use crate::environment::{EndReason, Environment, Phase};
use crate::ids::EnvironmentId;
use crate::lease::{self, ServingSince};

/// What is kept of a dead environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tombstone {
    /// Whose it is.
    pub id: EnvironmentId,
    /// When its credentials died.
    pub ended_at: Timestamp,
    /// Why.
    pub reason: EndReason,
    /// Whether it was looked for and not found.
    pub is_gone: bool,
    /// The job it belonged to.
    pub run_url: String,
}

impl Tombstone {
    /// The tombstone of an environment that has ended by `now`, whether that was written down yet or not; `None` while
    /// it lives.
    pub fn of(
        environment: &Environment,
        serving_since: ServingSince,
        now: Timestamp,
    ) -> Option<Self> {
        let reason = if environment.phase.is_live() {
            lease::ended(environment, serving_since, now)?
        } else {
            environment.reason.clone().unwrap_or(EndReason::Revoked)
        };
        let unwritten = lease::end(environment, serving_since).min(now);
        Some(Self {
            ended_at: environment.dead_at.unwrap_or(unwritten),
            ..Self::because(environment, reason, now)
        })
    }

    /// The tombstone of an environment that cannot be used since `now`, for this reason.
    pub fn because(environment: &Environment, reason: EndReason, now: Timestamp) -> Self {
        Self {
            id: environment.id,
            ended_at: now,
            reason,
            is_gone: environment.phase == Phase::Gone,
            run_url: environment.identity.job.url.clone(),
        }
    }

    /// One sentence for the late caller.
    pub fn sentence(&self) -> String {
        let why = self.reason.sentence();
        format!(
            "environment {} ended at {:.0}: {why} (run {})",
            self.id, self.ended_at, self.run_url
        )
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::environment::Event;
    use crate::invariants::fixtures::{environment, timestamp};

    /// Created at 0 with a lease of 300 s and a deadline of 7200 s.
    #[rstest]
    #[case::alive(0, 299, None)]
    #[case::lapsed(0, 1000, Some((300, EndReason::Lapsed)))]
    #[case::put_off_by_downtime(900, 1100, None)]
    #[case::lapsed_after_downtime(900, 1300, Some((1200, EndReason::Lapsed)))]
    #[case::deadline(7000, 9000, Some((7200, EndReason::DeadlineReached)))]
    fn an_end_that_nobody_wrote_down_is_told_as_it_was(
        #[case] serving_since: i64,
        #[case] now: i64,
        #[case] expected: Option<(i64, EndReason)>,
    ) {
        let since = ServingSince(timestamp(serving_since));
        let told = Tombstone::of(&environment(), since, timestamp(now));
        let told = told.map(|tombstone| (tombstone.ended_at, tombstone.reason));
        assert_eq!(told, expected.map(|(at, reason)| (timestamp(at), reason)));
    }

    #[test]
    fn an_end_that_was_written_down_stays_what_it_was() {
        let released =
            environment().transition(Event::ReleaseRequested(EndReason::Released), timestamp(50));
        let released = released.unwrap().unwrap();
        let since = ServingSince(timestamp(0));
        let told = Tombstone::of(&released, since, timestamp(9000)).unwrap();
        assert_eq!((told.ended_at, told.is_gone), (timestamp(50), false));
        assert_eq!(told.reason, EndReason::Released);
        let gone = released
            .transition(Event::FoundGone, timestamp(60))
            .unwrap()
            .unwrap();
        assert!(Tombstone::of(&gone, since, timestamp(61)).unwrap().is_gone);
        assert!(
            told.sentence().contains("its job released it"),
            "{}",
            told.sentence()
        );
    }
}
