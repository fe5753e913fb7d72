//! Connections whose protocol was changed: what passes, and what ends them.
#![allow(
    clippy::await_holding_lock,
    reason = "a disk is slow for as long as its lock is held"
)]

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{Request, StatusCode};
use kubler_core::environment::EndReason;
use kubler_core::frames::spdy;
use kubler_core::frames::websocket::{self, Frames, Kind, Sender};
use kubler_core::ledger::record::{Kind as RecordKind, Outcome};
use kubler_core::profile::StreamEnd;
use rstest::rstest;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use super::upstream::Switched;
use super::world::{EnvironmentScope, World, at, eventually, next, read, records};
use crate::gateway::Bounds;
use crate::gateway::direction::Patience;

const EXEC: &str = "/api/v1/namespaces/a/pods/b/exec?command=id&stdin=true&stdout=true";
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// As long as anything may take.
pub(super) const SOON: Duration = Duration::from_secs(60);

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

pub(super) async fn next_tunnel(tunnels: &mut UnboundedReceiver<Switched>) -> Switched {
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

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.expect("it comes")
}

async fn upstream_is_closed(world: &World) {
    eventually(|| world.upstream.seen.open.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn h1_h5_an_upgrade_carries_our_identity_and_nothing_of_the_clients() {
    let world = World::new().await;
    let mut tunnels = world.upstream.tunnels();
    let more = format!(
        "{}Connection: authorization, audit-id\r\nSec-WebSocket-Extensions: permessage-deflate\r\nAudit-ID: mine\r\nCookie: a=b\r\nTE: trailers\r\nOrigin: https://elsewhere.example\r\nX-Remote-User: system:admin\r\n",
        websocket_headers("v5.channel.k8s.io")
    );
    let (_client, head) = ask(world.door().await, &asking(&world, EXEC, &more)).await;
    let _upstream = next_tunnel(&mut tunnels).await;
    let arrived = world.upstream.arrived().remove(0);
    assert_eq!(
        (arrived.method.as_str(), arrived.target.as_str()),
        ("GET", EXEC)
    );
    let mut names: Vec<_> = arrived
        .headers
        .keys()
        .map(http::HeaderName::as_str)
        .collect();
    names.sort_unstable();
    let expected = [
        "audit-id",
        "authorization",
        "connection",
        "host",
        "sec-websocket-key",
        "sec-websocket-protocol",
        "sec-websocket-version",
        "upgrade",
    ];
    assert_eq!(names, expected);
    assert_eq!(arrived.headers["authorization"], "Bearer upstream-secret");
    assert_eq!(arrived.headers["connection"], "Upgrade");
    let start = records(&world.ledger).remove(0).body;
    assert_eq!(
        (start.kind, arrived.records),
        (RecordKind::Start, 1),
        "recorded before it was sent"
    );
    assert_eq!(start.request.unwrap().verb, "connect");
    let id = start.request_id.unwrap().to_string();
    assert_eq!(arrived.headers["audit-id"], id.as_str());
    let head = head.to_ascii_lowercase();
    assert!(head.contains(&format!("audit-id: {id}")), "{head}");
    assert!(
        !head.contains("set-cookie") && !head.contains("extensions"),
        "{head}"
    );
}

#[rstest]
#[case::impersonation_lookalike("Impersonate_User: jane\r\n")]
#[case::dropped("Connection: Impersonate-User\r\n")]
#[tokio::test]
async fn h2_hostile_headers_of_an_upgrade_are_refused(#[case] more: &str) {
    let world = World::new().await;
    let more = format!("{}{more}", websocket_headers("v5.channel.k8s.io"));
    let (_, head) = ask(world.door().await, &asking(&world, EXEC, &more)).await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    assert!(world.upstream.arrived().is_empty());
}

#[tokio::test]
async fn h6_h7_an_upgrade_to_another_environment_or_by_a_crooked_path_is_refused() {
    let world = World::new().await;
    let door = world.door().await;
    let asked = asking(&world, EXEC, &websocket_headers("v5.channel.k8s.io"));
    let other = asked.replace(
        &world.id.to_string(),
        &kubler_core::ids::EnvironmentId::from_random([8; 16]).to_string(),
    );
    assert!(ask(door, &other).await.1.starts_with("HTTP/1.1 403 "));
    let crooked = asked.replace("/pods/b/exec", "/pods/c/../b/exec");
    assert!(ask(door, &crooked).await.1.starts_with("HTTP/1.1 400 "));
    assert!(world.upstream.arrived().is_empty());
}

#[tokio::test]
async fn l4_an_upgrade_waits_for_the_disk() {
    let world = World::new().await;
    let door = world.door().await;
    let slow_disk = world.ledger.hold();
    let asked = asking(&world, EXEC, &websocket_headers("v5.channel.k8s.io"));
    let asking = tokio::spawn(async move { ask(door, &asked).await.1 });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(
        world.upstream.arrived().is_empty(),
        "it did not wait for the disk"
    );
    drop(slow_disk);
    assert!(asking.await.unwrap().starts_with("HTTP/1.1 101 "));
}

#[rstest]
#[case::in_the_header(true, "v5.channel.k8s.io", 101)]
#[case::hidden(
    false,
    "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.TOKEN",
    101
)]
#[case::in_both(
    true,
    "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.TOKEN",
    401
)]
#[case::another(
    false,
    "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.YWJj",
    401
)]
#[case::nowhere(false, "v5.channel.k8s.io", 401)]
#[tokio::test]
async fn a_session_among_the_subprotocols_is_a_session_and_goes_no_further(
    #[case] in_header: bool,
    #[case] offered: &str,
    #[case] status: u16,
) {
    use base64::Engine as _;
    let world = World::new().await;
    let hidden = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(world.session(100_000));
    let offered = offered.replace("TOKEN", &hidden);
    let mut asked = asking(&world, EXEC, &websocket_headers(&offered));
    if !in_header {
        let mut lines: Vec<_> = asked.split("\r\n").collect();
        lines.retain(|line| !line.starts_with("Authorization"));
        asked = lines.join("\r\n");
    }
    let (_stream, head) = ask(world.door().await, &asked).await;
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    for arrived in world.upstream.arrived() {
        assert_eq!(
            arrived.headers["sec-websocket-protocol"],
            "v5.channel.k8s.io"
        );
    }
}

