//! Ends an environment in phases, each with its time: the credential dies, the workloads stop, the namespace is deleted,
//! and then it is looked for by its UID.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use kubler_core::environment::Environment;
use kubler_core::host::reaper::Judgement;
use kubler_core::ids::EnvironmentId;
use serde_json::{Value, json};
use tokio::sync::OwnedMutexGuard;

use super::client::{HostClient, succeeded};
use super::stuck::Obstacles;
use super::{Inner, Slot, observe};
use crate::crash::{self, Point};
use crate::engine::api::{Answer, Api as _};
use crate::engine::{EngineError, Evidence};

/// How long pods are given to end by themselves, in seconds.
const GRACE_SECONDS: u64 = 5;
/// How long is waited for the last pod, before the namespace is deleted with what still runs.
const STOP_MAX: Duration = Duration::from_secs(15);
/// How long one try waits until the namespace is gone. Then it is told what is in the way, and tried again.
const GONE_MAX: Duration = Duration::from_secs(20);
/// Wait between two looks at pods.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What starts pods, by the path of its group.
const WORKLOADS: [(&str, &str); 7] = [
    ("/apis/apps/v1", "daemonsets"),
    ("/apis/apps/v1", "deployments"),
    ("/apis/apps/v1", "replicasets"),
    ("/apis/apps/v1", "statefulsets"),
    ("/apis/batch/v1", "cronjobs"),
    ("/apis/batch/v1", "jobs"),
    ("/api/v1", "replicationcontrollers"),
];

struct Ending<'a> {
    client: HostClient<'a>,
    inner: &'a Inner,
    id: EnvironmentId,
    /// Of the namespace and the account.
    name: String,
}

/// Takes all of it away and looks.
pub(super) async fn remove(
    inner: &Inner,
    id: EnvironmentId,
    environment: Option<&Environment>,
    slot: &Slot,
    _guard: &OwnedMutexGuard<()>,
) -> Result<Evidence, EngineError> {
    let began = Instant::now();
    let mut milliseconds = BTreeMap::new();
    let mut passed = |phase: &str| {
        let elapsed = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        milliseconds.insert(phase.to_owned(), elapsed);
    };
    let ending = Ending {
        client: HostClient::own(&inner.connection, &inner.calls),
        inner,
        id,
        name: inner.namespace(id),
    };
    *slot.tenant() = None;
    if environment.is_none() {
        ending.may_end_unremembered().await?;
    }
    ending.end_the_credential().await?;
    crash::at(Point::AccountRemoved);
    passed("credential_dead");
    if let Some(namespace) = ending.namespace().await? {
        let uid = text(&namespace, "/metadata/uid");
        if namespace.pointer("/metadata/deletionTimestamp").is_none() {
            ending.stop_workloads().await?;
            passed("workloads_stopped");
            ending.delete(&uid).await?;
            crash::at(Point::NamespaceDeleted);
        }
        passed("namespace_deleted");
        let since = text(&namespace, "/metadata/resourceVersion");
        ending.wait_until_gone(&uid, &since).await;
        ending.strip(environment, &uid).await?;
    }
    ending.look().await?;
    passed("gone");
    inner.forget(id);
    Ok(Evidence {
        looked_for: ["service account", "namespace", "persistent volume"]
            .map(str::to_owned)
            .into(),
        milliseconds,
    })
}

