//! What a job may do in its namespace of a host cluster: a role of ours or a list of rules, and what neither can ever
//! hold (rule V3), whoever writes the profile.
//!
//! The roles are upstream's `view`, `edit` and `admin`, narrowed: nothing that acts as somebody else, mints a
//! credential, opens what the environment closes (quota, limits, network, labels of the namespace), reaches a node, or
//! gives rights away. A right that a job gave to an account of its pods would reach the cluster around the gateway.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A role that comes with Kubler.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads everything but secrets; no exec.
    View,
    /// Runs workloads: reads and writes them, their configuration and secrets; exec, attach, port-forward.
    #[default]
    Edit,
    /// The same, and reads who may do what in the namespace.
    Admin,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::View, Self::Edit, Self::Admin];

    /// The word in configuration and role names.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Edit => "edit",
            Self::Admin => "admin",
        }
    }

    /// What it allows.
    pub fn rules(self) -> Vec<Rule> {
        let mut rules = read_rules();
        if self >= Self::Edit {
            rules.extend(edit_rules());
        }
        if self == Self::Admin {
            rules.extend(admin_rules());
        }
        rules
    }
}

/// One rule, as Kubernetes' RBAC has it, for resources of one namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Rule {
    /// API groups; `""` is the core group, `*` every one.
    pub api_groups: Vec<String>,
    /// Resources in the plural, with their subresource as `pods/log`; `*` every one.
    pub resources: Vec<String>,
    /// Names; empty for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    /// Verbs, in lower case; `*` every one.
    pub verbs: Vec<String>,
}

/// What a rule of a profile would give and must not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct GrantFault {
    /// Which rule, counted from 0.
    pub rule: usize,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: &'static str,
}

/// Every verb of Kubernetes for resources that a rule may name.
const VERBS: [&str; 8] = [
    "get",
    "list",
    "watch",
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
];
const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 5] = ["create", "update", "patch", "delete", "deletecollection"];
/// What only a few resources know, and no job.
const FORBIDDEN_VERBS: [&str; 6] = [
    "impersonate",
    "bind",
    "escalate",
    "approve",
    "sign",
    "attest",
];
/// Stands for every verb, also for those that Kubernetes does not know yet.
const ANY: &str = "*";

/// Something that no job gets.
struct Forbidden {
    group: &'static str,
    /// With `/*` at its end: every subresource.
    resource: &'static str,
    verbs: &'static [&'static str],
    why: &'static str,
}

const fn forbidden(
    group: &'static str,
    resource: &'static str,
    verbs: &'static [&'static str],
    why: &'static str,
) -> Forbidden {
    Forbidden {
        group,
        resource,
        verbs,
        why,
    }
}

const NODE: &str = "a node is everybody's";
const PROXY: &str = "a proxy reaches what the gateway does not see (rule V2)";
const OTHERS: &str = "it lets a job act as somebody else (rule V3)";
const CREDENTIAL: &str =
    "it makes a credential that reaches the cluster around the gateway (rule V3)";
const RIGHTS: &str =
    "it gives rights to accounts that reach the cluster around the gateway (rule V3)";
const WALLS: &str = "it opens what the environment closes";
const PLACEMENT: &str = "it decides for the cluster where pods run or where traffic goes";
const CLUSTER: &str = "it is the whole cluster's";

