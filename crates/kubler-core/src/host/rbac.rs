//! The rights that Kubler needs on a host cluster, and no others, as objects for an operator to apply: Kubler never
//! gives itself a right.
//!
//! Roles of tenants stand here ready to be bound; Kubler has `bind` on them by name and never `escalate`. RBAC cannot
//! say "namespaces of my own only", so an admission policy does: whatever Kubler's account changes lies in a namespace
//! with Kubler's prefix and label, or in the one where the tenants' accounts live.
//!
//! A profile's manifests need no right here: they are applied as the tenant.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::grants::{Role, Rule};
use super::mark::MARK_ANNOTATION;
use super::{ENVIRONMENT_LABEL, TENANT_ROLE_PREFIX, names};
use crate::configuration::{Configuration, Host, selects};
use crate::profile::EngineKind;

/// The role of Kubler itself, its binding, and the policies that bound it.
pub const BROKER_ROLE: &str = "kubler:broker";
/// The policy about what Kubler's account changes.
const BROKER_POLICY: &str = "kubler-broker-stays-in-its-namespaces";
/// The policy about the namespace where tenants' accounts live.
const ACCOUNTS_POLICY: &str = "kubler-accounts-stay-closed";

/// Who Kubler is on the host cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broker {
    /// A user, as the host cluster's authentication names it.
    User(String),
    /// A service account, for a Kubler that runs in the cluster.
    ServiceAccount {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

impl Broker {
    /// Who Kubler is on a host when nobody says it.
    pub fn usual(host: &Host) -> Self {
        if host.in_cluster {
            Self::ServiceAccount {
                namespace: "kubler".into(),
                name: "kubler".into(),
            }
        } else {
            Self::User("kubler".into())
        }
    }

    /// The name under which the host cluster knows it.
    pub fn username(&self) -> String {
        match self {
            Self::User(name) => name.clone(),
            Self::ServiceAccount { namespace, name } => {
                format!("system:serviceaccount:{namespace}:{name}")
            }
        }
    }

    fn subject(&self) -> Value {
        match self {
            Self::User(name) => {
                json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name})
            }
            Self::ServiceAccount { namespace, name } => {
                json!({"kind": "ServiceAccount", "namespace": namespace, "name": name})
            }
        }
    }
}

/// What a host cluster has to give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRights {
    /// Who Kubler is there.
    pub broker: Broker,
    /// What the names of all environments' namespaces begin with.
    pub namespace_prefix: String,
    /// Where tenants' service accounts live.
    pub accounts_namespace: String,
    /// Rules of tenants by the name of their role, which begins with [`TENANT_ROLE_PREFIX`].
    pub tenants: BTreeMap<String, Vec<Rule>>,
    /// Objects whose finalizers profiles allow to be taken away: Kubler has to change them.
    pub stripped: Vec<Resource>,
}

/// A kind of object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resource {
    /// Its API group; empty for the core group.
    pub group: String,
    /// Its resource, in the plural.
    pub resource: String,
}

/// The name of a tenant's role: of a role of ours, or of one profile's own rules.
pub fn tenant_role(role: Role) -> String {
    format!("{TENANT_ROLE_PREFIX}{}", role.as_str())
}

/// The name of the role with the rules of one profile.
pub fn profile_role(profile: &str) -> String {
    format!("{TENANT_ROLE_PREFIX}profile:{profile}")
}

impl HostRights {
    /// What `host` has to give for the profiles that are offered on it.
    pub fn of(configuration: &Configuration, host: &Host, broker: Broker) -> Self {
        let (mut tenants, mut stripped) = (BTreeMap::new(), BTreeSet::new());
        let profiles = configuration.profiles.iter();
        for profile in profiles.filter(|profile| profile.engine == EngineKind::Namespace) {
            let namespace = profile.namespace.clone().unwrap_or_default();
            if !selects(&namespace.hosts, &host.labels) {
                continue;
            }
            tenants.insert(names::role(profile), namespace.grants());
            stripped.extend(namespace.strip_finalizers.into_iter().map(|it| Resource {
                group: it.group,
                resource: it.resource,
            }));
        }
        Self {
            broker,
            namespace_prefix: host.namespace_prefix.clone(),
            accounts_namespace: host.accounts_namespace.clone(),
            tenants,
            stripped: stripped.into_iter().collect(),
        }
    }

