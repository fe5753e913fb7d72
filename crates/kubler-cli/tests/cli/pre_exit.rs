//! The plugin's last hook when nobody answers it: it ends in time, says that all is well, and leaves nothing.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use kubler_testkit::leaks::{Mark, files_in};
use serde_json::json;

use crate::desk::{Desk, token};

/// The hook's own bound is 3 s; the rest is for a busy machine. Without a bound it takes 20 s and more.
const BOUND: Duration = Duration::from_secs(6);

/// A job that has its environment, up to its last hook.
struct Scene {
    desk: Desk,
    jobs: tempfile::TempDir,
    programs: tempfile::TempDir,
    mark: Mark,
}

impl Scene {
    fn begun() -> Self {
        let scene = Self {
            desk: Desk::open(),
            jobs: tempfile::tempdir().unwrap(),
            programs: tempfile::tempdir().unwrap(),
            mark: Mark::new(),
        };
        scene.agent(&format!(
            "#!/bin/sh\n[ \"$1\" = oidc ] && echo {}\nexit 0\n",
            token("j")
        ));
        let output = scene.hook("pre-command");
        assert!(output.status.success(), "{output:?}");
        assert_eq!(scene.renewers(), 1);
        scene
    }

    fn agent(&self, script: &str) {
        let program = self.programs.path().join("buildkite-agent");
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn hook(&self, name: &str) -> Output {
        let hooks = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/buildkite/hooks");
        let kubler = Path::new(env!("CARGO_BIN_EXE_kubler")).parent().unwrap();
        let path = [kubler, "/usr/bin".as_ref(), "/bin".as_ref()];
        let configuration =
            json!({ "server": self.desk.url(), "ca": self.desk.ca(), "profile": "ci-small" });
        Command::new("/bin/sh")
            .arg(hooks.join(name))
            .env_clear()
            .env("PATH", std::env::join_paths(path).unwrap())
            .env(Mark::VARIABLE, self.mark.as_str())
            .env("KUBLER_JOBS_FOLDER", self.jobs.path())
            .env("BUILDKITE_JOB_ID", "j")
            .env("BUILDKITE_BIN_PATH", self.programs.path())
            .env("BUILDKITE_PLUGIN_CONFIGURATION", configuration.to_string())
            .output()
            .unwrap()
    }

    fn renewers(&self) -> usize {
        let processes = self.mark.processes();
        let renewers = processes
            .iter()
            .filter(|process| process.command.contains("renewer"));
        renewers.count()
    }

    /// Runs the hook. Returns what it said.
    fn pre_exit(&self) -> String {
        let begun = Instant::now();
        let output = self.hook("pre-exit");
        let took = begun.elapsed();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert!(took < BOUND, "it took {took:?}: {said}");
        assert!(
            self.mark.processes().is_empty(),
            "{:#?}",
            self.mark.processes()
        );
        assert_eq!(files_in(self.jobs.path()), Vec::<PathBuf>::new());
        said
    }
}

#[test]
fn a_server_that_accepts_and_never_answers_does_not_hold_it_up() {
    let scene = Scene::begun();
    scene.desk.is_silent();
    let said = scene.pre_exit();
    assert!(said.contains("it ends with its lease"), "{said}");
}

#[test]
fn an_agent_that_never_answers_does_not_hold_it_up() {
    let scene = Scene::begun();
    scene.agent("#!/bin/sh\nexec sleep 100\n");
    let said = scene.pre_exit();
    assert!(
        said.contains("is released"),
        "with the renewer's last token: {said}"
    );
    assert!(scene.desk.is_released("env_j_main"));
}

#[test]
fn nobody_that_answers_and_no_renewer_do_not_hold_it_up() {
    let scene = Scene::begun();
    let renewers = scene.mark.processes();
    for renewer in renewers
        .iter()
        .filter(|process| process.command.contains("renewer"))
    {
        renewer.signal(rustix::process::Signal::KILL);
    }
    scene.agent("#!/bin/sh\nexec sleep 100\n");
    scene.desk.is_silent();
    let said = scene.pre_exit();
    assert!(said.contains("it ends with its lease"), "{said}");
}
