//! What Kubler's own account may do on a host cluster, on a real one: enough for an environment, and nothing else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use kubler_core::host::ENVIRONMENT_LABEL;
use kubler_core::host::grants::Role;
use kubler_core::host::rbac::{Broker, HostRights, tenant_role};
use kubler_testkit::cluster::Cluster;
use kubler_testkit::kubler::kubectl;
use kubler_testkit::leaks;

const BROKER: &str = "kubler";
const OWN: &str = "kubler-0123";
const ACCOUNTS: &str = "kubler-accounts";
/// Longest wait for a policy to be in force.
const IN_FORCE: Duration = Duration::from_secs(60);

fn rights() -> HostRights {
    let roles = Role::ALL.map(|role| (tenant_role(role), role.rules()));
    HostRights {
        broker: Broker::User(BROKER.into()),
        namespace_prefix: "kubler-".into(),
        accounts_namespace: ACCOUNTS.into(),
        tenants: BTreeMap::from(roles),
        stripped: Vec::new(),
    }
}

/// kubectl as somebody.
struct Somebody<'a> {
    kubeconfig: PathBuf,
    home: &'a Path,
}

impl<'a> Somebody<'a> {
    fn of(cluster: &'a Cluster, user: &str, groups: &[&str]) -> Self {
        Self {
            kubeconfig: cluster.kubeconfig_of(user, groups),
            home: cluster.folder(),
        }
    }

    fn run(&self, arguments: &str) -> Output {
        let words = arguments.split(' ');
        let mut command = kubectl(&self.kubeconfig, self.home);
        command.args(words).output().expect("kubectl")
    }

    /// Applies an object, on the server's side as the engine does.
    fn apply(&self, yaml: &str) -> Output {
        let file = tempfile::NamedTempFile::new_in(self.home).expect("a file");
        std::fs::write(file.path(), yaml).expect("a file");
        let path = file.path().to_str().expect("text");
        self.run(&format!(
            "apply --server-side --field-manager kubler -f {path}"
        ))
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn passes(output: &Output) {
    assert!(output.status.success(), "{}", said(output));
}

#[track_caller]
fn is_denied(output: &Output, words: &str) {
    assert!(!output.status.success(), "it passed");
    let said = said(output);
    assert!(said.contains(words), "`{words}` is not in: {said}");
}

fn namespace(name: &str, label: Option<&str>) -> String {
    let labels = label.map_or_else(String::new, |label| {
        format!(", labels: {{{ENVIRONMENT_LABEL}: {label}}}")
    });
    format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}{labels}}}}}")
}

fn binding(namespace: &str, role: &str) -> String {
    format!(
        "{{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {{name: b, namespace: {namespace}}}, \
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: '{role}'}}, \
         subjects: [{{kind: ServiceAccount, namespace: {ACCOUNTS}, name: {OWN}}}]}}"
    )
}

/// A cluster to which an operator gave what `host-rbac` says, and where it is in force.
async fn host() -> Cluster {
    let cluster = Cluster::start().await;
    let objects = rights().objects();
    let documents: Vec<String> = objects.iter().map(ToString::to_string).collect();
    cluster.apply(&documents.join("\n---\n"));
    let broker = Somebody::of(&cluster, BROKER, &[]);
    // The API server takes a moment to compile a new policy.
    let not_in_force = || {
        let pod = "create deployment x --image x --dry-run=server --namespace kubler-accounts";
        let words: Vec<&str> = pod.split(' ').collect();
        let bare = broker.apply(&namespace("kubler-bare", None));
        let passed = [("accounts", cluster.kubectl(&words)), ("broker", bare)];
        let passed = passed
            .into_iter()
            .filter(|(_, output)| output.status.success());
        passed.map(|(policy, _)| policy).collect()
    };
    leaks::wait_until_none("policies that are not in force", IN_FORCE, not_in_force)
        .await
        .expect("policies");
    cluster
}

