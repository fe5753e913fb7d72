//! What of environments exists on a host: one list.

use std::sync::Arc;

use kubler_core::host::ENVIRONMENT_LABEL;
use kubler_core::host::mark::MARK_ANNOTATION;
use kubler_core::host::reaper::{Found, Judgement, Untouched, judge};
use kubler_core::ids::EnvironmentId;
use kubler_core::plan::{Condition, Observed, Unremembered};
use serde_json::Value;

use super::Inner;
use super::client::{HostClient, succeeded};
use crate::engine::{EngineError, Staying, Stays};

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
    let (mut observed, mut staying) = (Vec::new(), Vec::new());
    for namespace in items.into_iter().flatten() {
        let Some(metadata) = namespace.get("metadata") else {
            continue;
        };
        let judged = judged(inner, metadata);
        observed.extend(judged.observed);
        staying.extend(judged.staying);
    }
    inner.pulse.set_staying(staying);
    Ok(observed)
}

/// What a namespace is: an environment's, and whether it stays when nobody remembers that.
#[derive(Default)]
struct Judged {
    observed: Option<Observed>,
    staying: Option<Staying>,
}

fn judged(inner: &Inner, metadata: &Value) -> Judged {
    let name = text(metadata, "/name");
    // Another server on the same host has another prefix: its namespaces are none of our business.
    if !name.starts_with(&inner.host.namespace_prefix) {
        return Judged::default();
    }
    let id: Option<EnvironmentId> = label(metadata).and_then(|id| id.parse().ok());
    let id = id.filter(|id| inner.namespace(*id) == name);
    let judgement = id.map_or(Judgement::Untouched(Untouched::OtherName), |id| {
        judgement(inner, id, metadata)
    });
    let why = match judgement {
        Judgement::Overdue(_) => None,
        Judgement::Waits(_, deadline) => Some(Stays::Until(deadline)),
        Judgement::Untouched(why) => Some(Stays::Untouched(why)),
    };
    let condition = match metadata.get("deletionTimestamp") {
        None => Condition::Whole,
        Some(_) => Condition::Broken {
            message: "somebody is deleting its namespace on the host".into(),
        },
    };
    Judged {
        observed: id.map(|id| Observed {
            id,
            condition,
            unremembered: if why.is_none() {
                Unremembered::Ends
            } else {
                Unremembered::Stays
            },
        }),
        staying: why.map(|why| Staying {
            namespace: name.to_owned(),
            environment: id,
            why,
        }),
    }
}

/// What may be done with the namespace of `id`, if nobody remembers it.
pub(super) fn judgement(inner: &Inner, id: EnvironmentId, metadata: &Value) -> Judgement {
    let mark = metadata.get("annotations");
    let found = Found {
        uid: text(metadata, "/uid"),
        mark: mark
            .and_then(|all| all.get(MARK_ANNOTATION))
            .and_then(Value::as_str),
    };
    match judge(found, Some(&inner.key.verifying_key()), inner.clock.now()) {
        Judgement::Overdue(of) | Judgement::Waits(of, _) if of != id => {
            Judgement::Untouched(Untouched::OtherName)
        }
        judgement => judgement,
    }
}

fn text<'a>(metadata: &'a Value, pointer: &str) -> &'a str {
    let text = metadata.pointer(pointer).and_then(Value::as_str);
    text.unwrap_or_default()
}

/// The id that the object's label names.
pub(super) fn label(metadata: &Value) -> Option<&str> {
    metadata.get("labels")?.get(ENVIRONMENT_LABEL)?.as_str()
}
