//! The plugin in jobs of the real agent, through the ways in which a job ends.

use std::path::Path;
use std::time::Duration;

use kubler_testkit::agent::{AgentDraft, GitRepository, RealAgent};
use kubler_testkit::buildkite::{Buildkite, Job, JobDraft, JobState};
use kubler_testkit::leaks::{Process, files_in};
use serde_json::json;

use crate::desk::Desk;

const BOUND: Duration = Duration::from_secs(60);

pub struct Scene {
    pub buildkite: Buildkite,
    pub desk: Desk,
    pub plugin: GitRepository,
    pub jobs: tempfile::TempDir,
}

impl Scene {
    pub fn new() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/buildkite");
        Self {
            buildkite: Buildkite::builder().job_status_interval_seconds(1).start(),
            desk: Desk::open().lease_seconds(4),
            plugin: GitRepository::from_folder("kubler-buildkite-plugin", &folder),
            jobs: tempfile::tempdir().unwrap(),
        }
    }

    fn draft(&self, command: &str) -> JobDraft {
        let configuration =
            json!({ "server": self.desk.url(), "ca": self.desk.ca(), "profile": "ci-small" });
        self.buildkite
            .build("app")
            .start()
            .job("test")
            .command(command)
            .plugin(&self.plugin.plugin_reference(), configuration)
    }

    fn agent(&self, job: &Job) -> AgentDraft {
        let programs = Path::new(env!("CARGO_BIN_EXE_kubler")).parent().unwrap();
        RealAgent::of(&self.buildkite)
            .acquires(job)
            .path_before(programs)
            .variable("KUBLER_JOBS_FOLDER", self.jobs.path().to_str().unwrap())
    }

    /// The job's environment is released, and nothing of it is left on this machine.
    pub async fn is_over(&self, job: &Job, agent: &mut RealAgent) {
        self.desk.wait_for("release", |calls| {
            calls.iter().any(|noted| noted.call.ends_with("/release"))
        });
        assert!(
            self.desk.is_released(&environment(job)),
            "{:#?}",
            self.desk.calls()
        );
        agent.wait_until_nothing_lives(BOUND).await.unwrap();
        assert_eq!(files_in(self.jobs.path()), Vec::<std::path::PathBuf>::new());
    }
}

fn environment(job: &Job) -> String {
    format!("env_{}_main", job.id().to_string().replace('-', ""))
}

fn renewer(agent: &RealAgent) -> Option<Process> {
    agent
        .processes()
        .into_iter()
        .find(|process| process.command.contains("renewer"))
}

#[tokio::test]
async fn a_job_has_its_environment_and_loses_it() {
    let scene = Scene::new();
    let command = "test -f \"$KUBECONFIG\" && stat -c %a \"$KUBECONFIG\"; echo \"have $KUBLER_ENVIRONMENT\"; kubler credential; kubler env show";
    let job = scene.draft(command).create();
    let mut agent = scene.agent(&job).start();
    let status = agent.wait(BOUND).await.unwrap();
    let log = job.log();
    assert!(status.success(), "{log}");
    assert!(
        log.contains("\n600\n") && log.contains(&format!("have {}", environment(&job))),
        "{log}"
    );
    assert!(
        log.contains("is ready after 1 s") && log.contains("is released"),
        "{log}"
    );
    assert!(
        log.contains("[REDACTED]") && !log.contains("session.number"),
        "the session is hidden from the log: {log}"
    );
    assert_eq!(
        scene.desk.count("POST /v1/token"),
        1,
        "the hook's session serves the command"
    );
    let build = job.build();
    assert_eq!(
        build.metadata(&format!("kubler:env:{}", job.id())),
        Some(environment(&job))
    );
    assert!(
        build
            .metadata(&format!("kubler:checkpoint:{}", job.id()))
            .unwrap()
            .contains("kubler.test/ledger")
    );
    let annotations = build.annotations();
    assert_eq!(annotations.len(), 1);
    assert!(
        annotations[0].body.contains(&environment(&job))
            && annotations[0].body.contains("kubler trace"),
        "{annotations:?}"
    );
    assert!(
        scene
            .desk
            .calls()
            .iter()
            .filter_map(|noted| noted.job.clone())
            .all(|spoken| spoken == job.id().to_string())
    );
    scene.is_over(&job, &mut agent).await;
}

