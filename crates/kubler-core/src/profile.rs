//! What an operator offers: a profile says what an environment is made of and how long it lives.
//! Which identity may use which profile is policy.

mod namespace;

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use self::namespace::{
    ContainerLimits, Exception, Isolation, NamespaceProfile, Network, OnDrift, PodSecurity,
    SecretOfFiles, Strippable,
};
use crate::guardrails::Guardrails;

/// Most environments that any limit may allow: what one machine could ever hold, with room.
pub const ENVIRONMENTS_MAX: u32 = 10_000;
/// Shortest lease, in seconds: below it a renewal has no time to be tried twice.
pub const LEASE_SECONDS_MIN: u64 = 5;
/// Longest lease a profile may ask for, in seconds.
pub const LEASE_SECONDS_MAX: u64 = 3600;
/// Lease when a profile does not say, in seconds.
pub const LEASE_SECONDS_DEFAULT: u64 = 300;
/// Longest deadline a profile may ask for, in seconds: a day.
pub const DEADLINE_SECONDS_MAX: u64 = 86_400;
/// Deadline when a profile does not say, in seconds.
pub const DEADLINE_SECONDS_DEFAULT: u64 = 7200;
/// Shortest session, in seconds.
pub const SESSION_SECONDS_MIN: u64 = 5;
/// Longest session, in seconds.
pub const SESSION_SECONDS_MAX: u64 = 600;
/// Session when a profile does not say, in seconds.
pub const SESSION_SECONDS_DEFAULT: u64 = 600;
/// Least memory that a profile may grant, in bytes: a control plane holds up to 240 MiB while it starts, and 150 MiB
/// when it is idle.
pub const MEMORY_BYTES_MIN: u64 = 320 << 20;
/// Most memory that a profile may grant, in bytes.
pub const MEMORY_BYTES_MAX: u64 = 16 << 30;
/// Memory when a profile does not say, in bytes.
pub const MEMORY_BYTES_DEFAULT: u64 = 512 << 20;
/// Least that a profile may let an environment store, in bytes: an idle one stores some 200 kB.
pub const STORED_BYTES_MIN: u64 = 1 << 20;
/// Most that a profile may let an environment store, in bytes: half of what all together may.
pub const STORED_BYTES_MAX: u64 = 2 << 30;
/// What an environment may store when a profile does not say, in bytes.
pub const STORED_BYTES_DEFAULT: u64 = 128 << 20;

/// Fewest changes a second that a profile may grant.
pub const CHANGES_PER_SECOND_MIN: u64 = 1;
/// Most changes a second that a profile may grant.
pub const CHANGES_PER_SECOND_MAX: u64 = 100_000;
/// Changes a second when a profile does not say: four times what kubectl allows itself.
pub const CHANGES_PER_SECOND_DEFAULT: u64 = 200;
/// Fewest bytes a second that a profile may grant: a request of the default size takes three minutes of them.
pub const BYTES_PER_SECOND_MIN: u64 = 16 << 10;
/// Most bytes a second that a profile may grant.
pub const BYTES_PER_SECOND_MAX: u64 = 1 << 30;
/// Bytes a second when a profile does not say.
pub const BYTES_PER_SECOND_DEFAULT: u64 = 32 << 20;

/// Smallest bound on one request's body, in bytes: below it hardly a manifest fits.
pub const REQUEST_BYTES_MIN: u64 = 1024;
/// Largest bound on one request's body, in bytes.
pub const REQUEST_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What makes and destroys an environment.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// A control plane of its own, as processes of this server.
    Local,
    /// A namespace of a host cluster.
    Namespace,
}

impl EngineKind {
    /// The word in configuration, API and ledger.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Namespace => "namespace",
        }
    }
}

/// When a stream that is open must end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StreamEnd {
    /// With the environment's lease, deadline or release.
    #[default]
    Environment,
    /// Already with the session that opened it.
    Session,
}