#[rstest]
#[case("/api/v1/namespaces/a/pods/b/log?follow=true", 501)]
#[case("/api/v1/namespaces/a/pods/b/attach?stdin=true", 101)]
#[tokio::test]
async fn only_a_way_into_a_pod_changes_the_protocol(#[case] below: &str, #[case] status: u16) {
    let world = World::new().await;
    let asked = asking(&world, below, &websocket_headers("v5.channel.k8s.io"));
    let (_stream, head) = ask(world.door().await, &asked).await;
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
}

#[tokio::test]
async fn an_answer_to_another_key_is_refused_and_any_other_answer_passes() {
    let world = World::new().await;
    let door = world.door().await;
    let junk = "/api/v1/namespaces/a/pods/junk/exec";
    let refused = "/api/v1/namespaces/refused/pods/b/exec";
    for (below, status, upgraded) in [(junk, 502, "UpstreamProtocol"), (refused, 200, "")] {
        let asked = asking(&world, below, &websocket_headers("v5.channel.k8s.io"));
        let (mut stream, head) = ask(door, &asked).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        let mut body = vec![0; 2000];
        let count = stream.read(&mut body).await.unwrap();
        assert!(String::from_utf8_lossy(&body[..count]).contains(upgraded));
        let outcome = world.outcome().await;
        assert_eq!((outcome.status, outcome.upgraded), (status, None));
    }
}

#[rstest]
#[case(290, "lease_end", 404)]
#[case(7190, "deadline", 404)]
#[tokio::test]
async fn e1_exec_ends_with_lease_and_deadline(
    #[case] seconds: u64,
    #[case] close_reason: &str,
    #[case] code: u16,
) {
    let world = World::new().await;
    let (mut client, _upstream) = exec(&world).await;
    world.clock.advance(Duration::from_secs(seconds));
    assert_eq!(end(&mut client).await["code"], code);
    assert_eq!(
        world.outcome().await.close_reason.as_deref(),
        Some(close_reason)
    );
    upstream_is_closed(&world).await;
}

