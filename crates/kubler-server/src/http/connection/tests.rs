use std::convert::Infallible;

use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::task::JoinHandle;

use super::*;

/// As long as a test may wait for anything.
const SOON: Duration = Duration::from_secs(60);
/// Shorter than any of hyper's own times, so that nothing but ours closes a connection here.
const PATIENCE: Patience = Patience {
    first: Duration::from_millis(300),
    rest: Duration::from_millis(300),
    goodbye: Duration::from_millis(100),
};
const PATIENT: Patience = Patience {
    first: Duration::from_secs(3600),
    rest: Duration::from_secs(3600),
    goodbye: Duration::from_millis(100),
};

/// A connection, seen from its client, with the task that ends with it.
struct Connection {
    client: DuplexStream,
    task: JoinHandle<()>,
    /// `/slow` is answered when this is cancelled.
    answer: CancellationToken,
    /// Cancelled when `/slow` was asked.
    asked: CancellationToken,
}

fn connection(patience: Patience, stop: &CancellationToken) -> Connection {
    let (client, server) = tokio::io::duplex(64 * 1024);
    let (stop, answer) = (stop.clone(), CancellationToken::new());
    let asked = CancellationToken::new();
    let (slow, begun) = (answer.clone(), asked.clone());
    let task = tokio::spawn(async move {
        let requests = Requests::default();
        let counted = requests.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let (open, slow, begun) = (counted.open(), slow.clone(), begun.clone());
            async move {
                if request.uri().path() == "/slow" {
                    begun.cancel();
                    slow.cancelled().await;
                }
                Ok::<_, Infallible>(Response::new(open.until_taken(Body::from("hello"))))
            }
        });
        let builder = crate::http::listen::protocols();
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(server), service);
        let leave = hyper_util::server::conn::auto::UpgradeableConnection::graceful_shutdown;
        drive(connection, leave, &requests, patience, &stop).await;
    });
    Connection {
        client,
        task,
        answer,
        asked,
    }
}

/// A client that answers pings for as long as the other side sends them.
async fn over_http2(stream: DuplexStream) -> SendRequest<String> {
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    sender
}

fn get(path: &str) -> Request<String> {
    let request = Request::get(format!("http://kubler{path}"));
    request.body(String::new()).unwrap()
}

async fn ends(task: JoinHandle<()>) {
    let ended = tokio::time::timeout(SOON, task).await;
    ended.expect("the connection ends").unwrap();
}

#[tokio::test]
async fn an_http2_connection_that_asked_once_and_then_only_answers_pings_is_closed() {
    let Connection { client, task, .. } = connection(PATIENCE, &CancellationToken::new());
    let mut sender = over_http2(client).await;
    let answer = sender.send_request(get("/")).await.unwrap();
    assert_eq!(answer.status(), 200);
    drop(answer);
    ends(task).await;
    assert!(sender.ready().await.is_err(), "it was told to go");
}

#[tokio::test]
async fn an_open_request_keeps_its_connection_and_gets_its_answer() {
    let open = connection(PATIENCE, &CancellationToken::new());
    let mut sender = over_http2(open.client).await;
    let asked = tokio::spawn(async move { sender.send_request(get("/slow")).await });
    // Another one, of the same patience, begins to rest later and is closed while the first one waits.
    let resting = connection(PATIENCE, &CancellationToken::new());
    let mut other = over_http2(resting.client).await;
    drop(other.send_request(get("/")).await.unwrap());
    ends(resting.task).await;
    assert!(!open.task.is_finished());
    open.answer.cancel();
    assert_eq!(asked.await.unwrap().unwrap().status(), 200);
    ends(open.task).await;
}

#[tokio::test]
async fn an_http1_connection_that_rests_is_closed() {
    let Connection {
        mut client, task, ..
    } = connection(PATIENCE, &CancellationToken::new());
    let hello = b"GET / HTTP/1.1\r\nHost: kubler\r\n\r\n";
    client.write_all(hello).await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    ends(task).await;
}

#[tokio::test]
async fn headers_that_come_byte_by_byte_keep_no_place() {
    let http1 = &b"GET / HTTP/1.1\r\nHost: kubler\r\nX-Slow: "[..];
    // The preface, settings, and the beginning of a long section of headers.
    let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\x40\0\x01\x04\0\0\0\x01";
    for hello in [http1, http2] {
        let Connection { client, task, .. } = connection(PATIENCE, &CancellationToken::new());
        let (mut answer, mut drip) = tokio::io::split(client);
        drip.write_all(hello).await.unwrap();
        let dripping = tokio::spawn(async move {
            while drip.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(SOON, answer.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "the connection is still open");
        ends(task).await;
        dripping.abort();
    }
}

#[tokio::test]
async fn a_stop_closes_what_rests_and_waits_for_what_is_open() {
    let stop = CancellationToken::new();
    let resting = connection(PATIENT, &stop);
    let mut other = over_http2(resting.client).await;
    drop(other.send_request(get("/")).await.unwrap());
    let open = connection(PATIENT, &stop);
    let mut sender = over_http2(open.client).await;
    let answer = tokio::spawn(sender.send_request(get("/slow")));
    open.asked.cancelled().await;
    stop.cancel();
    ends(resting.task).await;
    assert!(!open.task.is_finished());
    open.answer.cancel();
    assert_eq!(answer.await.unwrap().unwrap().status(), 200);
    ends(open.task).await;
}