/// A profile as it stands in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// What policies and callers call it.
    pub name: String,
    /// One line for people who choose.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// What makes it.
    #[serde(default = "Profile::default_engine")]
    pub engine: EngineKind,
    /// Kubernetes version, a key of the configuration's `kubernetes`. Of the engine `local` only: on a host cluster it is
    /// the host's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kubernetes: String,
    /// For callers nobody vouches for: no secrets, tight limits. Policies look at it.
    #[serde(default)]
    pub restricted: bool,
    /// How long an environment lives after its job last proved to be alive, in seconds.
    #[serde(default = "Profile::default_lease_seconds")]
    #[schemars(range(min = LEASE_SECONDS_MIN, max = LEASE_SECONDS_MAX))]
    pub lease_seconds: u64,
    /// How long it lives at most, in seconds. Nothing extends it.
    #[serde(default = "Profile::default_deadline_seconds")]
    #[schemars(range(min = LEASE_SECONDS_MIN, max = DEADLINE_SECONDS_MAX))]
    pub deadline_seconds: u64,
    /// How long one session lives at most, in seconds.
    #[serde(default = "Profile::default_session_seconds")]
    #[schemars(range(min = SESSION_SECONDS_MIN, max = SESSION_SECONDS_MAX))]
    pub session_seconds: u64,
    /// When open streams end; those of an environment with `scope: build` end with the session in any case.
    #[serde(default)]
    pub streams_end_with: StreamEnd,
    /// How many environments of this profile may live at once; absent: only the server's limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = ENVIRONMENTS_MAX))]
    pub environments_max: Option<u32>,
    /// Bound on the bytes of one request body sent through the gateway.
    #[serde(default = "Profile::default_request_bytes_max")]
    #[schemars(range(min = REQUEST_BYTES_MIN, max = REQUEST_BYTES_MAX))]
    pub request_bytes_max: u64,
    /// Memory that an environment's control plane may hold of its own, in bytes. One that holds more is ended. Of the
    /// engine `local` only; 512 MiB when it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = MEMORY_BYTES_MIN, max = MEMORY_BYTES_MAX))]
    pub memory_bytes_max: Option<u64>,
    /// Bytes that an environment's objects may take in the store. One that holds more is ended. Of the engine `local`
    /// only; 128 MiB when it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = STORED_BYTES_MIN, max = STORED_BYTES_MAX))]
    pub stored_bytes_max: Option<u64>,
    /// Changes a second that an environment may be asked for in the long run; ten times as many after a rest. Whoever
    /// asks for more waits up to 5 s, and then gets 429, on which clients try again by themselves.
    #[serde(default = "Profile::default_changes_per_second_max")]
    #[schemars(range(min = CHANGES_PER_SECOND_MIN, max = CHANGES_PER_SECOND_MAX))]
    pub changes_per_second_max: u64,
    /// Bytes a second of requests and answers together in the long run; eight times as many after a rest. Whoever
    /// needs more waits in the same way.
    #[serde(default = "Profile::default_bytes_per_second_max")]
    #[schemars(range(min = BYTES_PER_SECOND_MIN, max = BYTES_PER_SECOND_MAX))]
    pub bytes_per_second_max: u64,
    /// Manifest files (YAML, one or more documents each) applied before the environment is Ready,
    /// relative to the configuration's folder.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<String>,
    /// Hosts (`name:port`) that the environment's API server may reach, for webhooks and aggregated APIs.
    /// Loopback, link-local and metadata addresses are faults here; the server's own are refused when they are dialled.
    /// Of the engine `local` only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<String>,
    /// What jobs may not do inside, whatever the cluster's own rights say.
    #[serde(default, skip_serializing_if = "Guardrails::is_empty")]
    pub guardrails: Guardrails,
    /// What environments on a host cluster are made of. Of the engine `namespace` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<NamespaceProfile>,
}

