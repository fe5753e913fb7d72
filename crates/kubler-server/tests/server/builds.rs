//! `scope: build`: one job makes an environment, others of its build use it by name, a last one ends it; with the real
//! agent and the plugin.

use kubler_testkit::buildkite::{Build, Job};
use reqwest::Method;
use serde_json::{Value, json};

use crate::buildkite_jobs::{JOB_BOUND, World};

fn shared(keys: &Value) -> Value {
    let mut all = json!({ "name": "shared", "scope": "build" });
    if let (Some(all), Some(keys)) = (all.as_object_mut(), keys.as_object()) {
        all.extend(keys.clone());
    }
    all
}

/// Runs a job to its end; its exit status.
async fn ran(world: &World, job: &Job) -> Option<i32> {
    let mut agent = world.agent(job).start();
    let record = job.wait_until_over(JOB_BOUND).await.unwrap();
    agent.wait(JOB_BOUND).await.unwrap();
    record.exit_status
}

fn step(world: &World, build: &Build, key: &str, command: &str, keys: &Value) -> Job {
    world.job_of(build, key, command, shared(keys))
}

/// The environments that a search as an operator finds.
async fn found(world: &World, query: &str) -> Vec<Value> {
    let path = format!("/v1/environments?{query}");
    let listed = world.server.operator(Method::GET, &path).await;
    listed.body["environments"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn c8_three_steps_of_a_build_share_one_environment_and_the_last_one_ends_it() {
    let world = World::with(120, JOB_BOUND).await;
    let build = &world.build;
    let deploy = step(
        &world,
        build,
        "deploy",
        "kubectl create namespace deployed",
        &json!({}),
    );
    assert_eq!(ran(&world, &deploy).await, Some(0), "{}", deploy.log());
    assert!(
        deploy
            .log()
            .contains("is left to the other jobs of this build; it ends at"),
        "{}",
        deploy.log()
    );

    let attach = json!({ "attach": true });
    let test =
        "kubectl get namespace deployed && kubectl create namespace from-$BUILDKITE_STEP_KEY";
    let tests = ["one", "two"].map(|key| step(&world, build, key, test, &attach));
    let (one, two) = tokio::join!(ran(&world, &tests[0]), ran(&world, &tests[1]));
    assert_eq!(
        (one, two),
        (Some(0), Some(0)),
        "{}\n{}",
        tests[0].log(),
        tests[1].log()
    );

    let last = json!({ "attach": true, "release": true });
    let teardown = step(
        &world,
        build,
        "teardown",
        "kubectl get namespaces from-one from-two",
        &last,
    );
    assert_eq!(ran(&world, &teardown).await, Some(0), "{}", teardown.log());
    let gone = world.gone(&teardown).await;
    assert_eq!(gone["end"]["code"], "released", "{}", teardown.log());

    // One environment, made by the first job and found by each of them.
    let jobs = [&deploy, &tests[0], &tests[1], &teardown];
    for job in jobs {
        let of_job = found(&world, &format!("job={}", job.id())).await;
        assert_eq!(of_job.len(), 1, "{of_job:?}");
        assert_eq!(of_job[0]["id"], gone["id"]);
        assert_eq!(of_job[0]["owner"]["job_id"], deploy.id().to_string());
    }
    let attached: Vec<_> = gone["attached"]
        .as_array()
        .unwrap()
        .iter()
        .map(|job| job["step_key"].clone())
        .collect();
    assert_eq!(attached.len(), 3, "{attached:?}");
    assert_eq!(attached[2], "teardown");
    let traced = world.server.cli(&["trace", &tests[1].id().to_string()]);
    let traced = String::from_utf8_lossy(&traced.stdout).into_owned();
    for job in jobs {
        assert!(traced.contains(&job.id().to_string()), "{traced}");
    }
    each_is_in_the_ledger(&world, &gone, &jobs).await;
}

/// What each job did with the environment is written down under its own identity.
async fn each_is_in_the_ledger(world: &World, environment: &Value, jobs: &[&Job]) {
    for job in jobs {
        let path = format!("/v1/ledger/records?job={}", job.id());
        let records = world.server.operator(Method::GET, &path).await.body["records"].clone();
        for action in ["environment.create", "session.issue", "kubernetes.request"] {
            let found = records.as_array().unwrap().iter().any(|record| {
                record["action"] == action && record["environment_id"] == environment["id"]
            });
            assert!(found, "{action}: {records:#}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_environment_lapses_when_its_build_dies_between_the_steps() {
    let world = World::with(6, JOB_BOUND).await;
    let deploy = step(
        &world,
        &world.build,
        "deploy",
        "kubectl get namespaces",
        &json!({}),
    );
    assert_eq!(ran(&world, &deploy).await, Some(0), "{}", deploy.log());
    let gone = world.gone(&deploy).await;
    assert_eq!(gone["end"]["code"], "lapsed");
    // Whoever comes late is told so, and gets no empty one in its place.
    let late = step(
        &world,
        &world.build,
        "test",
        "echo it ra''n",
        &json!({ "attach": true }),
    );
    assert_ne!(ran(&world, &late).await, Some(0));
    assert!(
        late.log().contains("gave no sign of life for one lease"),
        "{}",
        late.log()
    );
    assert!(!late.log().contains("it ran"), "{}", late.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn c8_a_job_of_another_build_or_pipeline_attaches_to_nothing_by_the_same_name() {
    let world = World::with(120, JOB_BOUND).await;
    let deploy = step(
        &world,
        &world.build,
        "deploy",
        "kubectl get namespaces",
        &json!({}),
    );
    assert_eq!(ran(&world, &deploy).await, Some(0), "{}", deploy.log());
    let made = found(&world, &format!("job={}", deploy.id())).await[0].clone();
    for build in [
        world.buildkite.build("app").start(),
        world.buildkite.build("web").start(),
    ] {
        let job = step(&world, &build, "test", "true", &json!({ "attach": true }));
        assert_ne!(ran(&world, &job).await, Some(0));
        assert!(
            job.log()
                .contains("no job of this build has made an environment `shared`"),
            "{}",
            job.log()
        );
        assert!(found(&world, &format!("job={}", job.id())).await.is_empty());
        // Neither by its id.
        let other = build.job("direct").run();
        let id = made["id"].as_str().unwrap();
        let session = world.server.exchange(&world.server.token(&other), id).await;
        assert_eq!(session.status, 404, "{session:?}");
        for action in ["renew", "release"] {
            let path = format!("/v1/environments/{id}/{action}");
            let token = world.server.token(&other);
            let body = json!({});
            let refused = world
                .server
                .request(Method::POST, &path, Some(&token), Some(&body))
                .await;
            assert_eq!(refused.status, 404, "{refused:?}");
        }
    }
    let now = world.server.environment(made["id"].as_str().unwrap()).await;
    assert_eq!(
        (&now["phase"], &now["attached"]),
        (&json!("ready"), &Value::Null)
    );
}
