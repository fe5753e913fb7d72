//! What those who only cost time and room take from the others: bad tokens by the thousand, and idle connections.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kubler_testkit::buildkite::{Build, Buildkite, Job, OidcRequest};
use kubler_testkit::kubler::Server;
use kubler_testkit::tls;
use reqwest::Method;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::figure::Measured;
use crate::memory::of_server;
use crate::statistics::Samples;
use crate::world::{self, World};

pub(crate) const IDS: &[&str] = &[
    "bad_tokens",
    "bad_tokens_sources",
    "bad_tokens_connections",
    "bad_tokens_answered",
    "bad_tokens_handshakes",
    "idle_connection_memory",
];
const ROUNDS: usize = 6;
/// Good exchanges in one turn, and how many callers share them.
const EXCHANGES: usize = 400;
const CALLERS: usize = 4;
/// Bad tokens a second, over so many connections, and how often some are sent.
const BAD_PER_SECOND: u64 = 5000;
const BAD_CONNECTIONS: u64 = 20;
const BAD_EVERY: Duration = Duration::from_millis(20);
/// Addresses that the bad ones come from, when it is not one.
const SOURCES: u8 = 200;
/// Those who come with a new connection for each bad token.
const STRANGERS: usize = 8;
/// Connections that rest.
const IDLE: u64 = 10_000;
/// How often each of them asks, so that it may stay.
const IDLE_ASKS_EVERY: Duration = Duration::from_secs(9);
const HEALTHZ: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: kubler\r\n\r\n";

pub(crate) async fn measure(world: World) -> Vec<Measured> {
    let scene = Scene::new().await;
    let mut samples: [Samples; 4] = Default::default();
    let (mut answered, mut shaken) = (Samples::default(), Samples::default());
    for round in 0..world.length.rounds(ROUNDS) {
        for turn in 0..4 {
            let turn = (turn + round) % 4;
            let tokens = scene.tokens();
            let count = Arc::new(AtomicU64::new(0));
            let flood = scene.flood(turn, &count).await;
            let (before, began) = (count.load(Ordering::Relaxed), Instant::now());
            samples[turn].add(scene.exchanges_per_second(tokens).await);
            let bad = count.load(Ordering::Relaxed) - before;
            let per_second = bad as f64 / began.elapsed().as_secs_f64();
            drop(flood);
            match turn {
                1 | 2 => answered.add(per_second),
                3 => shaken.add(per_second),
                _ => {}
            }
        }
    }
    drop(scene);
    let memory = idle_connection_kibibytes().await;
    let [quiet, one, many, new] = samples;
    vec![
        Measured::of("bad_tokens", &one).against(quiet.median()),
        Measured::of("bad_tokens_sources", &many).against(quiet.median()),
        Measured::of("bad_tokens_connections", &new).against(quiet.median()),
        Measured::of("bad_tokens_answered", &answered),
        Measured::of("bad_tokens_handshakes", &shaken),
        Measured::single("idle_connection_memory", memory),
    ]
}

/// An environment that all jobs of the build may use.
async fn shared(server: &Server, job: &Job) -> String {
    let body =
        json!({ "profile": "ci-small", "name": "shared", "scope": "build", "wait_seconds": 60 });
    let token = server.token(job);
    let made = server
        .request(Method::POST, "/v1/environments", Some(&token), Some(&body))
        .await;
    made.body["id"].as_str().expect("an environment").to_owned()
}

/// One environment, and everything that a flood needs. The server goes last.
struct Scene {
    ca: Arc<Vec<u8>>,
    address: SocketAddr,
    bad: Arc<Vec<String>>,
    clients: Vec<reqwest::Client>,
    id: String,
    build: Build,
    server: Server,
    _buildkite: Buildkite,
}

impl Scene {
    async fn new() -> Self {
        let buildkite = Buildkite::start();
        let server = world::server(&buildkite).await;
        let build = buildkite.build("app").start();
        let job = build.job("bench").run();
        let id = shared(&server, &job).await;
        let good = job.forge(&OidcRequest::for_kubler(server.url())).sign();
        // Everything is as it should be but the signature: the dearest token to refuse. Each is another one.
        let (message, signature) = good.rsplit_once('.').expect("a token");
        let end = signature.len() - 4;
        let bad = (0..1000).map(|nth| {
            let signature = format!("{}A{nth:03}", &signature[..end]);
            format!(
                "POST /v1/environments/{id}/renew HTTP/1.1\r\nHost: kubler\r\nAuthorization: Bearer {message}.{signature}\r\n\r\n"
            )
        });
        let address = server.url().trim_start_matches("https://").parse();
        Self {
            ca: Arc::new(std::fs::read(server.ca()).expect("the CA")),
            address: address.expect("its address"),
            bad: Arc::new(bad.collect()),
            clients: (0..CALLERS).map(|_| world::client(&server)).collect(),
            id,
            build,
            server,
            _buildkite: buildkite,
        }
    }

    /// Minted before time is taken, each time for another job of the build: one may do only so much in a row.
    fn tokens(&self) -> Vec<String> {
        let job = self.build.job("bench").run();
        let tokens = (0..EXCHANGES).map(|_| self.server.token(&job));
        tokens.collect()
    }

    async fn exchanges_per_second(&self, tokens: Vec<String>) -> f64 {
        let began = Instant::now();
        let shares = tokens.chunks(EXCHANGES / CALLERS);
        let callers = shares.zip(&self.clients).map(async |(share, client)| {
            for token in share {
                world::exchange(&self.server, client, token, &self.id).await;
            }
        });
        world::all(callers).await;
        EXCHANGES as f64 / began.elapsed().as_secs_f64()
    }

