//! What keeps a namespace from going: which object, and which finalizer. A finalizer that the profile lists is taken away,
//! once that is in the ledger.

use kubler_core::environment::Environment;
use kubler_core::host::stuck::{self, Remaining};
use kubler_core::ledger::record::{Body, Kind, LedgerAction};
use kubler_core::profile::Strippable;
use serde_json::{Value, json};

use super::Inner;
use super::client::{HostClient, succeeded};
use crate::engine::EngineError;
use crate::engine::api::Api as _;
use crate::ledger::Durability;

/// Most objects of one kind that are named.
const OBJECTS_MAX: usize = 10;

/// Objects with finalizers that are left in a namespace, and what the host says about the rest.
#[derive(Default)]
pub(super) struct Obstacles {
    said: Vec<String>,
    objects: Vec<Held>,
}

/// An object that finalizers hold.
struct Held {
    kind: Remaining,
    path: String,
    name: String,
    finalizers: Vec<String>,
    resource_version: Value,
}

impl Obstacles {
    /// Reads what the namespace controller says, and looks at the objects that it names.
    pub(super) async fn look(client: &HostClient<'_>, namespace: &Value) -> Self {
        let name = namespace.pointer("/metadata/name").and_then(Value::as_str);
        let mut found = Self {
            said: stuck::obstacles(namespace),
            objects: Vec::new(),
        };
        for kind in stuck::remaining(namespace) {
            match held(client, name.unwrap_or_default(), &kind).await {
                Ok(objects) => found.objects.extend(objects),
                // What the controller said stays true.
                Err(error) => found.said.push(error.message),
            }
        }
        found
    }

    /// All of it, for people.
    pub(super) fn sentence(&self) -> String {
        let objects = self.objects.iter().map(|object| {
            let finalizers: Vec<_> = object
                .finalizers
                .iter()
                .map(|it| format!("`{it}`"))
                .collect();
            format!("{} waits for {}", object.title(), finalizers.join(" and "))
        });
        let mut all: Vec<_> = objects.chain(self.said.iter().cloned()).collect();
        if all.is_empty() {
            all.push("the host has not said why".into());
        }
        format!("its namespace is still there: {}", all.join("; "))
    }

    /// Takes away the finalizers that the profile lists, and gives how many objects it were.
    pub(super) async fn strip(
        &self,
        inner: &Inner,
        client: &HostClient<'_>,
        environment: &Environment,
    ) -> Result<usize, EngineError> {
        let profile = environment.resolved.profile.namespace.as_ref();
        let listed = profile.map_or(&[][..], |profile| &profile.strip_finalizers);
        let mut stripped = 0;
        for object in &self.objects {
            let (taken, kept): (Vec<_>, Vec<_>) = object
                .finalizers
                .iter()
                .partition(|finalizer| object.may_lose(finalizer, listed));
            if taken.is_empty() {
                continue;
            }
            let mut body = Body::new(Kind::Event, LedgerAction::EnvironmentFinalizer);
            body.environment_id = Some(environment.id);
            for (name, value) in [
                ("host", json!(inner.host.name)),
                ("object", json!(object.title())),
                ("finalizers", json!(taken)),
            ] {
                body.details.insert(name.into(), value);
            }
            // Before it is done: what is taken away leaves no trace on the host.
            let recorded = inner.ledger.event(body, Durability::Disk).await;
            recorded.map_err(EngineError::transient)?;
            let patch = json!({"metadata": {
                "finalizers": kept,
                "resourceVersion": object.resource_version,
            }});
            let answer = client.merge(&object.path, &patch).await;
            succeeded(&object.title(), answer)?;
            tracing::warn!(environment = %environment.id, object = object.title(), ?taken, "finalizers were taken away, as the profile allows");
            stripped += 1;
        }
        Ok(stripped)
    }
}

impl Held {
    fn title(&self) -> String {
        let Remaining { group, resource } = &self.kind;
        let dot = if group.is_empty() { "" } else { "." };
        format!("`{resource}{dot}{group}/{}`", self.name)
    }

    fn may_lose(&self, finalizer: &str, listed: &[Strippable]) -> bool {
        listed.iter().any(|it| {
            it.finalizer == finalizer
                && it.group == self.kind.group
                && it.resource == self.kind.resource
        })
    }
}

async fn held(
    client: &HostClient<'_>,
    namespace: &str,
    kind: &Remaining,
) -> Result<Vec<Held>, EngineError> {
    let Remaining { group, resource } = kind;
    let root = if group.is_empty() {
        "/api/v1".to_owned()
    } else {
        let answer = succeeded(resource, client.get(&format!("/apis/{group}")).await)?;
        let answer = answer.json().unwrap_or_default();
        let version = answer.pointer("/preferredVersion/groupVersion");
        let version = version.and_then(Value::as_str).unwrap_or_default();
        format!("/apis/{version}")
    };
    let collection = format!("{root}/namespaces/{namespace}/{resource}");
    let few = format!("{collection}?limit={OBJECTS_MAX}");
    let list = succeeded(resource, client.list_metadata(&few).await)?;
    let list = list.json().unwrap_or_default();
    let items = list.get("items").and_then(Value::as_array);
    let of = |item: &Value| {
        let metadata = item.get("metadata")?;
        let name = metadata.get("name")?.as_str()?.to_owned();
        let finalizers = metadata.get("finalizers")?.as_array()?;
        let finalizers = finalizers.iter().filter_map(Value::as_str);
        Some(Held {
            kind: kind.clone(),
            path: format!("{collection}/{name}"),
            name,
            finalizers: finalizers.map(str::to_owned).collect(),
            resource_version: metadata.get("resourceVersion")?.clone(),
        })
    };
    Ok(items.into_iter().flatten().filter_map(of).collect())
}