#[tokio::test]
async fn h4_kubler_makes_environments_on_a_host_and_nothing_else() {
    let cluster = host().await;
    let broker = Somebody::of(&cluster, BROKER, &[]);
    // What an environment needs.
    passes(&broker.apply(&namespace(OWN, Some("env_x"))));
    for role in Role::ALL {
        passes(&broker.apply(&binding(OWN, &tenant_role(role))));
        cluster.kubectl_ok(&["delete", "rolebinding", "b", "--namespace", OWN]);
    }
    passes(&broker.run(&format!("create serviceaccount {OWN} -n {ACCOUNTS}")));
    passes(&broker.run(&format!("create token {OWN} -n {ACCOUNTS}")));
    passes(&broker.run(&format!("create quota q --hard pods=3 -n {OWN}")));

    // Namespaces of others, by name, by label, and the whole cluster's.
    is_denied(
        &broker.apply(&namespace("other", Some("env_x"))),
        "begin with `kubler-`",
    );
    is_denied(
        &broker.apply(&namespace("kubler-bare", None)),
        "carry the label",
    );
    cluster.kubectl_ok(&["create", "namespace", "theirs"]);
    is_denied(
        &broker.run("delete namespace theirs"),
        "begin with `kubler-`",
    );
    is_denied(
        &broker.run("label namespace default a=b"),
        "begin with `kubler-`",
    );
    is_denied(
        &broker.run("create quota q --hard pods=3 -n default"),
        "outside of its own namespaces",
    );
    cluster.kubectl_ok(&["create", "configmap", "theirs"]);
    cluster.kubectl_ok(&["run", "theirs", "--image", "x"]);
    is_denied(&broker.run("delete configmap theirs"), "forbidden");
    is_denied(
        &broker.run("delete --raw /api/v1/namespaces/default/pods"),
        "outside of its own namespaces",
    );
    is_denied(
        &broker.run("create serviceaccount x -n default"),
        "outside of its own namespaces",
    );
    is_denied(&broker.run("create token default -n default"), "forbidden");
    // Rights that it does not give away: no other role, not elsewhere, none of its own making.
    for role in ["cluster-admin", "admin", "view"] {
        is_denied(
            &broker.apply(&binding(OWN, role)),
            "attempting to grant RBAC permissions",
        );
    }
    is_denied(
        &broker.apply(&binding("default", &tenant_role(Role::View))),
        "outside of its own namespaces",
    );
    is_denied(
        &broker.run("create clusterrolebinding x --clusterrole kubler:tenant:view --user x"),
        "forbidden",
    );
    is_denied(
        &broker.run(&format!(
            "create role x --verb get --resource pods -n {OWN}"
        )),
        "forbidden",
    );
    is_denied(
        &broker.run("label clusterrole kubler:tenant:view a=b"),
        "forbidden",
    );
    // What it has no business to see.
    is_denied(&broker.run(&format!("get secrets -n {OWN}")), "forbidden");
    is_denied(&broker.run("get secrets -A"), "forbidden");
    is_denied(&broker.run("get nodes"), "forbidden");
    is_denied(
        &broker.run("get pods -n kube-system --as admin"),
        "forbidden",
    );
    // What it made, it may end.
    passes(&broker.run(&format!("delete namespace {OWN} --wait=false")));
}

#[tokio::test]
async fn h4_nobody_uses_the_accounts_of_tenants_but_kubler() {
    let cluster = host().await;
    let broker = Somebody::of(&cluster, BROKER, &[]);
    passes(&broker.run(&format!("create serviceaccount {OWN} -n {ACCOUNTS}")));
    // The cluster's own administrator, who may do everything else.
    let administrator = Somebody {
        kubeconfig: cluster.kubeconfig(),
        home: cluster.folder(),
    };
    let closed = "only Kubler makes accounts and their tokens";
    let pod = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: x, namespace: {ACCOUNTS}}}, spec: {{serviceAccountName: {OWN}, \
         securityContext: {{runAsNonRoot: true, seccompProfile: {{type: RuntimeDefault}}}}, \
         containers: [{{name: x, image: x, securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}}}]}}}}"
    );
    is_denied(&administrator.apply(&pod), closed);
    is_denied(
        &administrator.run(&format!("create deployment x --image x -n {ACCOUNTS}")),
        closed,
    );
    is_denied(
        &administrator.run(&format!("create token {OWN} -n {ACCOUNTS}")),
        closed,
    );
    is_denied(
        &administrator.run(&format!("create serviceaccount x -n {ACCOUNTS}")),
        closed,
    );
    let secret = format!(
        "{{apiVersion: v1, kind: Secret, type: kubernetes.io/service-account-token, metadata: {{name: t, namespace: {ACCOUNTS}, \
         annotations: {{kubernetes.io/service-account.name: {OWN}}}}}}}"
    );
    is_denied(&administrator.apply(&secret), closed);
    passes(&broker.run(&format!("create token {OWN} -n {ACCOUNTS}")));
}
