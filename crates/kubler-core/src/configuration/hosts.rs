//! Host clusters, and what a profile for them can say and must not.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Configuration;
use super::faults::{ConfigurationFault, bound, fault};
use crate::host::grants;
use crate::host::names::{NAMESPACE_DIGITS, is_dns_label};
use crate::host::network::Range;
use crate::host::quantity;
use crate::profile::{ENVIRONMENTS_MAX, EngineKind, NamespaceProfile, Profile};

/// Most host clusters.
pub const HOSTS_MAX: usize = 64;
/// Environments of one host when the configuration does not say.
const ENVIRONMENTS_DEFAULT: u32 = 200;
/// Longest name of a namespace in Kubernetes, in bytes.
const NAMESPACE_BYTES_MAX: usize = 63;

/// A host cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// What it is called here.
    pub name: String,
    /// Kubeconfig file, relative to the configuration's folder. Either this or `in_cluster`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubeconfig: Option<String>,
    /// Context of the kubeconfig. Absent: its current one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// The server runs in this cluster, as a pod with a service account.
    #[serde(default)]
    pub in_cluster: bool,
    /// What profiles select it by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Environments alive there at once.
    #[serde(default = "Host::default_environments_max")]
    #[schemars(range(min = 1, max = ENVIRONMENTS_MAX))]
    pub environments_max: u32,
    /// What the names of all environments' namespaces begin with; two servers on one cluster need two.
    #[serde(default = "Host::default_namespace_prefix")]
    pub namespace_prefix: String,
    /// Namespace for the tenants' service accounts, which nobody but Kubler can write to.
    #[serde(default = "Host::default_accounts_namespace")]
    pub accounts_namespace: String,
}

impl Host {
    const fn default_environments_max() -> u32 {
        ENVIRONMENTS_DEFAULT
    }
    fn default_namespace_prefix() -> String {
        "kubler-env-".into()
    }
    fn default_accounts_namespace() -> String {
        "kubler-accounts".into()
    }

    fn faults(&self, at: &dyn Fn(&str) -> String, faults: &mut Vec<ConfigurationFault>) {
        if !is_dns_label(&self.name) {
            faults.push(fault(
                at("name"),
                format!("`{}` is not a host's name", self.name),
                "use lower-case letters, digits and `-`, at most 63",
            ));
        }
        if self.kubeconfig.is_some() == self.in_cluster {
            faults.push(fault(
                at("kubeconfig"),
                "a host is reached by a kubeconfig or from inside, and by one of the two",
                "name a file in `kubeconfig`, or say `in_cluster: true`",
            ));
        }
        if self.context.is_some() && self.kubeconfig.is_none() {
            faults.push(fault(
                at("context"),
                "there is no kubeconfig that the context could be of",
                "take it out, or name the file in `kubeconfig`",
            ));
        }
        bound(
            faults,
            at("environments_max"),
            self.environments_max.into(),
            1,
            ENVIRONMENTS_MAX.into(),
        );
        let prefix = &self.namespace_prefix;
        let fits = prefix.len() + NAMESPACE_DIGITS <= NAMESPACE_BYTES_MAX;
        if !(fits && prefix.ends_with('-') && is_dns_label(prefix.trim_end_matches('-'))) {
            faults.push(fault(
                at("namespace_prefix"),
                format!("`{prefix}` cannot begin the names of namespaces"),
                format!(
                    "use lower-case letters, digits and `-`, with `-` at its end, at most {}",
                    NAMESPACE_BYTES_MAX - NAMESPACE_DIGITS
                ),
            ));
        }
        let accounts = &self.accounts_namespace;
        if !is_dns_label(accounts) || accounts.starts_with(prefix.as_str()) {
            faults.push(fault(
                at("accounts_namespace"),
                format!("`{accounts}` cannot be the namespace of accounts"),
                format!("use a namespace's name that does not begin with `{prefix}`, as environments' do"),
            ));
        }
    }
}

impl Configuration {
    /// The host of this name.
    pub fn host(&self, name: &str) -> Option<&Host> {
        self.hosts.iter().find(|host| host.name == name)
    }

    pub(super) fn host_faults(&self, faults: &mut Vec<ConfigurationFault>) {
        if self.hosts.len() > HOSTS_MAX {
            faults.push(fault(
                "hosts",
                format!("{} hosts are more than {HOSTS_MAX}", self.hosts.len()),
                "run a second server for the others",
            ));
        }
        let mut names = BTreeSet::new();
        for (index, host) in self.hosts.iter().enumerate() {
            let at = |key: &str| format!("hosts[{index}].{key}");
            if !names.insert(&host.name) {
                faults.push(fault(
                    at("name"),
                    format!("`{}` is listed twice", host.name),
                    "give each host a name of its own",
                ));
            }
            host.faults(&at, faults);
        }
    }

    /// What a profile says that its engine does not know, and what it lacks.
    pub(super) fn engine_faults(
        &self,
        profile: &Profile,
        at: &dyn Fn(&str) -> String,
        faults: &mut Vec<ConfigurationFault>,
    ) {
        match profile.engine {
            EngineKind::Local => self.local_faults(profile, at, faults),
            EngineKind::Namespace => self.namespace_faults(profile, at, faults),
        }
    }

    fn local_faults(
        &self,
        profile: &Profile,
        at: &dyn Fn(&str) -> String,
        faults: &mut Vec<ConfigurationFault>,
    ) {
        if !self.kubernetes.contains_key(&profile.kubernetes) {
            let known: Vec<_> = self.kubernetes.keys().map(String::as_str).collect();
            faults.push(fault(
                at("kubernetes"),
                format!("`{}` is not a key of `kubernetes`", profile.kubernetes),
                format!("listed there: {}", known.join(", ")),
            ));
        }
        if profile.namespace.is_some() {
            faults.push(other_engine(at("namespace"), "local", "namespace"));
        }
    }

