//! As much of Kubernetes' pods as a diagnosis needs.

use std::fmt;

use serde::Deserialize;

/// Says whether a node was found.
const SCHEDULED: &str = "PodScheduled";

/// A pod that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingPod {
    /// `namespace/name`.
    pub name: String,
    /// What the scheduler said; nothing where there is none.
    pub reason: Option<String>,
}

impl fmt::Display for PendingPod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Some(reason) => write!(f, "{} ({reason})", self.name),
            None => f.write_str(&self.name),
        }
    }
}

#[derive(Deserialize)]
pub(super) struct PodList {
    #[serde(default)]
    items: Vec<Pod>,
}

#[derive(Deserialize)]
struct Pod {
    metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    namespace: String,
    name: String,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    #[serde(default)]
    message: String,
}

impl From<PodList> for Vec<PendingPod> {
    fn from(list: PodList) -> Self {
        list.items
            .into_iter()
            .map(|pod| PendingPod {
                name: format!("{}/{}", pod.metadata.namespace, pod.metadata.name),
                reason: pod
                    .status
                    .conditions
                    .into_iter()
                    .find(|condition| condition.kind == SCHEDULED && condition.status == "False")
                    .map(|condition| condition.message)
                    .filter(|message| !message.is_empty()),
            })
            .collect()
    }
}