    /// Everything an operator applies, in the order in which it has to exist.
    pub fn objects(&self) -> Vec<Value> {
        let mut objects = vec![self.accounts()];
        objects.extend(self.tenants.iter().map(|(name, rules)| tenant(name, rules)));
        objects.push(cluster_role(BROKER_ROLE, &self.broker_rules()));
        objects.push(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": BROKER_ROLE},
            "roleRef": role_ref("ClusterRole", BROKER_ROLE),
            "subjects": [self.broker.subject()],
        }));
        objects.push(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": BROKER_ROLE, "namespace": self.accounts_namespace},
            "rules": account_rules(),
        }));
        objects.push(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": BROKER_ROLE, "namespace": self.accounts_namespace},
            "roleRef": role_ref("Role", BROKER_ROLE),
            "subjects": [self.broker.subject()],
        }));
        objects.extend(self.broker_policy());
        objects.extend(self.accounts_policy());
        objects
    }

    fn accounts(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": self.accounts_namespace,
                // Nothing runs there.
                "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
            },
        })
    }

    /// What Kubler does in every environment's namespace, verb by verb. `every_right_of_kubler_on_a_host_is_missed_when_it_is_taken_away` takes each away and sees what fails.
    pub fn broker_rules(&self) -> Vec<Rule> {
        let mut rules = vec![
            // Made, marked, found again after a restart, looked for after the end.
            rule(
                "",
                &["namespaces"],
                &["create", "get", "list", "watch", "patch", "delete"],
            ),
            // The walls; watched, and put right when somebody changed them.
            rule(
                "",
                &["resourcequotas", "limitranges", "serviceaccounts"],
                &["create", "get", "list", "watch", "patch"],
            ),
            rule(
                "networking.k8s.io",
                &["networkpolicies"],
                &["create", "get", "list", "watch", "patch"],
            ),
            // The role that one gives cannot be changed in it: it is made anew.
            rule(
                "rbac.authorization.k8s.io",
                &["rolebindings"],
                &["create", "get", "list", "watch", "patch", "delete"],
            ),
            // The build's facts, and the profile's secrets, which nobody needs to read.
            rule("", &["configmaps", "secrets"], &["create", "patch"]),
            // The first thing an end does: nothing is started anew while the namespace goes.
            rule("", &["pods"], &["list", "deletecollection"]),
            rule("", &["replicationcontrollers"], &["deletecollection"]),
            rule(
                "apps",
                &["daemonsets", "deployments", "replicasets", "statefulsets"],
                &["deletecollection"],
            ),
            rule("batch", &["cronjobs", "jobs"], &["deletecollection"]),
            // Left over when a claim is gone and its class keeps the volume.
            rule("", &["persistentvolumes"], &["list"]),
        ];
        rules.push(Rule {
            resource_names: self.tenants.keys().cloned().collect(),
            ..rule("rbac.authorization.k8s.io", &["clusterroles"], &["bind"])
        });
        rules.extend(
            self.stripped
                .iter()
                .map(|it| rule(&it.group, &[&it.resource], &["list", "patch"])),
        );
        rules
    }

    /// Whatever Kubler's account changes is in a namespace of its own.
    fn broker_policy(&self) -> [Value; 2] {
        let (prefix, accounts) = (
            quoted(&self.namespace_prefix),
            quoted(&self.accounts_namespace),
        );
        let is_namespace =
            "request.resource.group == '' && request.resource.resource == 'namespaces'";
        let validations = json!([
            {
                "expression": format!("!({is_namespace}) || request.name.startsWith({prefix})"),
                "message": format!("namespaces that Kubler makes, changes or deletes begin with `{}`", self.namespace_prefix),
            },
            {
                // A deletion has only the old object, a creation only the new one. A label that somebody took away may be
                // put back where the mark says whose namespace it is.
                "expression": format!(
                    "!({is_namespace}) || ([object, oldObject].filter(it, it != null).all(it, (has(it.metadata.labels) && '{ENVIRONMENT_LABEL}' in it.metadata.labels) || (object != null && has(it.metadata.annotations) && '{MARK_ANNOTATION}' in it.metadata.annotations)) && (object == null || (has(object.metadata.labels) && '{ENVIRONMENT_LABEL}' in object.metadata.labels)))"
                ),
                "message": format!("namespaces that Kubler makes, changes or deletes carry the label `{ENVIRONMENT_LABEL}`"),
            },
            {
                "expression": format!(
                    "({is_namespace}) || request.namespace.startsWith({prefix}) || (request.namespace == {accounts} && request.resource.resource == 'serviceaccounts')"
                ),
                "message": "Kubler changes nothing outside of its own namespaces",
            },
        ]);
        let conditions = json!([
            {
                "name": "kubler",
                "expression": format!("request.userInfo.username == {}", quoted(&self.broker.username())),
            },
        ]);
        let everything = json!({
            "resourceRules": [{
                "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"],
                "operations": ["CREATE", "UPDATE", "DELETE"],
            }],
        });
        policy(BROKER_POLICY, &everything, &conditions, &validations)
    }

    /// Nothing runs where tenants' accounts live, and nobody but Kubler makes a token of one.
    fn accounts_policy(&self) -> [Value; 2] {
        let broker = quoted(&self.broker.username());
        let conditions = json!([
            {
                "name": "accounts",
                "expression": format!("request.namespace == {}", quoted(&self.accounts_namespace)),
            },
        ]);
        let validations = json!([
            {
                // Every namespace gets an account `default`, from a controller.
                "expression": format!(
                    "request.resource.resource == 'serviceaccounts' && (request.userInfo.username == {broker} || (request.name == 'default' && request.subResource == ''))"
                ),
                "message": "nothing runs here, and only Kubler makes accounts and their tokens: they are what tenants of the cluster are known by",
            },
        ]);
        let what = json!({
            "resourceRules": [{
                "apiGroups": ["*"], "apiVersions": ["*"],
                "resources": ["pods", "pods/*", "serviceaccounts", "serviceaccounts/token", "replicationcontrollers",
                    "deployments", "daemonsets", "statefulsets", "replicasets", "jobs", "cronjobs", "secrets"],
                "operations": ["CREATE", "UPDATE"],
            }],
        });
        policy(ACCOUNTS_POLICY, &what, &conditions, &validations)
    }
}

