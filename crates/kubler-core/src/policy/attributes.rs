//! What policies may look at, as values. `kubler.cedarschema` says the same as types; a test holds both together.

use std::collections::{HashMap, HashSet};
use std::fmt;

use cedar_policy as cedar;

use super::{Caller, Target};
use crate::environment::Environment;
use crate::identity::Identity;
use crate::profile::Profile;

/// The value of one attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Number(i64),
    Flag(bool),
}

impl Value {
    fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    fn number(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Number(number) => write!(f, "{number}"),
            Self::Flag(flag) => write!(f, "{flag}"),
        }
    }
}

/// Attributes by their names in policies, in the order in which people want to read them. What a token does
/// not say is absent, never empty.
pub(super) type Attributes = Vec<(&'static str, Value)>;

/// What the operator states about an organization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ForkBranches {
    /// `fork_branches_are_prefixed: true`.
    Prefixed,
    /// Not stated.
    LikeOurs,
}

/// Whether a branch is `user:branch` of a third-party fork. Git forbids `:` in names of its own.
fn is_of_a_fork(identity: &Identity) -> bool {
    identity
        .source
        .branch
        .as_ref()
        .is_some_and(|branch| branch.as_str().contains(':'))
}

fn job(identity: &Identity, forks: ForkBranches) -> Attributes {
    let mut attributes = vec![
        ("issuer", Value::text(&identity.issuer)),
        ("organization_id", Value::text(&identity.organization.id)),
        (
            "organization_slug",
            Value::text(&identity.organization.slug),
        ),
        ("pipeline_id", Value::text(&identity.project.id)),
        ("pipeline_slug", Value::text(&identity.project.slug)),
        ("build_id", Value::text(&identity.run.id)),
        ("build_number", Value::number(identity.run.number)),
        ("build_source", Value::text(&identity.source.trigger)),
        ("job_id", Value::text(&identity.job.id)),
        ("commit", Value::text(identity.source.commit.as_str())),
        ("branch_is_of_a_fork", Value::Flag(is_of_a_fork(identity))),
        (
            "fork_branches_are_prefixed",
            Value::Flag(forks == ForkBranches::Prefixed),
        ),
        (
            "runner_environment",
            Value::text(&identity.runner.environment),
        ),
    ];
    let runner = &identity.runner;
    let optional = [
        (
            "branch",
            identity.source.branch.as_ref().map(|text| text.as_str()),
        ),
        (
            "tag",
            identity.source.tag.as_ref().map(|text| text.as_str()),
        ),
        (
            "step_key",
            identity.job.step_key.as_ref().map(|text| text.as_str()),
        ),
        ("cluster_id", runner.cluster_id.as_deref()),
        ("queue_id", runner.queue_id.as_deref()),
        (
            "queue_key",
            runner.queue_key.as_ref().map(|text| text.as_str()),
        ),
    ];
    attributes.extend(
        optional
            .into_iter()
            .filter_map(|(name, text)| Some((name, Value::text(text?)))),
    );
    attributes
}

fn profile(profile: &Profile) -> Attributes {
    vec![
        ("name", Value::text(&profile.name)),
        ("engine", Value::text(profile.engine.as_str())),
        ("restricted", Value::Flag(profile.restricted)),
        ("kubernetes", Value::text(&profile.kubernetes)),
        ("lease_seconds", Value::number(profile.lease_seconds)),
        ("deadline_seconds", Value::number(profile.deadline_seconds)),
    ]
}

fn environment(environment: &Environment) -> Attributes {
    let (profile, identity) = (&environment.resolved.profile, &environment.identity);
    vec![
        ("id", Value::text(environment.id.to_string())),
        ("name", Value::text(&environment.name)),
        ("scope", Value::text(environment.scope.as_str())),
        ("profile", Value::text(&profile.name)),
        ("engine", Value::text(profile.engine.as_str())),
        ("restricted", Value::Flag(profile.restricted)),
        ("kubernetes", Value::text(&profile.kubernetes)),
        ("issuer", Value::text(&identity.issuer)),
        ("organization_id", Value::text(&identity.organization.id)),
        ("pipeline_id", Value::text(&identity.project.id)),
        ("build_id", Value::text(&identity.run.id)),
        ("job_id", Value::text(&identity.job.id)),
    ]
}

/// One side of a question: the type's name in policies, the id, the attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Described {
    pub(super) kind: &'static str,
    pub(super) id: String,
    pub(super) attributes: Attributes,
}

impl Described {
    /// The value of one attribute, when there is one.
    pub(super) fn value(&self, name: &str) -> Option<&Value> {
        self.attributes
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value)
    }

    /// As the engine wants it.
    pub(super) fn entity(&self, uid: cedar::EntityUid) -> Result<cedar::Entity, String> {
        let attributes: HashMap<_, _> = self
            .attributes
            .iter()
            .map(|(name, value)| {
                let expression = match value {
                    Value::Text(text) => cedar::RestrictedExpression::new_string(text.clone()),
                    Value::Number(number) => cedar::RestrictedExpression::new_long(*number),
                    Value::Flag(flag) => cedar::RestrictedExpression::new_bool(*flag),
                };
                ((*name).to_owned(), expression)
            })
            .collect();
        cedar::Entity::new(uid, attributes, HashSet::new()).map_err(|error| error.to_string())
    }
}

/// The caller's side.
pub(super) fn principal(caller: &Caller, forks: ForkBranches) -> Described {
    match caller {
        Caller::Job(identity) => Described {
            kind: "Job",
            id: identity.job.id.clone(),
            attributes: job(identity, forks),
        },
        Caller::Operator(operator) => Described {
            kind: "Operator",
            id: operator.name.clone(),
            attributes: vec![("name", Value::text(&operator.name))],
        },
    }
}

/// The target's side.
pub(super) fn resource(target: &Target) -> Described {
    match target {
        Target::Profile(resolved) => Described {
            kind: "Profile",
            id: resolved.profile.name.clone(),
            attributes: profile(&resolved.profile),
        },
        Target::Environment(found) => Described {
            kind: "Environment",
            id: found.id.to_string(),
            attributes: environment(found),
        },
        Target::Server => Described {
            kind: "Server",
            id: "server".to_owned(),
            attributes: Attributes::new(),
        },
    }
}
