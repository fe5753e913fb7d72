//! The profile's manifests: read as YAML before anything is made, applied before an environment is Ready.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::time::Duration;

use futures_util::future::try_join_all;
use serde_json::Value;
use tokio::sync::OnceCell;

use super::api::{Answer, Api};
use super::{EngineError, ErrorClass};
use crate::config;

/// Wait between two tries, in milliseconds.
const RETRY_MILLISECONDS: u64 = 25;
/// Objects that are applied at once.
const PARALLEL_MAX: usize = 16;

/// Groups of Kubernetes' own that are not part of the core and that no manifest can put kinds into.
const BUILT_IN_GROUPS: [&str; 17] = [
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "apiregistration.k8s.io",
    "apps",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "coordination.k8s.io",
    "discovery.k8s.io",
    "events.k8s.io",
    "extensions",
    "node.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "scheduling.k8s.io",
];

/// What an environment is: where its manifests go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Within<'a> {
    /// A cluster of its own.
    Cluster,
    /// This namespace, and nothing outside of it.
    Namespace(&'a str),
}

/// Kinds of Kubernetes' own that belong to a whole cluster.
const OF_THE_CLUSTER: [&str; 18] = [
    "APIService",
    "CSIDriver",
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "FlowSchema",
    "IngressClass",
    "MutatingWebhookConfiguration",
    "Namespace",
    "Node",
    "PersistentVolume",
    "PriorityClass",
    "PriorityLevelConfiguration",
    "RuntimeClass",
    "StorageClass",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "ValidatingWebhookConfiguration",
];

/// One document of a manifest file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Manifest {
    /// File, kind and name, for people.
    title: String,
    api_version: String,
    kind: String,
    namespace: Option<String>,
    name: String,
    object: Value,
}

/// Which objects others need: each step is applied when the one before it works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Namespaces and kinds.
    Foundation,
    /// Most things.
    Ordinary,
    /// What may stand in the way of others.
    Gatekeeper,
}

/// Reads all files, in the order of their names.
///
/// # Errors
/// Permanent: a document that is no YAML, or no Kubernetes object with a name.
pub(super) fn read(files: &BTreeMap<String, String>) -> Result<Vec<Manifest>, EngineError> {
    let mut manifests = Vec::new();
    for (file, text) in files {
        let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| {
            let why = config::without_prefix(&error.to_string());
            permanent(format!("manifest `{file}` is not YAML: {why}"))
        })?;
        let many = documents.len() > 1;
        for (nth, document) in documents.into_iter().enumerate() {
            let place = if many {
                format!("manifest `{file}`, document {}", nth + 1)
            } else {
                format!("manifest `{file}`")
            };
            for object in flatten(document) {
                manifests.push(one(file, &place, object)?);
            }
        }
    }
    Ok(manifests)
}

/// Reads all files of a profile whose environments are namespaces.
///
/// # Errors
/// Permanent: as in [`read`], and an object that cannot be in such an environment.
pub(super) fn read_for_namespace(
    files: &BTreeMap<String, String>,
) -> Result<Vec<Manifest>, EngineError> {
    let manifests = read(files)?;
    for manifest in &manifests {
        let title = &manifest.title;
        if let Some(namespace) = &manifest.namespace {
            return Err(permanent(format!(
                "{title} names the namespace `{namespace}`; leave it out: an environment has one, and its name is not known before"
            )));
        }
        if OF_THE_CLUSTER.contains(&manifest.kind.as_str()) {
            return Err(permanent(format!(
                "{title} is of the whole cluster, and this environment is a namespace of one"
            )));
        }
    }
    Ok(manifests)
}

/// A `List` stands for its items.
fn flatten(document: Value) -> Vec<Value> {
    match document {
        Value::Null => Vec::new(),
        Value::Object(mut fields) if fields.get("kind").is_some_and(|kind| kind == "List") => {
            match fields.remove("items") {
                Some(Value::Array(items)) => items,
                _ => Vec::new(),
            }
        }
        document => vec![document],
    }
}