#[rstest]
#[case::strict(StreamEnd::Session, EnvironmentScope::Job)]
#[case::of_a_build(StreamEnd::Environment, EnvironmentScope::Build)]
#[tokio::test]
async fn e1_c8_exec_ends_with_its_session_where_streams_do(
    #[case] streams_end_with: StreamEnd,
    #[case] scope: EnvironmentScope,
) {
    let world = World::with(|environment| {
        environment.resolved.profile.streams_end_with = streams_end_with;
        environment.scope = scope;
        environment.lease_end = at(900);
    })
    .await;
    let token = world.session(20);
    let mut tunnels = world.upstream.tunnels();
    let asked = asking(&world, EXEC, &websocket_headers("v5.channel.k8s.io"));
    let mut lines: Vec<_> = asked.split("\r\n").map(str::to_owned).collect();
    lines[2] = format!("Authorization: Bearer {token}");
    let (stream, _) = ask(world.door().await, &lines.join("\r\n")).await;
    let _upstream = next_tunnel(&mut tunnels).await;
    world.clock.advance(Duration::from_secs(11));
    assert_eq!(end(&mut Side::client(stream)).await["code"], 401);
    assert_eq!(
        world.outcome().await.close_reason.as_deref(),
        Some("session_expired")
    );
}

#[tokio::test]
async fn e1_a_policy_that_denies_ends_exec_and_one_that_allows_does_not() {
    let world = World::new().await;
    let (mut client, mut upstream) = exec(&world).await;
    let path = world.folder.path().join("policies/acme.cedar");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{text}\n// changed\n")).unwrap();
    world.read_policies_anew();
    upstream.say(Kind::Binary, b"\x01on").await;
    assert_eq!(client.hear().await.unwrap().1, b"\x01on");
    std::fs::remove_file(&path).unwrap();
    world.read_policies_anew();
    assert_eq!(end(&mut client).await["code"], 403);
    assert_eq!(
        world.outcome().await.close_reason.as_deref(),
        Some("policy")
    );
}

#[tokio::test]
async fn a_server_that_stops_tells_exec_to_come_back() {
    let world = World::new().await;
    let (mut client, _upstream) = exec(&world).await;
    world.shutdown.cancel();
    assert_eq!(end(&mut client).await["code"], 503);
    assert_eq!(
        world.outcome().await.close_reason.as_deref(),
        Some("shutdown")
    );
}

/// The API server stops in the middle of a frame: nothing of ours is put into it, whether its rest comes or not.
#[rstest]
#[tokio::test]
async fn e1_nothing_is_put_into_the_middle_of_a_frame(#[values(true, false)] rest_comes: bool) {
    let world = World::new().await;
    let (mut client, mut upstream) = exec(&world).await;
    upstream.write(&[0x82, 4, 1, b'a']).await;
    let mut begun = [0; 4];
    client.stream.read_exact(&mut begun).await.unwrap();
    world.release(EndReason::Released);
    eventually(|| world.gateway.shared.gates.read().unwrap().is_empty()).await;
    let mut rest = Vec::new();
    if rest_comes {
        upstream.write(b"bc\x82\x01x").await;
        soon(client.stream.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(&rest[..2], b"bc");
        let (mut after, mut kinds) = (Frames::new(Sender::Server), Vec::new());
        after
            .read(&rest[2..], |part| kinds.push(part.kind))
            .unwrap();
        assert_eq!(kinds, [Kind::Binary, Kind::Close]);
        assert!(String::from_utf8_lossy(&rest).contains("EnvironmentEnded"));
    } else {
        soon(client.stream.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest, b"");
    }
    assert_eq!(
        world.outcome().await.close_reason.as_deref(),
        Some("released")
    );
    upstream_is_closed(&world).await;
}

fn spdy_client(seed: &str) -> Vec<u8> {
    let path = format!(
        "{}/../../fuzz/seeds/spdy/{seed}",
        env!("CARGO_MANIFEST_DIR")
    );
    std::fs::read(path).unwrap().split_off(1)
}

/// The frames of SPDY that a client is sent.
fn spdy_frames(bytes: &[u8]) -> Vec<(spdy::Frame, Vec<u8>)> {
    let (mut frames, mut found) = (spdy::Frames::default(), Vec::new());
    frames
        .read(bytes, |part| {
            found.push((part.frame, part.payload.to_vec()))
        })
        .unwrap();
    assert!(frames.is_between());
    found
}

const GOAWAY: spdy::Frame = spdy::Frame::Control(7);

#[rstest]
#[tokio::test]
async fn e1_spdy_exec_ends_on_its_error_stream_and_goes_away(
    #[values("GET", "POST")] method: &str,
) {
    let world = World::new().await;
    let mut tunnels = world.upstream.tunnels();
    let more = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\nX-Stream-Protocol-Version: v3.channel.k8s.io\r\n";
    let asked = asking(&world, EXEC, more).replacen("GET", method, 1);
    let (mut client, head) = ask(world.door().await, &asked).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(
        head.contains("x-stream-protocol-version: v4.channel.k8s.io"),
        "{head}"
    );
    let mut upstream = next_tunnel(&mut tunnels).await;
    let said = spdy_client("exec");
    client.write_all(&said).await.unwrap();
    let mut heard = vec![0; said.len()];
    upstream.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, said);
    world.release(EndReason::Released);
    let mut rest = Vec::new();
    soon(client.read_to_end(&mut rest)).await.unwrap();
    let frames = spdy_frames(&rest);
    let error = spdy::Frame::Data {
        stream: 1,
        is_final: true,
    };
    assert_eq!([frames[0].0, frames[1].0], [error, GOAWAY]);
    let status: Value = serde_json::from_slice(&frames[0].1).unwrap();
    assert_eq!(status["code"], 404);
    let outcome = world.outcome().await;
    assert_eq!(outcome.close_reason.as_deref(), Some("released"));
    assert_eq!(outcome.bytes_in, said.len() as u64);
    assert_eq!(outcome.upgraded.unwrap().protocol, "SPDY/3.1");
}

