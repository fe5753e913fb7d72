//! Connections: what has begun goes to its end, and whoever asks nothing keeps no place.

use std::time::{Duration, Instant};

use kubler_testkit::buildkite::Buildkite;
use kubler_testkit::kubler::Server;
use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::SOON;

/// How long a connection without a request may stay, with room for a busy machine.
const SILENCE_MAX: Duration = Duration::from_secs(30);

#[cfg(debug_assertions)]
#[tokio::test(flavor = "multi_thread")]
async fn a_release_goes_to_its_end_when_its_caller_hangs_up() {
    use kubler_server::crash::{HELD, HOLD_AT, Point};

    let buildkite = Buildkite::start();
    let mut server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let (id, session) = server.create_with_session(&job).await;
    // The server that is asked stops for a moment right behind the record of the release, before anything is done.
    let hold = server.folder().join("hold");
    std::fs::write(&hold, "").unwrap();
    server.stop().await;
    let held_at = format!("{}={}", Point::ReleaseBegun.name(), hold.display());
    server.launch(&[(HOLD_AT, &held_at)]);
    server.wait_until_it_answers().await;

    let (address, ca) = (
        server.url().trim_start_matches("https://"),
        std::fs::read(server.ca()).unwrap(),
    );
    let mut caller = kubler_testkit::tls::connect(address, &ca).await;
    let token = server.token(&job);
    let release = format!(
        "POST /v1/environments/{id}/release HTTP/1.1\r\nHost: kubler\r\nAuthorization: Bearer {token}\r\nContent-Length: 0\r\n\r\n"
    );
    caller.write_all(release.as_bytes()).await.unwrap();
    let held = server.folder().join(format!("hold{HELD}"));
    let deadline = Instant::now() + SOON;
    while !held.exists() {
        assert!(
            Instant::now() < deadline,
            "it has not begun: {}",
            server.log()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(caller);
    std::fs::remove_file(&hold).unwrap();
    server.wait_until_gone(&id, SOON).await;
    assert_eq!(server.reads(&id, &session).await, 404);
    server.wait_until_no_control_plane(SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_request_is_answered_before_the_server_stops() {
    let buildkite = Buildkite::start();
    let mut server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let body = json!({ "profile": "ci-small", "name": "main", "wait_seconds": 60 });
    let create = server
        .client()
        .post(format!("{}/v1/environments", server.url()))
        .bearer_auth(server.token(&job))
        .json(&body);
    let made = tokio::spawn(create.send());
    let deadline = Instant::now() + SOON;
    while server.control_planes().is_empty() {
        assert!(
            Instant::now() < deadline,
            "it is not being made: {}",
            server.log()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.stop().await;
    let made = made
        .await
        .unwrap()
        .expect("an answer, although the server stops");
    assert_eq!(made.status(), 200);
    let made: serde_json::Value = made.json().await.unwrap();
    assert_eq!(made["phase"], "ready", "{made:#}");
    server.restart().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_keeps_no_place_and_does_nothing() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let (address, ca) = (
        server.url().trim_start_matches("https://"),
        std::fs::read(server.ca()).unwrap(),
    );
    let mut stream = kubler_testkit::tls::connect(address, &ca).await;
    let head = format!(
        "POST /v1/environments HTTP/1.1\r\nHost: kubler\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: 25\r\n\r\n{{\"profile\":",
        server.token(&job)
    );
    tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes())
        .await
        .unwrap();
    let mut answer = [0; 12];
    let answered = tokio::time::timeout(SILENCE_MAX, stream.read_exact(&mut answer)).await;
    answered.expect("an answer").unwrap();
    assert_eq!(&answer, b"HTTP/1.1 400");
    let listed = server.operator(Method::GET, "/v1/environments").await;
    assert_eq!(listed.body["environments"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_nothing_keeps_no_place() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let address = server.url().trim_start_matches("https://").to_owned();
    let silent = |hello: Option<&'static [u8]>| {
        let (address, ca) = (address.clone(), std::fs::read(server.ca()).unwrap());
        async move {
            let mut stream = kubler_testkit::tls::connect(&address, &ca).await;
            if let Some(hello) = hello {
                tokio::io::AsyncWriteExt::write_all(&mut stream, hello)
                    .await
                    .unwrap();
            }
            let mut rest = Vec::new();
            let ended = tokio::time::timeout(SILENCE_MAX, stream.read_to_end(&mut rest)).await;
            assert!(ended.is_ok(), "the connection is still open");
        }
    };
    // Says nothing; begins a request and never ends it; speaks HTTP/2 and asks nothing.
    tokio::join!(
        silent(None),
        silent(Some(b"GET /healthz HTTP/1.1\r\nHost: kub")),
        silent(Some(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"
        )),
    );
    assert_eq!(
        server
            .request(Method::GET, "/healthz", None, None)
            .await
            .status,
        200
    );
}