fn one(file: &str, place: &str, object: Value) -> Result<Manifest, EngineError> {
    if !object.is_object() {
        return Err(permanent(format!(
            "{place}: it is no Kubernetes object: `apiVersion`, `kind` and `metadata.name` are missing"
        )));
    }
    let text = |pointer: &str| {
        object
            .pointer(pointer)
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let lacking = |what: &str| permanent(format!("{place}: an object has no `{what}`"));
    let kind = text("/kind").ok_or_else(|| lacking("kind"))?;
    let name = text("/metadata/name").ok_or_else(|| lacking("metadata.name"))?;
    // They become parts of a path.
    let is_plain = |part: &str| {
        !part.is_empty() && !part.contains(['/', '?', '#', '%']) && part != "." && part != ".."
    };
    let api_version = text("/apiVersion").ok_or_else(|| lacking("apiVersion"))?;
    let namespace = text("/metadata/namespace");
    if !is_plain(&name)
        || !namespace.as_deref().is_none_or(is_plain)
        || !api_version.split('/').all(is_plain)
    {
        return Err(permanent(format!(
            "{place}: `{kind}` has a name that cannot be one"
        )));
    }
    let title = format!("`{kind}/{name}` of manifest `{file}`");
    Ok(Manifest {
        title,
        api_version,
        kind,
        namespace,
        name,
        object,
    })
}

impl Manifest {
    fn rank(&self) -> Rank {
        match self.kind.as_str() {
            "Namespace" | "CustomResourceDefinition" => Rank::Foundation,
            "ValidatingWebhookConfiguration"
            | "MutatingWebhookConfiguration"
            | "APIService"
            | "ValidatingAdmissionPolicyBinding"
            | "MutatingAdmissionPolicyBinding" => Rank::Gatekeeper,
            _ => Rank::Ordinary,
        }
    }

    fn is_definition(&self) -> bool {
        self.kind == "CustomResourceDefinition"
    }
}

/// Applies all, and returns when the last is accepted and every new kind is served. What cannot work yet is
/// tried again; the caller bounds the time.
///
/// # Errors
/// Permanent when the API server refuses an object for what it is.
pub(super) async fn apply(
    api: &dyn Api,
    within: Within<'_>,
    manifests: &[Manifest],
    trouble: &Trouble,
) -> Result<(), EngineError> {
    let kinds = Kinds {
        api,
        within,
        known: tokio::sync::Mutex::default(),
    };
    for rank in [Rank::Foundation, Rank::Ordinary, Rank::Gatekeeper] {
        let of_rank: Vec<_> = manifests
            .iter()
            .filter(|manifest| manifest.rank() == rank)
            .collect();
        for some in of_rank.chunks(PARALLEL_MAX) {
            try_join_all(
                some.iter()
                    .map(|manifest| apply_one(api, &kinds, manifest, trouble)),
            )
            .await?;
        }
    }
    Ok(())
}

async fn apply_one(
    api: &dyn Api,
    kinds: &Kinds<'_>,
    manifest: &Manifest,
    trouble: &Trouble,
) -> Result<(), EngineError> {
    loop {
        // A kind that is not served yet, and a server that is just starting, are worth another try.
        match kinds
            .path(&manifest.api_version, &manifest.kind)
            .await
            .map_err(transient)?
        {
            Some(kind) => {
                let path = kinds.object(&kind, manifest)?;
                let answer = api
                    .apply(&path, &manifest.object)
                    .await
                    .map_err(transient)?;
                if answer.is_success() {
                    return if manifest.is_definition() {
                        wait_until_served(api, kinds, manifest, &path).await
                    } else {
                        Ok(())
                    };
                }
                if !may_change(&answer) {
                    return Err(permanent(format!(
                        "{} was refused: {}",
                        manifest.title,
                        answer.message()
                    )));
                }
                trouble.note(format!(
                    "{} is not accepted: {}",
                    manifest.title,
                    answer.message()
                ));
            }
            None => {
                let lacking = format!(
                    "{} is of a kind that `{}` does not have",
                    manifest.title, manifest.api_version
                );
                if kinds.lacks_for_good(manifest).await.map_err(transient)? {
                    return Err(permanent(lacking));
                }
                trouble.note(lacking);
            }
        }
        tokio::time::sleep(Duration::from_millis(RETRY_MILLISECONDS)).await;
    }
}

/// Whether the same request may get another answer soon: the server is starting, or something that this object
/// needs is being made.
fn may_change(answer: &Answer) -> bool {
    matches!(answer.status, 404 | 409 | 429)
        || answer.status >= 500
        || answer.status == 403 && answer.message().contains("not yet ready")
}

/// Waits until objects of a new kind can be made, by the job too.
async fn wait_until_served(
    api: &dyn Api,
    kinds: &Kinds<'_>,
    definition: &Manifest,
    path: &str,
) -> Result<(), EngineError> {
    let text = |pointer: &str| {
        definition
            .object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let (group, kind) = (text("/spec/group"), text("/spec/names/kind"));
    let versions = definition
        .object
        .pointer("/spec/versions")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let served = versions
        .iter()
        .filter(|version| version.get("served").is_some_and(|served| *served == true));
    let names: Vec<_> = served
        .filter_map(|version| {
            version
                .get("name")?
                .as_str()
                .map(|name| format!("{group}/{name}"))
        })
        .collect();
    loop {
        let found = api
            .get(path)
            .await
            .map_err(transient)?
            .json()
            .unwrap_or_default();
        let mut ready = is_true(&found, "Established");
        for group_version in &names {
            ready = ready
                && kinds
                    .path(group_version, &kind)
                    .await
                    .map_err(transient)?
                    .is_some();
        }
        if ready {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(RETRY_MILLISECONDS)).await;
    }
}

fn is_true(object: &Value, wanted: &str) -> bool {
    let conditions = object
        .pointer("/status/conditions")
        .and_then(Value::as_array);
    conditions.is_some_and(|conditions| {
        conditions.iter().any(|condition| {
            condition.get("type").is_some_and(|kind| kind == wanted)
                && condition
                    .get("status")
                    .is_some_and(|status| status == "True")
        })
    })
}

/// What kept a start from going on, for the error when its time is over.
#[derive(Debug, Default)]
pub(super) struct Trouble(std::sync::Mutex<String>);

impl Trouble {
    pub(super) fn note(&self, what: String) {
        *self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = what;
    }

    pub(super) fn last(&self) -> String {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }
}

/// Where objects of one kind are.
struct KindPath {
    root: String,
    plural: String,
    namespaced: bool,
}

impl Kinds<'_> {
    /// Where an object of the kind is.
    fn object(&self, kind: &KindPath, manifest: &Manifest) -> Result<String, EngineError> {
        let KindPath { root, plural, .. } = kind;
        let name = &manifest.name;
        let own = manifest.namespace.as_deref();
        match self.within {
            Within::Namespace(_) if !kind.namespaced => Err(permanent(format!(
                "{} is of the whole cluster, and this environment is a namespace of one",
                manifest.title
            ))),
            Within::Cluster if !kind.namespaced => Ok(format!("{root}/{plural}/{name}")),
            Within::Cluster => {
                let namespace = own.unwrap_or("default");
                Ok(format!("{root}/namespaces/{namespace}/{plural}/{name}"))
            }
            Within::Namespace(namespace) => {
                Ok(format!("{root}/namespaces/{namespace}/{plural}/{name}"))
            }
        }
    }
}

/// What a group version serves: the path's last part and whether it is namespaced, by kind.
type Served = HashMap<String, (String, bool)>;

/// Discovery: asked once per group version, and again as long as a kind is not there.
struct Kinds<'a> {
    api: &'a dyn Api,
    within: Within<'a>,
    known: tokio::sync::Mutex<HashMap<String, std::sync::Arc<OnceCell<Served>>>>,
}

