//! The whole path: a real agent runs real jobs with the plugin; each uses its cluster with the real kubectl.

use std::path::Path;
use std::time::Duration;

use kubler_testkit::agent::{AgentDraft, GitRepository, RealAgent, kube_folder};
use kubler_testkit::buildkite::{Build, Buildkite, Job};
use kubler_testkit::kubler::Server;
use reqwest::Method;
use serde_json::{Value, json};

/// How long a job with its cluster may take on a busy machine.
pub(crate) const JOB_BOUND: Duration = Duration::from_secs(60);

pub(crate) struct World {
    pub(crate) buildkite: Buildkite,
    pub(crate) server: Server,
    plugin: GitRepository,
    pub(crate) build: Build,
}

impl World {
    pub(crate) async fn with_lease(seconds: u64) -> Self {
        Self::with(seconds, Duration::from_secs(4)).await
    }

    /// The service gives an agent up that it does not hear for so long.
    pub(crate) async fn with(seconds: u64, heartbeat: Duration) -> Self {
        let buildkite = Buildkite::builder()
            .organization("acme", &["app", "web"])
            .heartbeat_timeout(heartbeat)
            .heartbeat_interval_seconds(1)
            .job_status_interval_seconds(1)
            .start();
        let server = Server::of(&buildkite).lease_seconds(seconds).start().await;
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/buildkite");
        let plugin = GitRepository::from_folder("kubler-buildkite-plugin", &folder);
        let build = buildkite.build("app").start();
        Self {
            buildkite,
            server,
            plugin,
            build,
        }
    }

    pub(crate) fn job(&self, command: &str) -> Job {
        self.job_of(&self.build, "test", command, json!({}))
    }

    /// A job of this build, with more keys for the plugin.
    pub(crate) fn job_of(&self, build: &Build, step: &str, command: &str, keys: Value) -> Job {
        let mut configuration =
            json!({ "server": self.server.url(), "profile": "ci-small", "ca": self.server.ca() });
        if let (Some(all), Some(keys)) = (configuration.as_object_mut(), keys.as_object()) {
            all.extend(keys.clone());
        }
        build
            .job(step)
            .command(command)
            .plugin(&self.plugin.plugin_reference(), configuration)
            .create()
    }

    pub(crate) fn agent(&self, job: &Job) -> AgentDraft {
        RealAgent::of(&self.buildkite)
            .acquires(job)
            .path_before(&kube_folder())
            .path_before(self.server.programs().folder())
    }

