//! A host cluster without a node, as any user can run one: etcd, the stock `kube-apiserver` and the stock
//! `kube-controller-manager` as children, with an authority, keys and an audit log of its own. Needs no root.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! # use kubler_testkit::cluster::Cluster;
//! let cluster = Cluster::start().await;
//! cluster.kubectl_ok(&["create", "namespace", "other"]);
//! let editor = cluster.kubeconfig_of("jane", &["editors"]);
//! # Ok(()) }
//! ```

mod audit;
mod authority;
mod child;
mod draft;
mod kubeconfig;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

pub use self::authority::{Authority, Pair};
pub use self::child::Child;
pub use self::draft::ClusterDraft;
pub use self::kubeconfig::kubeconfig;
use crate::kubler::kubectl;
use crate::leaks::{Mark, Process};

/// Longest wait for a role to work, on a machine that does much else.
const START_BOUND: Duration = Duration::from_secs(120);
/// Longest wait for the end of what was killed.
const END_BOUND: Duration = Duration::from_secs(20);
/// How often a condition is looked at again.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// The group whose members may do everything.
pub const ADMINISTRATORS: &str = "system:masters";

/// A running cluster. Dropping it ends all of it, and panics if something is left.
pub struct Cluster {
    draft: ClusterDraft,
    url: String,
    client: reqwest::Client,
    authority: Authority,
    etcd: Child,
    api_server: Option<Child>,
    controller_manager: Option<Child>,
    mark: Mark,
    // Goes last: everything above writes into it.
    folder: TempDir,
}

impl Cluster {
    /// Starts one, and waits until it works: it is ready, and its controllers made the first service account.
    ///
    /// # Panics
    /// With the logs, when it does not.
    pub async fn start() -> Self {
        Self::draft().start().await
    }

    /// One that is not started yet.
    pub fn draft() -> ClusterDraft {
        ClusterDraft::default()
    }

    /// `https://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The authority of its serving and client certificates, PEM.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    /// Signs certificates that it trusts.
    pub const fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Everything that it writes; short.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What its processes carry.
    pub const fn mark(&self) -> &Mark {
        &self.mark
    }