#[tokio::test]
async fn e1_a_tunnel_for_ports_ends_in_words_on_every_open_connection() {
    let world = World::new().await;
    let below = "/api/v1/namespaces/a/pods/b/portforward";
    let (mut client, mut upstream) = open(&world, below, "SPDY/3.1+portforward.k8s.io").await;
    // As it may come: a message ends where no frame does.
    let said = spdy_client("portforward");
    let (one, other) = said.split_at(100);
    client.say(Kind::Binary, one).await;
    client.say(Kind::Binary, other).await;
    assert_eq!(upstream.hear().await.unwrap().1, one);
    assert_eq!(upstream.hear().await.unwrap().1, other);
    world.release(EndReason::Released);
    let (kind, inside) = client.hear().await.unwrap();
    assert_eq!(kind, Kind::Binary);
    let frames = spdy_frames(&inside);
    let told: Vec<_> = frames.iter().map(|(frame, _)| *frame).collect();
    let data = |stream| spdy::Frame::Data {
        stream,
        is_final: true,
    };
    assert_eq!(told, [5, 9, 3, 7, 11].map(data));
    assert!(String::from_utf8_lossy(&frames[0].1).contains("its job released it"));
    let (_, inside) = client.hear().await.unwrap();
    assert_eq!(spdy_frames(&inside)[0].0, GOAWAY);
    assert_eq!(client.hear().await.unwrap().0, Kind::Close);
    let upgraded = world.outcome().await.upgraded.unwrap();
    assert_eq!(
        upgraded.subprotocol.as_deref(),
        Some("SPDY/3.1+portforward.k8s.io")
    );
}

#[rstest]
#[case::upstream(false, "upstream_garbage")]
#[case::client(true, "client_garbage")]
#[tokio::test]
async fn what_was_not_agreed_on_is_not_passed_on(
    #[case] by_client: bool,
    #[case] close_reason: &str,
) {
    let world = World::new().await;
    let (mut client, mut upstream) = exec(&world).await;
    let junk = b"HTTP/1.1 200 OK\r\n\r\n";
    if by_client {
        client.write(junk).await;
        assert!(!matches!(upstream.stream.read(&mut [0]).await, Ok(1..)));
    } else {
        upstream.write(junk).await;
    }
    assert_eq!(
        end(&mut client).await["details"]["causes"][0]["reason"],
        "ProtocolBroken"
    );
    assert_eq!(
        world.outcome().await.close_reason.as_deref(),
        Some(close_reason)
    );
}

