//! The real kubectl in front of a pod that is none: what people see, by WebSocket and by SPDY.

use std::process::{Output, Stdio};

use kubler_core::environment::EndReason;
use kubler_core::frames::spdy;
use kubler_core::frames::websocket::{self, Kind, Sender};
use rstest::rstest;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};

use super::tunnels::{SOON, Side, next_tunnel};
use super::upstream::Switched;
use super::world::World;
use tokio::sync::mpsc::UnboundedReceiver;

const FAILED: &[u8] = br#"{"status":"Failure","reason":"NonZeroExitCode","message":"it failed","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;

pub(super) async fn kubectl(world: &World, way: Way, arguments: &[&str]) -> Child {
    let mut command = command_of(world, way, arguments).await;
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("kubectl runs")
}

/// kubectl in front of the gateway, with a door of its own.
pub(super) async fn command_of(world: &World, way: Way, arguments: &[&str]) -> Command {
    let server = format!("https://{}/k8s/{}", world.secure_door().await, world.id);
    let nothing = world.folder.path().join("kubeconfig");
    std::fs::write(&nothing, "").unwrap();
    let mut command = Command::from(kubler_testkit::kubler::kubectl(
        &nothing,
        world.folder.path(),
    ));
    let websockets = (way == Way::WebSocket).to_string();
    command
        .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", &websockets)
        .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", &websockets)
        .args(["--insecure-skip-tls-verify", "--server", &server])
        .args(["--token", world.token()])
        .args(arguments);
    command
}

/// The pod's side of what kubectl opens.
async fn opened(kubectl: &mut Child, tunnels: &mut UnboundedReceiver<Switched>) -> Switched {
    tokio::select! {
        opened = next_tunnel(tunnels) => opened,
        _ = kubectl.wait() => {
            let mut told = String::new();
            let _ = kubectl.stderr.take().unwrap().read_to_string(&mut told).await;
            panic!("kubectl ended before: {told}");
        }
    }
}

pub(super) async fn ended(kubectl: Child) -> Output {
    let output = tokio::time::timeout(SOON, kubectl.wait_with_output());
    output.await.expect("kubectl ends").unwrap()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    WebSocket,
    Spdy,
}

/// A server of SPDY as simple as can be: every stream is taken, and what was said on it is kept.
struct SpdyServer {
    frames: spdy::Frames,
    replied: bool,
    begun: Vec<u32>,
    block: Vec<u8>,
    said: Vec<u8>,
}

impl SpdyServer {
    fn new() -> Self {
        Self {
            frames: spdy::Frames::default(),
            replied: false,
            begun: Vec::new(),
            block: Vec::new(),
            said: Vec::new(),
        }
    }

    /// Reads what the client sends; gives what it is answered.
    fn answer(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut begun = Vec::new();
        let (said, block) = (&mut self.said, &mut self.block);
        self.frames
            .read(bytes, |part| match part.frame {
                spdy::Frame::Control(1) => {
                    block.extend_from_slice(part.payload);
                    if part.is_last {
                        begun.push(u32::from_be_bytes(*block.first_chunk().unwrap()));
                        block.clear();
                    }
                }
                spdy::Frame::Data { .. } => said.extend_from_slice(part.payload),
                spdy::Frame::Control(_) => {}
            })
            .expect("SPDY");
        let mut answer = Vec::new();
        for stream in begun {
            // No headers, in a block that is stored as it is, and an empty one that says so; the first one
            // begins the compression.
            let mut payload = stream.to_be_bytes().to_vec();
            if !std::mem::replace(&mut self.replied, true) {
                payload.extend([0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2]);
            }
            payload.extend([0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0]);
            payload.extend([0, 0, 0, 0xff, 0xff]);
            answer.extend([0x80, 3, 0, 2, 0, 0, 0, u8::try_from(payload.len()).unwrap()]);
            answer.extend(payload);
            self.begun.push(stream);
        }
        answer
    }

    /// Takes `count` streams over a connection.
    async fn take(&mut self, stream: &mut Switched, count: usize) {
        while self.begun.len() < count {
            let mut bytes = vec![0; 4096];
            let read = tokio::time::timeout(SOON, stream.read(&mut bytes))
                .await
                .expect("streams");
            let read = read.unwrap();
            let answer = self.answer(&bytes[..read]);
            stream.write_all(&answer).await.unwrap();
        }
    }
}