    /// A kubeconfig of an administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("admin.kubeconfig")
    }

    /// A kubeconfig of any user, with a client certificate: one user has one file, which is written anew.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn kubeconfig_of(&self, user: &str, groups: &[&str]) -> PathBuf {
        let pair = self.authority.client(user, groups);
        let text = kubeconfig(&self.url, self.authority.certificate(), &pair);
        let name = user.replace(['/', ':'], "-");
        let path = self.folder.path().join(format!("user-{name}.kubeconfig"));
        draft::write_secret(&path, &text);
        path
    }

    /// A client of an administrator; a path of the API follows [`Self::url`].
    pub const fn client(&self) -> &reqwest::Client {
        &self.client
    }

    /// A kubectl of the pinned version as an administrator.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = kubectl(&self.kubeconfig(), self.folder.path());
        command.args(arguments);
        command
    }

    /// Runs it.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn kubectl(&self, arguments: &[&str]) -> Output {
        self.kubectl_command(arguments).output().expect("kubectl")
    }

    /// Runs it, and gives what it printed.
    ///
    /// # Panics
    /// With what it said, when it fails.
    pub fn kubectl_ok(&self, arguments: &[&str]) -> String {
        let output = self.kubectl(arguments);
        assert!(
            output.status.success(),
            "kubectl {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("text")
    }

    /// `kubectl get … --output json`.
    ///
    /// # Panics
    /// As [`Self::kubectl_ok`] does.
    pub fn get(&self, arguments: &[&str]) -> Value {
        let all = [&["get", "--output", "json"], arguments].concat();
        serde_json::from_str(&self.kubectl_ok(&all)).expect("JSON")
    }

    /// `kubectl apply` of these objects, as YAML.
    ///
    /// # Panics
    /// As [`Self::kubectl_ok`] does.
    pub fn apply(&self, yaml: &str) -> String {
        let file = tempfile::NamedTempFile::new_in(self.folder.path()).expect("a file");
        std::fs::write(file.path(), yaml).expect("a file");
        let path = file.path().to_str().expect("a path that is text");
        self.kubectl_ok(&["apply", "--filename", path])
    }

    /// The audit log: one event as JSON on a line, stage `ResponseComplete` and what else the level has.
    pub fn audit_log(&self) -> PathBuf {
        self.folder.path().join("audit.log")
    }

    /// What the audit log holds by now.
    ///
    /// # Panics
    /// When a whole line is no event.
    pub fn audit_events(&self) -> Vec<Value> {
        audit::events(&self.audit_log())
    }

    /// Waits until the audit log holds an event that satisfies a condition.
    ///
    /// # Panics
    /// With the last events, when none comes within `bound`.
    pub async fn wait_for_audit_event(
        &self,
        bound: Duration,
        condition: impl Fn(&Value) -> bool,
    ) -> Value {
        audit::wait_for(&self.audit_log(), bound, condition).await
    }

    /// SIGKILL to the API server, and its end: connections break, nothing listens. etcd lives on.
    ///
    /// # Panics
    /// When it does not run.
    pub fn stop_api_server(&mut self) {
        self.api_server
            .take()
            .expect("an API server that runs")
            .kill();
    }

    /// Starts the API server again at its old address, and waits until it is ready.
    ///
    /// # Panics
    /// With its log, when it is not; and when it runs already.
    pub async fn start_api_server(&mut self) {
        assert!(self.api_server.is_none(), "the API server runs already");
        self.api_server = Some(self.draft.api_server(self.folder.path(), &self.mark));
        self.wait_until("/readyz").await;
    }

    /// Ends and starts the API server.
    ///
    /// # Panics
    /// As [`Self::start_api_server`] does.
    pub async fn restart_api_server(&mut self) {
        self.stop_api_server();
        self.start_api_server().await;
    }

    /// SIGKILL to the controllers: nothing is cleaned up, no namespace ends.
    ///
    /// # Panics
    /// When they do not run.
    pub fn stop_controller_manager(&mut self) {
        self.controller_manager
            .take()
            .expect("controllers that run")
            .kill();
    }

    /// Starts the controllers again.
    ///
    /// # Panics
    /// When they run already.
    pub fn start_controller_manager(&mut self) {
        assert!(self.controller_manager.is_none(), "they run already");
        self.controller_manager = Some(
            self.draft
                .controller_manager(self.folder.path(), &self.mark),
        );
    }

    /// etcd's process.
    ///
    /// # Panics
    /// When it does not run.
    pub fn etcd_process(&self) -> Process {
        self.etcd.process()
    }

    /// The API server's process.
    ///
    /// # Panics
    /// When it does not run.
    pub fn api_server_process(&self) -> Process {
        self.api_server
            .as_ref()
            .expect("an API server that runs")
            .process()
    }

    /// The controllers' process.
    ///
    /// # Panics
    /// When they do not run.
    pub fn controller_manager_process(&self) -> Process {
        self.controller_manager
            .as_ref()
            .expect("controllers that run")
            .process()
    }

    /// Everything of it that lives.
    pub fn processes(&self) -> Vec<Process> {
        self.mark.processes()
    }

    /// Waits until a path of the API answers well.
    async fn wait_until(&mut self, path: &str) {
        let deadline = Instant::now() + START_BOUND;
        let url = format!("{}{path}", self.url);
        loop {
            let answer = self.client.get(&url).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return;
            }
            let roles = [
                Some(&mut self.etcd),
                self.api_server.as_mut(),
                self.controller_manager.as_mut(),
            ];
            for role in roles.into_iter().flatten() {
                assert!(!role.has_ended(), "{path}: it ended: {}", role.log());
            }
            assert!(
                Instant::now() < deadline,
                "`{path}` does not answer well: {}",
                self.api_server.as_ref().map(Child::log).unwrap_or_default()
            );
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for role in [self.controller_manager.take(), self.api_server.take()] {
            drop(role);
        }
        self.etcd.kill();
        let left = self.mark.kill_processes(END_BOUND);
        if !left.is_empty() && !std::thread::panicking() {
            panic!("processes outlive their cluster: {left:#?}");
        }
    }
}
