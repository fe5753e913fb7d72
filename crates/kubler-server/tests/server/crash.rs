//! kill -9, at any moment and to anything: nothing is leaked, nothing is made twice, nothing is lost.

mod aftermath;
mod children;
mod kills;
#[cfg(debug_assertions)]
mod points;

use std::time::Duration;

use kubler_testkit::buildkite::Buildkite;
use kubler_testkit::kubler::Server;
use reqwest::Method;
use rustix::process::Signal;
use serde_json::json;

use crate::SOON;

#[tokio::test(flavor = "multi_thread")]
async fn l9_a_server_killed_while_it_makes_environments_goes_on_after_its_restart() {
    let buildkite = Buildkite::start();
    let mut server = Server::of(&buildkite).start().await;
    let build = buildkite.build("app").start();
    for milliseconds in [0, 40, 150, 400, 900] {
        let job = build.job("test").run();
        let body = json!({ "profile": "ci-small" });
        let asked = server
            .request(
                Method::POST,
                "/v1/environments",
                Some(&server.token(&job)),
                Some(&body),
            )
            .await;
        assert_eq!(asked.status, 200, "{asked:?}");
        let id = asked.body["id"].as_str().unwrap();
        tokio::time::sleep(Duration::from_millis(milliseconds)).await; // the moment of the kill, not a wait
        server.kill().await;
        server.restart().await;
        let retried = server.create(&job, "main").await;
        assert_eq!(retried["id"], id, "the retry made a second environment");
        assert_eq!(
            server.control_planes().len(),
            1,
            "{:#?}",
            server.control_planes()
        );
        let released = server
            .request(
                Method::POST,
                &format!("/v1/environments/{id}/release"),
                Some(&server.token(&job)),
                Some(&json!({ "wait_seconds": 30 })),
            )
            .await;
        assert_eq!(released.body["phase"], "gone", "{released:?}");
        assert!(server.control_planes().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn l9_a_server_killed_while_it_ends_environments_goes_on_after_its_restart() {
    let buildkite = Buildkite::start();
    let mut server = Server::of(&buildkite).start().await;
    let build = buildkite.build("app").start();
    for milliseconds in [0, 5, 20, 60] {
        let job = build.job("test").run();
        let environment = server.create(&job, "main").await;
        let id = environment["id"].as_str().unwrap();
        server
            .request(
                Method::POST,
                &format!("/v1/environments/{id}/release"),
                Some(&server.token(&job)),
                None,
            )
            .await;
        tokio::time::sleep(Duration::from_millis(milliseconds)).await; // the moment of the kill, not a wait
        server.kill().await;
        server.restart().await;
        server
            .wait_for(id, SOON, |environment| environment["phase"] == "gone")
            .await;
        assert!(
            server.control_planes().is_empty(),
            "{:#?}",
            server.control_planes()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn environments_and_sessions_outlive_a_restart() {
    let buildkite = Buildkite::start();
    let mut server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let environment = server.create(&job, "main").await;
    let id = environment["id"].as_str().unwrap();
    let session = server.session(&job, id).await;
    let before = control_planes(&server);
    server.restart().await;
    let read = server
        .request(
            Method::GET,
            &format!("/k8s/{id}/api/v1/namespaces"),
            Some(&session),
            None,
        )
        .await;
    assert_eq!(read.status, 200, "{read:?}");
    assert_eq!(
        control_planes(&server),
        before,
        "the control plane was started anew"
    );
    server.kill().await;
    server.restart().await;
    let read = server
        .request(
            Method::GET,
            &format!("/k8s/{id}/api/v1/namespaces"),
            Some(&session),
            None,
        )
        .await;
    assert_eq!(read.status, 200, "{read:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_whose_control_plane_dies_is_noticed_ended_and_explained() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let environment = server.create(&job, "main").await;
    let id = environment["id"].as_str().unwrap();
    let session = server.session(&job, id).await;
    for process in server.control_planes() {
        process.signal(Signal::KILL);
    }
    let gone = server
        .wait_for(id, SOON, |environment| environment["phase"] == "gone")
        .await;
    assert_eq!(gone["end"]["code"], "failed", "{gone}");
    // The same words for whoever asks: the job, its kubectl, and anybody who finds the id later.
    let why = "its control plane was ended by signal 9";
    let own = server
        .request(
            Method::GET,
            &format!("/v1/environments/{id}"),
            Some(&server.token(&job)),
            None,
        )
        .await;
    let tombstone = server
        .request(Method::GET, &format!("/v1/tombstones/{id}"), None, None)
        .await;
    for told in [&gone, &own.body, &tombstone.body] {
        let message = told["end"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(why), "{told}");
    }
    let late = server
        .request(
            Method::GET,
            &format!("/k8s/{id}/api/v1/namespaces"),
            Some(&session),
            None,
        )
        .await;
    assert_eq!(late.status, 404);
    assert!(
        late.body["message"].as_str().unwrap().contains(why),
        "{late:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_etcd_is_started_again_and_environments_can_be_made() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let build = buildkite.build("app").start();
    let job = build.job("test").run();
    server.create(&job, "main").await;
    let etcd = server
        .processes()
        .into_iter()
        .find(|process| process.command.contains("/etcd"))
        .expect("an etcd");
    etcd.signal(Signal::KILL);
    let other = build.job("other").run();
    let body = json!({ "profile": "ci-small", "wait_seconds": 60 });
    let made = server
        .request(
            Method::POST,
            "/v1/environments",
            Some(&server.token(&other)),
            Some(&body),
        )
        .await;
    assert_eq!(made.body["phase"], "ready", "{made:?}\n{}", server.log());
}

/// Each by what names it for ever; its parent changes with the server's restart.
fn control_planes(server: &Server) -> Vec<(i32, u64)> {
    let processes = server.control_planes().into_iter();
    processes
        .map(|process| (process.pid, process.start_ticks))
        .collect()
}
