//! The configuration file, as types. Reading files and the environment is the server's; checking is here,
//! so that `kubler policy` sees exactly what the server sees.

mod faults;
mod hosts;
mod restart;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::faults::ConfigurationFault;
pub(crate) use self::hosts::selects;
pub use self::hosts::{HOSTS_MAX, Host};
pub use self::restart::{Key, NEEDS_RESTART};
use crate::profile::{ENVIRONMENTS_MAX, Profile};

/// Shortest bound on the life of an identity token, in seconds.
pub const TOKEN_LIFE_SECONDS_MIN: u64 = 60;
/// Longest accepted life of an identity token (`exp - iat`), in seconds.
pub const TOKEN_LIFE_SECONDS_MAX: u64 = 600;
/// Longest accepted difference between two clocks, in seconds.
pub const CLOCK_SKEW_SECONDS_MAX: u64 = 60;
/// Most connections that the limit may allow.
pub const CONNECTIONS_MAX: u32 = 1_000_000;
/// Longest time between two checkpoints, in seconds: an hour.
pub const CHECKPOINT_SECONDS_MAX: u64 = 3600;
/// Fewest bytes per hour for refusals: below it an hour's first refusals would not fit.
pub const REFUSAL_BYTES_PER_HOUR_MIN: u64 = 64 * 1024;
/// Most bytes per hour for refusals.
pub const REFUSAL_BYTES_PER_HOUR_MAX: u64 = 1024 * 1024 * 1024;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// Address and port to listen on.
    #[serde(default = "Configuration::default_listen")]
    pub listen: String,
    /// What callers call the server: `https://name:port`, without a path.
    pub url: String,
    /// Folder for everything the server keeps; relative paths count from the configuration's folder.
    #[serde(default = "Configuration::default_data")]
    pub data: String,
    /// Folder for sockets and keys of living environments, at most 59 bytes long; best in memory, such as
    /// `/run/kubler`. Absent: `run` in the data folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// The server's certificate and who its operators are.
    #[serde(default)]
    pub tls: Tls,
    /// Who signs identities.
    pub issuers: Vec<Issuer>,
    /// Kubernetes versions that profiles may name, such as `"1.34"`.
    #[serde(default)]
    pub kubernetes: BTreeMap<String, KubernetesVersion>,
    /// File with the key that signs the marks of namespaces on hosts; made when it is not there. Whoever has it can have
    /// namespaces ended, and without it nobody can tell which are the server's when its store is lost. Absent: `mark.key`
    /// in the data folder, which is part of a back-up with keys; elsewhere it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark_key: Option<String>,
    /// Host clusters, where environments of the engine `namespace` live.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<Host>,
    /// What is offered.
    pub profiles: Vec<Profile>,
    /// Folder of `*.cedar` files.
    #[serde(default = "Configuration::default_policies")]
    pub policies: String,
    /// Bounds for the server as a whole.
    #[serde(default)]
    pub limits: Limits,
    /// The ledger.
    #[serde(default)]
    pub ledger: Ledger,
    /// What is logged, such as `info,kubler_server=debug`. `KUBLER_LOG` stands above it. Absent: `info`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
}

/// Most sinks of a ledger.
pub const SINKS_MAX: usize = 8;

/// Certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// PEM file of the server's certificate chain.
    pub certificate: String,
    /// PEM file of its key.
    pub key: String,
    /// PEM file of the CA that callers should trust; goes into every kubeconfig. Absent: the caller's own trust.
    pub ca: Option<String>,
    /// PEM file of the CA that signs operators' client certificates. Absent: nobody is an operator.
    pub operator_ca: Option<String>,
    /// PEM file with that CA's list of revoked certificates. Absent: a certificate is good until it expires.
    pub operator_crl: Option<String>,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            certificate: "tls/server.pem".into(),
            key: "tls/server.key".into(),
            ca: Some("tls/ca.pem".into()),
            operator_ca: Some("tls/operator-ca.pem".into()),
            operator_crl: None,
        }
    }
}

/// The CI system behind an issuer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum IssuerKind {
    /// Buildkite.
    Buildkite,
}

/// Who signs identities, and for whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// Whose claims these are.
    pub kind: IssuerKind,
    /// `iss`, exactly.
    #[serde(default = "Issuer::default_url")]
    pub url: String,
    /// The one audience that tokens must carry. Never the issuer's default one.
    pub audience: String,
    /// The issuer is shared: tokens of any other organization are refused before policy.
    pub organizations: Vec<Organization>,
    /// PEM file of a CA to trust for this issuer instead of the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// Keys may be fetched from loopback and private addresses. Only for an issuer inside your network.
    #[serde(default)]
    pub allow_private_addresses: bool,
    /// Longest accepted `exp - iat`, in seconds.
    #[serde(default = "Issuer::default_token_seconds_max")]
    #[schemars(range(min = TOKEN_LIFE_SECONDS_MIN, max = TOKEN_LIFE_SECONDS_MAX))]
    pub token_seconds_max: u64,
    /// Accepted difference between the issuer's clock and ours, in seconds.
    #[serde(default = "Issuer::default_clock_skew_seconds")]
    #[schemars(range(min = 0, max = CLOCK_SKEW_SECONDS_MAX))]
    pub clock_skew_seconds: u64,
}

/// One customer of a shared issuer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Organization {
    /// The immutable UUID; in whatever case it is written, it is kept in lower case with hyphens.
    #[serde(deserialize_with = "canonical_id")]
    pub id: String,
    /// The slug, for hints and links.
    pub slug: String,
    /// The operator states that every pipeline prefixes branches of third-party forks with `user:`.
    #[serde(default)]
    pub fork_branches_are_prefixed: bool,
    /// File with the secret that signs this organization's webhooks. Absent: webhooks are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook_secret: Option<String>,
}