#[rstest]
#[case::client(true, "client")]
#[case::upstream(false, "upstream")]
#[tokio::test]
async fn whoever_goes_away_takes_the_other_with_it(
    #[case] is_client: bool,
    #[case] close_reason: &str,
) {
    let world = World::new().await;
    let (mut client, mut upstream) = exec(&world).await;
    if is_client {
        drop(client);
        assert_eq!(upstream.hear().await, None);
        drop(upstream);
    } else {
        world.upstream.hang_up();
        drop(upstream);
        assert_eq!(client.hear().await, None);
        drop(client);
    }
    assert_eq!(
        world.outcome().await.close_reason.as_deref(),
        Some(close_reason)
    );
    upstream_is_closed(&world).await;
}

#[tokio::test]
async fn half_a_connection_goes_on_when_the_other_half_is_closed() {
    let world = World::new().await;
    let (mut client, mut upstream) = exec(&world).await;
    client.say(Kind::Binary, b"\0last").await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(upstream.hear().await.unwrap().1, b"\0last");
    assert_eq!(upstream.hear().await, None);
    upstream.say(Kind::Binary, b"\x01still here").await;
    assert_eq!(client.hear().await.unwrap().1, b"\x01still here");
    drop(upstream);
    assert_eq!(client.hear().await, None);
}

