//! What a configuration can say and must not: found all at once, so that nobody mends one fault a start.

use std::collections::BTreeSet;

use super::{
    CHECKPOINT_SECONDS_MAX, CLOCK_SKEW_SECONDS_MAX, CONNECTIONS_MAX, Configuration, Issuer,
    REFUSAL_BYTES_PER_HOUR_MAX, REFUSAL_BYTES_PER_HOUR_MIN, SINKS_MAX, TOKEN_LIFE_SECONDS_MAX,
    TOKEN_LIFE_SECONDS_MIN, canonical_organization_id, is_organization_slug,
};
use crate::egress::Target;
use crate::profile::{
    BYTES_PER_SECOND_MAX, BYTES_PER_SECOND_MIN, CHANGES_PER_SECOND_MAX, CHANGES_PER_SECOND_MIN,
    DEADLINE_SECONDS_MAX, ENVIRONMENTS_MAX, LEASE_SECONDS_MAX, LEASE_SECONDS_MIN, MEMORY_BYTES_MAX,
    MEMORY_BYTES_MIN, Profile, REQUEST_BYTES_MAX, REQUEST_BYTES_MIN, SESSION_SECONDS_MAX,
    SESSION_SECONDS_MIN, STORED_BYTES_MAX, STORED_BYTES_MIN,
};

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

pub(super) fn fault(
    key: impl Into<String>,
    message: impl Into<String>,
    hint: impl Into<String>,
) -> ConfigurationFault {
    ConfigurationFault {
        key: key.into(),
        message: message.into(),
        hint: hint.into(),
    }
}

impl Configuration {
    /// Every fault that types cannot hold, in the order of the file; empty when there is none.
    pub fn faults(&self) -> Vec<ConfigurationFault> {
        let mut faults = Vec::new();
        self.address_faults(&mut faults);
        self.issuer_faults(&mut faults);
        self.host_faults(&mut faults);
        self.profile_faults(&mut faults);
        self.limit_faults(&mut faults);
        self.sink_faults(&mut faults);
        faults
    }