/// A command that says something and fails, or does neither.
async fn command(way: Way, upstream: Switched, ends: bool) -> Switched {
    match way {
        Way::WebSocket => {
            let mut upstream = Side::server(upstream);
            upstream.say(Kind::Binary, b"\x01out\n").await;
            if ends {
                upstream.say(Kind::Binary, b"\x02err\n").await;
                upstream.say(Kind::Binary, &[&[3], FAILED].concat()).await;
                upstream
                    .write(&websocket::close(Sender::Server, 1000, ""))
                    .await;
            }
            upstream.stream
        }
        Way::Spdy => {
            let (mut upstream, mut server) = (upstream, SpdyServer::new());
            server.take(&mut upstream, 3).await;
            let [error, stdout, stderr] = server.begun[..] else {
                panic!("{:?}", server.begun);
            };
            let mut out = spdy::last_data(stdout, b"out\n").unwrap();
            if ends {
                out.extend(spdy::last_data(stderr, b"err\n").unwrap());
                out.extend(spdy::last_data(error, FAILED).unwrap());
            } else {
                out[4] = 0; // more may follow
            }
            upstream.write_all(&out).await.unwrap();
            upstream
        }
    }
}

#[rstest]
#[tokio::test]
async fn kubectl_exec_gets_output_and_exit_code(#[values(Way::WebSocket, Way::Spdy)] way: Way) {
    let world = World::new().await;
    let mut tunnels = world.upstream.tunnels();
    let mut kubectl = kubectl(&world, way, &["exec", "web", "--", "id"]).await;
    let upstream = command(way, opened(&mut kubectl, &mut tunnels).await, true).await;
    let output = ended(kubectl).await;
    drop(upstream);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_eq!(output.stdout, b"out\n");
    assert!(output.stderr.starts_with(b"err\n"), "{output:?}");
    let upgraded = world.outcome_of_connection().await.upgraded.unwrap();
    assert_eq!(upgraded.exit_code, Some(7));
}

#[rstest]
#[tokio::test]
async fn e1_kubectl_exec_shows_why_it_was_ended(#[values(Way::WebSocket, Way::Spdy)] way: Way) {
    let world = World::new().await;
    let mut tunnels = world.upstream.tunnels();
    let mut kubectl = kubectl(&world, way, &["exec", "web", "--", "sleep", "1000"]).await;
    let _upstream = command(way, opened(&mut kubectl, &mut tunnels).await, false).await;
    let mut said = [0; 4];
    kubectl
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut said)
        .await
        .unwrap();
    world.release(EndReason::Released);
    let output = ended(kubectl).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("its job released it"), "{told}");
}

#[tokio::test]
async fn e1_kubectl_port_forward_shows_why_it_was_ended() {
    let world = World::new().await;
    let mut tunnels = world.upstream.tunnels();
    let mut kubectl = kubectl(&world, Way::WebSocket, &["port-forward", "web", ":80"]).await;
    let mut lines = BufReader::new(kubectl.stdout.take().unwrap()).lines();
    let mut upstream = Side::server(opened(&mut kubectl, &mut tunnels).await);
    let line = tokio::time::timeout(SOON, lines.next_line())
        .await
        .expect("a port")
        .unwrap()
        .unwrap();
    let port: u16 = line
        .split([':', ' '])
        .find_map(|word| word.parse().ok())
        .expect("a port");
    let mut client = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .unwrap();
    client.write_all(b"hello").await.unwrap();
    let mut server = SpdyServer::new();
    while server.said != b"hello" {
        let (kind, payload) = upstream.hear().await.expect("streams");
        if kind == Kind::Binary {
            let answer = server.answer(&payload);
            if !answer.is_empty() {
                upstream.say(Kind::Binary, &answer).await;
            }
        }
    }
    let mut back = spdy::last_data(server.begun[1], b"welcome").unwrap();
    back[4] = 0; // more may follow
    upstream.say(Kind::Binary, &back).await;
    let mut heard = [0; 7];
    client.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"welcome");
    world.release(EndReason::Released);
    let output = ended(kubectl).await;
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("its job released it"), "{told}");
}
