//! Which host an environment goes to: one that its profile selects, that is well and has room; the one with the most.

use std::collections::BTreeMap;

use crate::configuration::{Host, selects};
use crate::profile::{Isolation, NamespaceProfile};

/// What is known of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// What the configuration says of it.
    pub host: &'a Host,
    /// Environments there that are not gone.
    pub environments: u32,
    /// Whether it answers.
    pub health: Health,
    /// Whether it enforces network policies.
    pub enforcement: Enforcement,
}

/// Whether a host answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Health {
    /// Nobody has asked yet.
    #[default]
    Unknown,
    /// It answers.
    Well,
    /// It does not: it gets nothing new.
    Sick,
}

impl Health {
    /// The word in API, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Well => "well",
            Self::Sick => "sick",
        }
    }
}

/// Whether a host enforces network policies, as a probe saw it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Enforcement {
    /// It was not seen.
    #[default]
    Unknown,
    /// A connection that a policy denies was refused.
    Enforced,
    /// It was let through.
    NotEnforced,
}

impl Enforcement {
    /// The word in API, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Enforced => "enforced",
            Self::NotEnforced => "not_enforced",
        }
    }
}

/// Why there is no place for an environment now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no host has a place for it: {}", .hosts.iter().map(|(name, why)| format!("`{name}` {why}")).collect::<Vec<_>>().join(", "))]
pub struct NoPlace {
    /// Every host that the profile selects, with what is in the way.
    pub hosts: BTreeMap<String, &'static str>,
}

/// The host for an environment of this profile.
///
/// # Errors
/// When none can take it now. It waits: a host may get well, and an environment may end.
pub fn choose<'a>(
    wanted: &NamespaceProfile,
    candidates: &[Candidate<'a>],
) -> Result<&'a Host, NoPlace> {
    let mut refused = BTreeMap::new();
    let mut best: Option<(u32, &Host)> = None;
    for candidate in candidates {
        let host = candidate.host;
        if !selects(&wanted.hosts, &host.labels) {
            continue;
        }
        let free = host.environments_max.saturating_sub(candidate.environments);
        match obstacle(wanted, candidate, free) {
            Some(why) => _ = refused.insert(host.name.clone(), why),
            // By name where the room is equal, so that the answer does not depend on an order.
            None if best.is_none_or(|(most, other)| {
                (free, std::cmp::Reverse(&host.name)) > (most, std::cmp::Reverse(&other.name))
            }) =>
            {
                best = Some((free, host));
            }
            None => {}
        }
    }
    best.map(|(_, host)| host).ok_or(NoPlace { hosts: refused })
}

fn obstacle(
    wanted: &NamespaceProfile,
    candidate: &Candidate<'_>,
    free: u32,
) -> Option<&'static str> {
    match candidate.health {
        Health::Unknown => return Some("has not answered yet"),
        Health::Sick => return Some("does not answer"),
        Health::Well => {}
    }
    match (wanted.network.isolation, candidate.enforcement) {
        (Isolation::Required, Enforcement::Unknown) => {
            return Some("is not known to enforce network policies");
        }
        (Isolation::Required, Enforcement::NotEnforced) => {
            return Some("does not enforce network policies");
        }
        (Isolation::Required, Enforcement::Enforced) | (Isolation::Unverified, _) => {}
    }
    (free == 0).then_some("is full")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Network;

    fn host(name: &str, region: &str, most: u32) -> Host {
        serde_json::from_value(serde_json::json!({
            "name": name, "in_cluster": true, "labels": {"region": region}, "environments_max": most,
        }))
        .unwrap()
    }

    fn wanting(region: Option<&str>, isolation: Isolation) -> NamespaceProfile {
        NamespaceProfile {
            hosts: region
                .map(|region| ("region".into(), region.into()))
                .into_iter()
                .collect(),
            network: Network {
                isolation,
                ..Network::default()
            },
            ..NamespaceProfile::default()
        }
    }

    const fn well(host: &Host, environments: u32) -> Candidate<'_> {
        Candidate {
            host,
            environments,
            health: Health::Well,
            enforcement: Enforcement::NotEnforced,
        }
    }

    #[test]
    fn the_host_with_the_most_room_that_the_profile_selects_is_chosen() {
        let (a, b, c) = (
            host("a", "east", 10),
            host("b", "east", 10),
            host("c", "west", 99),
        );
        let candidates = [well(&b, 3), well(&a, 3), well(&c, 0)];
        let chosen = |wanted: &NamespaceProfile| choose(wanted, &candidates).unwrap().name.clone();
        assert_eq!(chosen(&wanting(Some("east"), Isolation::Unverified)), "a");
        assert_eq!(chosen(&wanting(None, Isolation::Unverified)), "c");
        let candidates = [well(&b, 2), well(&a, 3)];
        let chosen = choose(&wanting(Some("east"), Isolation::Unverified), &candidates);
        assert_eq!(chosen.unwrap().name, "b");
    }

    #[test]
    fn a_host_that_is_sick_full_or_not_isolating_gets_nothing_new_and_the_answer_says_which() {
        let (a, b, c, d) = (
            host("a", "east", 1),
            host("b", "east", 9),
            host("c", "east", 9),
            host("d", "west", 9),
        );
        let sick = Candidate {
            health: Health::Sick,
            ..well(&b, 0)
        };
        let unknown = Candidate {
            health: Health::Unknown,
            ..well(&c, 0)
        };
        let candidates = [well(&a, 1), sick, unknown, well(&d, 0)];
        let none = choose(&wanting(Some("east"), Isolation::Unverified), &candidates).unwrap_err();
        assert_eq!(
            none.to_string(),
            "no host has a place for it: `a` is full, `b` does not answer, `c` has not answered yet"
        );
        let none = choose(&wanting(Some("west"), Isolation::Required), &candidates).unwrap_err();
        assert_eq!(
            none.to_string(),
            "no host has a place for it: `d` does not enforce network policies"
        );
        let enforcing = [Candidate {
            enforcement: Enforcement::Enforced,
            ..well(&d, 0)
        }];
        let chosen = choose(&wanting(None, Isolation::Required), &enforcing);
        assert_eq!(chosen.unwrap().name, "d");
    }
}