#[tokio::test]
async fn it_is_renewed_while_the_job_runs() {
    let scene = Scene::new();
    let job = scene.draft("echo waiting; sleep 100").create();
    let mut agent = scene.agent(&job).start();
    scene.desk.wait_for("third renewal", |calls| {
        calls
            .iter()
            .filter(|noted| noted.call.ends_with("/renew"))
            .count()
            >= 3
    });
    let renewals: Vec<_> = scene
        .desk
        .calls()
        .into_iter()
        .filter(|noted| noted.call.ends_with("/renew"))
        .collect();
    assert!(
        renewals[0].token_id != renewals[1].token_id,
        "each with a token of its own"
    );
    job.cancel();
    job.wait_until_over(BOUND).await.unwrap();
    assert_eq!(job.state(), JobState::Canceled);
    scene.is_over(&job, &mut agent).await;
}

#[tokio::test]
async fn a_failed_job_keeps_its_own_status() {
    let scene = Scene::new();
    let job = scene.draft("exit 7").create();
    let mut agent = scene.agent(&job).without_pty().start();
    assert_eq!(agent.wait(BOUND).await.unwrap().code(), Some(7));
    scene.is_over(&job, &mut agent).await;
}

#[tokio::test]
async fn another_pre_exit_that_fails_first_does_not_keep_it_alive() {
    let scene = Scene::new();
    let job = scene.draft("true").create();
    let mut agent = scene.agent(&job).hook("pre-exit", "exit 5").start();
    assert_eq!(agent.wait(BOUND).await.unwrap().code(), Some(5));
    assert!(
        !job.log().contains("is released"),
        "the plugin's hook did not run"
    );
    scene.is_over(&job, &mut agent).await;
}

/// Starts a job that waits. Returns its renewer and its bootstrap, once it has a session on this machine.
async fn waiting(scene: &Scene, job: &Job, agent: &RealAgent) -> [Process; 2] {
    job.wait_for_log("waiting", BOUND).await.unwrap();
    let sessions = || {
        files_in(scene.jobs.path()).into_iter().filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "session")
        })
    };
    assert_eq!(sessions().count(), 1, "{:#?}", files_in(scene.jobs.path()));
    let bootstrap = agent
        .processes()
        .into_iter()
        .find(|process| process.command.contains("bootstrap"));
    [renewer(agent).unwrap(), bootstrap.unwrap()]
}

