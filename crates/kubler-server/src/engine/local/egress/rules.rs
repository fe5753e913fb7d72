//! What may be reached from inside an environment. Pure.

use std::collections::BTreeSet;

pub(super) use kubler_core::egress::{Target, is_forbidden};

/// Why a connection was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The profile does not list it.
    NotListed,
    /// It leads to this machine, or to where machines get their credentials.
    ForbiddenAddress,
    /// It does not answer, or its name is not known.
    Unreachable,
    /// It could not be written down.
    NotRecorded,
}

impl Refusal {
    /// The stable code.
    pub(super) const fn code(self) -> &'static str {
        match self {
            Self::NotListed => "not_listed",
            Self::ForbiddenAddress => "forbidden_address",
            Self::Unreachable => "unreachable",
            Self::NotRecorded => "not_recorded",
        }
    }
}

/// What a profile lists.
#[derive(Debug, Clone, Default)]
pub(super) struct Allowed(BTreeSet<Target>);

impl Allowed {
    /// Takes `name:port` texts. The configuration was checked: each is a destination; one that is none is refused.
    pub(super) fn new(listed: &[String]) -> Self {
        Self(
            listed
                .iter()
                .filter_map(|text| Target::parse(text))
                .collect(),
        )
    }

    pub(super) fn lists(&self, target: &Target) -> bool {
        self.0.contains(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_listed_is_allowed_and_spelling_does_not_matter() {
        let allowed = Allowed::new(&[
            "Hooks.Example:443".into(),
            "[2001:db8::1]:8443".into(),
            "no port".into(),
        ]);
        let target = |text: &str| Target::parse(text).unwrap();
        assert!(
            allowed.lists(&target("hooks.example:443"))
                && allowed.lists(&target("HOOKS.example.:443"))
        );
        assert!(allowed.lists(&target("[2001:DB8::1]:8443")));
        for other in [
            "hooks.example:80",
            "a.hooks.example:443",
            "hooks.example.evil:443",
        ] {
            assert!(!allowed.lists(&target(other)), "{other}");
        }
    }
}