/// All of it. Where a verb of Kubernetes is missing here, the resource may be used with it.
const FORBIDDEN: &[Forbidden] = &[
    forbidden("", "nodes", &[ANY], NODE),
    forbidden("", "nodes/*", &[ANY], NODE),
    forbidden("", "pods/proxy", &[ANY], PROXY),
    forbidden("", "services/proxy", &[ANY], PROXY),
    forbidden("", "users", &[ANY], OTHERS),
    forbidden("", "groups", &[ANY], OTHERS),
    forbidden("", "uids", &[ANY], OTHERS),
    forbidden("authentication.k8s.io", "userextras/*", &[ANY], OTHERS),
    forbidden("authentication.k8s.io", "uids", &[ANY], OTHERS),
    forbidden("authentication.k8s.io", "tokenreviews", &[ANY], OTHERS),
    forbidden("", "serviceaccounts", &["impersonate"], OTHERS),
    forbidden("", "serviceaccounts/token", &[ANY], CREDENTIAL),
    forbidden("certificates.k8s.io", "*", &[ANY], CREDENTIAL),
    forbidden("rbac.authorization.k8s.io", "clusterroles", &[ANY], CLUSTER),
    forbidden(
        "rbac.authorization.k8s.io",
        "clusterrolebindings",
        &[ANY],
        CLUSTER,
    ),
    forbidden("rbac.authorization.k8s.io", "roles", &WRITE, RIGHTS),
    forbidden("rbac.authorization.k8s.io", "rolebindings", &WRITE, RIGHTS),
    forbidden(
        "rbac.authorization.k8s.io",
        "roles",
        &["bind", "escalate"],
        RIGHTS,
    ),
    forbidden("admissionregistration.k8s.io", "*", &[ANY], CLUSTER),
    forbidden("apiextensions.k8s.io", "*", &[ANY], CLUSTER),
    forbidden("apiregistration.k8s.io", "*", &[ANY], CLUSTER),
    forbidden("flowcontrol.apiserver.k8s.io", "*", &[ANY], CLUSTER),
    forbidden("node.k8s.io", "*", &[ANY], CLUSTER),
    forbidden("scheduling.k8s.io", "*", &[ANY], CLUSTER),
    forbidden("storage.k8s.io", "*", &[ANY], CLUSTER),
    forbidden("", "persistentvolumes", &[ANY], CLUSTER),
    forbidden("", "persistentvolumes/*", &[ANY], CLUSTER),
    forbidden("", "componentstatuses", &[ANY], CLUSTER),
    forbidden("", "namespaces", &["list", "watch"], CLUSTER),
    forbidden("", "namespaces", &WRITE, WALLS),
    forbidden("", "namespaces/*", &[ANY], WALLS),
    forbidden("", "resourcequotas", &WRITE, WALLS),
    forbidden("", "resourcequotas/status", &WRITE, WALLS),
    forbidden("", "limitranges", &WRITE, WALLS),
    forbidden("networking.k8s.io", "networkpolicies", &WRITE, WALLS),
    forbidden("", "pods/ephemeralcontainers", &[ANY], WALLS),
    forbidden("", "pods/status", &WRITE, PLACEMENT),
    forbidden("", "pods/binding", &[ANY], PLACEMENT),
    forbidden("", "bindings", &[ANY], PLACEMENT),
    forbidden("", "services/status", &WRITE, PLACEMENT),
    forbidden("", "endpoints", &WRITE, PLACEMENT),
    forbidden("discovery.k8s.io", "endpointslices", &WRITE, PLACEMENT),
];

impl Rule {
    fn new(group: &str, resources: &[&str], verbs: &[&str]) -> Self {
        let owned = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect();
        Self {
            api_groups: vec![group.to_owned()],
            resources: owned(resources),
            resource_names: Vec::new(),
            verbs: owned(verbs),
        }
    }

    fn covers_group(&self, group: &str) -> bool {
        self.api_groups
            .iter()
            .any(|named| named == ANY || named == group)
    }

    fn covers_resource(&self, resource: &str) -> bool {
        self.resources.iter().any(|named| covers(named, resource))
    }

