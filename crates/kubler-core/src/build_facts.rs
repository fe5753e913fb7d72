//! What an environment says about the build it was made for: the ConfigMap `kubler-build` and labels.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::environment::Environment;
use crate::text::{UntrustedText, label};

/// The ConfigMap's name.
pub const CONFIG_MAP: &str = "kubler-build";
/// What every label begins with.
pub const LABEL_PREFIX: &str = "kubler.dev/";

/// The facts by name, bounded and without control characters.
pub fn facts(environment: &Environment) -> BTreeMap<&'static str, String> {
    let identity = &environment.identity;
    let text = |value: &str| UntrustedText::new(value).as_str().to_owned();
    let mut facts = BTreeMap::from([
        ("environment", environment.id.to_string()),
        ("organization", text(&identity.organization.slug)),
        ("organization-id", text(&identity.organization.id)),
        ("pipeline", text(&identity.project.slug)),
        ("pipeline-id", text(&identity.project.id)),
        ("build", identity.run.number.to_string()),
        ("build-id", text(&identity.run.id)),
        ("build-url", text(&identity.run.url)),
        ("job", text(&identity.job.id)),
        ("job-url", text(&identity.job.url)),
        ("commit", identity.source.commit.as_str().to_owned()),
        ("source", text(&identity.source.trigger)),
        ("profile", text(&environment.resolved.profile.name)),
    ]);
    let optional = [
        ("branch", &identity.source.branch),
        ("tag", &identity.source.tag),
        ("step", &identity.job.step_key),
    ];
    for (name, value) in optional {
        facts.extend(
            value
                .as_ref()
                .map(|value| (name, value.as_str().to_owned())),
        );
    }
    facts
}

/// The labels: those facts that people select by, cut to what a label may be.
pub fn labels(environment: &Environment) -> BTreeMap<String, String> {
    const SELECTED: [&str; 7] = [
        "environment",
        "organization",
        "pipeline",
        "build",
        "job",
        "commit",
        "branch",
    ];
    let facts = facts(environment);
    let selected = SELECTED
        .into_iter()
        .filter_map(|name| Some((name, label(facts.get(name)?))));
    selected
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (format!("{LABEL_PREFIX}{name}"), value))
        .collect()
}

/// The ConfigMap that carries them.
pub fn config_map(environment: &Environment, namespace: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": CONFIG_MAP, "namespace": namespace, "labels": labels(environment)},
        "data": facts(environment),
    })
}
