//! What of the configuration can change while the server runs, and what needs a restart.

use super::Configuration;
#[cfg(test)]
use super::Host;

/// A key that a running server does not take over.
pub struct Key {
    /// Its name in the file, with a dot below a section.
    pub name: &'static str,
    /// What it is bound to.
    pub why: &'static str,
    /// Puts the old value back; whether it was another.
    keep: fn(&Configuration, &mut Configuration) -> bool,
    /// Makes it another one.
    #[cfg(test)]
    change: fn(&mut Configuration),
}

/// A key by its way in [`Configuration`], so that what is named is what is kept; what it is bound to; and how a test
/// changes it.
macro_rules! key {
    ($section:ident $(. $field:ident)*, $why:literal, $change:expr) => {
        Key {
            name: concat!(stringify!($section) $(, ".", stringify!($field))*),
            why: $why,
            keep: |old, new| keep(&old.$section $(.$field)*, &mut new.$section $(.$field)*),
            #[cfg(test)]
            change: $change,
        }
    };
}

/// All of them. What is not here is taken over.
pub const NEEDS_RESTART: &[Key] = &[
    key! { listen, "the address is bound at the start", |it| it.listen.push('0') },
    key! { url, "living environments and their kubeconfigs are known by it", |it| it.url.push('0') },
    key! { data, "the store and the ledger are open", |it| it.data.push('0') },
    key! { run, "living environments have their sockets there", |it| it.run = Some("/run/kubler".into()) },
    key! { tls, "only the names of the files", |it| it.tls.key.push('0') },
    key! {
        kubernetes,
        "programs are looked for, and their etcd is started, at the start",
        |it| drop(it.kubernetes.insert("1.35".into(), Default::default()))
    },
    key! {
        hosts,
        "connections to them are open, and environments live there",
        |it| it.hosts.extend(serde_json::from_value::<Host>(serde_json::json!({"name": "east", "in_cluster": true})))
    },
    key! { mark_key, "namespaces are marked with it", |it| it.mark_key = Some("other.key".into()) },
    key! { ledger, "the ledger is open", |it| it.ledger.checkpoint_seconds += 1 },
];

impl Configuration {
    /// What is in force after `new` was read: `new`, but with this one's values where a change needs a restart; and the
    /// names of those that did change, as in [`NEEDS_RESTART`].
    pub fn taking_over(&self, mut new: Self) -> (Self, Vec<&'static str>) {
        let mut kept = Vec::new();
        for key in NEEDS_RESTART {
            if (key.keep)(self, &mut new) {
                kept.push(key.name);
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
    use serde_json::Value;

    use super::*;
    use crate::configuration::Limits;

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

    /// Changes every key that a running server takes over. A key that is new is missing here, so that this does not
    /// compile before somebody has sorted it: either a reload puts it in force wherever it is used, or it stands in
    /// [`NEEDS_RESTART`].
    fn change_what_is_taken_over(configuration: &mut Configuration) {
        let Configuration {
            listen: _,
            url: _,
            data: _,
            mark_key: _,
            run: _,
            tls: _,
            kubernetes: _,
            hosts: _,
            ledger: _,
            issuers,
            profiles,
            policies,
            log,
            limits,
        } = configuration;
        let Limits {
            environments_max,
            queue_max,
            provisioning_max,
            environments_per_job_max,
            connections_max,
            connections_per_address_max,
        } = limits;
        issuers.clear();
        profiles.clear();
        policies.push('0');
        *log = Some("debug".into());
        for limit in [
            environments_max,
            queue_max,
            provisioning_max,
            environments_per_job_max,
            connections_max,
            connections_per_address_max,
        ] {
            *limit += 1;
        }
    }

    /// The names of all keys, those of limits one by one.
    fn names() -> Vec<String> {
        let of = |schema: schemars::Schema| -> Vec<String> {
            let properties = schema.get("properties").and_then(Value::as_object);
            properties.unwrap().keys().cloned().collect()
        };
        let mut all = of(schemars::schema_for!(Configuration));
        all.retain(|name| name != "limits");
        let limits = of(schemars::schema_for!(Limits));
        all.extend(limits.iter().map(|name| format!("limits.{name}")));
        all
    }

    #[test]
    fn what_needs_a_restart_stays_and_is_named() {
        let old = configuration();
        for key in NEEDS_RESTART {
            let mut new = configuration();
            (key.change)(&mut new);
            assert_ne!(new, old, "{}", key.name);
            assert_eq!(old.taking_over(new), (configuration(), vec![key.name]));
        }
    }

    #[test]
    fn every_other_key_is_taken_over() {
        let old = configuration();
        let mut new = configuration();
        change_what_is_taken_over(&mut new);
        assert_eq!(old.taking_over(new.clone()), (new.clone(), vec![]));

        let [old, new] = [old, new].map(|it| serde_json::to_value(it).unwrap());
        for name in names() {
            let pointer = format!("/{}", name.replace('.', "/"));
            let is_taken_over = old.pointer(&pointer) != new.pointer(&pointer);
            let is_kept = NEEDS_RESTART.iter().any(|key| key.name == name);
            assert_ne!(is_taken_over, is_kept, "`{name}` is not sorted");
        }
    }
}
