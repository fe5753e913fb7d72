//! How soon a server that was killed serves again, with environments that live on meanwhile.

use std::time::{Duration, Instant};

use kubler_testkit::buildkite::Buildkite;
use kubler_testkit::kubler::Server;
use reqwest::StatusCode;

use crate::figure::Measured;
use crate::statistics::Samples;
use crate::world::{self, DEFAULT_ACCOUNT, POLL, Way, World, milliseconds};

pub(crate) const IDS: &[&str] = &["crash_recovery"];
/// Environments that are alive.
const ALIVE: usize = 20;
/// Kills.
const ROUNDS: usize = 20;
/// A lease that no round outlives, in seconds: nobody renews here.
const LEASE_SECONDS: u64 = 3600;
/// Longest time that a restart may take.
const BOUND: Duration = Duration::from_secs(60);

pub(crate) async fn measure(world: World) -> Vec<Measured> {
    let buildkite = Buildkite::start();
    let draft = Server::of(&buildkite).log_filter("info");
    let mut server = draft.lease_seconds(LEASE_SECONDS).start().await;
    let mut ways = Vec::new();
    for _ in 0..ALIVE {
        ways.push(world::environment(&server, &world::job(&buildkite)).await.1);
    }
    let before = alive(&server);
    assert_eq!(before.len(), ALIVE, "one process each: {before:?}");
    let mut samples = Samples::default();
    for round in 0..world.length.rounds(ROUNDS) {
        let began = Instant::now();
        server.kill().await;
        server.launch(&[]);
        serves(&server, &ways[round % ALIVE]).await;
        samples.add(milliseconds(began.elapsed()));
        for way in &ways {
            let read = way.with_client(world::client(&server));
            assert_eq!(read.get(DEFAULT_ACCOUNT).await.status(), StatusCode::OK);
        }
        assert_eq!(alive(&server), before, "an environment was started anew");
    }
    vec![Measured::of("crash_recovery", &samples)]
}

/// Looks every 5 ms until the server is ready and a session opens its environment.
async fn serves(server: &Server, way: &Way) {
    let deadline = Instant::now() + BOUND;
    let client = world::client(server);
    let ready = format!("{}/readyz", server.url());
    let is_ready = async || {
        let answer = client.get(&ready).send().await;
        answer.is_ok_and(|answer| answer.status() == StatusCode::OK)
    };
    while !is_ready().await {
        assert!(Instant::now() < deadline, "not ready: {}", server.log());
        tokio::time::sleep(POLL).await;
    }
    way.with_client(client).until_found(DEFAULT_ACCOUNT).await;
}

/// Each control plane by what names it for ever; its parent is another one after a kill.
fn alive(server: &Server) -> Vec<(i32, u64)> {
    let planes = server.control_planes().into_iter();
    planes.map(|plane| (plane.pid, plane.start_ticks)).collect()
}
