//! Callers and targets described by hand: for golden cases and for questions of people. Nothing here was verified.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;

use super::Target;
use crate::configuration::{Configuration, Issuer, IssuerKind};
use crate::environment::{Environment, Phase, Scope};
use crate::identity::claims::{ClaimFault, Claims};
use crate::identity::{Identity, Job, Named, Run, Runner, Source, buildkite};
use crate::ids::EnvironmentId;
use crate::profile::ResolvedProfile;
use crate::text::UntrustedText;

/// A job as policies see it. What is left out is taken from what it stands on; an empty text means that the
/// token does not say it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExampleJob {
    issuer: Option<String>,
    organization_id: Option<String>,
    organization_slug: Option<String>,
    pipeline_id: Option<String>,
    pipeline_slug: Option<String>,
    build_id: Option<String>,
    build_number: Option<u64>,
    build_source: Option<String>,
    job_id: Option<String>,
    step_key: Option<String>,
    branch: Option<String>,
    tag: Option<String>,
    commit: Option<String>,
    runner_environment: Option<String>,
    cluster_id: Option<String>,
    queue_id: Option<String>,
    queue_key: Option<String>,
}

/// An environment as policies see it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExampleEnvironment {
    /// Its profile; left out: the configuration's first.
    pub profile: Option<String>,
    /// Its scope.
    pub scope: Scope,
    /// Its name; left out: `main`.
    pub name: Option<String>,
    /// The job that made it; what is left out is taken from the caller, or from the base when an operator asks.
    pub job: ExampleJob,
}

/// The job that examples stand on: a build that a person started on `main`, of the configuration's first organization.
pub(super) fn base(configuration: &Configuration) -> Identity {
    let issuer = configuration.issuers.first();
    let organization = issuer.and_then(|issuer| issuer.organizations.first());
    let (organization_id, organization_slug) = organization
        .map_or_else(Default::default, |organization| {
            (organization.id.clone(), organization.slug.clone())
        });
    let id = |last: u8| format!("00000000-0000-4000-8000-{last:012}");
    Identity {
        issuer: issuer.map_or_else(String::new, |issuer| issuer.url.clone()),
        organization: Named {
            id: organization_id,
            slug: organization_slug,
        },
        project: Named {
            id: id(1),
            slug: "example".into(),
        },
        run: Run {
            id: id(2),
            number: 1,
            url: String::new(),
        },
        job: Job {
            id: id(3),
            step_key: None,
            url: String::new(),
        },
        source: Source {
            branch: Some(UntrustedText::new("main")),
            tag: None,
            commit: UntrustedText::new("0000000000000000000000000000000000000000"),
            trigger: "ui".into(),
        },
        runner: Runner {
            environment: "self-hosted".into(),
            agent_id: id(4),
            cluster_id: None,
            queue_id: None,
            queue_key: None,
        },
    }
}

fn put(place: &mut String, text: Option<&String>) {
    if let Some(text) = text {
        place.clone_from(text);
    }
}

fn put_optional<T>(place: &mut Option<T>, text: Option<&String>, make: impl Fn(&str) -> T) {
    if let Some(text) = text {
        *place = Some(text.as_str())
            .filter(|text| !text.is_empty())
            .map(make);
    }
}

impl ExampleJob {
    /// `identity` with what is said here in place of what it had.
    pub(super) fn on(&self, mut identity: Identity) -> Identity {
        put(&mut identity.issuer, self.issuer.as_ref());
        put(&mut identity.organization.id, self.organization_id.as_ref());
        put(
            &mut identity.organization.slug,
            self.organization_slug.as_ref(),
        );
        put(&mut identity.project.id, self.pipeline_id.as_ref());
        put(&mut identity.project.slug, self.pipeline_slug.as_ref());
        put(&mut identity.run.id, self.build_id.as_ref());
        put(&mut identity.source.trigger, self.build_source.as_ref());
        put(&mut identity.job.id, self.job_id.as_ref());
        put(
            &mut identity.runner.environment,
            self.runner_environment.as_ref(),
        );
        identity.run.number = self.build_number.unwrap_or(identity.run.number);
        if let Some(commit) = &self.commit {
            identity.source.commit = UntrustedText::new(commit);
        }
        put_optional(
            &mut identity.job.step_key,
            self.step_key.as_ref(),
            UntrustedText::new,
        );
        put_optional(
            &mut identity.source.branch,
            self.branch.as_ref(),
            UntrustedText::new,
        );
        put_optional(
            &mut identity.source.tag,
            self.tag.as_ref(),
            UntrustedText::new,
        );
        put_optional(
            &mut identity.runner.cluster_id,
            self.cluster_id.as_ref(),
            str::to_owned,
        );
        put_optional(
            &mut identity.runner.queue_id,
            self.queue_id.as_ref(),
            str::to_owned,
        );
        put_optional(
            &mut identity.runner.queue_key,
            self.queue_key.as_ref(),
            UntrustedText::new,
        );
        identity
    }
}

/// A profile's target.
///
/// # Errors
/// The name, when the configuration has no such profile.
pub(super) fn profile(
    configuration: &Configuration,
    name: Option<&str>,
) -> Result<ResolvedProfile, String> {
    let found = match name {
        Some(name) => configuration.profile(name),
        None => configuration.profiles.first(),
    };
    let profile = found
        .ok_or_else(|| name.unwrap_or("(the first)").to_owned())?
        .clone();
    let kubernetes_version = profile.kubernetes.clone();
    Ok(ResolvedProfile {
        profile,
        kubernetes_version,
        manifests: BTreeMap::new(),
    })
}

impl ExampleEnvironment {
    /// An environment that `owner` made, changed as said here.
    ///
    /// # Errors
    /// The name of a profile that the configuration does not have.
    pub(super) fn target(
        &self,
        configuration: &Configuration,
        owner: Identity,
    ) -> Result<Target, String> {
        let resolved = profile(configuration, self.profile.as_deref())?;
        let begin = Timestamp::UNIX_EPOCH;
        Ok(Target::Environment(Box::new(Environment {
            id: EnvironmentId::from_random([0; 16]),
            name: self.name.clone().unwrap_or_else(|| "main".into()),
            scope: self.scope,
            identity: self.job.on(owner),
            digest: resolved.digest(),
            resolved,
            placement: None,
            phase: Phase::Ready,
            reason: None,
            created_at: begin,
            ready_at: Some(begin),
            lease_end: begin,
            deadline: begin,
            dead_at: None,
            gone_at: None,
            version: 0,
        })))
    }
}

/// The issuer that claims name with `iss`, or the only one there is when they name none.
pub(super) fn issuer<'a>(
    configuration: &'a Configuration,
    claims: &Claims,
) -> Result<&'a Issuer, String> {
    match (
        claims.get("iss").and_then(serde_json::Value::as_str),
        configuration.issuers.as_slice(),
    ) {
        (Some(url), _) => configuration
            .issuer(url)
            .ok_or_else(|| format!("`{url}` is not a configured issuer")),
        (None, [only]) => Ok(only),
        (None, _) => Err("the claims have no `iss`, and several issuers are configured".into()),
    }
}

/// The identity that the server would see behind these claims, if their signature were good.
pub(super) fn identity(issuer: &Issuer, claims: &Claims) -> Result<Identity, ClaimFault> {
    match issuer.kind {
        IssuerKind::Buildkite => buildkite::identity_from_claims(claims, issuer),
    }
}
