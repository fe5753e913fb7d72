//! Each right of Kubler's on a host is taken away once, on a real one: an environment's life must miss it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use kubler_core::environment::{Environment, Phase};
use kubler_core::host::grants::{Role, Rule};
use kubler_core::host::names;
use kubler_core::host::rbac::{Broker, HostRights, Resource, account_rules, tenant_role};
use kubler_testkit::cluster::Cluster;
use reqwest::Method;
use serde_json::{Value, json};

use super::drift::Keeper;
use super::*;
use crate::clock::SystemClock;
use crate::directory::Directory;
use crate::store::tests::{environment, job};

const ACCOUNTS: &str = "kubler-accounts";
/// Lives that are lived at once.
const LIVES: usize = 12;
/// A kind whose finalizers the profile lets be taken away.
const HELD: &str = "podtemplates";
const FINALIZER: &str = "example.com/held";

/// What is taken away from one user.
#[derive(Debug, Clone)]
struct Lack {
    group: String,
    resource: String,
    verb: String,
    /// Of the rules for the namespace of accounts.
    is_of_accounts: bool,
}

struct World {
    cluster: Cluster,
    folder: tempfile::TempDir,
    ledger: Ledger,
    rights: HostRights,
}

fn rights() -> HostRights {
    HostRights {
        broker: Broker::User(String::new()),
        namespace_prefix: String::new(),
        accounts_namespace: ACCOUNTS.into(),
        tenants: BTreeMap::from([(tenant_role(Role::Edit), Role::Edit.rules())]),
        stripped: vec![Resource {
            group: String::new(),
            resource: HELD.into(),
        }],
    }
}

/// Every right on its own.
fn lacks(rules: &[Rule], is_of_accounts: bool) -> Vec<Lack> {
    let mut all = Vec::new();
    for rule in rules {
        for resource in &rule.resources {
            all.extend(rule.verbs.iter().map(|verb| Lack {
                group: rule.api_groups[0].clone(),
                resource: resource.clone(),
                verb: verb.clone(),
                is_of_accounts,
            }));
        }
    }
    all
}

/// The rules without one right.
fn without(rules: &[Rule], lack: Option<&Lack>) -> Vec<Rule> {
    let mut left = Vec::new();
    for rule in rules {
        for resource in &rule.resources {
            let mut rule = Rule {
                resources: vec![resource.clone()],
                ..rule.clone()
            };
            rule.verbs.retain(|verb| {
                !lack.is_some_and(|it| {
                    it.group == rule.api_groups[0] && it.resource == *resource && it.verb == *verb
                })
            });
            if !rule.verbs.is_empty() {
                left.push(rule);
            }
        }
    }
    left
}

fn user(number: usize) -> String {
    format!("kubler-{number}")
}

/// What gives a user its rights.
fn objects(rights: &HostRights, number: usize, lack: Option<&Lack>) -> Vec<Value> {
    let name = user(number);
    let of = |accounts: bool| lack.filter(|it| it.is_of_accounts == accounts);
    let subjects = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}]);
    let role_ref =
        |kind: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name});
    let object = |kind: &str, more: Value| {
        let mut object = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": name}});
        if !kind.starts_with("Cluster") {
            object["metadata"]["namespace"] = json!(ACCOUNTS);
        }
        for (key, value) in more.as_object().unwrap() {
            object[key] = value.clone();
        }
        object
    };
    vec![
        object(
            "ClusterRole",
            json!({"rules": without(&rights.broker_rules(), of(false))}),
        ),
        object(
            "Role",
            json!({"rules": without(&account_rules(), of(true))}),
        ),
        object(
            "RoleBinding",
            json!({"roleRef": role_ref("Role"), "subjects": subjects}),
        ),
        object(
            "ClusterRoleBinding",
            json!({"roleRef": role_ref("ClusterRole"), "subjects": subjects}),
        ),
    ]
}

