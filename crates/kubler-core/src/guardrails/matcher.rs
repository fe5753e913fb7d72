//! Which requests are meant: as roles of Kubernetes say it, and with namespaces besides.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::verb;
use crate::ledger::record::KubernetesRequest;

/// Everything of a list.
pub(super) const ANY: &str = "*";

/// Requests that are meant. All lists must match; `*` matches everything of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Matcher {
    /// API groups, such as `apps`; `""` is the core group.
    pub groups: Vec<String>,
    /// Resources, such as `pods`, which means no subresource of it; `pods/exec` is one, `pods/*` all of pods, `*/scale`
    /// the same of every resource, `*` everything.
    pub resources: Vec<String>,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, `connect` (exec, attach,
    /// port-forward) and `proxy`.
    pub verbs: Vec<String>,
    /// Namespaces; absent: everywhere, also where there are none. A request for objects of all namespaces is one for
    /// each of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// Names of objects; absent: all. Only for verbs of requests that carry a name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

impl Matcher {
    /// Whether the request is meant. One about no resource never is.
    pub fn matches(&self, record: &KubernetesRequest) -> bool {
        let (Some(group), Some(resource)) = (&record.group, &record.resource) else {
            return false;
        };
        holds(&self.groups, group)
            && holds(&self.verbs, verb(record))
            && self.has_resource(resource, record.subresource.as_deref())
            && self.has_namespace(record)
            && (self.names.is_empty()
                || record
                    .name
                    .as_ref()
                    .is_some_and(|name| self.names.contains(name)))
    }

    fn has_resource(&self, resource: &str, subresource: Option<&str>) -> bool {
        self.resources.iter().any(|listed| {
            listed == ANY
                || match (listed.split_once('/'), subresource) {
                    (None, None) => listed == resource,
                    (Some((whole, part)), Some(subresource)) => {
                        (whole == ANY || whole == resource) && (part == ANY || part == subresource)
                    }
                    _ => false,
                }
        })
    }

    fn has_namespace(&self, record: &KubernetesRequest) -> bool {
        match &record.namespace {
            _ if self.namespaces.is_empty() => true,
            Some(namespace) => self.namespaces.contains(namespace),
            // Objects of all namespaces, or of none: which of them, the path does not say.
            None => {
                record.name.is_none()
                    && matches!(record.verb.as_str(), "list" | "watch" | "deletecollection")
            }
        }
    }

    /// Whether everything that `other` means is meant here as well.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let all = |ours: &[String], theirs: &[String]| theirs.iter().all(|word| holds(ours, word));
        let open = |ours: &[String], theirs: &[String]| {
            ours.is_empty() || (!theirs.is_empty() && theirs.iter().all(|word| ours.contains(word)))
        };
        all(&self.groups, &other.groups)
            && all(&self.verbs, &other.verbs)
            && all(&self.resources, &other.resources)
            && open(&self.namespaces, &other.namespaces)
            && open(&self.names, &other.names)
    }
}

fn holds(list: &[String], word: &str) -> bool {
    list.iter().any(|listed| listed == ANY || listed == word)
}
