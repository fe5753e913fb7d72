//! What is not the same in two environments: what they are made of, and whose they are. Names what differs in a
//! manifest, never its values: whoever may compare two environments may not always read what is in them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::environment::Environment;
use crate::identity::Identity;
use crate::profile::ResolvedProfile;

/// Changed fields that are named for one object of a manifest.
const FIELDS_MAX: usize = 8;
/// Differences that are told; one more says that there are others.
pub const DIFFERENCES_MAX: usize = 200;
/// What is said of something that is there.
const THERE: &str = "there";

/// One thing that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What: a key of the profile, an object of a manifest, a fact of the job.
    pub what: String,
    /// How it is in the first; absent: it is not there.
    pub before: Option<String>,
    /// How it is in the second; absent: it is not there.
    pub after: Option<String>,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let side = |side: &Option<String>| side.clone().unwrap_or_else(|| "absent".into());
        let (before, after) = (side(&self.before), side(&self.after));
        write!(f, "{}: {before} -> {after}", self.what)
    }
}

/// What the second is made of that the first is not, and the reverse. Empty exactly when their digests are equal.
pub fn resolved(before: &ResolvedProfile, after: &ResolvedProfile) -> Vec<Difference> {
    bounded(made_of(before, after))
}

fn made_of(before: &ResolvedProfile, after: &ResolvedProfile) -> Vec<Difference> {
    let mut all = Vec::new();
    let profile = |it: &ResolvedProfile| match serde_json::to_value(&it.profile) {
        Ok(Value::Object(fields)) => fields
            .into_iter()
            .map(|(name, value)| (name, plain(&value)))
            .collect(),
        _ => BTreeMap::new(),
    };
    compare(&mut all, "profile ", profile(before), profile(after));
    add(
        &mut all,
        "Kubernetes version",
        Some(before.kubernetes_version.clone()),
        Some(after.kubernetes_version.clone()),
    );
    manifests(&mut all, before, after);
    all
}

/// Everything that differs: what they are made of, then whose they are.
pub fn environments(before: &Environment, after: &Environment) -> Vec<Difference> {
    let mut all = made_of(&before.resolved, &after.resolved);
    compare(
        &mut all,
        "",
        facts(&before.identity),
        facts(&after.identity),
    );
    bounded(all)
}

/// The facts of a job that people compare.
fn facts(identity: &Identity) -> BTreeMap<String, String> {
    let mut facts = BTreeMap::new();
    let mut fact = |name: &str, value: Option<String>| {
        facts.extend(value.map(|value| (name.to_owned(), value)));
    };
    let slug = |named: &crate::identity::Named| Some(named.slug.clone());
    fact("organization", slug(&identity.organization));
    fact("pipeline", slug(&identity.project));
    fact("build", Some(identity.run.number.to_string()));
    fact("job", Some(identity.job.id.clone()));
    fact(
        "step",
        identity.job.step_key.as_ref().map(ToString::to_string),
    );
    fact(
        "branch",
        identity.source.branch.as_ref().map(ToString::to_string),
    );
    fact("tag", identity.source.tag.as_ref().map(ToString::to_string));
    fact("commit", Some(identity.source.commit.to_string()));
    fact("trigger", Some(identity.source.trigger.clone()));
    fact("agent", Some(identity.runner.agent_id.clone()));
    fact(
        "queue",
        identity.runner.queue_key.as_ref().map(ToString::to_string),
    );
    facts
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

fn add(all: &mut Vec<Difference>, what: &str, before: Option<String>, after: Option<String>) {
    if before != after {
        let what = what.to_owned();
        all.push(Difference {
            what,
            before,
            after,
        });
    }
}

fn compare(
    all: &mut Vec<Difference>,
    prefix: &str,
    mut before: BTreeMap<String, String>,
    mut after: BTreeMap<String, String>,
) {
    let names: BTreeSet<_> = before.keys().chain(after.keys()).cloned().collect();
    for name in names {
        let what = format!("{prefix}{name}");
        add(all, &what, before.remove(&name), after.remove(&name));
    }
}

fn bounded(mut all: Vec<Difference>) -> Vec<Difference> {
    let more = all.len().saturating_sub(DIFFERENCES_MAX);
    if more > 0 {
        all.truncate(DIFFERENCES_MAX);
        all.push(Difference {
            what: format!("{more} more"),
            before: None,
            after: None,
        });
    }
    all
}

/// Manifests object by object; by file where one cannot be read, and where nothing but the text differs.
fn manifests(all: &mut Vec<Difference>, before: &ResolvedProfile, after: &ResolvedProfile) {
    let files: BTreeSet<_> = before
        .manifests
        .keys()
        .chain(after.manifests.keys())
        .collect();
    for file in files {
        let (old, new) = (before.manifests.get(file), after.manifests.get(file));
        if old == new {
            continue;
        }
        let known = all.len();
        let empty = String::new();
        let both = objects(old.unwrap_or(&empty)).zip(objects(new.unwrap_or(&empty)));
        if let Some((old, new)) = both {
            objects_of_file(all, file, &old, &new);
        }
        if all.len() == known {
            let there = |text: Option<&String>, words: &str| text.map(|_| words.to_owned());
            let what = format!("manifest {file}");
            add(all, &what, there(old, THERE), there(new, "other text"));
        }
    }
}

fn objects_of_file(
    all: &mut Vec<Difference>,
    file: &str,
    before: &BTreeMap<String, Value>,
    after: &BTreeMap<String, Value>,
) {
    let titles: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    for title in titles {
        let what = format!("manifest {file}: {title}");
        let there = || Some(THERE.to_owned());
        match (before.get(title), after.get(title)) {
            (Some(old), Some(new)) if old != new => {
                let mut fields = Vec::new();
                changed(&mut fields, String::new(), old, new);
                let more = fields.len().saturating_sub(FIELDS_MAX);
                fields.truncate(FIELDS_MAX);
                if more > 0 {
                    fields.push(format!("{more} more"));
                }
                add(
                    all,
                    &what,
                    there(),
                    Some(format!("changed in {}", fields.join(", "))),
                );
            }
            (Some(_), Some(_)) | (None, None) => {}
            (old, new) => add(
                all,
                &what,
                old.and_then(|_| there()),
                new.and_then(|_| there()),
            ),
        }
    }
}

/// The objects of a file by kind, namespace and name; `None` when it is no YAML.
fn objects(text: &str) -> Option<BTreeMap<String, Value>> {
    if text.trim().is_empty() {
        return Some(BTreeMap::new());
    }
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).ok()?;
    let items = documents
        .into_iter()
        .flat_map(|document| match document.get("items") {
            Some(Value::Array(items)) => items.clone(),
            _ => vec![document],
        });
    let mut objects = BTreeMap::new();
    for (nth, object) in items.enumerate() {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let kind = text("/kind").unwrap_or("object");
        let name = text("/metadata/name").map_or_else(|| format!("number {nth}"), str::to_owned);
        let title = match text("/metadata/namespace") {
            Some(namespace) => format!("{kind} {namespace}/{name}"),
            None => format!("{kind} {name}"),
        };
        objects.insert(title, object);
    }
    Some(objects)
}

