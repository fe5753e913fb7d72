//! What a profile of the engine `namespace` says: the walls of an environment on a host cluster, and what may be done
//! inside.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::host::grants::{Role, Rule};

/// A profile's part for environments on a host cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NamespaceProfile {
    /// Labels that a host must have; empty for any host.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub hosts: BTreeMap<String, String>,
    /// Pod Security level. Absent: `restricted` for a profile that is `restricted`, else `baseline`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_security: Option<PodSecurity>,
    /// What the environment may hold, as a ResourceQuota has it; what is not named here has Kubler's own bound.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub quota: BTreeMap<String, String>,
    /// What a container gets when it does not say, and may ask for at most.
    #[serde(skip_serializing_if = "ContainerLimits::is_empty")]
    pub limits: ContainerLimits,
    /// Whom its pods may talk to.
    pub network: Network,
    /// What the job may do inside: one of Kubler's roles. Absent, with no `rules`: `edit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Or exactly these rules.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// Secrets that are in the environment when it is ready. Their contents are read from files each time one is made,
    /// and kept nowhere.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretOfFiles>,
    /// What becomes of a wall that somebody changed.
    pub on_drift: OnDrift,
    /// Finalizers that may be taken away from objects that keep an environment from ending.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub strip_finalizers: Vec<Strippable>,
}

/// How pods are held to what a container may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PodSecurity {
    /// No known way out of a container.
    Baseline,
    /// Hardened as far as pods can be.
    Restricted,
}

impl PodSecurity {
    /// The word in configuration and in Kubernetes' labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

/// Of a container: resources by name, as `cpu: 500m`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ContainerLimits {
    /// Its limits when it does not say.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub default: BTreeMap<String, String>,
    /// Its requests when it does not say.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub default_request: BTreeMap<String, String>,
    /// Most that it may ask for.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub max: BTreeMap<String, String>,
}

impl ContainerLimits {
    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Whether the walls of the network must hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Only on hosts that are known to enforce network policies.
    #[default]
    Required,
    /// On any host: the policies are there, and whether anybody enforces them is not asked.
    Unverified,
}

/// Whom pods may talk to. Everything that is not allowed here is denied, both ways.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Whether the walls must hold.
    pub isolation: Isolation,
    /// The environment's pods may talk to each other.
    pub inside: bool,
    /// They may ask the cluster's DNS.
    pub dns: bool,
    /// What else they may reach, or be reached from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Exception>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            isolation: Isolation::default(),
            inside: true,
            dns: true,
            allow: Vec::new(),
        }
    }
}

/// One hole in the wall: either `to` or `from` a range of addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Exception {
    /// Pods may reach these addresses, as `203.0.113.0/24`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Pods may be reached from these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// TCP ports; empty for every port of every protocol.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
}

/// A secret whose contents are files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretOfFiles {
    /// The secret's name in the environment.
    pub name: String,
    /// Files by the key that they become, relative to the configuration's folder.
    pub files: BTreeMap<String, String>,
}

/// What becomes of a wall that somebody changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnDrift {
    /// It is put right, and written down.
    #[default]
    Repair,
    /// It is written down.
    Report,
}

/// A finalizer that may be taken away when it keeps an environment from ending.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Strippable {
    /// API group of the objects; empty for the core group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Their resource, in the plural.
    pub resource: String,
    /// The finalizer.
    pub finalizer: String,
}

impl NamespaceProfile {
    /// The Pod Security level of environments of a profile that is `restricted` or not.
    pub fn pod_security(&self, restricted: bool) -> PodSecurity {
        self.pod_security.unwrap_or(if restricted {
            PodSecurity::Restricted
        } else {
            PodSecurity::Baseline
        })
    }

    /// What the job may do, as rules.
    pub fn grants(&self) -> Vec<Rule> {
        if self.rules.is_empty() {
            self.role.unwrap_or_default().rules()
        } else {
            self.rules.clone()
        }
    }
}
