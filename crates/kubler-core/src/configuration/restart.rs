//! What of the configuration can change while the server runs, and what needs a restart.

use super::Configuration;

/// Keys that a running server does not take over: each with what it is bound to.
pub const NEEDS_RESTART: &[(&str, &str)] = &[
    ("listen", "the address is bound at the start"),
    (
        "url",
        "living environments and their kubeconfigs are known by it",
    ),
    ("data", "the store and the ledger are open"),
    ("run", "living environments have their sockets there"),
    ("tls", "only the names of the files"),
    (
        "kubernetes",
        "programs are looked for, and their etcd is started, at the start",
    ),
    (
        "limits.connections_max",
        "places are counted from the start",
    ),
    ("ledger", "the ledger is open"),
];

impl Configuration {
    /// What is in force after `new` was read: `new`, but with this one's values where a change needs a restart; and the
    /// keys of those that did change, as in [`NEEDS_RESTART`].
    pub fn taking_over(&self, mut new: Self) -> (Self, Vec<&'static str>) {
        let mut kept = Vec::new();
        for (key, _) in NEEDS_RESTART {
            let changed = match *key {
                "listen" => keep(&self.listen, &mut new.listen),
                "url" => keep(&self.url, &mut new.url),
                "data" => keep(&self.data, &mut new.data),
                "run" => keep(&self.run, &mut new.run),
                "tls" => keep(&self.tls, &mut new.tls),
                "kubernetes" => keep(&self.kubernetes, &mut new.kubernetes),
                "limits.connections_max" => keep(
                    &self.limits.connections_max,
                    &mut new.limits.connections_max,
                ),
                "ledger" => keep(&self.ledger, &mut new.ledger),
                _ => false,
            };
            if changed {
                kept.push(*key);
            }
        }
        (new, kept)
    }
}

/// Puts the old value back; whether it was another.
fn keep<T: Clone + PartialEq>(old: &T, new: &mut T) -> bool {
    let changed = old != new;
    if changed {
        new.clone_from(old);
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration() -> Configuration {
        serde_saphyr::from_str(
            r#"
url: https://kubler.test:8443
issuers:
  - {kind: buildkite, audience: a, organizations: []}
profiles:
  - {name: ci-small, kubernetes: "1.34"}
"#,
        )
        .unwrap()
    }

    #[test]
    fn what_needs_a_restart_stays_and_is_named_and_everything_else_is_taken_over() {
        let changes: [fn(&mut Configuration); 8] = [
            |it| it.listen.push('0'),
            |it| it.url.push('0'),
            |it| it.data.push('0'),
            |it| it.run = Some("/run/kubler".into()),
            |it| it.tls.key.push('0'),
            |it| drop(it.kubernetes.insert("1.35".into(), Default::default())),
            |it| it.limits.connections_max += 1,
            |it| it.ledger.checkpoint_seconds += 1,
        ];
        let old = configuration();
        for (change, (key, _)) in changes.iter().zip(NEEDS_RESTART) {
            let mut new = configuration();
            change(&mut new);
            assert_eq!(old.taking_over(new), (configuration(), vec![*key]));
        }
        let mut new = configuration();
        new.profiles.clear();
        new.issuers.clear();
        new.policies.push('0');
        new.log = Some("debug".into());
        new.limits.environments_max += 1;
        assert_eq!(old.taking_over(new.clone()), (new, vec![]));
    }
}
