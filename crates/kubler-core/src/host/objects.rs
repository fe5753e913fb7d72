//! What an environment on a host cluster consists of, as objects to apply: what they say is decided here, and whoever
//! looks whether they still are as they were made asks here too.
//!
//! None of them can be changed by the tenant ([`super::grants`]).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::mark::MARK_ANNOTATION;
use super::names::{DEADLINE_ANNOTATION, JOB_ANNOTATION, WALLS, role};
use super::{ENVIRONMENT_LABEL, network};
use crate::build_facts;
use crate::environment::{Environment, Placement};
use crate::profile::{ContainerLimits, NamespaceProfile};

/// Held by an environment when its profile does not say: enough for a pipeline, and no door of the cluster's own.
const QUOTA: [(&str, &str); 8] = [
    ("configmaps", "100"),
    ("count/jobs.batch", "100"),
    ("persistentvolumeclaims", "10"),
    ("pods", "50"),
    ("secrets", "100"),
    ("services", "50"),
    ("services.loadbalancers", "0"),
    ("services.nodeports", "0"),
];

/// One object, and where it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// The path of its collection, such as `/api/v1/namespaces/x/resourcequotas`.
    pub collection: String,
    /// Its name.
    pub name: String,
    /// What is applied.
    pub value: Value,
}

impl Object {
    fn new(collection: impl Into<String>, name: &str, value: Value) -> Self {
        Self {
            collection: collection.into(),
            name: name.to_owned(),
            value,
        }
    }

    /// Its path.
    pub fn path(&self) -> String {
        format!("{}/{}", self.collection, self.name)
    }

    /// Kind and name, for people.
    pub fn title(&self) -> String {
        let kind = self.value.get("kind").and_then(Value::as_str);
        format!("{}/{}", kind.unwrap_or_default(), self.name)
    }
}

/// The labels of everything that is made for `environment`: its id, and the facts of the build.
fn labels(environment: &Environment) -> BTreeMap<String, String> {
    let mut labels = build_facts::labels(environment);
    labels.insert(ENVIRONMENT_LABEL.to_owned(), environment.id.to_string());
    labels
}

/// The namespace; `mark` as soon as its UID is known.
pub fn namespace(environment: &Environment, placement: &Placement, mark: Option<&str>) -> Object {
    let profile = &environment.resolved.profile;
    let level = namespace_profile(environment)
        .pod_security(profile.restricted)
        .as_str();
    let mut labels = labels(environment);
    for mode in ["enforce", "warn"] {
        labels.insert(format!("pod-security.kubernetes.io/{mode}"), level.into());
    }
    let mut annotations = Map::from_iter([
        (
            DEADLINE_ANNOTATION.to_owned(),
            environment.deadline.to_string().into(),
        ),
        (
            JOB_ANNOTATION.to_owned(),
            environment.identity.job.url.clone().into(),
        ),
    ]);
    if let Some(mark) = mark {
        annotations.insert(MARK_ANNOTATION.to_owned(), mark.into());
    }
    let name = &placement.namespace;
    Object::new(
        "/api/v1/namespaces",
        name,
        json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": labels, "annotations": annotations},
        }),
    )
}

/// The tenant's service account, where nothing runs and nobody else makes tokens.
pub fn account(environment: &Environment, placement: &Placement) -> Object {
    let Placement {
        namespace,
        accounts_namespace,
        ..
    } = placement;
    Object::new(
        format!("/api/v1/namespaces/{accounts_namespace}/serviceaccounts"),
        namespace,
        json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": namespace, "namespace": accounts_namespace, "labels": labels(environment)},
            "automountServiceAccountToken": false,
        }),
    )
}

/// What stands around the environment: quota, limits, network policy, the tenant's rights, the account of its pods.
pub fn walls(environment: &Environment, placement: &Placement) -> Vec<Object> {
    let profile = namespace_profile(environment);
    let mut walls = vec![
        quota(environment, placement, &profile),
        network_policy(environment, placement, &profile),
        role_binding(environment, placement),
        pods_account(environment, placement),
    ];
    walls.extend(limits(environment, placement, &profile.limits));
    walls
}

