//! What every engine promises, said once and asked of each of them.

use kubler_testkit::buildkite::{Build, Buildkite, Job};
use kubler_testkit::kubler::{Answer, Server};
use reqwest::Method;
use serde_json::{Value, json};

use crate::LONG;
use crate::namespace::hosted::Hosted;

/// Where environments of one engine live.
enum World {
    Local {
        server: Box<Server>,
        build: Build,
        _buildkite: Box<Buildkite>,
    },
    Namespace(Box<Hosted>),
}

impl World {
    async fn local() -> Self {
        let buildkite = Buildkite::start();
        Self::Local {
            server: Box::new(Server::of(&buildkite).start().await),
            build: buildkite.build("app").start(),
            _buildkite: Box::new(buildkite),
        }
    }

    fn server(&mut self) -> &mut Server {
        match self {
            Self::Local { server, .. } => server,
            Self::Namespace(hosted) => &mut hosted.server,
        }
    }

    fn job(&self) -> Job {
        match self {
            Self::Local { build, .. } => build.job("test").run(),
            Self::Namespace(hosted) => hosted.build.job("test").run(),
        }
    }

    /// What of environments is in the world.
    fn left(&self) -> Vec<String> {
        match self {
            Self::Local { server, .. } => server
                .control_planes()
                .into_iter()
                .map(|process| process.command)
                .collect(),
            Self::Namespace(hosted) => hosted.left(),
        }
    }
}

/// An environment and its job.
struct One {
    job: Job,
    id: String,
    /// Where the job works when it names no namespace.
    namespace: String,
}

impl One {
    fn of(job: Job, made: &Value) -> Self {
        Self {
            job,
            id: made["id"].as_str().unwrap().to_owned(),
            namespace: made["namespace"].as_str().unwrap_or("default").to_owned(),
        }
    }

    fn path(&self, below: &str) -> String {
        format!(
            "/k8s/{}/api/v1/namespaces/{}/{below}",
            self.id, self.namespace
        )
    }
}

async fn ask(
    server: &Server,
    session: &str,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Answer {
    server.request(method, path, Some(session), body).await
}

async fn create(server: &Server, job: &Job) -> Answer {
    let body = json!({ "profile": "ci-small", "name": "main", "wait_seconds": 60 });
    let token = server.token(job);
    server
        .request(Method::POST, "/v1/environments", Some(&token), Some(&body))
        .await
}

async fn every_promise_holds(mut world: World) {
    let one = asked_at_once_it_is_one(&mut world).await;
    let other = world.job();
    let made = world.server().create(&other, "main").await;
    let other = One::of(other, &made);
    two_are_strangers(&mut world, &one, &other).await;
    a_kill_of_the_server_ends_nothing(&mut world, &one).await;
    a_release_is_an_end_at_once_and_without_a_trace(&mut world, &[&one, &other]).await;
}

async fn asked_at_once_it_is_one(world: &mut World) -> One {
    let job = world.job();
    let server = world.server();
    let (first, second) = tokio::join!(create(server, &job), create(server, &job));
    assert_eq!(first.body["phase"], "ready", "{first:?}\n{}", server.log());
    assert_eq!(first.body["id"], second.body["id"], "{second:?}");
    let one = One::of(job, &first.body);
    let session = server.session(&one.job, &one.id).await;
    let facts = ask(
        server,
        &session,
        Method::GET,
        &one.path("configmaps/kubler-build"),
        None,
    )
    .await;
    assert_eq!(facts.status, 200, "{facts:?}");
    assert_eq!(facts.body["data"]["environment"], one.id.as_str());
    assert_eq!(facts.body["data"]["job"], one.job.id().to_string());
    one
}

async fn two_are_strangers(world: &mut World, one: &One, other: &One) {
    let server = world.server();
    let sessions = [
        server.session(&one.job, &one.id).await,
        server.session(&other.job, &other.id).await,
    ];
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mine"}});
    let made = ask(
        server,
        &sessions[0],
        Method::POST,
        &one.path("configmaps"),
        Some(&object),
    )
    .await;
    assert_eq!(made.status, 201, "{made:?}");
    // By its own way, by the other's, and by the other's session.
    let seen = ask(
        server,
        &sessions[1],
        Method::GET,
        &other.path("configmaps/mine"),
        None,
    )
    .await;
    assert_eq!(seen.status, 404, "{seen:?}");
    let seen = ask(
        server,
        &sessions[1],
        Method::GET,
        &one.path("configmaps/mine"),
        None,
    )
    .await;
    assert_eq!(seen.status, 403, "{seen:?}");
    let across = format!(
        "/k8s/{}/api/v1/namespaces/{}/configmaps/mine",
        other.id, one.namespace
    );
    let seen = ask(server, &sessions[1], Method::GET, &across, None).await;
    assert!([403, 404].contains(&seen.status.as_u16()), "{seen:?}");
}

async fn a_kill_of_the_server_ends_nothing(world: &mut World, one: &One) {
    let server = world.server();
    server.kill().await;
    server.restart().await;
    let session = server.session(&one.job, &one.id).await;
    let deadline = std::time::Instant::now() + LONG;
    loop {
        let seen = ask(
            server,
            &session,
            Method::GET,
            &one.path("configmaps/mine"),
            None,
        )
        .await;
        if seen.status == 200 {
            break;
        }
        // A credential that was in memory only is asked for again.
        assert!(
            seen.status == 503 && std::time::Instant::now() < deadline,
            "{seen:?}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let again = create(server, &one.job).await;
    assert_eq!(again.body["id"], one.id.as_str(), "nothing is made twice");
}

async fn a_release_is_an_end_at_once_and_without_a_trace(world: &mut World, all: &[&One]) {
    let server = world.server();
    for one in all {
        let session = server.session(&one.job, &one.id).await;
        let token = server.token(&one.job);
        let path = format!("/v1/environments/{}/release", one.id);
        let released = server
            .request(Method::POST, &path, Some(&token), None)
            .await;
        assert_eq!(released.status, 200, "{released:?}");
        let late = ask(server, &session, Method::GET, &one.path("configmaps"), None).await;
        assert_eq!(late.status, 404, "dead from the answer on: {late:?}");
    }
    for one in all {
        let gone = server
            .wait_for(&one.id, LONG, |it| it["phase"] == "gone")
            .await;
        assert_eq!(gone["end"]["code"], "released", "{gone}");
    }
    // Said after looking: it is so at once.
    assert_eq!(world.left(), [] as [String; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_of_its_own_control_plane_keeps_every_promise() {
    every_promise_holds(World::local().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_on_a_host_keeps_every_promise() {
    let hosted = Hosted::new(&[]).await;
    every_promise_holds(World::Namespace(Box::new(hosted))).await;
}