/// The environment is released, the renewer has ended, and no session or other file of the job is left.
async fn ends_with_it(scene: &Scene, job: &Job, renewer: &Process) {
    scene.desk.wait_for("release", |calls| {
        calls.iter().any(|noted| noted.call.ends_with("/release"))
    });
    assert!(scene.desk.is_released(&environment(job)));
    let bound = std::time::Instant::now() + BOUND;
    while renewer.lives() || !files_in(scene.jobs.path()).is_empty() {
        assert!(
            std::time::Instant::now() < bound,
            "renewer lives: {}, left: {:#?}",
            renewer.lives(),
            files_in(scene.jobs.path())
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_killed_bootstrap_ends_it() {
    let scene = Scene::new();
    let job = scene.draft("echo wait''ing; sleep 100").create();
    let agent = scene.agent(&job).start();
    let [renewer, bootstrap] = waiting(&scene, &job, &agent).await;
    bootstrap.signal(rustix::process::Signal::KILL);
    ends_with_it(&scene, &job, &renewer).await;
}

#[tokio::test]
async fn what_a_job_killed_with_everything_left_goes_when_another_begins_and_the_living_keep_theirs()
 {
    let scene = Scene::new();
    let kubeconfig = |job: &Job| {
        let files = files_in(scene.jobs.path()).into_iter();
        let mut own = files.filter(|path| path.to_string_lossy().contains(&job.id().to_string()));
        own.find(|path| path.extension().is_some_and(|end| end == "kubeconfig"))
    };
    let (killed, living) = (
        scene.draft("echo wait''ing; sleep 100").create(),
        scene.draft("echo wait''ing; sleep 100").create(),
    );
    let mut killed_agent = scene.agent(&killed).start();
    let mut living_agent = scene.agent(&living).start();
    for job in [&killed, &living] {
        job.wait_for_log("waiting", BOUND).await.unwrap();
    }
    killed_agent.kill_with_children();
    assert!(
        kubeconfig(&killed).is_some(),
        "nobody was left to remove it"
    );

    let next = scene.draft("true").create();
    let mut agent = scene.agent(&next).start();
    assert!(agent.wait(BOUND).await.unwrap().success(), "{}", next.log());
    assert_eq!(kubeconfig(&killed), None);
    assert!(kubeconfig(&living).is_some(), "its job still runs");
    living.cancel();
    living.wait_until_over(BOUND).await.unwrap();
    scene.is_over(&living, &mut living_agent).await;
}

#[tokio::test]
async fn a_killed_agent_ends_it() {
    for with_terminal in [true, false] {
        let scene = Scene::new();
        let job = scene.draft("echo wait''ing; sleep 100").create();
        let draft = scene.agent(&job);
        let mut agent = if with_terminal {
            draft.start()
        } else {
            draft.without_pty().start()
        };
        let [renewer, _] = waiting(&scene, &job, &agent).await;
        agent.kill();
        ends_with_it(&scene, &job, &renewer).await;
    }
}

/// Where the job's process is none of the hook's ancestors, as in some containers, the job's own API is watched.
#[tokio::test]
async fn a_killed_bootstrap_ends_it_where_only_the_job_api_can_be_watched() {
    let scene = Scene::new();
    let configuration =
        json!({ "server": scene.desk.url(), "ca": scene.desk.ca(), "profile": "ci-small" });
    let script = format!(
        "exports=$(BUILDKITE_PLUGIN_CONFIGURATION='{configuration}' kubler hook pre-command --bootstrap 0) && eval \"$exports\""
    );
    let job = scene
        .buildkite
        .build("app")
        .start()
        .job("test")
        .command("echo wait''ing; sleep 100")
        .create();
    let agent = scene.agent(&job).hook("pre-command", &script).start();
    let [renewer, bootstrap] = waiting(&scene, &job, &agent).await;
    bootstrap.signal(rustix::process::Signal::KILL);
    ends_with_it(&scene, &job, &renewer).await;
}

#[tokio::test]
async fn the_renewer_alone_killed_does_not_keep_pre_exit_from_releasing() {
    let scene = Scene::new();
    let job = scene.draft("echo waiting; sleep 2").create();
    let mut agent = scene.agent(&job).start();
    job.wait_for_log("waiting", BOUND).await.unwrap();
    renewer(&agent)
        .unwrap()
        .signal(rustix::process::Signal::KILL);
    assert!(agent.wait(BOUND).await.unwrap().success());
    scene.is_over(&job, &mut agent).await;
}

#[tokio::test]
async fn a_refused_job_fails_with_the_reason() {
    let scene = Scene::new();
    scene.desk.refuse(
        403,
        "denied",
        "no policy allows profile `ci-small`",
        "ask the operator",
    );
    let job = scene.draft("echo never").create();
    let mut agent = scene.agent(&job).start();
    assert_eq!(agent.wait(BOUND).await.unwrap().code(), Some(3));
    let log = job.log();
    assert!(
        log.contains("error: no policy allows profile `ci-small` (`denied`)")
            && log.contains("hint: ask the operator"),
        "{log}"
    );
    assert!(!log.contains("\nnever"), "{log}");
    agent.wait_until_nothing_lives(BOUND).await.unwrap();
    assert_eq!(
        files_in(scene.jobs.path()),
        Vec::<std::path::PathBuf>::new()
    );
}

#[tokio::test]
async fn a_server_that_is_down_does_not_hold_up_the_end() {
    let scene = Scene::new();
    let job = scene.draft("echo waiting").create();
    let mut agent = scene
        .agent(&job)
        .hook("post-command", "touch /dev/null")
        .start();
    scene.desk.wait_for("session", |calls| {
        calls.iter().any(|noted| noted.call == "POST /v1/token")
    });
    scene.desk.refuse(503, "unavailable", "starting", "wait");
    assert!(agent.wait(BOUND).await.unwrap().success(), "{}", job.log());
    agent.wait_until_nothing_lives(BOUND).await.unwrap();
    assert_eq!(
        files_in(scene.jobs.path()),
        Vec::<std::path::PathBuf>::new()
    );
}

#[tokio::test]
async fn environment_hook_serves_the_checkout_and_v4_order_ends_once() {
    let scene = Scene::new();
    let configuration = json!({ "server": scene.desk.url(), "ca": scene.desk.ca(), "profile": "ci-small", "hook": "environment", "annotation": false });
    let build = scene.buildkite.build("app").start();
    let job = build
        .job("test")
        .command("echo have $KUBLER_ENVIRONMENT")
        .plugin(&scene.plugin.plugin_reference(), configuration)
        .create();
    // Version 4 runs the agent's pre-exit last; here the plugin's runs first, and once more.
    let plugin =
        "BUILDKITE_PLUGIN_CONFIGURATION='{\"annotation\":false}' kubler hook pre-exit; test -s \"$KUBECONFIG\" && echo 'still told'"
            .to_string();
    let mut agent = scene
        .agent(&job)
        .hook("pre-exit", &plugin)
        .hook("pre-checkout", "echo before $KUBLER_ENVIRONMENT")
        .start();
    assert!(agent.wait(BOUND).await.unwrap().success(), "{}", job.log());
    let log = job.log();
    assert!(
        log.contains(&format!("before {}", environment(&job)))
            && log.contains(&format!("have {}", environment(&job))),
        "{log}"
    );
    assert!(log.contains("still told"), "the last hook of all: {log}");
    assert_eq!(log.matches("is released").count(), 1, "{log}");
    assert_eq!(
        scene.desk.count("POST /v1/environments/"),
        scene
            .desk
            .calls()
            .iter()
            .filter(|noted| noted.call.ends_with("/renew"))
            .count()
            + 1
    );
    assert!(job.build().annotations().is_empty());
    scene.is_over(&job, &mut agent).await;
}

#[tokio::test]
async fn what_a_build_shares_does_not_end_with_one_of_its_jobs() {
    let scene = Scene::new();
    let configuration = json!({ "server": scene.desk.url(), "ca": scene.desk.ca(), "profile": "ci-small", "scope": "build" });
    let build = scene.buildkite.build("app").start();
    let job = build
        .job("test")
        .command("true")
        .plugin(&scene.plugin.plugin_reference(), configuration)
        .create();
    let mut agent = scene.agent(&job).start();
    assert!(agent.wait(BOUND).await.unwrap().success(), "{}", job.log());
    agent.wait_until_nothing_lives(BOUND).await.unwrap();
    assert!(
        !scene.desk.is_released(&environment(&job)),
        "{:#?}",
        scene.desk.calls()
    );
    assert!(
        job.log().contains("left to the other jobs"),
        "{}",
        job.log()
    );
    assert_eq!(
        files_in(scene.jobs.path()),
        Vec::<std::path::PathBuf>::new()
    );
}