/// The facts of the build.
pub fn facts(environment: &Environment, placement: &Placement) -> Object {
    let namespace = &placement.namespace;
    Object::new(
        format!("/api/v1/namespaces/{namespace}/configmaps"),
        build_facts::CONFIG_MAP,
        build_facts::config_map(environment, namespace),
    )
}

/// A secret of the profile's. `data` is in base64.
pub fn secret(
    environment: &Environment,
    placement: &Placement,
    name: &str,
    data: &BTreeMap<String, String>,
) -> Object {
    let namespace = &placement.namespace;
    Object::new(
        format!("/api/v1/namespaces/{namespace}/secrets"),
        name,
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": metadata(environment, placement, name),
            "type": "Opaque",
            "data": data,
        }),
    )
}

/// What is asked as the tenant: it says yes as soon as the environment can be used.
pub fn self_review(environment: &Environment, placement: &Placement) -> Value {
    let rules = namespace_profile(environment).grants();
    let first = |texts: &[String], instead: &str| match texts.first().map(String::as_str) {
        None | Some("*") => instead.to_owned(),
        Some(text) => text.to_owned(),
    };
    // The first rule that is about more than one object; roles of ours have many.
    let rule = rules.iter().find(|rule| rule.resource_names.is_empty());
    let rule = rule.or(rules.first()).cloned().unwrap_or_default();
    let resource = first(&rule.resources, "pods");
    let (resource, subresource) = resource.split_once('/').unwrap_or((&resource, ""));
    json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {
            "namespace": placement.namespace,
            "verb": first(&rule.verbs, "get"),
            "group": first(&rule.api_groups, "apps"),
            "resource": resource,
            "subresource": subresource,
            "name": rule.resource_names.first().map_or("", String::as_str),
        }},
    })
}

fn namespace_profile(environment: &Environment) -> NamespaceProfile {
    let profile = &environment.resolved.profile;
    profile.namespace.clone().unwrap_or_default()
}

fn metadata(environment: &Environment, placement: &Placement, name: &str) -> Value {
    json!({"name": name, "namespace": placement.namespace, "labels": labels(environment)})
}

fn quota(environment: &Environment, placement: &Placement, profile: &NamespaceProfile) -> Object {
    let own = QUOTA.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut hard = BTreeMap::from(own);
    hard.extend(profile.quota.clone());
    Object::new(
        format!("/api/v1/namespaces/{}/resourcequotas", placement.namespace),
        WALLS,
        json!({
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": metadata(environment, placement, WALLS),
            "spec": {"hard": hard},
        }),
    )
}

fn limits(
    environment: &Environment,
    placement: &Placement,
    limits: &ContainerLimits,
) -> Option<Object> {
    if limits.is_empty() {
        return None;
    }
    let mut container = Map::from_iter([("type".to_owned(), "Container".into())]);
    for (key, quantities) in [
        ("default", &limits.default),
        ("defaultRequest", &limits.default_request),
        ("max", &limits.max),
    ] {
        if !quantities.is_empty() {
            container.insert(key.to_owned(), json!(quantities));
        }
    }
    Some(Object::new(
        format!("/api/v1/namespaces/{}/limitranges", placement.namespace),
        WALLS,
        json!({
            "apiVersion": "v1",
            "kind": "LimitRange",
            "metadata": metadata(environment, placement, WALLS),
            "spec": {"limits": [container]},
        }),
    ))
}

fn network_policy(
    environment: &Environment,
    placement: &Placement,
    profile: &NamespaceProfile,
) -> Object {
    let namespace = &placement.namespace;
    Object::new(
        format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies"),
        WALLS,
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": metadata(environment, placement, WALLS),
            "spec": network::policy(&profile.network),
        }),
    )
}

fn role_binding(environment: &Environment, placement: &Placement) -> Object {
    let namespace = &placement.namespace;
    Object::new(
        format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings"),
        WALLS,
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": metadata(environment, placement, WALLS),
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": role(&environment.resolved.profile),
            },
            "subjects": [{
                "kind": "ServiceAccount",
                "namespace": placement.accounts_namespace,
                "name": namespace,
            }],
        }),
    )
}

