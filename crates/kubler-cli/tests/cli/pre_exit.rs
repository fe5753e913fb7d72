//! The plugin's last hook when nobody answers it: it ends in time, says that all is well, and leaves nothing.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use kubler_testkit::leaks::{Mark, files_in};
use serde_json::{Value, json};

use crate::desk::{Desk, token};

/// The hook's own bound is 3 s; the rest is for a busy machine. Without a bound it takes 20 s and more.
const BOUND: Duration = Duration::from_secs(6);

/// A job that has its environment, up to its last hook.
struct Scene {
    desk: Desk,
    jobs: tempfile::TempDir,
    programs: tempfile::TempDir,
    mark: Mark,
    keys: Value,
}

impl Scene {
    fn begun() -> Self {
        let scene = Self::new(json!({}));
        let output = scene.hook("pre-command");
        assert!(output.status.success(), "{output:?}");
        assert_eq!(scene.renewers(), 1);
        scene
    }

    /// A job whose plugin has these keys as well.
    fn new(keys: Value) -> Self {
        let scene = Self {
            desk: Desk::open(),
            jobs: tempfile::tempdir().unwrap(),
            programs: tempfile::tempdir().unwrap(),
            mark: Mark::new(),
            keys,
        };
        let told = scene.programs.path().join("told").display().to_string();
        scene.agent(&format!(
            "#!/bin/sh\n[ \"$1\" = oidc ] && echo {} && exit\n[ \"$1\" = annotate ] && cat >>{told}\nexit 0\n",
            token("j")
        ));
        scene
    }

    /// What the job's page shows.
    fn annotations(&self) -> String {
        std::fs::read_to_string(self.programs.path().join("told")).unwrap_or_default()
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
        let mut configuration =
            json!({ "server": self.desk.url(), "ca": self.desk.ca(), "profile": "ci-small" });
        for (key, value) in self.keys.as_object().unwrap() {
            configuration[key] = value.clone();
        }
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

fn attaching() -> Value {
    json!({ "scope": "build", "attach": true })
}

#[test]
fn an_attach_that_comes_too_late_had_nothing_and_releases_nothing() {
    let scene = Scene::new(attaching());
    scene.desk.put("env_j_main");
    scene.desk.share("env_j_main");
    scene.desk.release("env_j_main");
    let output = scene.hook("pre-command");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(
        said.contains("env_j_main has ended: its job released it") && said.contains("rebuild"),
        "{said}"
    );
    assert!(!said.contains("new job"), "it would get the same: {said}");
    assert_eq!(scene.pre_exit(), "");
    assert_eq!(scene.annotations(), "");
}

#[test]
fn what_a_build_shared_and_another_job_ended_is_not_said_to_be_released_by_this_one() {
    let scene = Scene::new(attaching());
    scene.desk.put("env_j_main");
    let output = scene.hook("pre-command");
    assert!(output.status.success(), "{output:?}");
    scene.desk.release("env_j_main");
    let said = scene.pre_exit();
    assert!(
        said.contains("had ended before this job did") && !said.contains("is released"),
        "{said}"
    );
    let shown = scene.annotations();
    assert!(
        shown.contains("had ended before the job did") && !shown.contains("released with the job"),
        "{shown}"
    );
}

/// kubectl without a kubeconfig turns to whatever else it finds: in a pod, to the cluster around it.
#[test]
fn after_a_release_in_the_job_its_kubeconfigs_tell_of_the_end_until_the_job_ends() {
    let scene = Scene::begun();
    let command = |line: &str| {
        let mut command = scene.desk.kubler(scene.jobs.path());
        command
            .env("BUILDKITE_JOB_ID", "j")
            .env("BUILDKITE_BIN_PATH", scene.programs.path())
            .args(line.split(' '));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let written = PathBuf::from(command("kubeconfig env_j_main").trim());
    command("env release env_j_main");
    for kubeconfig in [written.with_file_name("main.kubeconfig"), written] {
        let text = std::fs::read_to_string(&kubeconfig).unwrap();
        let content: Value = serde_json::from_str(&text).unwrap();
        let exec = &content["users"][0]["user"]["exec"];
        let arguments = exec["args"].as_array().unwrap().iter();
        let output = scene
            .desk
            .kubler(scene.jobs.path())
            .env("BUILDKITE_JOB_ID", "j")
            .env("BUILDKITE_BIN_PATH", scene.programs.path())
            .args(arguments.map(|argument| argument.as_str().unwrap()))
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{told}");
        assert!(told.contains("env_j_main ended at"), "{told}");
        assert!(kubeconfig.exists(), "also after it was told");
    }
    scene.pre_exit();
}