#[tokio::test]
async fn e1_e5_a_renewal_carries_exec_for_25_minutes_and_pings_go_both_ways() {
    let world = impatient(Duration::from_millis(20), Duration::from_secs(60)).await;
    let watched = Request::get(format!("/k8s/{}/api/v1/pods?watch=1", world.id))
        .header("authorization", format!("Bearer {}", world.session(20)));
    let watched = world.send(watched).await;
    assert_eq!(watched.status(), StatusCode::OK);
    let mut watch = watched.into_body();
    let (mut client, mut upstream) = exec(&world).await;
    for nth in 1..=75 {
        world.change(|environment| environment.lease_end = at(300 + nth * 20));
        world.clock.advance(Duration::from_secs(20));
        for side in [
            &mut client.stream as &mut (dyn AsyncRead + Unpin + Send),
            &mut upstream.stream,
        ] {
            let mut ping = [0; 2];
            soon(side.read_exact(&mut ping)).await.unwrap();
            assert_eq!(ping[0], 0x89, "a ping, in the {nth}th time");
            let rest = usize::from(ping[1] & 0x7f) + if ping[1] > 0x7f { 4 } else { 0 };
            side.read_exact(&mut vec![0; rest]).await.unwrap();
        }
        world.upstream.send("{}\n");
        assert_eq!(next(&mut watch).await.unwrap().unwrap(), "{}\n");
    }
    upstream.say(Kind::Binary, b"\x01done").await;
    let mut heard = client.hear().await.unwrap();
    while heard.0 == Kind::Ping {
        heard = client.hear().await.unwrap();
    }
    assert_eq!(heard.1, b"\x01done");
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_ended_with_a_reason_and_fills_nothing() {
    let world = impatient(Duration::from_secs(20), Duration::from_millis(300)).await;
    let (client, mut upstream) = exec(&world).await;
    let writing = tokio::spawn(async move {
        let message = websocket::message(Sender::Server, Kind::Binary, &[1; 32 * 1024]);
        while upstream.stream.write_all(&message).await.is_ok() {}
    });
    let outcome = world.outcome().await;
    assert_eq!(outcome.close_reason.as_deref(), Some("slow_reader"));
    // What was taken is what the sockets hold.
    assert!(outcome.bytes_out < 16 * 1024 * 1024, "{outcome:?}");
    writing.await.unwrap();
    drop(client);
}

#[tokio::test]
async fn an_answer_that_is_not_taken_is_ended_with_a_reason() {
    let world = impatient(Duration::from_secs(20), Duration::from_millis(300)).await;
    let mut body = world.get("/endless").await.into_body();
    assert!(next(&mut body).await.unwrap().is_ok());
    assert_eq!(
        world.outcome().await.close_reason.as_deref(),
        Some("slow_reader")
    );
    // Who waits for an event is not slow.
    let mut watch = world.get("/api/v1/pods?watch=1").await.into_body();
    let waiting = tokio::spawn(async move { next(&mut watch).await.unwrap().unwrap() });
    tokio::time::sleep(Duration::from_millis(700)).await; // more than twice what a slow one may take
    world.upstream.send("{}\n");
    assert_eq!(waiting.await.unwrap(), "{}\n");
}

#[tokio::test]
async fn e8_forty_execs_and_sixty_watches_of_one_session_live_side_by_side() {
    let world = World::new().await;
    let mut tunnels = world.upstream.tunnels();
    let door = world.door().await;
    let asked = asking(&world, EXEC, &websocket_headers("v5.channel.k8s.io"));
    let watch = asked
        .replace(EXEC, "/api/v1/pods?watch=1")
        .split("Connection")
        .next()
        .unwrap()
        .to_owned()
        + "Connection: close\r\n\r\n";
    let mut watches = Vec::new();
    for _ in 0..60 {
        watches.push(ask(door, &watch).await.0);
    }
    let mut commands = Vec::new();
    for _ in 0..40 {
        let (stream, _) = ask(door, &asked).await;
        let upstream = Side::server(next_tunnel(&mut tunnels).await);
        commands.push((Side::client(stream), upstream));
    }
    for (client, upstream) in &mut commands {
        client.say(Kind::Binary, b"\0in").await;
        assert_eq!(upstream.hear().await.unwrap().1, b"\0in");
        upstream.say(Kind::Binary, b"\x01out").await;
        assert_eq!(client.hear().await.unwrap().1, b"\x01out");
    }
    world.release(EndReason::Released);
    for (client, _) in &mut commands {
        end(client).await;
    }
    for watch in &mut watches {
        let mut rest = Vec::new();
        soon(watch.read_to_end(&mut rest)).await.unwrap();
        assert!(String::from_utf8_lossy(&rest).contains("EnvironmentEnded"));
    }
    upstream_is_closed(&world).await;
}

/// Bytes that are the same in every run and look like nothing.
pub(super) fn noise(count: usize) -> Vec<u8> {
    let mut state = 7_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(&mut next).take(count).collect()
}

#[tokio::test]
async fn much_passes_both_ways_at_once_unchanged() {
    const BYTES: usize = 8 * 1024 * 1024;
    let world = World::new().await;
    let (client, upstream) = exec(&world).await;
    let payload = noise(BYTES);
    let (from_client, mut to_upstream) = tokio::io::split(client.stream);
    let (from_upstream, mut to_client) = tokio::io::split(upstream.stream);
    let up = websocket::message(Sender::Client, Kind::Binary, &payload);
    let down = websocket::message(Sender::Server, Kind::Binary, &payload);
    let (mut at_client, mut at_upstream) = (vec![0; down.len()], vec![0; up.len()]);
    let (mut from_client, mut from_upstream) = (from_client, from_upstream);
    let all = tokio::join!(
        to_upstream.write_all(&up),
        to_client.write_all(&down),
        from_client.read_exact(&mut at_client),
        from_upstream.read_exact(&mut at_upstream),
    );
    assert!(all.0.is_ok() && all.1.is_ok() && all.2.is_ok() && all.3.is_ok());
    assert!(at_client == down && at_upstream == up);
}

#[tokio::test]
async fn open_connections_count_with_the_watches() {
    let world = World::narrow().await;
    let mut open_ones = Vec::new();
    for _ in 0..4 {
        open_ones.push(exec(&world).await);
    }
    let (status, object) = read(world.get("/api/v1/pods?watch=1").await).await;
    assert_eq!(
        (status, &object["details"]["causes"][0]["reason"]),
        (StatusCode::TOO_MANY_REQUESTS, &"TooManyOpen".into())
    );
    drop(open_ones.pop());
    eventually(|| world.upstream.seen.open.load(Ordering::SeqCst) < 4 * 2).await;
}

async fn impatient(ping_every: Duration, stall_max: Duration) -> World {
    let patience = Patience {
        ping_every,
        stall_max,
    };
    let bounds = Bounds {
        patience,
        ..Bounds::default()
    };
    World::bounded(bounds, |_| {}).await
}
