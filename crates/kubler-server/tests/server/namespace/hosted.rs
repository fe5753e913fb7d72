//! A server that works on a real host cluster, with the rights that `host-rbac` gives it and no others.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use kubler_core::host::ENVIRONMENT_LABEL;
use kubler_core::host::grants::Role;
use kubler_core::host::rbac::{Broker, HostRights, tenant_role};
use kubler_testkit::buildkite::{Build, Buildkite, Job};
use kubler_testkit::cluster::Cluster;
use kubler_testkit::kubler::{Answer, Server, ServerDraft, kubectl};
use kubler_testkit::leaks;
use reqwest::Method;
use serde_json::{Value, json};

/// Who Kubler is on the host.
pub(crate) const BROKER: &str = "kubler";
/// What its environments' namespaces begin with.
pub(crate) const PREFIX: &str = "kubler-env-";
/// Where tenants' accounts live.
pub(crate) const ACCOUNTS: &str = "kubler-accounts";
/// Longest wait for something of the host's.
const SOON: Duration = Duration::from_secs(60);

/// What an operator applies for this Kubler.
pub(crate) fn rights() -> HostRights {
    let roles = Role::ALL.map(|role| (tenant_role(role), role.rules()));
    HostRights {
        broker: Broker::User(BROKER.into()),
        namespace_prefix: PREFIX.into(),
        accounts_namespace: ACCOUNTS.into(),
        tenants: BTreeMap::from(roles),
        stripped: Vec::new(),
    }
}

/// A host cluster that is ready for Kubler.
pub(crate) async fn host(rights: &HostRights) -> Cluster {
    let cluster = Cluster::start().await;
    let objects = rights.objects();
    let documents: Vec<String> = objects.iter().map(ToString::to_string).collect();
    cluster.apply(&documents.join("\n---\n"));
    cluster
}

/// The lines of a configuration for the host `name` behind this kubeconfig.
pub(crate) fn host_lines(name: &str, kubeconfig: &std::path::Path) -> String {
    format!(
        "  - name: {name}\n    kubeconfig: {}\n    labels: {{name: {name}}}\n",
        kubeconfig.display()
    )
}

/// A server without an engine of its own machine, whose first profile is a namespace with these lines of `namespace:`.
pub(crate) fn draft(buildkite: &Buildkite, hosts: &str, namespace: &[&str]) -> ServerDraft {
    Server::of(buildkite).on_hosts(hosts, namespace)
}

/// A host cluster, a server that works on it, and a build whose jobs use it.
pub(crate) struct Hosted {
    pub(crate) build: Build,
    pub(crate) server: Server,
    pub(crate) cluster: Cluster,
    _buildkite: Buildkite,
}

impl Hosted {
    /// All of it, with these lines in the profile's `namespace:`.
    pub(crate) async fn new(namespace: &[&str]) -> Self {
        Self::with(namespace, |draft| draft).await
    }

    /// The same with a server that is changed before it starts.
    pub(crate) async fn with(
        namespace: &[&str],
        change: impl FnOnce(ServerDraft) -> ServerDraft,
    ) -> Self {
        Self::with_rights(&rights(), namespace, change).await
    }

    /// The same with other rights on the host.
    pub(crate) async fn with_rights(
        rights: &HostRights,
        namespace: &[&str],
        change: impl FnOnce(ServerDraft) -> ServerDraft,
    ) -> Self {
        let cluster = host(rights).await;
        let buildkite = Buildkite::start();
        let lines = host_lines("east", &cluster.kubeconfig_of(BROKER, &[]));
        let server = change(draft(&buildkite, &lines, namespace)).start().await;
        let build = buildkite.build("app").start();
        Self {
            build,
            server,
            cluster,
            _buildkite: buildkite,
        }
    }

    /// Makes an environment of a new job.
    pub(crate) async fn environment(&self) -> Environment<'_> {
        let job = self.build.job("test").run();
        let made = self.server.create(&job, "main").await;
        let id = made["id"].as_str().expect("an id").to_owned();
        Environment {
            hosted: self,
            namespace: made["namespace"].as_str().expect("a namespace").to_owned(),
            session: self.server.session(&job, &id).await,
            made,
            id,
            job,
        }
    }

    /// Everything on the host that carries the label or the name of an environment of ours.
    pub(crate) fn left(&self) -> Vec<String> {
        let selector = format!("--selector={ENVIRONMENT_LABEL}");
        let mut left = Vec::new();
        for kind in [
            "namespaces",
            "serviceaccounts",
            "clusterroles",
            "clusterrolebindings",
        ] {
            let found = self.cluster.kubectl_ok(&[
                "get",
                kind,
                "--all-namespaces",
                &selector,
                "--output=name",
            ]);
            left.extend(found.lines().map(str::to_owned));
        }
        left
    }

    /// Waits until nothing of any environment is left.
    pub(crate) async fn nothing_is_left(&self) {
        let left = leaks::wait_until_none("objects on the host", SOON, || self.left()).await;
        left.unwrap_or_else(|left| panic!("{left:?}\n{}", self.server.log()));
    }
}

/// An environment in use.
pub(crate) struct Environment<'a> {
    pub(crate) hosted: &'a Hosted,
    pub(crate) made: Value,
    pub(crate) id: String,
    pub(crate) namespace: String,
    pub(crate) session: String,
    pub(crate) job: Job,
}

impl Environment<'_> {
    /// The kubeconfig of the answer, with the session in the place of the plugin that would get one.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        let text = self.made["kubeconfig"].as_str().expect("a kubeconfig");
        let mut kubeconfig: Value = serde_json::from_str(text).expect("JSON");
        kubeconfig["users"][0]["user"] = json!({ "token": self.session });
        let path = self
            .hosted
            .cluster
            .folder()
            .join(format!("{}.json", self.id));
        std::fs::write(&path, kubeconfig.to_string()).expect("a file");
        path
    }

    /// kubectl through the gateway.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Output {
        let mut command = kubectl(&self.kubeconfig(), self.hosted.cluster.folder());
        command.args(arguments).output().expect("kubectl")
    }

    /// What kubectl says; it must end well.
    pub(crate) fn kubectl_ok(&self, arguments: &[&str]) -> String {
        let output = self.kubectl(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.hosted.server.log()
        );
        String::from_utf8(output.stdout).expect("text")
    }

    /// Asks for its end, and waits until it is gone.
    pub(crate) async fn release(&self) -> Answer {
        let path = format!("/v1/environments/{}/release", self.id);
        let (server, token) = (&self.hosted.server, self.hosted.server.token(&self.job));
        let body = json!({ "wait_seconds": 60 });
        server
            .request(Method::POST, &path, Some(&token), Some(&body))
            .await
    }
}
