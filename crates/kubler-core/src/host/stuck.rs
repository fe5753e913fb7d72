//! Why a namespace does not go: read from what the namespace controller says of it.

use serde_json::Value;

/// Longest text of a condition that is told, in characters.
const SHOWN_CHARACTERS_MAX: usize = 400;
/// The conditions that say what is in the way, when they are true.
const TELLING: [&str; 5] = [
    "NamespaceDeletionDiscoveryFailure",
    "NamespaceDeletionGroupVersionParsingFailure",
    "NamespaceDeletionContentFailure",
    "NamespaceContentRemaining",
    "NamespaceFinalizersRemaining",
];

/// What is in the way of a namespace that is being deleted, for people; empty when nobody has said yet.
pub fn obstacles(namespace: &Value) -> Vec<String> {
    let conditions = namespace
        .pointer("/status/conditions")
        .and_then(Value::as_array);
    let text = |condition: &Value, key: &str| Some(condition.get(key)?.as_str()?.to_owned());
    let is_telling = |condition: &&Value| {
        text(condition, "status").as_deref() == Some("True")
            && text(condition, "type").is_some_and(|kind| TELLING.contains(&kind.as_str()))
    };
    let said = conditions.into_iter().flatten().filter(is_telling);
    said.filter_map(|condition| text(condition, "message"))
        .map(|message| shown(&message))
        .collect()
}

fn shown(message: &str) -> String {
    message
        .chars()
        .take(SHOWN_CHARACTERS_MAX)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// A kind of object that is left, as the controller names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remaining {
    /// Its API group; empty for the core group.
    pub group: String,
    /// Its resource, in the plural.
    pub resource: String,
}

/// Which kinds of objects are left: `Some resources are remaining: widgets.example.com has 1 resource instances, …`.
pub fn remaining(namespace: &Value) -> Vec<Remaining> {
    let mut all = Vec::new();
    for said in obstacles(namespace) {
        let Some(list) = said.strip_prefix("Some resources are remaining: ") else {
            continue;
        };
        for entry in list.split(", ") {
            if let Some((kind, _)) = entry.split_once(" has ") {
                let (resource, group) = kind.split_once('.').unwrap_or((kind, ""));
                all.push(Remaining {
                    group: group.to_owned(),
                    resource: resource.to_owned(),
                });
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_controller_says_is_told_and_understood() {
        let namespace = json!({"status": {"phase": "Terminating", "conditions": [
            {"type": "NamespaceDeletionDiscoveryFailure", "status": "True", "message": "Discovery failed for some groups, 1 failing: unable to retrieve the complete list of server APIs: metrics.k8s.io/v1beta1: stale GroupVersion discovery"},
            {"type": "NamespaceDeletionContentFailure", "status": "False", "message": "All content successfully deleted, may be waiting on finalization"},
            {"type": "NamespaceContentRemaining", "status": "True", "message": "Some resources are remaining: configmaps. has 1 resource instances, widgets.example.com has 2 resource instances"},
            {"type": "NamespaceFinalizersRemaining", "status": "True", "message": "Some content in the namespace has finalizers remaining: example.com/guard in 3 resource instances"},
        ]}});
        let said = obstacles(&namespace);
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(said[0].contains("metrics.k8s.io") && said[2].contains("example.com/guard"));
        let of = |group: &str, resource: &str| Remaining {
            group: group.into(),
            resource: resource.into(),
        };
        assert_eq!(
            remaining(&namespace),
            [of("", "configmaps"), of("example.com", "widgets")]
        );
        assert_eq!(obstacles(&json!({})), [] as [String; 0]);
    }
}
