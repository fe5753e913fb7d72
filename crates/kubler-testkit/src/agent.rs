//! The real `buildkite-agent`, run against the stand-in with every path private.
//!
//! ```no_run
//! # use kubler_testkit::{agent::RealAgent, buildkite::Buildkite};
//! # let buildkite = Buildkite::start();
//! let job = buildkite.build("app").start().job("test").command("echo hello").create();
//! let agent = RealAgent::of(&buildkite).acquires(&job).start();
//! ```

mod repository;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

pub use repository::GitRepository;

use crate::buildkite::{Buildkite, Job};
use crate::leaks::{Left, Mark, Process};

/// How long the end of killed processes is waited for.
const KILL_BOUND: Duration = Duration::from_secs(5);
/// How often the end of the agent is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// `<folder>/s/job-api/<pid>-<number>.sock` must stay under 108 bytes.
const FOLDER_BYTES_MAX: usize = 60;

/// The folder with the upstream binaries: `KUBLER_KUBE_BIN`, else what `kube/build --print` says.
///
/// # Panics
/// When there is neither.
pub fn kube_folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("KUBLER_KUBE_BIN") {
        return folder.into();
    }
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kube/build");
    let output = Command::new(&build).arg("--print").output();
    let output = output.unwrap_or_else(|error| panic!("cannot run `{}`: {error}", build.display()));
    assert!(
        output.status.success(),
        "`kube/build --print`: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

/// The agent's program.
///
/// # Panics
/// When it has not been built.
pub fn agent_program() -> PathBuf {
    let program = kube_folder().join("buildkite-agent");
    assert!(
        program.is_file(),
        "`{}` is missing: run `kube/build`",
        program.display()
    );
    program
}

/// An agent that is not started yet.
#[must_use]
pub struct AgentDraft {
    mark: Mark,
    folder: TempDir,
    arguments: Vec<OsString>,
    variables: BTreeMap<String, OsString>,
    path: Vec<PathBuf>,
}

impl AgentDraft {
    fn new(buildkite: &Buildkite) -> Self {
        let mark = Mark::new();
        let folder = private_folder(&mark);
        let mut draft = Self {
            mark,
            folder,
            arguments: vec!["start".into()],
            variables: BTreeMap::new(),
            path: Vec::new(),
        };
        for (option, name) in [
            ("--build-path", "b"),
            ("--hooks-path", "h"),
            ("--plugins-path", "p"),
            ("--sockets-path", "s"),
        ] {
            let path = draft.make_folder(name);
            draft.arguments.extend([option.into(), path.into()]);
        }
        let home = draft.make_folder("home");
        let temporary = draft.make_folder("t");
        let jobs = draft.make_folder("j");
        draft.variables.insert("HOME".into(), home.into());
        draft.variables.insert("TMPDIR".into(), temporary.into());
        draft
            .variables
            .insert("KUBLER_JOBS_FOLDER".into(), jobs.into());
        draft
            .argument("--no-color")
            .argument("--no-ssh-keyscan")
            .option("--ping-mode", "poll-only")
            .option("--name", "real")
            .variable("BUILDKITE_AGENT_ENDPOINT", buildkite.agent_endpoint())
            .variable(
                "BUILDKITE_AGENT_TOKEN",
                &buildkite.first_organization().registration_token,
            )
            .variable("GIT_CONFIG_NOSYSTEM", "1")
            .variable("LANG", "C.UTF-8")
    }

    /// Takes this one job, and exits with its status.
    pub fn acquires(self, job: &Job) -> Self {
        let token = job.organization().registration_token;
        let draft = self
            .variable("BUILDKITE_AGENT_TOKEN", &token)
            .argument("--reflect-exit-status");
        draft.option("--acquire-job", &job.id().to_string())
    }

    /// Asks for work by pings and takes one job after the other. Another organization than the first is
    /// chosen with [`AgentDraft::variable`] `BUILDKITE_AGENT_TOKEN`.
    pub fn pings(self) -> Self {
        self
    }

    /// Runs hooks and commands without a terminal: `--no-pty`.
    pub fn without_pty(self) -> Self {
        self.argument("--no-pty")
    }

    /// Adds a tag, `name=value`.
    pub fn tag(self, tag: &str) -> Self {
        self.option("--tags", tag)
    }

    /// An agent hook by its name: a shell script.
    pub fn hook(self, name: &str, script: &str) -> Self {
        let path = self.folder.path().join("h").join(name);
        fs::write(&path, format!("#!/bin/bash\n{script}\n")).expect("a hook");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
        self
    }

    /// Adds an argument to `buildkite-agent start`.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds an option with its value to `buildkite-agent start`.
    pub fn option(self, option: &str, value: &str) -> Self {
        self.argument(option).argument(value)
    }

    /// Adds a variable to its environment; nothing else is inherited.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    /// Puts a folder before all others on its PATH.
    pub fn path_before(mut self, folder: &Path) -> Self {
        self.path.insert(0, folder.to_owned());
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// When its program is missing.
    pub fn start(self) -> RealAgent {
        let Self {
            mark,
            folder,
            arguments,
            variables,
            mut path,
        } = self;
        path.extend(["/usr/local/bin", "/usr/bin", "/bin"].map(PathBuf::from));
        let output = folder.path().join("agent.log");
        let log = File::create(&output).expect("a log");
        let child = Command::new(agent_program())
            .args(arguments)
            .env_clear()
            .envs(variables)
            .env("PATH", std::env::join_paths(path).expect("a PATH"))
            .env(Mark::VARIABLE, mark.as_str())
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("an agent that starts");
        let process =
            Process::find(i32::try_from(child.id()).expect("a pid")).expect("its process");
        RealAgent {
            mark,
            folder,
            child,
            process,
            output,
        }
    }

    fn make_folder(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir(&path).expect("a folder");
        path
    }
}

/// Below the temporary folder, or below `/tmp` if that is too long for sockets.
fn private_folder(mark: &Mark) -> TempDir {
    let temporary = std::env::temp_dir();
    let short = temporary.as_os_str().len() + mark.as_str().len() < FOLDER_BYTES_MAX;
    let parent = if short {
        temporary.as_path()
    } else {
        Path::new("/tmp")
    };
    tempfile::Builder::new()
        .prefix(mark.as_str())
        .rand_bytes(0)
        .tempdir_in(parent)
        .expect("a folder")
}

/// A running agent. Dropping it ends it and everything that came from it, and panics if that fails.
pub struct RealAgent {
    mark: Mark,
    folder: TempDir,
    child: Child,
    process: Process,
    output: PathBuf,
}

impl RealAgent {
    /// Says how to run an agent of the first organization.
    pub fn of(buildkite: &Buildkite) -> AgentDraft {
        AgentDraft::new(buildkite)
    }

    /// Its private folder: `b` builds, `h` hooks, `j` what `kubler` keeps for jobs, `p` plugins, `s` sockets,
    /// `t` temporary files, `home`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What its processes carry.
    pub fn mark(&self) -> &Mark {
        &self.mark
    }

    /// What it printed itself; a job's log is [`Job::log`].
    pub fn output(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// The living processes: the agent and all that came from it.
    pub fn processes(&self) -> Vec<Process> {
        self.mark.processes()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// What it printed, when it still runs after `bound`.
    pub async fn wait(&mut self, bound: Duration) -> Result<ExitStatus, StillRunning> {
        let deadline = Instant::now() + bound;
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(StillRunning {
                    bound,
                    output: self.output(),
                });
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Waits until neither it nor anything that came from it lives.
    ///
    /// # Errors
    /// `Left` with the processes after `bound`.
    pub async fn wait_until_nothing_lives(&mut self, bound: Duration) -> Result<(), Left> {
        let _ = self.child.try_wait();
        self.mark.wait_until_no_process(bound).await
    }

    /// SIGTERM: it finishes its job. A second time: it cancels it.
    pub fn terminate(&self) {
        self.process.signal(Signal::TERM);
    }

    /// SIGQUIT: it cancels its job and ends.
    pub fn quit(&self) {
        self.process.signal(Signal::QUIT);
    }

    /// SIGKILL to the agent alone.
    pub fn kill(&mut self) {
        self.process.signal(Signal::KILL);
        let _ = self.child.wait();
    }

    /// SIGKILL to the agent and to everything that came from it; none of them has time for anything.
    pub fn kill_with_children(&mut self) {
        let left = self.end_everything();
        assert!(left.is_empty(), "processes outlive SIGKILL: {left:#?}");
    }

    /// Gives back what could not be ended.
    fn end_everything(&mut self) -> Vec<Process> {
        // The agent is stopped first, so that it reports nothing; it dies last, because stopped
        // processes of an orphaned group would be woken by SIGHUP and SIGCONT.
        self.process.signal(Signal::STOP);
        let agent = self.process.pid;
        let children = || {
            self.processes()
                .into_iter()
                .filter(move |process| process.pid != agent)
        };
        for child in children() {
            child.signal(Signal::STOP);
        }
        for child in children() {
            child.signal(Signal::KILL);
        }
        self.process.signal(Signal::KILL);
        let _ = self.child.wait();
        self.mark.kill_processes(KILL_BOUND)
    }
}

/// An agent that should have ended has not.
#[derive(Clone, Debug, thiserror::Error)]
#[error("agent still runs after {bound:?}; it printed\n{output}")]
pub struct StillRunning {
    bound: Duration,
    output: String,
}

impl Drop for RealAgent {
    fn drop(&mut self) {
        let left = self.end_everything();
        if !std::thread::panicking() {
            assert!(left.is_empty(), "processes outlive their agent: {left:#?}");
        }
    }
}