/// The account that pods have when they name none: without a token in them, and without rights.
fn pods_account(environment: &Environment, placement: &Placement) -> Object {
    let name = "default";
    Object::new(
        format!("/api/v1/namespaces/{}/serviceaccounts", placement.namespace),
        name,
        json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": metadata(environment, placement, name),
            "automountServiceAccountToken": false,
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::grants::{self, Role};
    use crate::invariants::fixtures;
    use crate::profile::EngineKind;

    fn placed() -> (Environment, Placement) {
        let mut environment = fixtures::environment();
        let profile = &mut environment.resolved.profile;
        profile.engine = EngineKind::Namespace;
        profile.namespace = Some(NamespaceProfile::default());
        let placement = Placement {
            host: "east".into(),
            namespace: format!("kubler-env-{}", environment.id.digits()),
            accounts_namespace: "kubler-accounts".into(),
            kubernetes_version: String::new(),
        };
        environment.placement = Some(placement.clone());
        (environment, placement)
    }

    #[test]
    fn everything_carries_the_environments_id_and_lies_where_it_belongs() {
        let (environment, placement) = placed();
        let mut all = walls(&environment, &placement);
        all.push(facts(&environment, &placement));
        all.push(secret(&environment, &placement, "token", &BTreeMap::new()));
        for object in &all {
            assert_eq!(
                object.value["metadata"]["namespace"].as_str(),
                Some(placement.namespace.as_str()),
                "{}",
                object.title()
            );
        }
        all.push(namespace(&environment, &placement, None));
        all.push(account(&environment, &placement));
        for object in &all {
            let label = &object.value["metadata"]["labels"][ENVIRONMENT_LABEL];
            assert_eq!(
                label,
                &json!(environment.id.to_string()),
                "{}",
                object.title()
            );
            assert_eq!(object.value["metadata"]["name"], json!(object.name));
        }
    }

    #[test]
    fn a_profile_for_callers_nobody_vouches_for_is_hardened() {
        let (mut environment, placement) = placed();
        let level = |environment: &Environment| {
            let namespace = namespace(environment, &placement, None);
            namespace.value["metadata"]["labels"]["pod-security.kubernetes.io/enforce"].clone()
        };
        assert_eq!(level(&environment), json!("baseline"));
        environment.resolved.profile.restricted = true;
        assert_eq!(level(&environment), json!("restricted"));
    }

    #[test]
    fn the_profiles_quota_stands_above_our_own_and_leaves_the_rest_of_it() {
        let (mut environment, placement) = placed();
        let namespace = environment.resolved.profile.namespace.as_mut().unwrap();
        namespace.quota = BTreeMap::from([("pods".into(), "5".into())]);
        let hard = &walls(&environment, &placement)[0].value["spec"]["hard"];
        assert_eq!(
            (&hard["pods"], &hard["services.nodeports"]),
            (&json!("5"), &json!("0"))
        );
    }

    #[test]
    fn what_is_asked_as_the_tenant_is_something_it_may_do() {
        let (mut environment, placement) = placed();
        let rule = |groups: &str, resources: &str, verbs: &str| grants::Rule {
            api_groups: vec![groups.into()],
            resources: vec![resources.into()],
            verbs: vec![verbs.into()],
            ..grants::Rule::default()
        };
        let mut profiles: Vec<NamespaceProfile> = Role::ALL
            .into_iter()
            .map(|role| NamespaceProfile {
                role: Some(role),
                ..NamespaceProfile::default()
            })
            .collect();
        profiles.extend(
            [
                rule("", "pods/log", "get"),
                rule("example.com", "*", "list"),
                rule("*", "widgets", "*"),
            ]
            .map(|rule| NamespaceProfile {
                rules: vec![rule],
                ..NamespaceProfile::default()
            }),
        );
        for profile in profiles {
            let rules = profile.grants();
            environment.resolved.profile.namespace = Some(profile);
            let review = self_review(&environment, &placement);
            let asked = |key: &str| review["spec"]["resourceAttributes"][key].as_str().unwrap();
            let resource = match asked("subresource") {
                "" => asked("resource").to_owned(),
                sub => format!("{}/{sub}", asked("resource")),
            };
            let may = grants::allows(&rules, asked("verb"), asked("group"), &resource, None);
            assert!(may, "{review}");
        }
    }
}