    fn namespace_faults(
        &self,
        profile: &Profile,
        at: &dyn Fn(&str) -> String,
        faults: &mut Vec<ConfigurationFault>,
    ) {
        let said = [
            ("kubernetes", !profile.kubernetes.is_empty()),
            ("memory_bytes_max", profile.memory_bytes_max.is_some()),
            ("stored_bytes_max", profile.stored_bytes_max.is_some()),
            ("egress", !profile.egress.is_empty()),
        ];
        for (key, _) in said.into_iter().filter(|(_, is_said)| *is_said) {
            faults.push(other_engine(at(key), "namespace", "local"));
        }
        let default = NamespaceProfile::default();
        let namespace = profile.namespace.as_ref().unwrap_or(&default);
        let matches = |host: &Host| selects(&namespace.hosts, &host.labels);
        if !self.hosts.iter().any(matches) {
            faults.push(fault(
                at("namespace.hosts"),
                "no host has these labels",
                "list a host under `hosts`, with the `labels` that this profile selects",
            ));
        }
        namespace.faults(&|key| at(&format!("namespace.{key}")), faults);
    }
}

/// Whether something with `labels` is meant by `wanted`.
pub(crate) fn selects(
    wanted: &BTreeMap<String, String>,
    labels: &BTreeMap<String, String>,
) -> bool {
    wanted
        .iter()
        .all(|(name, value)| labels.get(name) == Some(value))
}

fn other_engine(key: String, engine: &str, other: &str) -> ConfigurationFault {
    fault(
        key,
        format!("it means nothing for the engine `{engine}`"),
        format!("take it out: only profiles of the engine `{other}` have it"),
    )
}

impl NamespaceProfile {
    fn faults(&self, at: &dyn Fn(&str) -> String, faults: &mut Vec<ConfigurationFault>) {
        self.quantity_faults(at, faults);
        for (nth, exception) in self.network.allow.iter().enumerate() {
            let key = || at(&format!("network.allow[{nth}]"));
            let range = match (&exception.to, &exception.from) {
                (Some(range), None) | (None, Some(range)) => range,
                (Some(_), Some(_)) | (None, None) => {
                    faults.push(fault(
                        key(),
                        "an exception opens one way",
                        "name one of `to` and `from`; the other way is a second entry",
                    ));
                    continue;
                }
            };
            match Range::parse(range) {
                None => faults.push(fault(
                    key(),
                    format!("`{range}` is not a range of addresses"),
                    "such as `203.0.113.0/24` or `2001:db8::/32`, without bits behind the prefix",
                )),
                Some(range) if range.is_never_open() => faults.push(fault(
                    key(),
                    "link-local and metadata addresses stay closed",
                    "give the service an address of its own",
                )),
                Some(_) => {}
            }
            if exception.ports.contains(&0) {
                faults.push(fault(key(), "port 0 is no port", "name ports from 1 on"));
            }
        }
        if self.role.is_some() && !self.rules.is_empty() {
            faults.push(fault(
                at("rules"),
                "there is a `role` as well",
                "name one of the two: rules stand by themselves",
            ));
        }
        for found in grants::faults(&self.rules) {
            faults.push(fault(
                at(&format!("rules[{}]", found.rule)),
                found.message,
                found.hint,
            ));
        }
        self.name_faults(at, faults);
    }

    fn quantity_faults(&self, at: &dyn Fn(&str) -> String, faults: &mut Vec<ConfigurationFault>) {
        let limits = &self.limits;
        for (key, quantities) in [
            ("quota", &self.quota),
            ("limits.default", &limits.default),
            ("limits.default_request", &limits.default_request),
            ("limits.max", &limits.max),
        ] {
            for (name, text) in quantities {
                if !quantity::is_one(text) {
                    faults.push(fault(
                        at(&format!("{key}.{name}")),
                        format!("`{text}` is not a quantity"),
                        "such as `20`, `500m`, `1.5` or `512Mi`",
                    ));
                }
            }
        }
    }

    fn name_faults(&self, at: &dyn Fn(&str) -> String, faults: &mut Vec<ConfigurationFault>) {
        let mut names = BTreeSet::new();
        for (nth, secret) in self.secrets.iter().enumerate() {
            let is_key = |key: &String| {
                !key.is_empty()
                    && key
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
            };
            if !is_dns_label(&secret.name)
                || !names.insert(&secret.name)
                || secret.files.is_empty()
                || !secret.files.keys().all(is_key)
            {
                faults.push(fault(
                    at(&format!("secrets[{nth}]")),
                    format!("`{}` cannot be a secret", secret.name),
                    "give each a name of its own, of lower-case letters, digits and `-`, and at least one file; keys are letters, digits, `-`, `_` and `.`",
                ));
            }
        }
        for (nth, strippable) in self.strip_finalizers.iter().enumerate() {
            // Kubernetes' own guard more than one environment.
            if strippable.resource.is_empty()
                || !strippable.finalizer.contains('/')
                || strippable.finalizer.starts_with("kubernetes.io/")
            {
                faults.push(fault(
                    at(&format!("strip_finalizers[{nth}]")),
                    format!("`{}` cannot be taken away", strippable.finalizer),
                    "name a resource in the plural and a finalizer as `example.com/name`; Kubernetes' own stay",
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests;
