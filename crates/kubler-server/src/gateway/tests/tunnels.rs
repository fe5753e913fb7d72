//! Connections whose protocol was changed: what passes, and what ends them.

use std::net::SocketAddr;
use std::time::Duration;

use kubler_core::environment::EndReason;
use kubler_core::frames::websocket::{self, Frames, Kind, Sender};
use kubler_core::ledger::record::Outcome;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use super::upstream::Switched;
use super::world::World;

const EXEC: &str = "/api/v1/namespaces/a/pods/b/exec?command=id&stdin=true&stdout=true";
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// As long as anything may take.
const SOON: Duration = Duration::from_secs(60);

/// One side of a WebSocket, as strict as can be.
pub(super) struct Side<S> {
    pub(super) stream: S,
    reads: Frames,
    writes: Sender,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Side<S> {
    pub(super) fn client(stream: S) -> Self {
        let reads = Frames::new(Sender::Server);
        Self {
            stream,
            reads,
            writes: Sender::Client,
        }
    }

    pub(super) fn server(stream: S) -> Self {
        let reads = Frames::new(Sender::Client);
        Self {
            stream,
            reads,
            writes: Sender::Server,
        }
    }

    pub(super) async fn say(&mut self, kind: Kind, payload: &[u8]) {
        self.write(&websocket::message(self.writes, kind, payload))
            .await;
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The next message; none when the other side has gone.
    pub(super) async fn hear(&mut self) -> Option<(Kind, Vec<u8>)> {
        let mut message: Option<(Kind, Vec<u8>)> = None;
        loop {
            let read = tokio::time::timeout(SOON, self.stream.read_u8())
                .await
                .expect("something comes");
            let Ok(byte) = read else {
                assert!(
                    self.reads.is_between_messages(),
                    "it broke off in the middle of a frame"
                );
                return None;
            };
            self.reads
                .read(&[byte], |part| {
                    let (_, bytes) = message.get_or_insert((part.kind, Vec::new()));
                    bytes.extend_from_slice(&part.payload());
                })
                .expect("WebSocket");
            if self.reads.is_between_messages() {
                return message;
            }
        }
    }
}

/// What a client sends to change the protocol.
pub(super) fn asking(world: &World, below: &str, more: &str) -> String {
    let token = world.session(100_000);
    format!(
        "GET /k8s/{}{below} HTTP/1.1\r\nHost: kubler\r\nAuthorization: Bearer {token}\r\n{more}\r\n",
        world.id
    )
}

pub(super) fn websocket_headers(offered: &str) -> String {
    format!(
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Protocol: {offered}\r\n"
    )
}

/// Sends a request and reads the head of its answer.
pub(super) async fn ask(door: SocketAddr, request: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(door).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = tokio::time::timeout(SOON, stream.read_u8())
            .await
            .expect("an answer")
            .unwrap();
        head.push(byte);
    }
    (stream, String::from_utf8(head).unwrap())
}

/// A WebSocket through the gateway, both sides of it.
pub(super) async fn open(
    world: &World,
    below: &str,
    offered: &str,
) -> (Side<TcpStream>, Side<Switched>) {
    let mut tunnels = world.upstream.tunnels();
    let door = world.door().await;
    let (stream, head) = ask(door, &asking(world, below, &websocket_headers(offered))).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let upstream = next_tunnel(&mut tunnels).await;
    (Side::client(stream), Side::server(upstream))
}

async fn next_tunnel(tunnels: &mut UnboundedReceiver<Switched>) -> Switched {
    tokio::time::timeout(SOON, tunnels.recv())
        .await
        .expect("the protocol is changed")
        .unwrap()
}

async fn exec(world: &World) -> (Side<TcpStream>, Side<Switched>) {
    open(world, EXEC, "v5.channel.k8s.io, v4.channel.k8s.io").await
}

/// Reads the end that we make: a Status on the error channel and a close that says the same.
async fn end(client: &mut Side<TcpStream>) -> Value {
    let (kind, payload) = client.hear().await.expect("a status");
    assert_eq!((kind, payload[0]), (Kind::Binary, 3));
    let status: Value = serde_json::from_slice(&payload[1..]).unwrap();
    let (kind, payload) = client.hear().await.expect("a close");
    assert_eq!(
        (kind, &payload[..2]),
        (Kind::Close, &1008_u16.to_be_bytes()[..])
    );
    let reason = std::str::from_utf8(&payload[2..]).unwrap();
    let message = status["message"].as_str().unwrap();
    assert!(
        message.starts_with(reason.trim_end_matches("...")),
        "{reason}"
    );
    assert_eq!(client.hear().await, None);
    status
}

#[tokio::test]
async fn exec_passes_both_ways_and_its_end_is_recorded() {
    let world = World::new().await;
    let (mut client, mut upstream) = exec(&world).await;
    client.say(Kind::Binary, b"\0hello").await;
    assert_eq!(
        upstream.hear().await,
        Some((Kind::Binary, b"\0hello".to_vec()))
    );
    upstream.say(Kind::Binary, b"\x01out").await;
    assert_eq!(
        client.hear().await,
        Some((Kind::Binary, b"\x01out".to_vec()))
    );
    let failed = br#"{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;
    upstream
        .say(Kind::Binary, &[&[3], failed.as_slice()].concat())
        .await;
    let (_, payload) = client.hear().await.unwrap();
    assert_eq!(&payload[1..], failed);
    upstream
        .write(&websocket::close(Sender::Server, 1000, ""))
        .await;
    assert_eq!(client.hear().await.unwrap().0, Kind::Close);
    drop(upstream);
    assert_eq!(client.hear().await, None);
    drop(client);
    let outcome = world.outcome().await;
    let upgraded = outcome.upgraded.clone().unwrap();
    assert_eq!(
        (
            upgraded.protocol.as_str(),
            upgraded.subprotocol.as_deref(),
            upgraded.exit_code
        ),
        ("websocket", Some("v5.channel.k8s.io"), Some(7))
    );
    assert_eq!(
        (outcome.status, outcome.close_reason.as_deref()),
        (101, Some("upstream"))
    );
    let Outcome {
        bytes_in,
        bytes_out,
        ..
    } = outcome;
    assert_eq!(bytes_in, 12); // a head of 2 bytes, a mask of 4, and 6
    assert_eq!(bytes_out, 6 + 3 + failed.len() as u64 + 4);
}

#[tokio::test]
async fn e2_a_released_environment_ends_exec_at_once_and_says_why() {
    let world = World::new().await;
    let (mut client, upstream) = exec(&world).await;
    let released = Instant::now();
    world.release(EndReason::Released);
    let status = end(&mut client).await;
    assert_eq!(
        (&status["code"], &status["reason"]),
        (&404.into(), &"NotFound".into())
    );
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("its job released it")
    );
    assert!(
        released.elapsed() < Duration::from_secs(1),
        "{:?}",
        released.elapsed()
    );
    let mut upstream = upstream.stream;
    assert!(
        !matches!(upstream.read(&mut [0]).await, Ok(1..)),
        "the API server hears of it"
    );
    assert_eq!(
        world.outcome().await.close_reason.as_deref(),
        Some("released")
    );
}
