//! `kubler run`: an environment around a command.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use kubler_testkit::leaks::files_in;

use crate::desk::{Desk, token};

struct Scene {
    desk: Desk,
    jobs: tempfile::TempDir,
    files: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("token"), token("j")).unwrap();
        Self {
            desk: Desk::open().lease_seconds(4),
            jobs: tempfile::tempdir().unwrap(),
            files,
        }
    }

    fn run(&self, script: &str) -> Command {
        let mut command = self.desk.kubler(self.jobs.path());
        let programs = std::path::Path::new(env!("CARGO_BIN_EXE_kubler"))
            .parent()
            .unwrap();
        command.env(
            "PATH",
            std::env::join_paths([programs, "/usr/bin".as_ref(), "/bin".as_ref()]).unwrap(),
        );
        command.env("KUBLER_TOKEN_FILE", self.files.path().join("token"));
        command
            .args(["run", "--profile", "ci-small", "--", "sh", "-c", script])
            .stdin(Stdio::null());
        command
    }

    fn is_over(&self) {
        assert!(
            self.desk.is_released("env_j_main"),
            "{:#?}",
            self.desk.calls()
        );
        assert_eq!(files_in(self.jobs.path()), Vec::<PathBuf>::new());
    }
}

#[test]
fn a_command_has_an_environment_and_its_code_passes_through() {
    let scene = Scene::new();
    let output = scene.run("kubler credential >/dev/null; stat -c %a \"$KUBECONFIG\"; echo $KUBLER_ENVIRONMENT; exit 42").output().unwrap();
    assert_eq!(output.status.code(), Some(42), "{output:?}");
    assert_eq!(scene.desk.count("POST /v1/token"), 1);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "600\nenv_j_main\n");
    scene.is_over();
}

#[test]
fn a_command_that_a_signal_ended_says_which() {
    let scene = Scene::new();
    assert_eq!(scene.run("kill -9 $$").status().unwrap().code(), Some(137));
    scene.is_over();
}

#[test]
fn it_is_renewed_and_signals_are_passed_on() {
    let scene = Scene::new();
    let mut child = scene
        .run("trap 'echo caught; exit 5' TERM; echo begun; while :; do sleep 0.05; done")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    scene.desk.wait_for("renewal", |calls| {
        calls.iter().any(|noted| noted.call.ends_with("/renew"))
    });
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    let mut text = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "begun\ncaught\n");
    assert_eq!(child.wait().unwrap().code(), Some(5));
    scene.is_over();
}

#[test]
fn a_command_that_is_not_there_leaves_no_environment() {
    let scene = Scene::new();
    let mut command = scene.desk.kubler(scene.jobs.path());
    command
        .arg("--token-file")
        .arg(scene.files.path().join("token"));
    let output = command
        .args(["run", "--profile", "p", "--", "/nowhere/at-all"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    scene.is_over();
}