impl Kinds<'_> {
    /// Where objects of the kind are, once it is served.
    async fn path(&self, group_version: &str, kind: &str) -> io::Result<Option<KindPath>> {
        let root = root(group_version);
        let cell = std::sync::Arc::clone(self.known.lock().await.entry(root.clone()).or_default());
        let served = cell.get_or_try_init(|| self.discover(&root)).await?;
        let Some((plural, namespaced)) = served.get(kind) else {
            self.known.lock().await.remove(&root);
            return Ok(None);
        };
        Ok(Some(KindPath {
            root,
            plural: plural.clone(),
            namespaced: *namespaced,
        }))
    }

    /// Whether the kind belongs to a group that no manifest can extend, and a server that is ready does not have it: it
    /// never will.
    async fn lacks_for_good(&self, manifest: &Manifest) -> io::Result<bool> {
        let is_built_in = match manifest.api_version.split_once('/') {
            None => true,
            Some((group, _)) => BUILT_IN_GROUPS.contains(&group),
        };
        if !is_built_in || !self.api.get("/readyz").await?.is_success() {
            return Ok(false);
        }
        // Asked again: the answer before may be that of a server that was just starting.
        let answer = self.api.get(&root(&manifest.api_version)).await?;
        Ok(match answer.status {
            404 => true,
            _ => answer.is_success() && !served(&answer).contains_key(&manifest.kind),
        })
    }

    async fn discover(&self, root: &str) -> io::Result<Served> {
        Ok(served(&self.api.get(root).await?))
    }
}

