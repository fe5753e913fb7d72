//! kill -9, at any moment and to anything: nothing is leaked, nothing is made twice, nothing is lost.

mod aftermath;
mod children;
mod kills;
#[cfg(debug_assertions)]
mod points;

use kubler_testkit::buildkite::Buildkite;
use kubler_testkit::kubler::Server;
use reqwest::Method;
use rustix::process::Signal;

use crate::SOON;

#[tokio::test(flavor = "multi_thread")]
async fn environments_and_sessions_outlive_a_restart() {
    let buildkite = Buildkite::start();
    let mut server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let (id, session) = server.create_with_session(&job).await;
    let before = control_planes(&server);
    server.restart().await;
    assert_eq!(server.reads(&id, &session).await, 200);
    server.kill().await;
    server.restart().await;
    assert_eq!(server.reads(&id, &session).await, 200);
    assert_eq!(control_planes(&server), before, "it was started anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_whose_control_plane_dies_is_noticed_ended_and_explained() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let (id, session) = server.create_with_session(&job).await;
    for process in server.control_planes() {
        process.signal(Signal::KILL);
    }
    let gone = server.wait_until_gone(&id, SOON).await;
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
    let late = server.read(&id, &session, "/api/v1/namespaces").await;
    assert_eq!(late.status, 404);
    assert!(
        late.body["message"].as_str().unwrap().contains(why),
        "{late:?}"
    );
}

/// Each by what names it for ever; its parent changes with the server's restart.
fn control_planes(server: &Server) -> Vec<(i32, u64)> {
    let processes = server.control_planes().into_iter();
    processes
        .map(|process| (process.pid, process.start_ticks))
        .collect()
}