/// What Kubler does with tenants' accounts, in the namespace where they live, besides what it may everywhere.
pub fn account_rules() -> Vec<Rule> {
    vec![
        rule("", &["serviceaccounts"], &["delete"]),
        rule("", &["serviceaccounts/token"], &["create"]),
    ]
}

fn tenant(name: &str, rules: &[Rule]) -> Value {
    cluster_role(name, rules)
}

fn cluster_role(name: &str, rules: &[Rule]) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name},
        "rules": rules,
    })
}

fn role_ref(kind: &str, name: &str) -> Value {
    json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name})
}

fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> Rule {
    let owned = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect();
    Rule {
        api_groups: vec![group.to_owned()],
        resources: owned(resources),
        resource_names: Vec::new(),
        verbs: owned(verbs),
    }
}

/// A policy that denies, and its binding.
fn policy(name: &str, what: &Value, conditions: &Value, validations: &Value) -> [Value; 2] {
    [
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": name},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": what,
                "matchConditions": conditions,
                "validations": validations,
            },
        }),
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {"policyName": name, "validationActions": ["Deny"]},
        }),
    ]
}

/// A text as CEL writes it. Names of Kubernetes have neither quotes nor backslashes; whoever configures others gets them
/// escaped.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rights() -> HostRights {
        HostRights {
            broker: Broker::ServiceAccount {
                namespace: "kubler".into(),
                name: "kubler".into(),
            },
            namespace_prefix: "kubler-".into(),
            accounts_namespace: "kubler-accounts".into(),
            tenants: BTreeMap::from([(tenant_role(Role::Edit), Role::Edit.rules())]),
            stripped: Vec::new(),
        }
    }

    #[test]
    fn kubler_may_bind_the_tenants_roles_by_name_and_escalates_nothing() {
        let rules = rights().broker_rules();
        let with = |wanted: &str| -> Vec<&Rule> {
            let has = |rule: &&Rule| rule.verbs.iter().any(|verb| verb == wanted);
            rules.iter().filter(has).collect()
        };
        let bind = with("bind");
        assert_eq!(bind.len(), 1);
        assert_eq!(bind[0].resource_names, ["kubler:tenant:edit"]);
        for never in ["escalate", "impersonate", "*"] {
            assert_eq!(with(never).len(), 0, "{never}");
        }
        let wild = rules
            .iter()
            .any(|rule| rule.resources.iter().any(|name| name.contains('*')));
        assert!(!wild, "a wildcard grants what nobody named");
    }

    #[test]
    fn a_name_cannot_change_an_expression() {
        let mut rights = rights();
        rights.broker = Broker::User("o'neill\\".into());
        let text = serde_json::to_string(&rights.objects()).unwrap();
        assert!(text.contains(r"'o\\'neill\\\\'"), "{text}");
    }
}