    fn address_faults(&self, faults: &mut Vec<ConfigurationFault>) {
        let parts = self.listen.rsplit_once(':');
        if !parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
            faults.push(fault(
                "listen",
                format!("`{}` is not `address:port`", self.listen),
                "such as `127.0.0.1:8443`, or `[::]:8443` for every address of this machine",
            ));
        }
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
                "no issuer is listed",
                "without one nobody can prove who they are",
            ));
        }
        let mut urls = BTreeSet::new();
        for (index, issuer) in self.issuers.iter().enumerate() {
            let at = |key: &str| format!("issuers[{index}].{key}");
            if !urls.insert(&issuer.url) {
                faults.push(fault(
                    at("url"),
                    format!("`{}` is listed twice", issuer.url),
                    "list its organizations under one entry",
                ));
            }
            issuer.faults(&at, faults);
        }
    }

    fn profile_faults(&self, faults: &mut Vec<ConfigurationFault>) {
        if self.profiles.is_empty() {
            faults.push(fault(
                "profiles",
                "no profile is listed",
                "without one there is nothing to ask for",
            ));
        }
        let mut names = BTreeSet::new();
        for (index, profile) in self.profiles.iter().enumerate() {
            let at = |key: &str| format!("profiles[{index}].{key}");
            if !names.insert(&profile.name) {
                faults.push(fault(
                    at("name"),
                    format!("`{}` is listed twice", profile.name),
                    "give each profile a name of its own",
                ));
            }
            self.engine_faults(profile, &at, faults);
            profile.faults(&at, faults);
        }
    }

    fn sink_faults(&self, faults: &mut Vec<ConfigurationFault>) {
        let sinks = &self.ledger.sinks;
        if sinks.len() > SINKS_MAX {
            faults.push(fault(
                "ledger.sinks",
                format!("{} sinks are more than {SINKS_MAX}", sinks.len()),
                "a few in places that do not fail together are enough",
            ));
        }
        let mut names = BTreeSet::new();
        for (index, sink) in sinks.iter().enumerate() {
            let at = |key: &str| format!("ledger.sinks[{index}]{key}");
            if sink.file.is_some() == sink.url.is_some() {
                faults.push(fault(
                    at(""),
                    "it is neither a file nor an address, or both",
                    "name one of `file` and `url`; a second place is a second entry",
                ));
            }
            if !names.insert(sink.name()) {
                faults.push(fault(
                    at(""),
                    format!("`{}` is listed twice", sink.name()),
                    "one entry for each place",
                ));
            }
            if sink.url.is_none() && (sink.token_file.is_some() || sink.ca.is_some()) {
                faults.push(fault(
                    at(""),
                    "`token_file` and `ca` belong to a `url`",
                    "a file needs neither",
                ));
            }
            if let Some(url) = &sink.url
                && !url
                    .strip_prefix("https://")
                    .is_some_and(|rest| !rest.is_empty() && !rest.contains(['@', '#', ' ']))
            {
                faults.push(fault(
                    at(".url"),
                    format!("`{url}` is not `https://name/path`"),
                    "plain http could be anybody; a token goes into `token_file`, not into the address",
                ));
            }
        }
    }

    fn limit_faults(&self, faults: &mut Vec<ConfigurationFault>) {
        let limits = &self.limits;
        for (key, value, max) in [
            (
                "environments_max",
                limits.environments_max,
                ENVIRONMENTS_MAX,
            ),
            ("queue_max", limits.queue_max, ENVIRONMENTS_MAX),
            (
                "provisioning_max",
                limits.provisioning_max,
                ENVIRONMENTS_MAX,
            ),
            (
                "environments_per_job_max",
                limits.environments_per_job_max,
                ENVIRONMENTS_MAX,
            ),
            ("connections_max", limits.connections_max, CONNECTIONS_MAX),
            (
                "connections_per_address_max",
                limits.connections_per_address_max,
                CONNECTIONS_MAX,
            ),
        ] {
            bound(faults, format!("limits.{key}"), value.into(), 1, max.into());
        }
        bound(
            faults,
            "ledger.checkpoint_seconds".into(),
            self.ledger.checkpoint_seconds,
            1,
            CHECKPOINT_SECONDS_MAX,
        );
        bound(
            faults,
            "ledger.refusal_bytes_per_hour_max".into(),
            self.ledger.refusal_bytes_per_hour_max,
            REFUSAL_BYTES_PER_HOUR_MIN,
            REFUSAL_BYTES_PER_HOUR_MAX,
        );
    }
}

impl Issuer {
    fn faults(&self, at: &dyn Fn(&str) -> String, faults: &mut Vec<ConfigurationFault>) {
        if !self.url.starts_with("https://") {
            faults.push(fault(
                at("url"),
                format!("`{}` is not https", self.url),
                "keys fetched over plain http could be anybody's",
            ));
        }
        if self.url.ends_with('/') {
            faults.push(fault(
                at("url"),
                format!("`{}` ends with `/`", self.url),
                "write it as tokens have it (`iss`), which is compared letter by letter: Buildkite's has no `/` at its end",
            ));
        }
        if self.audience.trim().is_empty() || self.audience.starts_with("https://buildkite.com/") {
            faults.push(fault(
                at("audience"),
                format!("`{}` cannot be the audience", self.audience),
                "choose one that names this server, such as its url; the issuer's default audience is everybody's",
            ));
        }
        if self.organizations.is_empty() {
            faults.push(fault(
                at("organizations"),
                "no organization is listed",
                "the issuer signs for all of its customers: list the ids of yours",
            ));
        }
        let mut ids = BTreeSet::new();
        for (nth, organization) in self.organizations.iter().enumerate() {
            let key = || at(&format!("organizations[{nth}].id"));
            if canonical_organization_id(&organization.id).is_none() {
                faults.push(fault(
                    key(),
                    format!("`{}` is not a UUID", organization.id),
                    "Buildkite shows it under Organization Settings, and in a token made with `--claim organization_id`",
                ));
            }
            if !is_organization_slug(&organization.slug) {
                faults.push(fault(
                    at(&format!("organizations[{nth}].slug")),
                    format!("`{}` is not the slug of an organization", organization.slug),
                    "it is what stands in buildkite.com/SLUG: lower-case letters, digits and `-`",
                ));
            }
            if !ids.insert(&organization.id) {
                faults.push(fault(
                    key(),
                    format!("`{}` is listed twice", organization.id),
                    "only one entry could count: say everything about an organization in one",
                ));
            }
        }
        bound(
            faults,
            at("token_seconds_max"),
            self.token_seconds_max,
            TOKEN_LIFE_SECONDS_MIN,
            TOKEN_LIFE_SECONDS_MAX,
        );
        bound(
            faults,
            at("clock_skew_seconds"),
            self.clock_skew_seconds,
            0,
            CLOCK_SKEW_SECONDS_MAX,
        );
    }
}

