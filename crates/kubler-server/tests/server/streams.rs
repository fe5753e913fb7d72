//! What one HTTP/2 connection may have at once, and what becomes of streams that are given up or never read.

use std::future::poll_fn;
use std::time::{Duration, Instant};

use h2::Reason;
use h2::client::{Builder, SendRequest};
use http::{Request, StatusCode};
use kubler_testkit::buildkite::Buildkite;
use kubler_testkit::kubler::Server;
use kubler_testkit::tls;
use reqwest::Method;
use tokio::task::JoinHandle;

use crate::hostile_network::{counted, records, until};
use crate::{LONG, metric};

/// Streams at once, bytes of headers, and bytes that one stream and one connection may send before they are read.
const STREAMS: usize = 100;
const HEADER_BYTES: usize = 16 * 1024;
const STREAM_BYTES: usize = 256 * 1024;
const CONNECTION_BYTES: usize = 512 * 1024;
/// Deeds of one job in a row, and with each second.
const DEEDS: usize = 500;
const DEEDS_PER_SECOND: u64 = 10;

type Sender = SendRequest<bytes::Bytes>;

/// A connection whose answers take up to `window` bytes before they are read, and the task that drives it.
async fn connection(server: &Server, window: u32) -> (Sender, JoinHandle<()>) {
    let ca = std::fs::read(server.ca()).unwrap();
    let address = server.url().trim_start_matches("https://");
    let stream = tls::connect(address, &ca).await;
    let mut builder = Builder::new();
    builder
        .initial_window_size(window)
        .max_concurrent_reset_streams(0);
    let (sender, driver) = builder.handshake(stream).await.unwrap();
    let driven = tokio::spawn(async move { drop(driver.await) });
    (sender.ready().await.unwrap(), driven)
}

fn request(method: Method, server: &Server, path: &str) -> http::request::Builder {
    let uri = format!("{}{path}", server.url());
    Request::builder().method(method).uri(uri)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http2_connection_has_the_bounds_that_are_stated() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let (mut sender, driven) = connection(&server, 65_535).await;
    let get = request(Method::GET, &server, "/healthz").body(()).unwrap();
    let (answer, _) = sender.send_request(get, true).unwrap();
    assert_eq!(answer.await.unwrap().status(), StatusCode::OK);
    assert_eq!(sender.current_max_send_streams(), STREAMS);

    let long = request(Method::GET, &server, "/healthz").header("x-long", "x".repeat(HEADER_BYTES));
    let (answer, _) = sender.send_request(long.body(()).unwrap(), true).unwrap();
    let status = answer.await.map(|answer| answer.status());
    assert_eq!(status.unwrap(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);

    // Nothing is sent, so what may be sent is all there is.
    let mut open = Vec::new();
    let mut granted = Vec::new();
    for _ in 0..3 {
        let post = request(Method::POST, &server, "/v1/token")
            .body(())
            .unwrap();
        let (answer, mut body) = sender.send_request(post, false).unwrap();
        body.reserve_capacity(4 * CONNECTION_BYTES);
        let capacity = poll_fn(|context| body.poll_capacity(context));
        let capacity = tokio::time::timeout(Duration::from_millis(200), capacity).await;
        granted.push(capacity.map_or(0, |capacity| capacity.unwrap().unwrap()));
        open.push((answer, body));
    }
    assert_eq!(
        granted,
        [
            STREAM_BYTES,
            STREAM_BYTES,
            CONNECTION_BYTES - 2 * STREAM_BYTES
        ]
    );
    driven.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_no_answer_keeps_no_place() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    // Pings are answered by its driver for as long as it lives; the bytes of an answer have no way to come.
    let (mut sender, driven) = connection(&server, 0).await;
    let get = request(Method::GET, &server, "/k8s/env_0/api/v1/namespaces");
    let (answer, _) = sender.send_request(get.body(()).unwrap(), true).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    let closed = tokio::time::timeout(LONG, driven).await;
    assert!(closed.is_ok(), "the connection is still open");
    drop(answer);
}

#[tokio::test(flavor = "multi_thread")]
async fn deeds_whose_streams_are_given_up_hold_nobody_up() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let (greedy, other) = (
        buildkite.build("app").start().job("test").run(),
        buildkite.build("app").start().job("test").run(),
    );
    let made = server.create(&greedy, "main").await;
    let id = made["id"].as_str().unwrap();
    let bearer = format!("Bearer {}", server.token(&greedy));
    let begun = Instant::now();
    let flood = async {
        let (mut sender, mut driven) = connection(&server, 65_535).await;
        for _ in 0..100 {
            let mut streams = Vec::new();
            for _ in 0..20 {
                let path = format!("/v1/environments/{id}/renew");
                let post = request(Method::POST, &server, &path).header("authorization", &bearer);
                let sent = sender.send_request(post.body(()).unwrap(), true);
                streams.extend(sent.map(|(_, stream)| stream));
            }
            // Begun, and not over: only what was begun goes on without its caller.
            tokio::time::sleep(Duration::from_millis(5)).await;
            for mut stream in streams {
                stream.send_reset(Reason::CANCEL);
            }
            // Who gives up too many is thrown out, and comes again.
            if driven.is_finished() {
                (sender, driven) = connection(&server, 65_535).await;
            }
        }
        driven.abort();
    };
    let ((), made) = tokio::join!(flood, server.create(&other, "main"));
    assert_eq!(made["phase"], "ready", "{made}");
    // What was begun is over, and no more was begun than one job may do.
    until("all is answered", async || {
        metric(&server, "requests_open").await <= 1
    })
    .await;
    let renewed = records(&server, "environment.renew").await;
    let renewed = renewed
        .iter()
        .filter(|record| record["kind"] == "start")
        .count();
    let most = DEEDS + usize::try_from(begun.elapsed().as_secs() * DEEDS_PER_SECOND).unwrap();
    assert!(renewed <= most, "{renewed} deeds of one job");
    until("the others are counted", async || {
        counted(&server, "job_asks_too_often").await > 0
    })
    .await;
    // Its end is not stopped.
    assert_eq!(server.release(&greedy, id).await.status, 200);
}
