//! Upstream's suite: which tests there are, and how one is run.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kubler_testkit::agent::kube_folder;
use kubler_testkit::cluster::program;
use kubler_testkit::leaks::Mark;
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::target::Target;

/// The groups of upstream whose tests are tried.
const GROUPS: [&str; 5] = [
    "[sig-api-machinery]",
    "[sig-apps]",
    "[sig-auth]",
    "[sig-cli]",
    "[sig-node]",
];
/// How long what was killed may take to be gone.
const END_BOUND: Duration = Duration::from_secs(20);

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    Failed,
    Skipped,
    TooLong,
}

/// A test that was run.
#[derive(Debug, Clone)]
pub(crate) struct Ran {
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
    pub(crate) seconds: u64,
    /// It failed beside others, and was tried again alone.
    pub(crate) again: bool,
}

/// The suite, aimed at a cluster.
#[derive(Clone)]
pub(crate) struct Suite {
    target: String,
    kubeconfig: PathBuf,
    variables: Vec<(String, String)>,
    has_nodes: bool,
    bound: Duration,
    logs: PathBuf,
}

impl Suite {
    pub(crate) fn new(target: &Target, bound: Duration) -> Self {
        let name = target.name();
        let logs = std::env::temp_dir().join(format!("kubler-conformance-{name}"));
        let _ = fs::remove_dir_all(&logs);
        fs::create_dir_all(&logs).expect("a folder");
        Self {
            target: name.to_owned(),
            kubeconfig: target.kubeconfig().to_owned(),
            variables: target.variables(),
            has_nodes: target.has_nodes(),
            bound,
            logs,
        }
    }

    /// What it is aimed at.
    pub(crate) fn target(&self) -> &str {
        &self.target
    }

    /// What the last run's tests said.
    pub(crate) fn logs(&self) -> &Path {
        &self.logs
    }

    /// All conformance tests of the groups, by their names.
    pub(crate) fn conformance_tests(&self) -> Vec<String> {
        let listed = std::process::Command::new(program("e2e.test"))
            .arg("--list-tests")
            .output()
            .expect("e2e.test");
        let text = String::from_utf8(listed.stdout).expect("text");
        // FILE:LINE: NAME
        let names = text
            .lines()
            .filter_map(|line| Some(line.split_once(": ")?.1.trim()));
        let mut names: Vec<String> = names
            .filter(|name| name.contains("[Conformance]"))
            .filter(|name| GROUPS.iter().any(|group| name.starts_with(group)))
            .map(str::to_owned)
            .collect();
        names.sort();
        names
    }

    /// Runs them; those that must be alone, and those that failed beside others, come last and one by one.
    pub(crate) async fn run(&self, tests: Vec<String>, workers: usize, again: bool) -> Vec<Ran> {
        let (alone, beside): (Vec<_>, Vec<_>) =
            tests.into_iter().partition(|name| must_be_alone(name));
        let mut ran = self.run_beside(beside, workers).await;
        let failed = |it: &&Ran| it.outcome == Outcome::Failed || it.outcome == Outcome::TooLong;
        let failed: Vec<String> = ran
            .iter()
            .filter(failed)
            .filter(|_| again)
            .map(|it| it.name.clone())
            .collect();
        let mut second = self.run_beside(failed, 1).await;
        second.iter_mut().for_each(|it| it.again = true);
        ran.retain(|it| second.iter().all(|again| again.name != it.name));
        ran.extend(second);
        ran.extend(self.run_beside(alone, 1).await);
        ran
    }

    async fn run_beside(&self, tests: Vec<String>, workers: usize) -> Vec<Ran> {
        let count = tests.len();
        let queue = Arc::new(Mutex::new(VecDeque::from(tests)));
        let done = Arc::new(Mutex::new(Vec::new()));
        let worker = || {
            let (suite, queue, done) = (self.clone(), Arc::clone(&queue), Arc::clone(&done));
            async move {
                loop {
                    let next = queue.lock().unwrap().pop_front();
                    let Some(name) = next else { return };
                    let ran = suite.run_one(&name).await;
                    let mut done = done.lock().unwrap();
                    done.push(ran.clone());
                    println!(
                        "{:>3}/{count} {:?} {} s  {}",
                        done.len(),
                        ran.outcome,
                        ran.seconds,
                        ran.name
                    );
                }
            }
        };
        let mut running = JoinSet::new();
        for _ in 0..workers {
            running.spawn(worker());
        }
        running.join_all().await;
        let done = done.lock().unwrap();
        done.clone()
    }

    async fn run_one(&self, name: &str) -> Ran {
        let begun = Instant::now();
        let mark = Mark::new();
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = Command::new(program("e2e.test"));
        command
            .arg(format!("--kubeconfig={}", self.kubeconfig.display()))
            .arg(format!("--kubectl-path={}", program("kubectl").display()))
            .args(["--provider=skeleton", "--allowed-not-ready-nodes=-1"])
            .args(["--disable-log-dump", "--dump-logs-on-failure=false"])
            .args(["--ginkgo.no-color", "--ginkgo.timeout=24h"])
            .arg(format!("--ginkgo.focus={}$", escaped(name)))
            // Without it the suite counts nodes, and ends when there is none.
            .args((!self.has_nodes).then_some("--num-nodes=0"))
            .current_dir(folder.path())
            .env_clear()
            .env("PATH", path())
            .env("HOME", folder.path())
            .env(Mark::VARIABLE, mark.as_str())
            .envs(self.variables.iter().cloned())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let ended = tokio::time::timeout(self.bound, command.output()).await;
        // It may have left a kubectl or two.
        let left = mark.kill_processes(END_BOUND);
        assert!(left.is_empty(), "{left:?}");
        let outcome = match ended {
            Err(_) => Outcome::TooLong,
            Ok(output) => self.outcome(name, &output.expect("e2e.test")),
        };
        Ran {
            name: name.to_owned(),
            outcome,
            seconds: begun.elapsed().as_secs(),
            again: false,
        }
    }

    fn outcome(&self, name: &str, output: &std::process::Output) -> Outcome {
        let said = String::from_utf8_lossy(&output.stdout);
        let outcome = match output.status.success() {
            true if said.contains("1 Passed") => return Outcome::Passed,
            true => Outcome::Skipped,
            false => Outcome::Failed,
        };
        let file: String = name
            .chars()
            .map(|letter| {
                if letter.is_alphanumeric() {
                    letter
                } else {
                    '-'
                }
            })
            .take(200)
            .collect();
        let errors = String::from_utf8_lossy(&output.stderr);
        let path = self.logs.join(format!("{file}.log"));
        fs::write(path, format!("{said}\n{errors}")).expect("a log");
        outcome
    }
}

fn must_be_alone(name: &str) -> bool {
    name.contains("[Serial]") || name.contains("[Disruptive]")
}

/// The name as a regular expression for itself.
fn escaped(name: &str) -> String {
    let mut text = String::new();
    for letter in name.chars() {
        if !letter.is_alphanumeric() && letter != ' ' && letter.is_ascii() {
            text.push('\\');
        }
        text.push(letter);
    }
    text
}

fn path() -> std::ffi::OsString {
    let programs = kubler_testkit::kubler::Programs::find();
    let folders = [
        programs.folder().to_owned(),
        kube_folder(),
        "/usr/local/bin".into(),
        "/usr/bin".into(),
        "/bin".into(),
    ];
    std::env::join_paths(folders).expect("a PATH")
}