/// Where a Kubernetes version's programs are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KubernetesVersion {
    /// Folder with `kubler-control-plane`, `etcd` and `template`. Absent: looked for where `kube/build` puts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
}

/// Bounds for the server as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Environments alive at once.
    #[schemars(range(min = 1, max = ENVIRONMENTS_MAX))]
    pub environments_max: u32,
    /// Environments that may wait to be made; a request past that is refused.
    #[schemars(range(min = 1, max = ENVIRONMENTS_MAX))]
    pub queue_max: u32,
    /// Environments made at once. Making one takes a core for about a second.
    #[schemars(range(min = 1, max = ENVIRONMENTS_MAX))]
    pub provisioning_max: u32,
    /// Environments of one job.
    #[schemars(range(min = 1, max = ENVIRONMENTS_MAX))]
    pub environments_per_job_max: u32,
    /// Connections at once. At most half of the files that the process may have open, less 256.
    #[schemars(range(min = 1, max = CONNECTIONS_MAX))]
    pub connections_max: u32,
    /// Connections of one address at once; a /64 of IPv6 is one address. Jobs behind one NAT share it.
    #[schemars(range(min = 1, max = CONNECTIONS_MAX))]
    pub connections_per_address_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            environments_max: 50,
            queue_max: 100,
            provisioning_max: 2,
            environments_per_job_max: 3,
            connections_max: 10_000,
            connections_per_address_max: 5_000,
        }
    }
}

/// The ledger's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Ledger {
    /// The name in checkpoints: one ledger, one name, for ever. Absent: made of `url`.
    pub origin: Option<String>,
    /// A checkpoint is signed at least this often, in seconds, when there is something new.
    #[schemars(range(min = 1, max = CHECKPOINT_SECONDS_MAX))]
    pub checkpoint_seconds: u64,
    /// Bytes per hour for refusals that happen before a caller is known.
    #[schemars(range(min = REFUSAL_BYTES_PER_HOUR_MIN, max = REFUSAL_BYTES_PER_HOUR_MAX))]
    pub refusal_bytes_per_hour_max: u64,
    /// Where every checkpoint is kept besides, outside of the data folder: they name a ledger that was rolled back. The
    /// server does not start on a ledger that is behind one of them.
    pub sinks: Vec<Sink>,
}

/// A place outside of the ledger for its checkpoints: either `file` or `url`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sink {
    /// A file that always holds the latest one, or a folder that gets a file a day; best on another file system.
    pub file: Option<String>,
    /// An `https` address that takes each one as the body of a POST. What a GET of it answers is compared at a start.
    pub url: Option<String>,
    /// File with the bearer token for `url`; read anew for each request.
    pub token_file: Option<String>,
    /// PEM file of the CA that signs the certificate of `url`. Absent: the system's own.
    pub ca: Option<String>,
}

impl Sink {
    /// What it is called in messages and metrics.
    pub fn name(&self) -> &str {
        let named = self.file.as_deref().or(self.url.as_deref());
        named.unwrap_or_default()
    }
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            origin: None,
            checkpoint_seconds: 10,
            refusal_bytes_per_hour_max: 1024 * 1024,
            sinks: Vec::new(),
        }
    }
}

impl Configuration {
    fn default_listen() -> String {
        "127.0.0.1:8443".into()
    }
    fn default_data() -> String {
        "data".into()
    }
    fn default_policies() -> String {
        "policies".into()
    }

    /// The profile of this name.
    pub fn profile(&self, name: &str) -> Option<&Profile> {
        self.profiles.iter().find(|profile| profile.name == name)
    }

    /// The name in the ledger's checkpoints: a name without a scheme.
    pub fn ledger_origin(&self) -> String {
        let of_url = || {
            let name = self.url.trim_start_matches("https://");
            format!("{name}/ledger")
        };
        self.ledger.origin.clone().unwrap_or_else(of_url)
    }

    /// The issuer whose URL is exactly `url`.
    pub fn issuer(&self, url: &str) -> Option<&Issuer> {
        self.issuers.iter().find(|issuer| issuer.url == url)
    }
}

impl Issuer {
    /// Buildkite's one issuer.
    pub const BUILDKITE_URL: &'static str = "https://agent.buildkite.com";

    fn default_url() -> String {
        Self::BUILDKITE_URL.into()
    }
    const fn default_token_seconds_max() -> u64 {
        300
    }
    const fn default_clock_skew_seconds() -> u64 {
        30
    }

    /// The listed organization of this id.
    pub fn organization(&self, id: &str) -> Option<&Organization> {
        self.organizations
            .iter()
            .find(|organization| organization.id == id)
    }
}

/// A UUID in the one form in which claims are compared with it; anything else stays as it is, to be a fault.
fn canonical_id<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    Ok(canonical_organization_id(&text).unwrap_or(text))
}

/// The canonical form of an organization's UUID: lower case, with hyphens. `None` when it is no UUID.
pub fn canonical_organization_id(text: &str) -> Option<String> {
    let id = uuid::Uuid::try_parse(text.trim()).ok()?;
    Some(id.hyphenated().to_string())
}

/// Longest slug of an organization, in bytes.
const SLUG_BYTES_MAX: usize = 100;

/// Whether an organization can be called so, as Buildkite makes slugs.
pub fn is_organization_slug(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let edges = [text.bytes().next(), text.bytes().last()];
    edges.into_iter().all(|edge| edge.is_some_and(is_plain))
        && text.len() <= SLUG_BYTES_MAX
        && text.bytes().all(|byte| is_plain(byte) || byte == b'-')
}

#[cfg(test)]
mod tests;