impl Profile {
    const fn default_engine() -> EngineKind {
        EngineKind::Local
    }
    const fn default_lease_seconds() -> u64 {
        LEASE_SECONDS_DEFAULT
    }
    const fn default_deadline_seconds() -> u64 {
        DEADLINE_SECONDS_DEFAULT
    }
    const fn default_session_seconds() -> u64 {
        SESSION_SECONDS_DEFAULT
    }
    const fn default_request_bytes_max() -> u64 {
        3 * 1024 * 1024
    }

    const fn default_changes_per_second_max() -> u64 {
        CHANGES_PER_SECOND_DEFAULT
    }
    const fn default_bytes_per_second_max() -> u64 {
        BYTES_PER_SECOND_DEFAULT
    }

    /// Memory that a control plane of its own may hold, in bytes.
    pub fn memory_bytes_max(&self) -> u64 {
        self.memory_bytes_max.unwrap_or(MEMORY_BYTES_DEFAULT)
    }

    /// Bytes that its objects may take in the store.
    pub fn stored_bytes_max(&self) -> u64 {
        self.stored_bytes_max.unwrap_or(STORED_BYTES_DEFAULT)
    }

    /// The profile with every default written out that depends on the engine: what is stored with an environment says
    /// all of it.
    pub fn written_out(&self) -> Self {
        let mut profile = self.clone();
        match profile.engine {
            EngineKind::Local => {
                profile.memory_bytes_max = Some(self.memory_bytes_max());
                profile.stored_bytes_max = Some(self.stored_bytes_max());
            }
            EngineKind::Namespace => {
                profile.namespace.get_or_insert_default();
            }
        }
        profile
    }

    /// The lease.
    pub const fn lease(&self) -> Duration {
        Duration::from_secs(self.lease_seconds)
    }

    /// The deadline, counted from the environment's creation.
    pub const fn deadline(&self) -> Duration {
        Duration::from_secs(self.deadline_seconds)
    }

    /// The life of one session.
    pub const fn session(&self) -> Duration {
        Duration::from_secs(self.session_seconds)
    }
}

/// A profile with everything that its names stand for: what an environment is really made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedProfile {
    /// The profile.
    pub profile: Profile,
    /// The exact version, such as `v1.34.4`; empty on a host cluster, which has its own.
    pub kubernetes_version: String,
    /// The text of each manifest file, by the name the profile gives it.
    pub manifests: BTreeMap<String, String>,
}

impl ResolvedProfile {
    /// SHA-256 over the canonical JSON of all of it, in hex. Same digest, same environment.
    pub fn digest(&self) -> String {
        let canonical = serde_json::to_vec(self).unwrap_or_default();
        hex::encode(Sha256::digest(canonical))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::invariants::fixtures::environment;

    #[test]
    fn the_digest_changes_with_profile_version_and_manifests_and_with_nothing_else() {
        let resolved = environment().resolved;
        let changes: [fn(&mut ResolvedProfile); 11] = [
            |_| {},
            |it| it.profile.lease_seconds += 1,
            |it| it.profile.memory_bytes_max = Some(MEMORY_BYTES_MIN),
            |it| it.profile.stored_bytes_max = Some(STORED_BYTES_MIN),
            |it| it.profile.changes_per_second_max += 1,
            |it| it.profile.bytes_per_second_max += 1,
            |it| it.profile.egress.push("hooks.example:443".into()),
            |it| it.profile.guardrails.read_only = true,
            |it| it.kubernetes_version = "v1.34.5".into(),
            |it| drop(it.manifests.insert("a.yaml".into(), "kind: A".into())),
            |it| drop(it.manifests.insert("a.yaml".into(), "kind: B".into())),
        ];
        let digests: BTreeSet<_> = changes
            .iter()
            .map(|change| {
                let mut changed = resolved.clone();
                change(&mut changed);
                changed.digest()
            })
            .collect();
        assert_eq!(digests.len(), changes.len());
        let read_back: ResolvedProfile =
            serde_json::from_str(&serde_json::to_string(&resolved).unwrap()).unwrap();
        assert_eq!(read_back.digest(), resolved.digest());
    }
}
