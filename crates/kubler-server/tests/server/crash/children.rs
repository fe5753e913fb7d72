//! What the server starts is killed, at each stage of an environment: it is noticed, it is told, and what can go on
//! goes on. Control planes and etcd are all that a server starts.

use std::time::{Duration, Instant};

use kubler_testkit::buildkite::{Buildkite, Job};
use kubler_testkit::kubler::Server;
use kubler_testkit::leaks::Process;
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::aftermath::{is_told, leaves_nothing, nothing_is_left};
use crate::SOON;

/// How long everything may take on a busy machine.
const BOUND: Duration = Duration::from_secs(90);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Child {
    Etcd,
    ControlPlane,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Making,
    Using,
    Ending,
}

#[tokio::test(flavor = "multi_thread")]
async fn l9_a_child_killed_at_any_stage_is_noticed_and_told_and_what_can_goes_on() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let build = buildkite.build("app").start();
    // The neighbour of all that happens: it must come through.
    let neighbour = build.job("neighbour").run();
    let (its_id, its_session) = server.create_with_session(&neighbour).await;
    let its_plane = server.control_planes();
    for child in [Child::ControlPlane, Child::Etcd] {
        for stage in [Stage::Making, Stage::Using, Stage::Ending] {
            println!("{child:?} while {stage:?}");
            let job = build.job("test").run();
            let gone = kill(&server, child, stage, &job, &its_plane).await;
            let id = gone["id"].as_str().unwrap();
            let broke = child == Child::ControlPlane && stage == Stage::Using;
            let code = if broke { "failed" } else { "released" };
            assert_eq!(gone["end"]["code"], code, "{gone}");
            nothing_is_left(&server, id).await;
            is_told(&server, &job, id).await;
            serves(&server, &its_id, &its_session).await;
            assert_eq!(server.control_planes(), its_plane, "the neighbour suffered");
        }
    }
    server.release_and_wait(&neighbour, &its_id).await;
    leaves_nothing(server).await;
}

/// Kills the child at that stage; gives the environment once it is gone.
async fn kill(server: &Server, child: Child, stage: Stage, job: &Job, others: &[Process]) -> Value {
    let victim = || {
        let processes = server.processes().into_iter();
        let mut fitting = processes.filter(|process| match child {
            Child::Etcd => process.command.contains("/etcd "),
            Child::ControlPlane => process.command.contains("kubler-control-plane"),
        });
        fitting.find(|process| !others.contains(process))
    };
    let told = match child {
        Child::Etcd => "etcd ended; it is started again",
        Child::ControlPlane => "a control plane ended while it started",
    };
    let before = server.log().matches(told).count();
    let id = if stage == Stage::Making {
        let body = json!({ "profile": "ci-small", "name": "main" });
        let token = server.token(job);
        let asked = server.request(Method::POST, "/v1/environments", Some(&token), Some(&body));
        asked.await.body["id"].as_str().unwrap().to_owned()
    } else {
        let made = server.create(job, "main").await;
        made["id"].as_str().unwrap().to_owned()
    };
    if stage == Stage::Ending {
        assert_eq!(server.release(job, &id).await.status, 200);
    }
    let deadline = Instant::now() + BOUND;
    loop {
        if let Some(victim) = victim() {
            victim.signal(Signal::KILL);
            break;
        }
        // An environment that ends takes its control plane away before anybody else can.
        if stage == Stage::Ending {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "there is no {child:?}: {}",
            server.log()
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // The end of one that was in use is told by its environment, and who ends one does not wonder.
    let is_logged = child == Child::Etcd || stage == Stage::Making;
    while is_logged && server.log().matches(told).count() == before {
        assert!(
            Instant::now() < deadline,
            "nobody noticed: {}",
            server.log()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    match (child, stage) {
        (Child::ControlPlane, Stage::Using) => {
            let gone = server.wait_until_gone(&id, SOON).await;
            let why = gone["end"]["message"].as_str().unwrap();
            assert!(
                why.contains("its control plane was ended by signal 9"),
                "{why}"
            );
            gone
        }
        (_, Stage::Making | Stage::Using) => {
            let made = server.create(job, "main").await;
            assert_eq!(made["id"], *id, "another environment was made");
            let session = server.session(job, &id).await;
            serves(server, &id, &session).await;
            server.release_and_wait(job, &id).await
        }
        (_, Stage::Ending) => server.wait_until_gone(&id, BOUND).await,
    }
}

/// The environment serves again, as soon as its API server has found etcd again: what it refuses meanwhile is clear.
async fn serves(server: &Server, id: &str, session: &str) {
    let deadline = Instant::now() + BOUND;
    loop {
        let status = server.reads(id, session).await;
        if status == 200 {
            return;
        }
        assert!(
            status >= 500,
            "{status} is no answer of one that waits for etcd"
        );
        assert!(
            Instant::now() < deadline,
            "still {status}: {}",
            server.log()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
