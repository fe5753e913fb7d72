//! Which namespaces of a host cluster may be ended when nobody remembers them. Decided from the cluster alone: the
//! store may be lost.
//!
//! Only a signed mark counts. Names, labels and copied annotations can be anybody's; another Kubler on the same cluster
//! signs with another key, and its namespaces are none of ours.

use ed25519_dalek::VerifyingKey;
use jiff::Timestamp;

use super::mark::{Mark, MarkFault};
use crate::ids::EnvironmentId;

/// A namespace as it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found<'a> {
    /// Its UID.
    pub uid: &'a str,
    /// Its mark, if it carries one.
    pub mark: Option<&'a str>,
}

/// What a namespace that the store does not know is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// Ours, and its deadline is over: it may be ended.
    Overdue(EnvironmentId),
    /// Ours, and its deadline is still to come: somebody may still use it.
    Waits(EnvironmentId, Timestamp),
    /// Nothing says that it is ours: it is reported, and not touched.
    Untouched(Untouched),
}

/// Why a namespace is not touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Untouched {
    /// It looks like ours, by name or label, and carries no mark.
    #[error("it carries no mark")]
    Unmarked,
    /// Its mark does not hold.
    #[error("its mark does not hold: {0}")]
    BadMark(MarkFault),
    /// There is no key to check marks with.
    #[error("there is no key to check its mark with")]
    NoKey,
    /// It is not called as the environment's namespace would be that its label or mark names.
    #[error("its name is not that of the environment that it claims to be")]
    OtherName,
}

/// What may be done with a namespace that the store does not know.
pub fn judge(found: Found<'_>, key: Option<&VerifyingKey>, now: Timestamp) -> Judgement {
    let Some(mark) = found.mark else {
        return Judgement::Untouched(Untouched::Unmarked);
    };
    let Some(key) = key else {
        return Judgement::Untouched(Untouched::NoKey);
    };
    match Mark::verify(mark, found.uid, key) {
        Err(fault) => Judgement::Untouched(Untouched::BadMark(fault)),
        Ok(mark) if mark.deadline <= now => Judgement::Overdue(mark.environment),
        Ok(mark) => Judgement::Waits(mark.environment, mark.deadline),
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;

    use super::*;
    use crate::invariants::fixtures::{environment_id, timestamp};

    #[test]
    fn only_a_mark_that_holds_for_this_very_namespace_lets_it_be_ended_and_only_behind_its_deadline()
     {
        let (key, other) = (
            SigningKey::from_bytes(&[1; 32]),
            SigningKey::from_bytes(&[2; 32]),
        );
        let public = key.verifying_key();
        let mark = Mark {
            environment: environment_id(1),
            namespace_uid: "uid-1".into(),
            deadline: timestamp(100),
        };
        let (good, strange) = (mark.sign(&key), mark.sign(&other));
        let found = |uid, mark| Found { uid, mark };
        let untouched = Judgement::Untouched;
        for (found, key, now, expected) in [
            (
                found("uid-1", Some(good.as_str())),
                Some(&public),
                100,
                Judgement::Overdue(environment_id(1)),
            ),
            (
                found("uid-1", Some(&good)),
                Some(&public),
                99,
                Judgement::Waits(environment_id(1), timestamp(100)),
            ),
            (
                found("uid-2", Some(&good)),
                Some(&public),
                900,
                untouched(Untouched::BadMark(MarkFault::Copied)),
            ),
            (
                found("uid-1", Some(&strange)),
                Some(&public),
                900,
                untouched(Untouched::BadMark(MarkFault::Signature)),
            ),
            (
                found("uid-1", Some("v1 forged")),
                Some(&public),
                900,
                untouched(Untouched::BadMark(MarkFault::Form)),
            ),
            (
                found("uid-1", None),
                Some(&public),
                900,
                untouched(Untouched::Unmarked),
            ),
            (
                found("uid-1", Some(&good)),
                None,
                900,
                untouched(Untouched::NoKey),
            ),
        ] {
            assert_eq!(judge(found, key, timestamp(now)), expected);
        }
    }
}