impl Profile {
    fn faults(&self, at: &dyn Fn(&str) -> String, faults: &mut Vec<ConfigurationFault>) {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if self.name.is_empty() || self.name.len() > 63 || !self.name.bytes().all(plain) {
            faults.push(fault(
                at("name"),
                format!("`{}` is not a profile's name", self.name),
                "use lower-case letters, digits and `-`, at most 63",
            ));
        }
        for (key, value, min, max) in [
            (
                "lease_seconds",
                self.lease_seconds,
                LEASE_SECONDS_MIN,
                LEASE_SECONDS_MAX,
            ),
            (
                "deadline_seconds",
                self.deadline_seconds,
                self.lease_seconds,
                DEADLINE_SECONDS_MAX,
            ),
            (
                "session_seconds",
                self.session_seconds,
                SESSION_SECONDS_MIN,
                SESSION_SECONDS_MAX,
            ),
            (
                "environments_max",
                self.environments_max.unwrap_or(1).into(),
                1,
                ENVIRONMENTS_MAX.into(),
            ),
            (
                "request_bytes_max",
                self.request_bytes_max,
                REQUEST_BYTES_MIN,
                REQUEST_BYTES_MAX,
            ),
            (
                "memory_bytes_max",
                self.memory_bytes_max(),
                MEMORY_BYTES_MIN,
                MEMORY_BYTES_MAX,
            ),
            (
                "stored_bytes_max",
                self.stored_bytes_max(),
                STORED_BYTES_MIN,
                STORED_BYTES_MAX,
            ),
            (
                "changes_per_second_max",
                self.changes_per_second_max,
                CHANGES_PER_SECOND_MIN,
                CHANGES_PER_SECOND_MAX,
            ),
            (
                "bytes_per_second_max",
                self.bytes_per_second_max,
                BYTES_PER_SECOND_MIN,
                BYTES_PER_SECOND_MAX,
            ),
        ] {
            bound(faults, at(key), value, min, max);
        }
        for found in self.guardrails.faults(self.request_bytes_max) {
            let key = at(&format!("guardrails.{}", found.key));
            faults.push(fault(key, found.message, found.hint));
        }
        for (nth, listed) in self.egress.iter().enumerate() {
            let key = || at(&format!("egress[{nth}]"));
            match Target::parse(listed) {
                None => faults.push(fault(
                    key(),
                    format!("`{listed}` is not `name:port`"),
                    "list each name and port by itself, such as `hooks.example:443` or `[2001:db8::1]:443`; there are no wildcards",
                )),
                Some(target) if target.is_never_reached() => faults.push(fault(
                    key(),
                    format!("`{listed}` can never be reached from an environment"),
                    "loopback, link-local, multicast and metadata addresses stay closed: give the service an address of its own",
                )),
                Some(_) => {}
            }
        }
    }
}

pub(super) fn bound(
    faults: &mut Vec<ConfigurationFault>,
    key: String,
    value: u64,
    min: u64,
    max: u64,
) {
    if !(min..=max).contains(&value) {
        faults.push(fault(
            key,
            format!("{value} is out of bounds"),
            format!("give a number from {min} to {max}"),
        ));
    }
}
