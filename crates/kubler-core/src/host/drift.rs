//! Whether an object on the host cluster still is what was made, and who changed it.
//!
//! What was applied must be there, field by field; what others added beside it is theirs. A server may write a value in
//! another way than it was given (`1000m` becomes `1`): so what is found here is a suspicion, and applying the object
//! again (or trying to, with a dry run) says whether it is a change.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

/// Most changes that are told of one object; what differs once will be put right as a whole.
const CHANGES_MAX: usize = 16;
/// Longest value that is told, in characters.
const SHOWN_CHARACTERS_MAX: usize = 200;

/// What differs in one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Where, as `spec.hard.pods`.
    pub path: String,
    /// What was applied, as JSON, cut.
    pub applied: String,
    /// What was found, as JSON, cut; absent when nothing is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
}

/// Who changed an object last, as the API server noted it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Author {
    /// The field manager: the client's name, which the client chooses.
    pub manager: String,
    /// `Apply` or `Update`.
    pub operation: String,
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
}

/// Every field of `applied` that `live` does not have as it was applied. Lists are values: one more entry is a change,
/// since an entry can open what the list closes.
pub fn changes(applied: &Value, live: &Value) -> Vec<Change> {
    let mut changes = Vec::new();
    compare("", applied, live, &mut changes);
    changes
}

fn compare(path: &str, applied: &Value, live: &Value, changes: &mut Vec<Change>) {
    if changes.len() >= CHANGES_MAX {
        return;
    }
    if let (Value::Object(applied), Value::Object(live)) = (applied, live) {
        for (key, value) in applied {
            let below = if path.is_empty() {
                key.clone()
            } else {
                format!("{path}.{key}")
            };
            // What is empty is left out by a server that writes it down.
            match live.get(key) {
                Some(found) => compare(&below, value, found, changes),
                None if is_empty(value) => {}
                None => push(&below, value, None, changes),
            }
        }
    } else if let (Value::Array(wanted), Value::Array(found)) = (applied, live)
        && wanted.len() == found.len()
    {
        for (nth, (wanted, found)) in wanted.iter().zip(found).enumerate() {
            compare(&format!("{path}[{nth}]"), wanted, found, changes);
        }
    } else if applied != live {
        push(path, applied, Some(live), changes);
    }
}

fn push(path: &str, applied: &Value, found: Option<&Value>, changes: &mut Vec<Change>) {
    if changes.len() < CHANGES_MAX {
        changes.push(Change {
            path: path.to_owned(),
            applied: shown(applied),
            found: found.map(shown),
        });
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(entries) => entries.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn shown(value: &Value) -> String {
    value
        .to_string()
        .chars()
        .take(SHOWN_CHARACTERS_MAX)
        .collect()
}

/// Who owns one of the changed fields, or else changed the object last; nobody when only `ours` ever wrote it, as when a
/// field was taken away without a trace.
pub fn author(live: &Value, changes: &[Change], ours: &str) -> Option<Author> {
    let entries = live.pointer("/metadata/managedFields")?.as_array()?;
    let others = || {
        entries.iter().filter(|entry| {
            entry.get("manager").and_then(Value::as_str).is_some_and(|name| name != ours)
                // Status is written by controllers all the time.
                && entry.get("subresource").is_none()
        })
    };
    let owner = others().find(|entry| {
        let fields = entry.get("fieldsV1");
        fields.is_some_and(|fields| changes.iter().any(|change| owns(fields, &change.path)))
    });
    let last = || others().max_by_key(|entry| entry.get("time").and_then(Value::as_str));
    let entry = owner.or_else(last)?;
    let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
    Some(Author {
        manager: text("manager")?,
        operation: text("operation").unwrap_or_default(),
        at: text("time").and_then(|time| time.parse().ok()),
    })
}

/// Whether a set of fields has the one at `path`, or what it is a part of.
fn owns(fields: &Value, path: &str) -> bool {
    let mut at = fields;
    for (depth, name) in path.split('.').enumerate() {
        let name = name.split('[').next().unwrap_or_default();
        match at.get(format!("f:{name}")) {
            Some(below) => at = below,
            // Lists and maps that are owned as one end here.
            None => return depth > 1,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn quota(pods: &str) -> Value {
        json!({"kind": "ResourceQuota", "metadata": {"name": "kubler", "labels": {"a": "b"}}, "spec": {"hard": {"pods": pods}}})
    }

    #[test]
    fn what_was_applied_must_be_there_and_what_others_added_may_be() {
        let mut live = quota("20");
        assert_eq!(changes(&quota("20"), &live), []);
        live["metadata"]["labels"]["other"] = json!("x");
        live["spec"]["hard"]["services"] = json!("3");
        live["status"] = json!({"hard": {"pods": "20"}});
        assert_eq!(changes(&quota("20"), &live), []);
        live["spec"]["hard"]["pods"] = json!("2000");
        live["metadata"]["labels"] = json!({});
        let paths: Vec<_> = changes(&quota("20"), &live)
            .into_iter()
            .map(|it| it.path)
            .collect();
        assert_eq!(paths, ["metadata.labels.a", "spec.hard.pods"]);
    }

    #[test]
    fn one_entry_more_or_another_one_is_a_change() {
        let applied = json!({"spec": {"podSelector": {}, "ingress": [], "policyTypes": ["Ingress", "Egress"]}});
        let mut live = json!({"spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}});
        assert_eq!(changes(&applied, &live), []);
        live["spec"]["ingress"] = json!([{}]);
        assert_eq!(changes(&applied, &live)[0].path, "spec.ingress");
        live["spec"]["ingress"] = json!([]);
        live["spec"]["policyTypes"] = json!(["Ingress"]);
        assert_eq!(changes(&applied, &live)[0].path, "spec.policyTypes");
        live["spec"]["policyTypes"] = json!(["Ingress", "Other"]);
        assert_eq!(changes(&applied, &live)[0].path, "spec.policyTypes[1]");
    }

    #[test]
    fn the_owner_of_the_changed_field_is_named_and_else_who_came_last() {
        let mut live = quota("2000");
        live["metadata"]["managedFields"] = json!([
            {"manager": "kubler", "operation": "Apply", "time": "2026-01-01T00:00:00Z", "fieldsV1": {"f:metadata": {"f:labels": {"f:a": {}}}}},
            {"manager": "kubectl-edit", "operation": "Update", "time": "2026-01-02T00:00:00Z", "fieldsV1": {"f:spec": {"f:hard": {"f:pods": {}}}}},
            {"manager": "labeller", "operation": "Update", "time": "2026-01-03T00:00:00Z", "fieldsV1": {"f:metadata": {"f:labels": {"f:b": {}}}}},
            {"manager": "kube-controller-manager", "operation": "Update", "time": "2026-01-04T00:00:00Z", "subresource": "status", "fieldsV1": {"f:status": {}}},
        ]);
        let found = changes(&quota("20"), &live);
        let by = author(&live, &found, "kubler").unwrap();
        assert_eq!(
            (by.manager.as_str(), by.operation.as_str()),
            ("kubectl-edit", "Update")
        );
        assert_eq!(by.at, Some("2026-01-02T00:00:00Z".parse().unwrap()));
        assert_eq!(author(&live, &[], "kubler").unwrap().manager, "labeller");
        live["metadata"]["managedFields"]
            .as_array_mut()
            .unwrap()
            .truncate(1);
        assert_eq!(author(&live, &found, "kubler"), None);
    }
}
