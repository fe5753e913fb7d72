//! How long a session lives. Signing and checking is the shell's; this is only arithmetic.

use jiff::Timestamp;

use crate::environment::Environment;
use crate::identity::VerifiedToken;
use crate::lease::after;

/// When a session bought with `token` ends: one session after the token was minted, and never past the
/// environment's lease or deadline. `None` when that is already over.
pub fn end(environment: &Environment, token: &VerifiedToken, now: Timestamp) -> Option<Timestamp> {
    let bought = after(
        token.issued_at.min(now),
        environment.resolved.profile.session(),
    );
    let end = bought.min(environment.lease_end).min(environment.deadline);
    (end > now).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::fixtures::{environment, timestamp, verified_token};

    #[test]
    fn a_session_ends_with_its_lease_or_earlier() {
        let mut environment = environment();
        let token = verified_token(timestamp(100));
        assert_eq!(
            end(&environment, &token, timestamp(110)),
            Some(timestamp(300))
        );
        environment.lease_end = timestamp(5000);
        assert_eq!(
            end(&environment, &token, timestamp(110)),
            Some(timestamp(700))
        );
        environment.deadline = timestamp(200);
        assert_eq!(
            end(&environment, &token, timestamp(110)),
            Some(timestamp(200))
        );
        assert_eq!(end(&environment, &token, timestamp(200)), None);
    }
}