    fn covers_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|named| named == ANY || named == verb)
    }

    /// Whether it allows `verb` on a resource, which is written as `pods` or `pods/log`.
    pub fn allows(&self, verb: &str, group: &str, resource: &str, name: Option<&str>) -> bool {
        let names = &self.resource_names;
        self.covers_group(group)
            && self.covers_resource(resource)
            && self.covers_verb(verb)
            && (names.is_empty()
                || name.is_some_and(|name| names.iter().any(|named| named == name)))
    }

    /// The first thing it gives that no job may have.
    fn forbidden(&self) -> Option<(String, &'static str)> {
        FORBIDDEN.iter().find_map(|no| {
            let group = no.group == ANY || self.covers_group(no.group);
            let resource = self
                .resources
                .iter()
                .any(|named| covers(named, no.resource) || covers(no.resource, named));
            if !(group && resource) {
                return None;
            }
            let verb = no.verbs.iter().find_map(|verb| match *verb {
                ANY => self.verbs.first().map(String::as_str),
                verb => self.covers_verb(verb).then_some(verb),
            })?;
            let group = if no.group.is_empty() {
                String::new()
            } else {
                format!(" of `{}`", no.group)
            };
            Some((format!("`{verb}` on `{}`{group}", no.resource), no.why))
        })
    }
}

/// Whether what a rule names covers a resource: Kubernetes' `*` is every resource with every subresource, and `*/x` the
/// subresource of every one; ours of `a/*`, in the list above, is every subresource of one.
fn covers(named: &str, resource: &str) -> bool {
    named == ANY
        || named == resource
        || named.strip_prefix("*/").is_some_and(|sub| {
            resource
                .split_once('/')
                .is_some_and(|(_, other)| other == sub || other == ANY)
        })
        || named
            .strip_suffix("/*")
            .is_some_and(|of| resource.split('/').next() == Some(of) && resource.contains('/'))
}

/// What is wrong with a profile's rules; empty when a role may be made of them.
pub fn faults(rules: &[Rule]) -> Vec<GrantFault> {
    let mut faults = Vec::new();
    for (nth, rule) in rules.iter().enumerate() {
        let mut say = |message: String, hint| {
            faults.push(GrantFault {
                rule: nth,
                message,
                hint,
            });
        };
        if rule.api_groups.is_empty() || rule.resources.is_empty() || rule.verbs.is_empty() {
            say(
                "a rule without groups, resources or verbs gives nothing".into(),
                "name all three; the core group is `\"\"`",
            );
            continue;
        }
        let unknown: BTreeSet<_> = rule
            .verbs
            .iter()
            .map(String::as_str)
            .filter(|verb| *verb != ANY && !VERBS.contains(verb))
            .collect();
        for verb in unknown {
            if FORBIDDEN_VERBS.contains(&verb) {
                say(
                    format!(
                        "`{verb}` can be given to no job: it makes somebody else of it (rule V3)"
                    ),
                    "leave it out",
                );
            } else {
                say(
                    format!("`{verb}` is no verb of Kubernetes"),
                    "one of get, list, watch, create, update, patch, delete, deletecollection or *",
                );
            }
        }
        let is_all = |texts: &[String]| texts.iter().any(|text| text == ANY);
        if is_all(&rule.resources) && is_all(&rule.verbs) {
            say(
                "every verb on every resource can be given to no job (rule V3)".into(),
                "name the resources that the job needs, or use `role: admin`",
            );
        } else if let Some((what, why)) = rule.forbidden() {
            say(
                format!("{what} can be given to no job: {why}"),
                "name only the resources and verbs that the job needs",
            );
        }
    }
    faults
}

/// Whether rules allow something together.
pub fn allows(rules: &[Rule], verb: &str, group: &str, resource: &str, name: Option<&str>) -> bool {
    rules
        .iter()
        .any(|rule| rule.allows(verb, group, resource, name))
}