impl Ending<'_> {
    fn account_path(&self) -> String {
        let accounts = &self.inner.host.accounts_namespace;
        format!(
            "/api/v1/namespaces/{accounts}/serviceaccounts/{}",
            self.name
        )
    }

    fn namespace_path(&self) -> String {
        format!("/api/v1/namespaces/{}", self.name)
    }

    /// Without its account no token of the tenant is good, wherever it may be.
    async fn end_the_credential(&self) -> Result<(), EngineError> {
        let deleted = self.client.delete(&self.account_path(), &json!({})).await;
        absent_or("its service account", deleted).map(drop)
    }

    /// The namespace as it is. One of its name that is not labelled as ours is nobody's business of ours.
    async fn namespace(&self) -> Result<Option<Value>, EngineError> {
        let found = self.client.get(&self.namespace_path()).await;
        let Some(found) = absent_or("its namespace", found)? else {
            return Ok(None);
        };
        let namespace = found.json().unwrap_or_default();
        let metadata = namespace.get("metadata").unwrap_or(&Value::Null);
        if observe::label(metadata) == Some(self.id.to_string().as_str()) {
            return Ok(Some(namespace));
        }
        Err(EngineError::permanent(format!(
            "the namespace `{}` does not carry its label any more: somebody else changed it, and it is not touched",
            self.name
        )))
    }

    /// Whether it may be ended although no store knows it: its mark was looked at some time ago, and by another request.
    async fn may_end_unremembered(&self) -> Result<(), EngineError> {
        let Some(namespace) = self.namespace().await? else {
            return Ok(());
        };
        let metadata = namespace.get("metadata").unwrap_or(&Value::Null);
        match observe::judgement(self.inner, self.id, metadata) {
            Judgement::Overdue(_) => Ok(()),
            Judgement::Waits(..) | Judgement::Untouched(_) => Err(EngineError::permanent(format!(
                "nothing says that the namespace `{}` is ours and over: it is not touched",
                self.name
            ))),
        }
    }

    /// Ends what starts pods, then the pods; what resists is ended with the namespace.
    async fn stop_workloads(&self) -> Result<(), EngineError> {
        if self.pods().await? == 0 {
            return Ok(());
        }
        let namespace = &self.name;
        let options = json!({"propagationPolicy": "Background"});
        let owners = WORKLOADS.iter().map(async |(group, plural)| {
            let path = format!("{group}/namespaces/{namespace}/{plural}");
            absent_or("its workloads", self.client.delete(&path, &options).await)
        });
        try_join_all(owners).await?;
        let path = format!("/api/v1/namespaces/{namespace}/pods");
        let options = json!({"gracePeriodSeconds": GRACE_SECONDS});
        let deadline = Instant::now() + STOP_MAX;
        loop {
            absent_or("its pods", self.client.delete(&path, &options).await)?;
            tokio::time::sleep(LOOK_EVERY).await;
            let left = self.pods().await?;
            if left == 0 {
                return Ok(());
            }
            if Instant::now() > deadline {
                tracing::warn!(environment = %self.id, left, "pods do not stop; their namespace is deleted with them");
                return Ok(());
            }
        }
    }

    async fn pods(&self) -> Result<usize, EngineError> {
        let path = format!("/api/v1/namespaces/{}/pods", self.name);
        let list = self.client.list_metadata(&path).await;
        let list = absent_or("its pods", list)?.and_then(|list| list.json());
        let items = list.as_ref().and_then(|list| list.get("items"));
        Ok(items.and_then(Value::as_array).map_or(0, Vec::len))
    }

    async fn delete(&self, uid: &str) -> Result<(), EngineError> {
        let options = json!({"preconditions": {"uid": uid}, "propagationPolicy": "Background"});
        let deleted = self.client.delete(&self.namespace_path(), &options).await;
        absent_or("its namespace", deleted).map(drop)
    }

    /// Waits until this very namespace, as it was at `since`, is not there any more.
    async fn wait_until_gone(&self, uid: &str, since: &str) {
        let path = format!(
            "/api/v1/namespaces?fieldSelector=metadata.name%3D{}&resourceVersion={since}",
            self.name
        );
        let waited = async {
            let mut events = self.client.watch(&path, GONE_MAX).await?;
            while let Some(event) = events.next().await? {
                let object = event.get("object").unwrap_or(&Value::Null);
                let is_it = text(object, "/metadata/uid") == uid;
                if is_it && event.get("type") == Some(&json!("DELETED")) {
                    break;
                }
            }
            Ok::<_, io::Error>(())
        };
        // A watch that breaks says nothing: what counts is the look behind it.
        if let Ok(Err(error)) = tokio::time::timeout(GONE_MAX, waited).await {
            tracing::debug!(environment = %self.id, %error, "a watch broke");
        }
    }

    /// Looks for all of it.
    async fn look(&self) -> Result<(), EngineError> {
        if let Some(namespace) = self.namespace().await? {
            let obstacles = Obstacles::look(&self.client, &namespace).await;
            return Err(EngineError::transient(obstacles.sentence()));
        }
        let account = self.client.get(&self.account_path()).await;
        if absent_or("its service account", account)?.is_some() {
            return Err(EngineError::transient("its service account is still there"));
        }
        let volumes = self.client.get("/api/v1/persistentvolumes").await;
        let volumes = succeeded("volumes", volumes)?.json().unwrap_or_default();
        let volumes = volumes.get("items").and_then(Value::as_array);
        let is_its = |volume: &&Value| text(volume, "/spec/claimRef/namespace") == self.name;
        let left: Vec<_> = volumes
            .into_iter()
            .flatten()
            .filter(is_its)
            .map(|volume| format!("`{}`", text(volume, "/metadata/name")))
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        Err(EngineError::transient(format!(
            "volumes of it are left: {}; where their class keeps them, an operator deletes them",
            left.join(", ")
        )))
    }

    /// Takes away the finalizers that the profile lists, if the namespace is still held.
    async fn strip(&self, environment: Option<&Environment>, uid: &str) -> Result<(), EngineError> {
        let Some(environment) = environment else {
            return Ok(());
        };
        let Some(namespace) = self.namespace().await? else {
            return Ok(());
        };
        let obstacles = Obstacles::look(&self.client, &namespace).await;
        if obstacles
            .strip(self.inner, &self.client, environment)
            .await?
            > 0
        {
            let since = text(&namespace, "/metadata/resourceVersion");
            self.wait_until_gone(uid, &since).await;
        }
        Ok(())
    }
}

/// What is not there needs no end.
fn absent_or(what: &str, answer: io::Result<Answer>) -> Result<Option<Answer>, EngineError> {
    match answer {
        Ok(answer) if answer.status == 404 => Ok(None),
        // Somebody made another one of its name meanwhile.
        Ok(answer) if answer.status == 409 => Err(EngineError::transient(format!(
            "{what}: {}",
            answer.message()
        ))),
        answer => succeeded(what, answer).map(Some),
    }
}

fn text(object: &Value, pointer: &str) -> String {
    let text = object.pointer(pointer).and_then(Value::as_str);
    text.unwrap_or_default().to_owned()
}