impl World {
    async fn new(lacks: &[Lack]) -> Self {
        let (cluster, rights) = (Cluster::start().await, rights());
        let mut all = vec![
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ACCOUNTS}}),
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
                "metadata": {"name": tenant_role(Role::Edit)}, "rules": Role::Edit.rules()}),
        ];
        for (number, lack) in lacks.iter().enumerate() {
            all.extend(objects(&rights, number, Some(lack)));
        }
        // Last: who has all of them. What it may do is in force when everything before it is.
        all.extend(objects(&rights, lacks.len(), None));
        let all: Vec<String> = all.iter().map(ToString::to_string).collect();
        cluster.apply(&all.join("\n---\n"));
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("secret"), "x").unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let ledger = Ledger::open(
            &folder.path().join("ledger"),
            "test/ledger",
            &kubler_core::configuration::Ledger::default(),
            clock,
        );
        let world = Self {
            cluster,
            folder,
            ledger: ledger.unwrap(),
            rights,
        };
        world.is_in_force(lacks.len()).await;
        world
    }

    /// Waits until a user may do the last thing of each role.
    async fn is_in_force(&self, number: usize) {
        let deadline = Instant::now() + Duration::from_secs(60);
        for (resource, sub, namespace) in [
            ("namespaces", "", ""),
            ("serviceaccounts", "token", ACCOUNTS),
        ] {
            let review = json!({
                "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
                "spec": {"user": user(number), "resourceAttributes":
                    {"verb": "create", "resource": resource, "subresource": sub, "namespace": namespace}},
            });
            let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
            while self.admin(Method::POST, path, &review).await["status"]["allowed"] != true {
                assert!(Instant::now() < deadline, "the roles are not in force");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// As the host's administrator; a PATCH is a merge.
    async fn admin(&self, method: Method, path: &str, body: &Value) -> Value {
        let kind = if method == Method::PATCH {
            "application/merge-patch+json"
        } else {
            "application/json"
        };
        let request = self
            .cluster
            .client()
            .request(method.clone(), format!("{}{path}", self.cluster.url()))
            .header("content-type", kind)
            .body(body.to_string());
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{method} {path}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// The life of an environment under a user's rights, with everything that may happen in it.
    async fn life(&self, number: usize, is_held: bool) -> Result<(), String> {
        let said = |error: EngineError| error.message;
        let kubeconfig = self.cluster.kubeconfig_of(&user(number), &[]);
        let host: Host = serde_json::from_value(json!({
            "name": user(number), "kubeconfig": kubeconfig,
            "namespace_prefix": format!("k{number}-"), "accounts_namespace": ACCOUNTS,
        }))
        .unwrap();
        let connection = Connection::read(&host, self.folder.path()).await.unwrap();
        let mut environment = placed(&host);
        let settings = NamespaceSettings {
            host,
            connection,
            key: SigningKey::from_bytes(&[7; 32]),
            folder: self.folder.path().to_owned(),
            ledger: self.ledger.clone(),
        };
        let engine = NamespaceEngine::start(settings, Arc::new(SystemClock));
        engine.provision(&environment).await.map_err(said)?;
        let now = SystemClock.now();
        environment.phase = Phase::Ready;
        environment.ready_at = Some(now);
        let directory = Arc::new(Directory::new(now));
        directory.put(environment.clone());
        let namespace = environment.placement.as_ref().unwrap().namespace.clone();
        self.disturb(&namespace).await;
        if is_held {
            let held = json!({"metadata": {"name": "held", "finalizers": [FINALIZER]},
                "template": {"spec": {"containers": [{"name": "x", "image": "x"}]}}});
            let path = format!("/api/v1/namespaces/{namespace}/{HELD}");
            self.admin(Method::POST, &path, &held).await;
        }
        let seen = engine.observe().await.map_err(said)?;
        assert!(seen.iter().any(|it| it.id == environment.id));
        let keeper = Arc::new(Keeper::new(Arc::clone(&engine.inner), directory));
        keeper.sweep().await.map_err(said)?;
        engine.end(&environment).await.map_err(said)?;
        Ok(())
    }

    /// Changes each wall, and has a pod wait.
    async fn disturb(&self, namespace: &str) {
        let core = format!("/api/v1/namespaces/{namespace}");
        let rbac =
            format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings");
        let pod = json!({"metadata": {"name": "x"}, "spec": {"containers": [{"name": "x", "image": "x"}]}});
        self.admin(Method::POST, &format!("{core}/pods"), &pod)
            .await;
        let label =
            json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}});
        self.admin(Method::PATCH, &core, &label).await;
        self.admin(
            Method::DELETE,
            &format!("{core}/resourcequotas/kubler"),
            &json!({}),
        )
        .await;
        let limits = json!({"spec": {"limits": []}});
        self.admin(
            Method::PATCH,
            &format!("{core}/limitranges/kubler"),
            &limits,
        )
        .await;
        let token = json!({"automountServiceAccountToken": true});
        self.admin(
            Method::PATCH,
            &format!("{core}/serviceaccounts/default"),
            &token,
        )
        .await;
        let policy =
            format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies/kubler");
        let open = json!({"spec": {"policyTypes": ["Ingress"]}});
        self.admin(Method::PATCH, &policy, &open).await;
        let binding = format!("{rbac}/kubler");
        self.admin(Method::DELETE, &binding, &json!({})).await;
        let other = json!({"metadata": {"name": "kubler"}, "roleRef":
            {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}});
        self.admin(Method::POST, &rbac, &other).await;
    }
}