/// What everybody reads.
fn read_rules() -> Vec<Rule> {
    vec![
        Rule::new("", &["namespaces"], &["get"]),
        Rule::new(
            "",
            &[
                "configmaps",
                "endpoints",
                "events",
                "limitranges",
                "persistentvolumeclaims",
                "persistentvolumeclaims/status",
                "pods",
                "pods/log",
                "pods/status",
                "replicationcontrollers",
                "replicationcontrollers/scale",
                "replicationcontrollers/status",
                "resourcequotas",
                "resourcequotas/status",
                "serviceaccounts",
                "services",
                "services/status",
            ],
            &READ,
        ),
        Rule::new(
            "apps",
            &[
                "controllerrevisions",
                "daemonsets",
                "daemonsets/status",
                "deployments",
                "deployments/scale",
                "deployments/status",
                "replicasets",
                "replicasets/scale",
                "replicasets/status",
                "statefulsets",
                "statefulsets/scale",
                "statefulsets/status",
            ],
            &READ,
        ),
        Rule::new(
            "autoscaling",
            &[
                "horizontalpodautoscalers",
                "horizontalpodautoscalers/status",
            ],
            &READ,
        ),
        Rule::new(
            "batch",
            &["cronjobs", "cronjobs/status", "jobs", "jobs/status"],
            &READ,
        ),
        Rule::new("discovery.k8s.io", &["endpointslices"], &READ),
        Rule::new("events.k8s.io", &["events"], &READ),
        Rule::new(
            "networking.k8s.io",
            &["ingresses", "ingresses/status", "networkpolicies"],
            &READ,
        ),
        Rule::new(
            "policy",
            &["poddisruptionbudgets", "poddisruptionbudgets/status"],
            &READ,
        ),
    ]
}

fn edit_rules() -> Vec<Rule> {
    vec![
        Rule::new("", &["secrets"], &READ),
        Rule::new(
            "",
            &[
                "configmaps",
                "persistentvolumeclaims",
                "pods",
                "replicationcontrollers",
                "replicationcontrollers/scale",
                "secrets",
                "serviceaccounts",
                "services",
            ],
            &WRITE,
        ),
        // Opening one is `create`, whatever the method of the request says (rule V1).
        Rule::new(
            "",
            &[
                "pods/attach",
                "pods/eviction",
                "pods/exec",
                "pods/portforward",
            ],
            &["create"],
        ),
        Rule::new("", &["events"], &["create", "patch", "update"]),
        Rule::new("events.k8s.io", &["events"], &["create", "patch", "update"]),
        Rule::new(
            "apps",
            &[
                "daemonsets",
                "deployments",
                "deployments/scale",
                "replicasets",
                "replicasets/scale",
                "statefulsets",
                "statefulsets/scale",
            ],
            &WRITE,
        ),
        Rule::new("autoscaling", &["horizontalpodautoscalers"], &WRITE),
        Rule::new("batch", &["cronjobs", "jobs"], &WRITE),
        Rule::new("coordination.k8s.io", &["leases"], &READ),
        Rule::new("coordination.k8s.io", &["leases"], &WRITE),
        Rule::new("networking.k8s.io", &["ingresses"], &WRITE),
        Rule::new("policy", &["poddisruptionbudgets"], &WRITE),
    ]
}

