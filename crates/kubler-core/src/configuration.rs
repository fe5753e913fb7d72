//! The configuration file, as types. Reading files and the environment is the server's; checking is here,
//! so that `kubler policy` sees exactly what the server sees.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::profile::{DEADLINE_SECONDS_MAX, LEASE_SECONDS_MAX, Profile, SESSION_SECONDS_MAX};

/// Longest accepted life of an identity token (`exp - iat`), in seconds.
pub const TOKEN_LIFE_SECONDS_MAX: u64 = 600;
/// Longest accepted difference between two clocks, in seconds.
pub const CLOCK_SKEW_SECONDS_MAX: u64 = 60;
/// Shortest lease, in seconds: below it a renewal has no time to be tried twice.
pub const LEASE_SECONDS_MIN: u64 = 5;

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
}

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
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            certificate: "tls/server.pem".into(),
            key: "tls/server.key".into(),
            ca: Some("tls/ca.pem".into()),
            operator_ca: Some("tls/operator-ca.pem".into()),
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
    pub token_seconds_max: u64,
    /// Accepted difference between the issuer's clock and ours, in seconds.
    #[serde(default = "Issuer::default_clock_skew_seconds")]
    pub clock_skew_seconds: u64,
}

/// One customer of a shared issuer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Organization {
    /// The immutable UUID.
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
    pub environments_max: u32,
    /// Environments that may wait to be made; a request past that is refused.
    pub queue_max: u32,
    /// Environments made at once. Making one takes a core for about a second.
    pub provisioning_max: u32,
    /// Environments of one job.
    pub environments_per_job_max: u32,
    /// Connections at once.
    pub connections_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            environments_max: 50,
            queue_max: 100,
            provisioning_max: 2,
            environments_per_job_max: 3,
            connections_max: 10_000,
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
    pub checkpoint_seconds: u64,
    /// Bytes per hour for refusals that happen before a caller is known.
    pub refusal_bytes_per_hour_max: u64,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            origin: None,
            checkpoint_seconds: 10,
            refusal_bytes_per_hour_max: 1024 * 1024,
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

    /// The issuer whose URL is exactly `url`.
    pub fn issuer(&self, url: &str) -> Option<&Issuer> {
        self.issuers.iter().find(|issuer| issuer.url == url)
    }

    /// Every fault that types cannot hold, in the order of the file; empty when there is none.
    pub fn faults(&self) -> Vec<ConfigurationFault> {
        let mut faults = Vec::new();
        self.url_faults(&mut faults);
        self.issuer_faults(&mut faults);
        self.profile_faults(&mut faults);
        faults
    }

    fn url_faults(&self, faults: &mut Vec<ConfigurationFault>) {
        let authority = self.url.strip_prefix("https://");
        if authority.is_none_or(|rest| rest.is_empty() || rest.contains(['/', '?', '#', '@', ' ']))
        {
            faults.push(fault(
                "url",
                format!("`{}` is not `https://name:port`", self.url),
                "kubectl sends no credentials over plain http, and paths are the server's own",
            ));
        }
    }

    fn issuer_faults(&self, faults: &mut Vec<ConfigurationFault>) {
        if self.issuers.is_empty() {
            faults.push(fault(
                "issuers",
                "no issuer is listed".into(),
                "without one nobody can prove who they are",
            ));
        }
        for (index, issuer) in self.issuers.iter().enumerate() {
            let at = |key: &str| format!("issuers[{index}].{key}");
            if !issuer.url.starts_with("https://") {
                faults.push(fault(
                    at("url"),
                    format!("`{}` is not https", issuer.url),
                    "keys fetched over plain http could be anybody's",
                ));
            }
            if self
                .issuers
                .iter()
                .filter(|other| other.url == issuer.url)
                .count()
                > 1
            {
                faults.push(fault(
                    at("url"),
                    format!("`{}` is listed twice", issuer.url),
                    "list its organizations under one entry",
                ));
            }
            if issuer.audience.trim().is_empty()
                || issuer.audience.starts_with("https://buildkite.com/")
            {
                faults.push(fault(
                    at("audience"),
                    format!("`{}` cannot be the audience", issuer.audience),
                    "choose one that names this server, such as its url; the issuer's default audience is everybody's",
                ));
            }
            if issuer.organizations.is_empty() {
                faults.push(fault(
                    at("organizations"),
                    "no organization is listed".into(),
                    "the issuer signs for all of its customers: list the ids of yours",
                ));
            }
            for (nth, organization) in issuer.organizations.iter().enumerate() {
                if uuid::Uuid::try_parse(&organization.id).is_err() {
                    faults.push(fault(
                        at(&format!("organizations[{nth}].id")),
                        format!("`{}` is not a UUID", organization.id),
                        "Buildkite shows it under Organization Settings, and in a token made with `--claim organization_id`",
                    ));
                }
            }
            bound(
                faults,
                at("token_seconds_max"),
                issuer.token_seconds_max,
                60,
                TOKEN_LIFE_SECONDS_MAX,
            );
            bound(
                faults,
                at("clock_skew_seconds"),
                issuer.clock_skew_seconds,
                0,
                CLOCK_SKEW_SECONDS_MAX,
            );
        }
    }

    fn profile_faults(&self, faults: &mut Vec<ConfigurationFault>) {
        if self.profiles.is_empty() {
            faults.push(fault(
                "profiles",
                "no profile is listed".into(),
                "without one there is nothing to ask for",
            ));
        }
        for (index, profile) in self.profiles.iter().enumerate() {
            let at = |key: &str| format!("profiles[{index}].{key}");
            let named_well = !profile.name.is_empty()
                && profile.name.len() <= 63
                && profile
                    .name
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
            if !named_well {
                faults.push(fault(
                    at("name"),
                    format!("`{}` is not a profile's name", profile.name),
                    "use lower-case letters, digits and `-`, at most 63",
                ));
            }
            if self
                .profiles
                .iter()
                .filter(|other| other.name == profile.name)
                .count()
                > 1
            {
                faults.push(fault(
                    at("name"),
                    format!("`{}` is listed twice", profile.name),
                    "give each profile a name of its own",
                ));
            }
            if !self.kubernetes.contains_key(&profile.kubernetes) {
                let known: Vec<_> = self.kubernetes.keys().map(String::as_str).collect();
                faults.push(fault(
                    at("kubernetes"),
                    format!("`{}` is not a key of `kubernetes`", profile.kubernetes),
                    format!("listed there: {}", known.join(", ")),
                ));
            }
            bound(
                faults,
                at("lease_seconds"),
                profile.lease_seconds,
                LEASE_SECONDS_MIN,
                LEASE_SECONDS_MAX,
            );
            bound(
                faults,
                at("deadline_seconds"),
                profile.deadline_seconds,
                profile.lease_seconds,
                DEADLINE_SECONDS_MAX,
            );
            bound(
                faults,
                at("session_seconds"),
                profile.session_seconds,
                5,
                SESSION_SECONDS_MAX,
            );
        }
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

/// Something in the configuration that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{key}`: {message}")]
pub struct ConfigurationFault {
    /// Where, as `profiles[0].name`.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}

fn fault(key: impl Into<String>, message: String, hint: impl Into<String>) -> ConfigurationFault {
    ConfigurationFault {
        key: key.into(),
        message,
        hint: hint.into(),
    }
}

fn bound(faults: &mut Vec<ConfigurationFault>, key: String, value: u64, min: u64, max: u64) {
    if !(min..=max).contains(&value) {
        faults.push(fault(
            key,
            format!("{value} is out of bounds"),
            format!("give a number from {min} to {max}"),
        ));
    }
}
