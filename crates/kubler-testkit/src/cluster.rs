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

mod access;
mod audit;
mod authority;
mod child;
mod draft;
mod kubeconfig;

use std::time::{Duration, Instant};

use tempfile::TempDir;

pub use self::access::Access;
pub use self::authority::{Authority, Pair};
pub use self::child::Child;
pub use self::draft::{ClusterDraft, SERVICE_RANGE, program, write_secret};
pub use self::kubeconfig::kubeconfig;
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
    access: Access,
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

    /// What its processes carry.
    pub const fn mark(&self) -> &Mark {
        &self.mark
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
        while !self.access.answers(path).await {
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

impl std::ops::Deref for Cluster {
    type Target = Access;

    fn deref(&self) -> &Access {
        &self.access
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
