//! `kubler run`: an environment around a command.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use kubler_testkit::leaks::{Mark, files_in};
use rustix::process::{Pid, Signal, kill_process};

use crate::desk::{Desk, Takes, token};

/// How long an end may take on a busy machine. What is guarded against takes longer: 130 s to make an
/// environment, 30 s to look until it is gone.
const BOUND: Duration = Duration::from_secs(20);

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

    fn kubler(&self) -> Command {
        let mut command = self.desk.kubler(self.jobs.path());
        let token = self.files.path().join("token");
        command.arg("--token-file").arg(token);
        command
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
        assert!(self.desk.is_gone("env_j_main"), "{:#?}", self.desk.calls());
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
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
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
    let mut command = scene.kubler();
    let output = command
        .args(["run", "--profile", "p", "--", "/nowhere/at-all"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    scene.is_over();
}

/// Waits for the end, and says how it was.
fn ended(mut child: Child) -> Output {
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < BOUND, "it goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn it_is_gone_when_the_command_has_ended_not_only_told_to_go() {
    let scene = Scene::new();
    scene.desk.removal(Takes::Wait);
    let output = scene.run("exit 3").output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(
        errors(&output),
        "kubler: environment env_j_main is gone: looked for, and nothing is left\n"
    );
    scene.is_over();
}

#[test]
fn a_signal_ends_the_wait_for_a_removal_that_takes_for_ever() {
    let scene = Scene::new();
    scene.desk.removal(Takes::Ever);
    let child = scene.run("exit 3").stderr(Stdio::piped()).spawn().unwrap();
    let releases = |calls: &[crate::desk::Noted]| {
        let releases = calls
            .iter()
            .filter(|noted| noted.call.ends_with("/release"));
        releases.count() == 2
    };
    scene.desk.wait_for("look until it is gone", releases);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let output = ended(child);
    assert_eq!(output.status.code(), Some(3), "the command's own code");
    assert!(
        errors(&output).contains("its credentials are dead; its removal was not waited for"),
        "{}",
        errors(&output)
    );
    assert!(scene.desk.is_released("env_j_main"));
    assert_eq!(files_in(scene.jobs.path()), Vec::<PathBuf>::new());
}

#[test]
fn a_signal_while_it_is_made_ends_the_making_and_what_was_made() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let scene = Scene::new();
        scene.desk.making(Takes::Ever);
        let marker = scene.files.path().join("ran");
        let child = scene
            .run(&format!("touch {}", marker.display()))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        scene.desk.wait_for("call that waits", |calls| {
            let asked = calls
                .iter()
                .filter(|noted| noted.call == "POST /v1/environments");
            asked.count() == 2
        });
        kill_process(Pid::from_child(&child), signal).unwrap();
        let output = ended(child);
        assert_eq!(output.status.code(), Some(code), "{}", errors(&output));
        assert!(errors(&output).contains("is gone"), "{}", errors(&output));
        assert!(!marker.exists(), "the command ran");
        scene.is_over();
    }
}

