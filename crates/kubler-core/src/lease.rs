//! How long an environment lives: the lease, the deadline, and what downtime does to them.
//!
//! Renewal is proof of life. A lease is anchored to the moment at which the job was able to mint the token
//! (`iat`), never to the moment at which somebody spends it. So repeats are harmless, and tokens that were
//! hoarded buy nothing.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::environment::{EndReason, Environment};

/// When the lease ends after a token minted at `issued_at` was seen: never earlier than before, never past
/// the deadline. An `issued_at` in the future (within the allowed skew) counts as `now`.
pub fn renewed(environment: &Environment, issued_at: Timestamp, now: Timestamp) -> Timestamp {
    let proven = first(
        issued_at.min(now),
        environment.resolved.profile.lease(),
        environment.deadline,
    );
    environment.lease_end.max(proven)
}

/// When the first lease of an environment with this deadline ends.
pub fn first(issued_at: Timestamp, lease: Duration, deadline: Timestamp) -> Timestamp {
    after(issued_at, lease).min(deadline)
}

/// `span` after `moment`, saturating at the end of time.
pub fn after(moment: Timestamp, span: Duration) -> Timestamp {
    SignedDuration::try_from(span)
        .ok()
        .and_then(|span| moment.checked_add(span).ok())
        .unwrap_or(Timestamp::MAX)
}

/// Downtime is not death: when the server (re)started, or found a gap in its own ticking, jobs could not
/// renew, so a lapse counts from then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServingSince(pub Timestamp);

/// The moment from which the environment is no longer usable: the lease, put off by downtime, or the deadline.
pub fn end(environment: &Environment, serving_since: ServingSince) -> Timestamp {
    let put_off = after(serving_since.0, environment.resolved.profile.lease());
    environment.lease_end.max(put_off).min(environment.deadline)
}

/// Why the environment must end now, if it must.
pub fn ended(
    environment: &Environment,
    serving_since: ServingSince,
    now: Timestamp,
) -> Option<EndReason> {
    if now >= environment.deadline {
        Some(EndReason::DeadlineReached)
    } else if now >= end(environment, serving_since) {
        Some(EndReason::Lapsed)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::invariants::fixtures::{environment, timestamp};

    const LONG_AGO: ServingSince = ServingSince(Timestamp::MIN);

    /// Created at 0 with a lease of 300 s and a deadline of 7200 s.
    fn fresh() -> Environment {
        environment()
    }

    #[test]
    fn a_renewal_counts_from_when_the_token_was_minted() {
        assert_eq!(
            renewed(&fresh(), timestamp(60), timestamp(200)),
            timestamp(360)
        );
    }

    #[test]
    fn hoarded_tokens_buy_nothing() {
        let mut environment = fresh();
        for spent_at in 0..100 {
            environment.lease_end =
                renewed(&environment, timestamp(100), timestamp(200 + spent_at));
        }
        assert_eq!(environment.lease_end, timestamp(400));
    }

    #[test]
    fn a_token_from_the_future_counts_as_now() {
        assert_eq!(
            renewed(&fresh(), timestamp(130), timestamp(100)),
            timestamp(400)
        );
    }

    #[test]
    fn nothing_extends_the_deadline() {
        assert_eq!(
            renewed(&fresh(), timestamp(7100), timestamp(7100)),
            timestamp(7200)
        );
        let restarted = ServingSince(timestamp(7150));
        assert_eq!(
            ended(&fresh(), restarted, timestamp(7200)),
            Some(EndReason::DeadlineReached)
        );
    }

    #[test]
    fn without_proof_of_life_it_lapses_with_its_lease() {
        assert_eq!(ended(&fresh(), LONG_AGO, timestamp(299)), None);
        assert_eq!(
            ended(&fresh(), LONG_AGO, timestamp(300)),
            Some(EndReason::Lapsed)
        );
    }

    #[test]
    fn downtime_is_not_death() {
        let restarted = ServingSince(timestamp(1000));
        assert_eq!(ended(&fresh(), restarted, timestamp(1299)), None);
        assert_eq!(
            ended(&fresh(), restarted, timestamp(1300)),
            Some(EndReason::Lapsed)
        );
    }

    proptest! {
        #[test]
        fn a_lease_never_shrinks_and_never_passes_iat_plus_lease(iats in prop::collection::vec(0i64..8000, 0..50)) {
            let mut environment = fresh();
            let last = iats.iter().copied().max().unwrap_or(0);
            for iat in iats {
                let next = renewed(&environment, timestamp(iat), timestamp(8000));
                prop_assert!(next >= environment.lease_end);
                environment.lease_end = next;
            }
            prop_assert!(environment.lease_end <= timestamp((last + 300).clamp(300, 7200)));
        }
    }
}
