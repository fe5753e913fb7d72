//! How fast an end is: the credential dies, streams are cut, everything is gone. One release gives all three.

use std::sync::Arc;
use std::time::Instant;

use kubler_testkit::buildkite::{Buildkite, Job};
use kubler_testkit::kubler::Server;
use reqwest::StatusCode;
use tokio::task::JoinSet;

use crate::figure::Measured;
use crate::statistics::Samples;
use crate::world::{self, DEFAULT_ACCOUNT, POLL, Way, World, milliseconds};

pub(crate) const IDS: &[&str] = &["credential_dead", "stream_cut", "local_gone"];
/// Environments that are alive when each is released: an end is not measured on an empty server.
const ALIVE: usize = 5;
/// How often so many are made and ended.
const ROUNDS: usize = 20;

/// One end, in milliseconds after the release was sent.
struct End {
    dead: f64,
    cut: f64,
    gone: f64,
}

pub(crate) async fn measure(world: World) -> Vec<Measured> {
    let buildkite = Buildkite::start();
    let server = Arc::new(world::server(&buildkite).await);
    let (mut dead, mut cut, mut gone) =
        (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..world.length.rounds(ROUNDS) {
        let mut making = JoinSet::new();
        for _ in 0..ALIVE {
            let (server, job) = (Arc::clone(&server), world::job(&buildkite));
            making.spawn(async move {
                let (id, way) = world::environment(&server, &job).await;
                (job, id, way)
            });
        }
        for (job, id, way) in making.join_all().await {
            let end = end(&server, &job, &id, &way).await;
            dead.add(end.dead);
            cut.add(end.cut);
            gone.add(end.gone);
        }
    }
    vec![
        Measured::of("credential_dead", &dead),
        Measured::of("stream_cut", &cut),
        Measured::of("local_gone", &gone),
    ]
}

/// Releases it as a job would, while a client asks every 5 ms and another watches.
async fn end(server: &Server, job: &Job, id: &str, way: &Way) -> End {
    // The server closes connections that rest, and this one waited for its turn.
    let way = way.with_client(world::client(server));
    let mut watch = way
        .with_client(world::client(server))
        .get("/api/v1/namespaces?watch=true")
        .await;
    assert_eq!(watch.status(), StatusCode::OK, "no watch");
    let first = watch.chunk().await.expect("a watch").expect("an event");
    assert!(!first.is_empty());
    way.until_found(DEFAULT_ACCOUNT).await;

    // A job comes with a new connection, and so does this: its handshake is in the times.
    let (client, token) = (world::client(server), server.token(job));
    let began = Instant::now();
    let gone = async {
        world::release(server, &client, &token, id).await;
        milliseconds(began.elapsed())
    };
    let dead = async {
        loop {
            let answer = way.get(DEFAULT_ACCOUNT).await;
            let status = answer.status();
            answer.bytes().await.expect("a body");
            if status != StatusCode::OK {
                assert_eq!(status, StatusCode::NOT_FOUND, "refused for another reason");
                return milliseconds(began.elapsed());
            }
            tokio::time::sleep(POLL).await;
        }
    };
    let cut = async {
        // Events may still come; then the end, orderly or not.
        while let Ok(Some(_)) = watch.chunk().await {}
        milliseconds(began.elapsed())
    };
    let (dead, cut, gone) = tokio::join!(dead, cut, gone);
    End { dead, cut, gone }
}