    /// Begins what is sent in this turn: nothing, bad tokens from one source or from many, or each on a connection of
    /// its own. Dropped, it ends.
    async fn flood(&self, turn: usize, answered: &Arc<AtomicU64>) -> JoinSet<()> {
        let mut flood = JoinSet::new();
        match turn {
            0 => {}
            1 | 2 => {
                for nth in 0..BAD_CONNECTIONS {
                    let last = if turn == 1 {
                        1
                    } else {
                        1 + (nth * 7 % u64::from(SOURCES)) as u8
                    };
                    let source = Ipv4Addr::new(127, 0, 1, last);
                    let stream = self.connect(source).await;
                    let stream = tls::over(stream, &self.ca).await;
                    let (bad, answered) = (Arc::clone(&self.bad), Arc::clone(answered));
                    let (mut read, mut write) = tokio::io::split(stream);
                    flood.spawn(async move {
                        let mut nth = nth as usize;
                        let mut ticks = tokio::time::interval(BAD_EVERY);
                        let each =
                            BAD_PER_SECOND * BAD_EVERY.as_millis() as u64 / 1000 / BAD_CONNECTIONS;
                        loop {
                            ticks.tick().await;
                            let mut requests = String::new();
                            for _ in 0..each {
                                nth = (nth + 1) % bad.len();
                                requests.push_str(&bad[nth]);
                            }
                            if write.write_all(requests.as_bytes()).await.is_err() {
                                return;
                            }
                        }
                    });
                    flood.spawn(async move {
                        let mut buffer = vec![0; 64 * 1024];
                        while let Ok(read) = read.read(&mut buffer).await {
                            if read == 0 {
                                return;
                            }
                            let starts = buffer[..read].windows(12);
                            let refused = starts.filter(|start| start == b"HTTP/1.1 401");
                            answered.fetch_add(refused.count() as u64, Ordering::Relaxed);
                        }
                    });
                }
            }
            _ => {
                for nth in 0..STRANGERS {
                    let (bad, answered) = (Arc::clone(&self.bad), Arc::clone(answered));
                    let (ca, address) = (Arc::clone(&self.ca), self.address);
                    flood.spawn(async move {
                        loop {
                            let stream = TcpStream::connect(address).await.expect("a connection");
                            let mut stream = tls::over(stream, &ca).await;
                            let request = bad[nth].as_bytes();
                            stream.write_all(request).await.expect("a connection");
                            let mut answer = [0; 12];
                            stream.read_exact(&mut answer).await.expect("an answer");
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
            }
        }
        flood
    }

    async fn connect(&self, source: Ipv4Addr) -> TcpStream {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind((source, 0).into()).expect("a local address");
        socket.connect(self.address).await.expect("a connection")
    }
}

/// What one connection that rests takes of the server's memory, with ten thousand of them (or as many as descriptors
/// allow), each of which has asked before.
async fn idle_connection_kibibytes() -> f64 {
    let allowed = raise_open_files();
    let count = IDLE.min(allowed.saturating_sub(1000) / 2);
    let buildkite = Buildkite::start();
    let limits = "limits: {connections_max: 100000, connections_per_address_max: 100000}";
    let draft = Server::of(&buildkite).log_filter("info").section(limits);
    let server = draft.start().await;
    let ca = Arc::new(std::fs::read(server.ca()).expect("the CA"));
    let address: SocketAddr = server
        .url()
        .trim_start_matches("https://")
        .parse()
        .expect("its address");
    let before = of_server(&server);
    let asked = Arc::new(AtomicU64::new(0));
    let mut idle = JoinSet::new();
    for nth in 0..count {
        let (ca, first) = (Arc::clone(&ca), Arc::clone(&asked));
        let stream = TcpStream::connect(address).await.expect("a connection");
        idle.spawn(async move {
            let mut stream = tls::over(stream, &ca).await;
            let mut answer = vec![0; 1024];
            for turn in 0_u64.. {
                stream.write_all(HEALTHZ).await.expect("a connection");
                let read = stream.read(&mut answer).await.expect("an answer");
                assert!(answer[..read].starts_with(b"HTTP/1.1 200"), "not well");
                if turn == 0 {
                    first.fetch_add(1, Ordering::Relaxed);
                }
                tokio::time::sleep(IDLE_ASKS_EVERY).await;
            }
        });
        // No more are on their way than a queue of connections holds.
        while nth.saturating_sub(asked.load(Ordering::Relaxed)) > 100 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    while asked.load(Ordering::Relaxed) < count {
        assert!(idle.try_join_next().is_none(), "a connection was closed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let during = of_server(&server);
    drop(idle);
    println!(
        "bench: {count} idle connections: {:.0} MiB before, {:.0} MiB with them",
        before / 1024.0,
        during / 1024.0
    );
    (during - before) / count as f64
}

/// As many files as this process may open, for it and for the servers that it starts.
fn raise_open_files() -> u64 {
    const WANTED: u64 = 65_536;
    for maximum in [Some(WANTED), getrlimit(Resource::Nofile).maximum] {
        let limit = Rlimit {
            current: maximum,
            maximum,
        };
        if setrlimit(Resource::Nofile, limit).is_ok() {
            break;
        }
    }
    getrlimit(Resource::Nofile).current.unwrap_or(WANTED)
}
