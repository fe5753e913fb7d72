//! The real `kubler-server` and `kubler`, run as a user would run them: `init`, then `serve`, against the stand-in.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! # use kubler_testkit::{buildkite::{Buildkite, OidcRequest}, kubler::Server};
//! let buildkite = Buildkite::start();
//! let server = Server::of(&buildkite).lease_seconds(5).start().await;
//! let job = buildkite.build("app").start().job("test").run();
//! let environment = server.create(&job, "main").await;
//! assert_eq!(environment["phase"], "ready");
//! # Ok(()) }
//! ```

mod draft;
mod life;
mod programs;
mod requests;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::Duration;

use tempfile::TempDir;

pub use self::draft::ServerDraft;
pub use self::programs::Programs;
pub use self::requests::Answer;
use crate::agent::kube_folder;
use crate::buildkite::Buildkite;
use crate::leaks::{Left, Mark, Process};

/// How long an end may take, of a server or of what it started.
const STOP_BOUND: Duration = Duration::from_secs(20);
/// How often a condition is looked at again.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// A running server. Dropping it ends it with everything that it started, and panics if something is left.
pub struct Server {
    url: String,
    client: reqwest::Client,
    operator: reqwest::Client,
    programs: Programs,
    folder: TempDir,
    log_filter: String,
    child: Option<Child>,
}

impl Server {
    /// Says how to run a server for the first organization of `buildkite`.
    pub fn of(buildkite: &Buildkite) -> ServerDraft {
        ServerDraft::new(buildkite)
    }

    /// `https://127.0.0.1:PORT`, also the audience of its tokens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The folder that `init` wrote.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().join("k")
    }

    /// The CA that callers trust.
    pub fn ca(&self) -> PathBuf {
        self.folder().join("tls/ca.pem")
    }

    /// The programs under test.
    pub const fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Its own process.
    ///
    /// # Panics
    /// When it does not run.
    pub fn process(&self) -> Process {
        let pid = self.child.as_ref().expect("a server that runs").id();
        Process::find(i32::try_from(pid).expect("a pid")).expect("its process")
    }

    /// Everything that carries its folder: etcd, control planes and itself.
    pub fn processes(&self) -> Vec<Process> {
        self.mark().processes()
    }

    fn mark(&self) -> Mark {
        Mark::of(
            &self
                .folder
                .path()
                .file_name()
                .expect("a name")
                .to_string_lossy(),
        )
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default()
    }

    /// Runs `kubler` as an operator.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        self.cli_command(arguments).output().expect("kubler")
    }

    /// `kubler` with an operator's certificate in its environment.
    pub fn cli_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.cli());
        let tls = self.folder().join("tls");
        command
            .args(arguments)
            .env("KUBLER_SERVER", &self.url)
            .env("KUBLER_CA", tls.join("ca.pem"))
            .env("KUBLER_CLIENT_CERTIFICATE", tls.join("operator.pem"))
            .env("KUBLER_CLIENT_KEY", tls.join("operator.key"));
        command
    }

    /// Processes of environments, control planes only.
    pub fn control_planes(&self) -> Vec<Process> {
        self.processes()
            .into_iter()
            .filter(|process| process.command.contains("kubler-control-plane"))
            .collect()
    }

    /// Waits until no environment's process is left.
    ///
    /// # Errors
    /// `Left` after `bound`.
    pub async fn wait_until_no_control_plane(&self, bound: Duration) -> Result<(), Left> {
        crate::leaks::wait_until_none("control planes", bound, || self.control_planes()).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let left = self.mark().kill_processes(STOP_BOUND);
        let installation = self.folder().join("data/local/installation");
        if let Ok(installation) = fs::read_to_string(installation) {
            crate::leaks::sweep_groups(installation.trim(), STOP_BOUND);
        }
        if !left.is_empty() && !std::thread::panicking() {
            panic!("processes outlive their server: {left:#?}");
        }
    }
}

/// A kubectl of the pinned version, with a home of its own.
pub fn kubectl(kubeconfig: &Path, home: &Path) -> Command {
    let mut command = Command::new(kube_folder().join("kubectl"));
    command
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .env("HOME", home)
        .env_remove("KUBECONFIG");
    command
}
