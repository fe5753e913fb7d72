//! The plugin's last hook when nobody answers it: it ends in time, says that all is well, and leaves nothing.

use std::cell::RefCell;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use kubler_testkit::leaks::{Mark, files_in};
use serde_json::{Value, json};

use crate::desk::{Desk, token};

/// The hook's own bound is 3 s; the rest is for a busy machine. Without a bound it takes 20 s and more.
const BOUND: Duration = Duration::from_secs(6);
/// How long anything else may take there.
const HOOK_BOUND: Duration = Duration::from_secs(60);

/// A job that has its environment, up to its last hook.
struct Scene {
    desk: Desk,
    jobs: tempfile::TempDir,
    programs: tempfile::TempDir,
    mark: Mark,
    job: Job,
}

/// The job's own process, as the agent's bootstrap: runs one hook after the other, each in a shell of its own, and lives
/// until there are no more.
struct Job {
    process: Child,
    hooks: RefCell<Option<ChildStdin>>,
    files: tempfile::TempDir,
}

impl Job {
    fn begin(configure: impl FnOnce(&mut Command)) -> Self {
        let files = tempfile::tempdir().unwrap();
        let script =
            "while read -r hook; do sh \"$hook\" >out 2>err; echo $? >new; mv new code; done";
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).env_clear();
        configure(&mut command);
        let mut process = command
            .current_dir(files.path())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let hooks = RefCell::new(process.stdin.take());
        Self {
            process,
            hooks,
            files,
        }
    }

    fn hook(&self, path: &Path) -> Output {
        let hooks = self.hooks.borrow();
        writeln!(hooks.as_ref().unwrap(), "{}", path.display()).unwrap();
        let file = |name: &str| self.files.path().join(name);
        let begun = Instant::now();
        while !file("code").exists() {
            assert!(begun.elapsed() < HOOK_BOUND, "{}", path.display());
            std::thread::sleep(Duration::from_millis(5));
        }
        let code = std::fs::read_to_string(file("code")).unwrap();
        std::fs::remove_file(file("code")).unwrap();
        Output {
            status: ExitStatus::from_raw(code.trim().parse::<i32>().unwrap() << 8),
            stdout: std::fs::read(file("out")).unwrap(),
            stderr: std::fs::read(file("err")).unwrap(),
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.hooks.take();
        let _ = self.process.wait();
    }
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
        let (desk, mark) = (Desk::open(), Mark::new());
        let (jobs, programs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut configuration =
            json!({ "server": desk.url(), "ca": desk.ca(), "profile": "ci-small" });
        for (key, value) in keys.as_object().unwrap() {
            configuration[key] = value.clone();
        }
        let kubler = Path::new(env!("CARGO_BIN_EXE_kubler")).parent().unwrap();
        let path = [kubler, "/usr/bin".as_ref(), "/bin".as_ref()];
        let job = Job::begin(|command| {
            command
                .env("PATH", std::env::join_paths(path).unwrap())
                .env(Mark::VARIABLE, mark.as_str())
                .env("KUBLER_JOBS_FOLDER", jobs.path())
                .env("BUILDKITE_JOB_ID", "j")
                .env("BUILDKITE_BIN_PATH", programs.path())
                .env("BUILDKITE_PLUGIN_CONFIGURATION", configuration.to_string());
        });
        let scene = Self {
            desk,
            jobs,
            programs,
            mark,
            job,
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
        self.job.hook(&hooks.join(name))
    }

    fn renewers(&self) -> usize {
        let processes = self.mark.processes();
        let renewers = processes
            .iter()
            .filter(|process| process.command.contains("renewer"));
        renewers.count()
    }

    /// Runs the hook, and ends the job. Returns what the hook said.
    fn pre_exit(self) -> String {
        let said = self.last_hook();
        self.ends();
        said
    }

    fn last_hook(&self) -> String {
        let begun = Instant::now();
        let output = self.hook("pre-exit");
        let took = begun.elapsed();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert!(took < BOUND, "it took {took:?}: {said}");
        said
    }

    /// The job ends, and nothing of it is left on this machine.
    fn ends(self) {
        drop(self.job);
        let begun = Instant::now();
        while !self.mark.processes().is_empty() {
            assert!(begun.elapsed() < HOOK_BOUND, "{:#?}", self.mark.processes());
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(files_in(self.jobs.path()), Vec::<PathBuf>::new());
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
    let said = scene.last_hook();
    assert!(
        said.contains("is released"),
        "with the renewer's last token: {said}"
    );
    assert!(scene.desk.is_released("env_j_main"));
    scene.ends();
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
    assert_eq!(scene.last_hook(), "");
    assert_eq!(scene.annotations(), "");
    scene.ends();
}

#[test]
fn what_a_build_shared_and_another_job_ended_is_not_said_to_be_released_by_this_one() {
    let scene = Scene::new(attaching());
    scene.desk.put("env_j_main");
    let output = scene.hook("pre-command");
    assert!(output.status.success(), "{output:?}");
    scene.desk.release("env_j_main");
    let said = scene.last_hook();
    assert!(
        said.contains("had ended before this job did") && !said.contains("is released"),
        "{said}"
    );
    let shown = scene.annotations();
    assert!(
        shown.contains("had ended before the job did") && !shown.contains("released with the job"),
        "{shown}"
    );
    scene.ends();
}

impl Scene {
    fn kubler(&self, arguments: &[&str]) -> Output {
        let mut command = self.desk.kubler(self.jobs.path());
        command
            .env("BUILDKITE_JOB_ID", "j")
            .env("BUILDKITE_BIN_PATH", self.programs.path())
            .args(arguments);
        command.output().unwrap()
    }

    /// What kubectl is told by the credential plugin of this kubeconfig.
    fn tells_of_the_end(&self, kubeconfig: &Path) {
        let text = std::fs::read_to_string(kubeconfig).unwrap();
        let content: Value = serde_json::from_str(&text).unwrap();
        let arguments = content["users"][0]["user"]["exec"]["args"].as_array();
        let arguments: Vec<_> = arguments
            .unwrap()
            .iter()
            .map(|argument| argument.as_str().unwrap())
            .collect();
        let output = self.kubler(&arguments);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{told}");
        assert!(told.contains("env_j_main ended at"), "{told}");
        assert!(kubeconfig.exists(), "also after it was told");
    }
}

/// kubectl without a kubeconfig turns to whatever else it finds: in a pod, to the cluster around it.
#[test]
fn after_the_end_the_jobs_kubeconfigs_tell_of_it_until_the_job_is_over() {
    for line in [&["env", "release", "env_j_main"][..], &[]] {
        let scene = Scene::begun();
        let written = scene.kubler(&["kubeconfig", "env_j_main"]);
        assert!(written.status.success(), "{written:?}");
        let written = PathBuf::from(String::from_utf8(written.stdout).unwrap().trim());
        let all = [written.with_file_name("main.kubeconfig"), written];
        if !line.is_empty() {
            let released = scene.kubler(line);
            assert!(released.status.success(), "{released:?}");
            for kubeconfig in &all {
                scene.tells_of_the_end(kubeconfig);
            }
        }
        scene.last_hook();
        for kubeconfig in &all {
            scene.tells_of_the_end(kubeconfig);
        }
        assert_eq!(scene.last_hook(), "", "an end is said once");
        scene.ends();
    }
}