/// Where the API of a group's version is.
fn root(group_version: &str) -> String {
    if group_version.contains('/') {
        format!("/apis/{group_version}")
    } else {
        format!("/api/{group_version}")
    }
}

/// What an answer of discovery names; nothing when it is none.
fn served(answer: &Answer) -> Served {
    let list = answer
        .json()
        .filter(|_| answer.is_success())
        .unwrap_or_default();
    let resources = list
        .get("resources")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    resources
        .iter()
        .filter_map(|resource| {
            let plural = resource.get("name")?.as_str()?;
            let is_whole = !plural.contains('/');
            let kind = resource.get("kind")?.as_str()?.to_owned();
            is_whole.then(|| {
                (
                    kind,
                    (
                        plural.to_owned(),
                        resource
                            .get("namespaced")
                            .is_some_and(|value| *value == true),
                    ),
                )
            })
        })
        .collect()
}

fn permanent(message: String) -> EngineError {
    EngineError {
        message,
        class: ErrorClass::Permanent,
    }
}

#[allow(clippy::needless_pass_by_value)] // the shape `map_err` wants
fn transient(error: io::Error) -> EngineError {
    EngineError {
        message: format!("the API server does not answer: {error}"),
        class: ErrorClass::Transient,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(text: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("m.yaml".to_owned(), text.to_owned())])
    }

    #[test]
    fn documents_and_lists_are_taken_apart_and_ranked() {
        let read = read(&files(
            "# comment\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {on: \"yes\", n: \"1\"}\n---\n\
             apiVersion: v1\nkind: List\nitems:\n- apiVersion: apiextensions.k8s.io/v1\n  kind: CustomResourceDefinition\n  metadata: {name: b}\n",
        ))
        .unwrap();
        let shape: Vec<_> = read
            .iter()
            .map(|manifest| (manifest.name.as_str(), manifest.rank()))
            .collect();
        assert_eq!(shape, [("a", Rank::Ordinary), ("b", Rank::Foundation)]);
        assert_eq!(
            read[0].object.pointer("/data/on"),
            Some(&Value::from("yes"))
        );
    }

    #[test]
    fn what_is_no_object_is_refused_for_good() {
        for text in [
            "kind: [",
            "bad",
            "kind: ConfigMap\nmetadata: {name: a}\n",
            "kind: ConfigMap\napiVersion: v1\n",
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ../../x}\n",
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: \"b?c\"}\n",
            "apiVersion: ../v1\nkind: ConfigMap\nmetadata: {name: a}\n",
        ] {
            let error = read(&files(text)).unwrap_err();
            assert_eq!(error.class, ErrorClass::Permanent, "{text}");
            assert!(error.message.contains("`m.yaml`"), "{error}");
        }
    }
}
