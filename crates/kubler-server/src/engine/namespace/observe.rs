//! What of environments exists on a host: one list.

use std::sync::Arc;

use kubler_core::host::ENVIRONMENT_LABEL;
use kubler_core::host::mark::MARK_ANNOTATION;
use kubler_core::host::reaper::{Found, Judgement, judge};
use kubler_core::ids::EnvironmentId;
use kubler_core::plan::{Condition, Observed, Unremembered};
use serde_json::Value;

use super::Inner;
use super::client::{HostClient, succeeded};
use crate::engine::EngineError;

/// Everything that carries the label of an environment and is called as its namespace would be.
pub(super) async fn observe(inner: &Arc<Inner>) -> Result<Vec<Observed>, EngineError> {
    let client = HostClient::own(&inner.connection, &inner.calls);
    let path = format!("/api/v1/namespaces?labelSelector={ENVIRONMENT_LABEL}");
    let answer = succeeded("its namespaces", client.list_metadata(&path).await)?;
    let list = answer.json().unwrap_or_default();
    let is_list = list
        .get("kind")
        .and_then(Value::as_str)
        .is_some_and(|kind| kind.ends_with("List"));
    // From what is no list nothing is concluded; one that is empty may say `null`.
    if !is_list {
        return Err(EngineError::transient("its namespaces: no list was given"));
    }
    let items = list.get("items").and_then(Value::as_array);
    Ok(items
        .into_iter()
        .flatten()
        .filter_map(|namespace| observed(inner, namespace))
        .collect())
}

fn observed(inner: &Inner, namespace: &Value) -> Option<Observed> {
    let metadata = namespace.get("metadata")?;
    let text = |pointer: &str| metadata.pointer(pointer).and_then(Value::as_str);
    let id: EnvironmentId = label(metadata)?.parse().ok()?;
    if text("/name") != Some(inner.namespace(id).as_str()) {
        return None;
    }
    let condition = match text("/deletionTimestamp") {
        None => Condition::Whole,
        Some(_) => Condition::Broken {
            message: "somebody is deleting its namespace on the host".into(),
        },
    };
    let found = Found {
        uid: text("/uid")?,
        mark: metadata
            .get("annotations")
            .and_then(|all| all.get(MARK_ANNOTATION))
            .and_then(Value::as_str),
    };
    let judgement = judge(found, Some(&inner.key.verifying_key()), inner.clock.now());
    let unremembered = match judgement {
        Judgement::Overdue(of) if of == id => Unremembered::Ends,
        Judgement::Overdue(_) | Judgement::Waits(..) | Judgement::Untouched(_) => {
            Unremembered::Stays
        }
    };
    Some(Observed {
        id,
        condition,
        unremembered,
    })
}

/// The id that the object's label names.
pub(super) fn label(metadata: &Value) -> Option<&str> {
    metadata.get("labels")?.get(ENVIRONMENT_LABEL)?.as_str()
}