    /// The one environment of a job, once it is gone.
    pub(crate) async fn gone(&self, job: &Job) -> Value {
        let listed = self
            .server
            .operator(Method::GET, &format!("/v1/environments?job={}", job.id()))
            .await;
        let id = listed.body["environments"][0]["id"]
            .as_str()
            .unwrap_or_else(|| panic!("no environment: {listed:?}\n{}", job.log()))
            .to_owned();
        let gone = self.server.wait_until_gone(&id, JOB_BOUND).await;
        assert!(self.server.control_planes().is_empty());
        gone
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_uses_its_cluster_and_releases_it() {
    let world = World::with_lease(20).await;
    let job = world.job("kubectl create namespace hello && kubectl get configmap kubler-build --namespace default --output yaml && env | grep KUBLER_");
    let mut agent = world.agent(&job).start();
    let record = job.wait_until_over(JOB_BOUND).await.unwrap();
    assert_eq!(
        record.exit_status,
        Some(0),
        "{}\n{}",
        job.log(),
        agent.output()
    );
    assert!(
        job.log().contains("namespace/hello created"),
        "{}",
        job.log()
    );
    assert!(
        job.log().contains(&job.id().to_string()),
        "the build's facts are not in the cluster: {}",
        job.log()
    );
    agent.wait(JOB_BOUND).await.unwrap();
    let gone = world.gone(&job).await;
    assert_eq!(gone["end"]["code"], "released", "{}", job.log());
    agent
        .wait_until_nothing_lives(Duration::from_secs(10))
        .await
        .unwrap();
    let id = gone["id"].as_str().unwrap();
    assert_eq!(
        world
            .build
            .metadata(&format!("kubler:env:{}", job.id()))
            .as_deref(),
        Some(id)
    );
    assert!(
        world
            .build
            .annotations()
            .iter()
            .any(|annotation| annotation.body.contains(id)),
        "{:?}",
        world.build.annotations()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_job_keeps_its_code_and_loses_its_cluster() {
    let world = World::with_lease(20).await;
    let job = world.job("kubectl get namespaces && exit 7");
    let _agent = world.agent(&job).start();
    let record = job.wait_until_over(JOB_BOUND).await.unwrap();
    assert_eq!(record.exit_status, Some(7), "{}", job.log());
    assert_eq!(world.gone(&job).await["end"]["code"], "released");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_outlives_its_lease_is_renewed_and_a_cancelled_one_is_released() {
    let world = World::with_lease(12).await;
    let job = world.job("kubectl get namespaces; echo wait''ing; sleep 16; kubectl create namespace late; echo re''newed; sleep 100");
    let _agent = world.agent(&job).start();
    job.wait_for_log("renewed", JOB_BOUND).await.unwrap();
    assert!(
        job.log().contains("namespace/late created"),
        "{}",
        job.log()
    );
    job.cancel();
    job.wait_until_over(JOB_BOUND).await.unwrap();
    assert_eq!(
        world.gone(&job).await["end"]["code"],
        "released",
        "{}",
        job.log()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_ignores_its_end_does_not_keep_its_cluster() {
    let world = World::with_lease(20).await;
    let job = world.job("kubectl get namespaces; trap '' TERM HUP INT; echo wait''ing; for i in $(seq 300); do sleep 1; done");
    let _agent = world
        .agent(&job)
        .option("--cancel-grace-period", "3")
        .start();
    job.wait_for_log("waiting", JOB_BOUND).await.unwrap();
    job.cancel();
    world.gone(&job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_agent_is_killed_alone_loses_its_cluster() {
    for terminal in [true, false] {
        let world = World::with_lease(20).await;
        let job = world.job("kubectl get namespaces; echo wait''ing; sleep 300");
        let draft = world.agent(&job);
        let mut agent = if terminal { draft } else { draft.without_pty() }.start();
        job.wait_for_log("waiting", JOB_BOUND).await.unwrap();
        agent.kill();
        world.gone(&job).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_killed_with_everything_loses_its_cluster() {
    // Nobody renews while a job waits for its cluster, which takes its time on a busy machine.
    let world = World::with_lease(20).await;
    let job = world.job("kubectl get namespaces; echo wait''ing; sleep 300");
    let mut agent = world.agent(&job).start();
    job.wait_for_log("waiting", JOB_BOUND).await.unwrap();
    agent.kill_with_children();
    assert_eq!(world.gone(&job).await["end"]["code"], "lapsed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_other_hook_fails_loses_its_cluster() {
    let world = World::with_lease(20).await;
    let failing = GitRepository::from_files(
        "failing-buildkite-plugin",
        &[
            (
                "plugin.yml",
                "name: failing\ndescription: fails\nauthor: test\nrequirements: []\nconfiguration: {}\n",
            ),
            ("hooks/pre-command", "#!/bin/sh\nexit 3\n"),
        ],
    );
    let configuration =
        json!({ "server": world.server.url(), "profile": "ci-small", "ca": world.server.ca() });
    let draft = world
        .build
        .job("test")
        .command("true")
        .plugin(&world.plugin.plugin_reference(), configuration);
    let job = draft
        .plugin(&failing.plugin_reference(), Value::Null)
        .create();
    let _agent = world.agent(&job).start();
    let record = job.wait_until_over(JOB_BOUND).await.unwrap();
    assert_eq!(record.exit_status, Some(3), "{}", job.log());
    assert_eq!(world.gone(&job).await["end"]["code"], "released");
}