fn placed(host: &Host) -> Environment {
    let mut environment = environment(1, &job(1), "main");
    let profile = &mut environment.resolved.profile;
    profile.engine = EngineKind::Namespace;
    let namespace = json!({
        "limits": {"default": {"cpu": "1000m"}},
        "secrets": [{"name": "s", "files": {"s": "secret"}}],
        "strip_finalizers": [{"resource": HELD, "finalizer": FINALIZER}],
    });
    profile.namespace = serde_json::from_value(namespace).unwrap();
    environment.id = EnvironmentId::from_random(crate::entropy::random_bytes().unwrap());
    environment.phase = Phase::Provisioning;
    environment.placement = Some(names::placement(&environment, host, String::new()));
    environment
}

#[tokio::test(flavor = "multi_thread")]
async fn every_right_of_kubler_on_a_host_is_missed_when_it_is_taken_away() {
    let rights = rights();
    let mut all = lacks(&rights.broker_rules(), false);
    all.extend(lacks(&account_rules(), true));
    let world = World::new(&all).await;
    assert_eq!(world.rights, rights);
    let mut lives: Vec<_> = all.iter().map(Some).chain([None]).enumerate().collect();
    // The longest first.
    lives.reverse();
    let lived = stream::iter(lives)
        .map(|(number, lack)| {
            let world = &world;
            async move {
                let is_held = lack.is_none_or(|lack| lack.resource == HELD);
                (lack, world.life(number, is_held).await)
            }
        })
        .buffer_unordered(LIVES)
        .collect::<Vec<_>>()
        .await;
    let mut wrong = Vec::new();
    for (lack, lived) in lived {
        match (lack, lived) {
            (None, Ok(())) => {}
            (None, Err(error)) => wrong.push(format!("with all of them: {error}")),
            (Some(lack), Ok(())) => wrong.push(format!("nothing misses {lack:?}")),
            (Some(lack), Err(error)) => {
                let Lack { verb, resource, .. } = lack;
                let missed = if verb == "bind" {
                    "attempting to grant RBAC permissions".to_owned()
                } else {
                    format!("cannot {verb} resource \"{resource}\"")
                };
                if !error.contains(&missed) {
                    wrong.push(format!("{lack:?} is missed otherwise: {error}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