fn admin_rules() -> Vec<Rule> {
    vec![
        Rule::new(
            "rbac.authorization.k8s.io",
            &["roles", "rolebindings"],
            &READ,
        ),
        Rule::new(
            "authorization.k8s.io",
            &["localsubjectaccessreviews"],
            &["create"],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(group: &str, resource: &str, verb: &str) -> Rule {
        Rule::new(group, &[resource], &[verb])
    }

    #[test]
    fn v3_no_rule_gives_what_no_job_may_have() {
        let cases = [
            ("", "users", "impersonate"),
            ("", "serviceaccounts", "impersonate"),
            ("", "serviceaccounts", "*"),
            ("*", "serviceaccounts", "*"),
            ("authentication.k8s.io", "userextras/scopes", "create"),
            ("rbac.authorization.k8s.io", "roles", "bind"),
            ("rbac.authorization.k8s.io", "roles", "*"),
            ("rbac.authorization.k8s.io", "rolebindings", "create"),
            ("rbac.authorization.k8s.io", "clusterroles", "get"),
            ("", "serviceaccounts/token", "create"),
            ("", "serviceaccounts/*", "create"),
            ("", "*/token", "create"),
            ("", "*", "create"),
            ("*", "*", "get"),
            (
                "certificates.k8s.io",
                "certificatesigningrequests",
                "create",
            ),
            ("certificates.k8s.io", "signers", "sign"),
            (
                "admissionregistration.k8s.io",
                "validatingwebhookconfigurations",
                "get",
            ),
            ("", "pods/ephemeralcontainers", "patch"),
            ("", "pods/*", "patch"),
            ("", "nodes", "get"),
            ("", "nodes/proxy", "get"),
            ("", "*/proxy", "get"),
            ("", "pods/proxy", "get"),
            ("", "services/proxy", "create"),
            ("", "namespaces", "list"),
            ("", "namespaces", "patch"),
            ("", "namespaces/finalize", "update"),
            ("", "resourcequotas", "delete"),
            ("networking.k8s.io", "networkpolicies", "create"),
            ("networking.k8s.io", "*", "create"),
            ("discovery.k8s.io", "endpointslices", "update"),
            ("apiextensions.k8s.io", "customresourcedefinitions", "list"),
            ("", "persistentvolumes", "get"),
        ];
        for (group, resource, verb) in cases {
            let rules = [rule(group, resource, verb)];
            let found = faults(&rules);
            assert!(!found.is_empty(), "{verb} {resource} of `{group}` passed");
        }
    }

    #[test]
    fn what_a_job_needs_can_be_given() {
        for (group, resource, verb) in [
            ("", "pods", "*"),
            ("", "pods/log", "get"),
            ("", "pods/exec", "create"),
            ("", "namespaces", "get"),
            ("apps", "*", "*"),
            ("batch", "jobs", "create"),
            ("example.dev", "*", "get"),
            ("rbac.authorization.k8s.io", "roles", "list"),
            ("networking.k8s.io", "networkpolicies", "list"),
        ] {
            let rules = [rule(group, resource, verb)];
            let expected = if (group, resource, verb) == ("apps", "*", "*") {
                1 // every verb on every resource, also of one group
            } else {
                0
            };
            assert_eq!(
                faults(&rules).len(),
                expected,
                "{verb} {resource}: {:?}",
                faults(&rules)
            );
        }
    }

    #[test]
    fn v3_the_roles_keep_their_own_rules() {
        for role in Role::ALL {
            assert_eq!(faults(&role.rules()), [], "{role:?}");
        }
        let rules = Role::View.rules();
        assert!(allows(&rules, "list", "apps", "deployments", None));
        assert!(!allows(&rules, "get", "", "secrets", None));
        assert!(!allows(&rules, "create", "", "pods/exec", None));
        assert!(!allows(&rules, "create", "apps", "deployments", None));
        let rules = Role::Edit.rules();
        assert!(allows(&rules, "create", "", "pods/exec", Some("web")));
        assert!(!allows(&rules, "get", "", "pods/exec", Some("web")));
        assert!(!allows(
            &rules,
            "list",
            "rbac.authorization.k8s.io",
            "roles",
            None
        ));
        assert!(allows(
            &Role::Admin.rules(),
            "list",
            "rbac.authorization.k8s.io",
            "roles",
            None
        ));
    }

    #[test]
    fn a_rule_that_gives_nothing_or_names_no_verb_is_a_fault() {
        let empty = Rule::default();
        let typo = rule("", "pods", "gets");
        let found = faults(&[empty, typo]);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].rule, found[1].rule), (0, 1));
        assert!(found[1].message.contains("`gets`"), "{found:?}");
    }

    #[test]
    fn names_bound_a_rule() {
        let mut named = rule("", "secrets", "get");
        named.resource_names = vec!["tls".into()];
        assert!(named.allows("get", "", "secrets", Some("tls")));
        assert!(!named.allows("get", "", "secrets", Some("other")));
        assert!(!named.allows("get", "", "secrets", None));
    }
}