/// The paths of all fields that are not the same.
fn changed(fields: &mut Vec<String>, path: String, before: &Value, after: &Value) {
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            let names: BTreeSet<_> = old.keys().chain(new.keys()).collect();
            for name in names {
                let inner = format!("{path}.{name}");
                let absent = &Value::Null;
                let (old, new) = (old.get(name), new.get(name));
                changed(fields, inner, old.unwrap_or(absent), new.unwrap_or(absent));
            }
        }
        (old, new) if old == new => {}
        _ => fields.push(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::fixtures::environment;

    fn told(before: &Environment, after: &Environment) -> Vec<String> {
        environments(before, after)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn nothing_differs_from_itself() {
        assert_eq!(told(&environment(), &environment()), [""; 0]);
    }

    #[test]
    fn profile_version_and_job_are_named_with_both_values() {
        let (before, mut after) = (environment(), environment());
        after.resolved.profile.lease_seconds = 30;
        after.resolved.profile.environments_max = Some(3);
        after.resolved.kubernetes_version = "v1.99.0".into();
        after.identity.run.number = 77;
        let version = &before.resolved.kubernetes_version;
        let build = before.identity.run.number;
        assert_eq!(
            told(&before, &after),
            [
                "profile environments_max: absent -> 3".to_owned(),
                "profile lease_seconds: 300 -> 30".to_owned(),
                format!("Kubernetes version: {version} -> v1.99.0"),
                format!("build: {build} -> 77"),
            ]
        );
    }

    #[test]
    fn manifests_are_compared_by_object_and_their_values_are_not_told() {
        let (mut before, mut after) = (environment(), environment());
        let object = |kind: &str, name: &str, value: &str| {
            format!(
                "kind: {kind}\nmetadata: {{name: {name}, namespace: web}}\ndata: {{a: {value}, b: same}}\n---\n"
            )
        };
        let (old, new) = (
            &mut before.resolved.manifests,
            &mut after.resolved.manifests,
        );
        let shared = object("ConfigMap", "shared", "x");
        old.insert(
            "a.yaml".into(),
            shared.clone() + &object("Secret", "s", "hunter2") + &object("Role", "old", "x"),
        );
        new.insert(
            "a.yaml".into(),
            shared + &object("Secret", "s", "hunter3") + &object("Role", "new", "x"),
        );
        old.insert("b.yaml".into(), "kind: A\n".into());
        new.insert("b.yaml".into(), "kind: A # said\n".into());
        old.insert("c.yaml".into(), "a: [".into());
        let told = told(&before, &after);
        assert_eq!(
            told,
            [
                "manifest a.yaml: Role web/new: absent -> there",
                "manifest a.yaml: Role web/old: there -> absent",
                "manifest a.yaml: Secret web/s: there -> changed in .data.a",
                "manifest b.yaml: there -> other text",
                "manifest c.yaml: there -> absent",
            ]
        );
    }

    #[test]
    fn it_is_empty_exactly_when_the_digests_are_equal() {
        let one = environment().resolved;
        let changes: [fn(&mut ResolvedProfile); 4] = [
            |_| {},
            |it| it.profile.description.push('x'),
            |it| it.profile.egress.push("a.example:1".into()),
            |it| drop(it.manifests.insert("a.yaml".into(), "# nothing\n".into())),
        ];
        for change in changes {
            let mut other = one.clone();
            change(&mut other);
            assert_eq!(
                resolved(&one, &other).is_empty(),
                one.digest() == other.digest(),
                "{other:?}"
            );
        }
    }

    #[test]
    fn what_is_told_is_bounded() {
        let (before, mut after) = (environment(), environment());
        for nth in 0..2 * DIFFERENCES_MAX {
            after
                .resolved
                .manifests
                .insert(format!("{nth}.yaml"), "kind: A\n".into());
        }
        let told = told(&before, &after);
        assert_eq!(told.len(), DIFFERENCES_MAX + 1);
        assert!(told[DIFFERENCES_MAX].starts_with("200 more"), "{told:?}");
    }
}