#[test]
fn a_signal_while_a_token_is_minted_leaves_nobody_behind() {
    let desk = Desk::open();
    let (jobs, programs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let agent = programs.path().join("buildkite-agent");
    let asked = programs.path().join("asked");
    std::fs::write(
        &agent,
        format!("#!/bin/sh\ntouch {}\nexec sleep 100\n", asked.display()),
    )
    .unwrap();
    std::fs::set_permissions(&agent, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mark = Mark::new();
    let child = desk
        .kubler(jobs.path())
        .env(Mark::VARIABLE, mark.as_str())
        .env("BUILDKITE_JOB_ID", "j")
        .env("BUILDKITE_BIN_PATH", programs.path())
        .args(["run", "--profile", "p", "--", "true"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while !asked.exists() {
        assert!(begun.elapsed() < BOUND, "no token was asked for");
        std::thread::sleep(Duration::from_millis(10));
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let output = ended(child);
    assert_eq!(output.status.code(), Some(143), "{}", errors(&output));
    assert!(desk.calls().is_empty());
    assert!(mark.processes().is_empty(), "{:#?}", mark.processes());
    assert_eq!(files_in(jobs.path()), Vec::<PathBuf>::new());
}

#[test]
fn what_is_not_ready_in_time_does_not_live_on() {
    let scene = Scene::new();
    scene.desk.making(Takes::Wait);
    let output = scene
        .kubler()
        .args(["run", "--profile", "p", "--wait", "1", "--", "true"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", errors(&output));
    assert!(
        errors(&output).contains("was not ready within 1 s"),
        "{}",
        errors(&output)
    );
    scene.is_over();
}

#[test]
fn what_a_build_shares_does_not_end_with_one_command() {
    let scene = Scene::new();
    let output = scene
        .kubler()
        .args(["run", "--profile", "p", "--scope", "build", "--", "true"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    assert!(
        errors(&output).contains("left to the other jobs of this build"),
        "{}",
        errors(&output)
    );
    assert!(!scene.desk.is_released("env_j_main"));
    assert_eq!(files_in(scene.jobs.path()), Vec::<PathBuf>::new());
}

/// In a queue it may take longer than a lease until an environment is made.
#[test]
fn whoever_waits_for_an_environment_keeps_it_alive() {
    for line in [
        &["run", "--profile", "p", "--", "sh", "-c", "exit 0"][..],
        &["env", "create", "--profile", "p"],
    ] {
        let scene = Scene::new();
        scene.desk.making(Takes::Ever);
        let child = scene
            .kubler()
            .args(line)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        scene.desk.wait_for("renewals", |calls| {
            let renewals = calls.iter().filter(|noted| noted.call.ends_with("/renew"));
            renewals.count() >= 2
        });
        scene.desk.making(Takes::None);
        let output = ended(child);
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    }
}

#[test]
fn what_was_there_before_the_command_is_used_and_lives_on() {
    let scene = Scene::new();
    let made = scene
        .kubler()
        .args(["env", "create", "--profile", "ci-small"])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", errors(&made));
    let told = "kubler: environment env_j_main was there before this command and lives on: who made it ends it\n";
    for _ in 0..2 {
        let output = scene
            .run("echo $KUBLER_ENVIRONMENT; exit 3")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(3), "{}", errors(&output));
        assert_eq!(String::from_utf8_lossy(&output.stdout), "env_j_main\n");
        assert_eq!(errors(&output), told);
        assert!(!scene.desk.is_released("env_j_main"));
    }
    assert_eq!(files_in(scene.jobs.path()), Vec::<PathBuf>::new());
}

#[test]
fn a_signal_ends_the_wait_for_what_another_made_and_not_that() {
    let scene = Scene::new();
    scene.desk.making(Takes::Ever);
    let made = scene
        .kubler()
        .args(["env", "create", "--profile", "ci-small", "--wait", "0"])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", errors(&made));
    let child = scene.run("true").stderr(Stdio::piped()).spawn().unwrap();
    scene.desk.wait_for("call that waits", |calls| {
        let asked = calls
            .iter()
            .filter(|noted| noted.call == "POST /v1/environments");
        asked.count() == 3
    });
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let output = ended(child);
    assert_eq!(output.status.code(), Some(143), "{}", errors(&output));
    assert!(!scene.desk.is_released("env_j_main"));
    assert_eq!(files_in(scene.jobs.path()), Vec::<PathBuf>::new());
}

/// The plugin made it in this very second, and the job's command asks for the same name.
#[test]
fn the_jobs_own_environment_lives_on_whatever_the_clock_says() {
    let scene = Scene::new();
    let output = scene
        .run("true")
        .env("KUBLER_ENVIRONMENT", "env_j_main")
        .output()
        .unwrap();
    assert!(
        errors(&output).contains("was there before this command"),
        "{}",
        errors(&output)
    );
    assert!(!scene.desk.is_released("env_j_main"));
}

#[test]
fn a_name_whose_environment_has_ended_says_so_and_ends_nothing() {
    let scene = Scene::new();
    scene.desk.put("env_j_main");
    scene.desk.release("env_j_main");
    let output = scene.run("true").output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", errors(&output));
    assert_eq!(
        errors(&output),
        "error: environment env_j_main has ended: its job released it\n\
         hint: a job gets one environment per name: give another name (`--name`), or start a new job\n"
    );
    assert_eq!(scene.desk.count("POST /v1/environments/"), 0);
    assert_eq!(files_in(scene.jobs.path()), Vec::<PathBuf>::new());
}

/// A job without the plugin has no last hook: the next job on the machine clears up.
#[test]
fn a_kubeconfig_of_a_buildkite_job_without_the_plugin_goes_when_another_begins() {
    let scene = Scene::new();
    scene.desk.put("env_1");
    let folder = |job: &str| {
        let all = files_in(scene.jobs.path()).into_iter();
        let of_job = all.filter(|path| path.parent().unwrap().ends_with(job));
        of_job.collect::<Vec<_>>()
    };
    let path = std::env::join_paths([
        std::path::Path::new(env!("CARGO_BIN_EXE_kubler"))
            .parent()
            .unwrap(),
        "/usr/bin".as_ref(),
        "/bin".as_ref(),
    ]);
    // The shell stands for the bootstrap, and this process for the agent.
    let mut job = Command::new("sh");
    job.args([
        "-c",
        "kubler kubeconfig env_1 && kubler env release env_1; exit $?",
    ])
    .env_clear()
    .env("PATH", path.unwrap())
    .env("KUBLER_SERVER", scene.desk.url())
    .env("KUBLER_CA", scene.desk.ca())
    .env("KUBLER_JOBS_FOLDER", scene.jobs.path())
    .env("KUBLER_TOKEN_FILE", scene.files.path().join("token"))
    .env("BUILDKITE_JOB_ID", "ended")
    .env("BUILDKITE_AGENT_PID", std::process::id().to_string());
    let output = job.output().unwrap();
    assert!(output.status.success(), "{}", errors(&output));
    assert_eq!(folder("ended").len(), 2, "it, and whose it is");
    assert!(scene.run("true").status().unwrap().success());
    assert_eq!(folder("ended"), Vec::<PathBuf>::new());
}
