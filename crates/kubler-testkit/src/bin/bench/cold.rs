//! How long a job waits for a cluster, in turns with what the same cluster takes without Kubler.
//!
//! Ready means the same on both sides: `/readyz` passes and the service account `default/default` exists.

use std::time::Instant;

use kubler_testkit::buildkite::{Buildkite, Job};
use kubler_testkit::kubler::{Server, kubectl};
use serde_json::Value;

use crate::figure::Measured;
use crate::statistics::Samples;
use crate::world::{self, DEFAULT_ACCOUNT, Way, World, milliseconds, number};

pub(crate) const IDS: &[&str] = &[
    "local_cold",
    "local_cold_namespace",
    "local_cold_variant",
    "local_cold_kubectl",
    "own_share",
];
/// Samples of each side.
const ROUNDS: usize = 20;

/// One start through Kubler, in milliseconds.
struct Start {
    ready: f64,
    namespace: f64,
    own: f64,
}

pub(crate) async fn measure(world: World) -> Vec<Measured> {
    let buildkite = Buildkite::start();
    let server = world::server(&buildkite).await;
    // Files are in memory, and the issuer's keys are known, from here on: for both sides.
    bare(&server, &world::job(&buildkite)).await;
    world.start_stock(0).await;
    world.start_variant().await;

    let mut stock = (Samples::default(), Samples::default());
    let mut variant = Samples::default();
    let (mut ready, mut namespace, mut own) =
        (Samples::default(), Samples::default(), Samples::default());
    let mut by_kubectl = Samples::default();
    for _ in 0..world.length.rounds(ROUNDS) {
        let started = world.start_stock(0).await;
        stock.0.add(number(&started, "ready_milliseconds"));
        stock.1.add(number(&started, "namespace_milliseconds"));
        let start = bare(&server, &world::job(&buildkite)).await;
        ready.add(start.ready);
        namespace.add(start.namespace);
        own.add(start.own);
        variant.add(number(&world.start_variant().await, "ready_milliseconds"));
        by_kubectl.add(with_kubectl(&server, &world::job(&buildkite)).await);
    }
    vec![
        Measured::of("local_cold", &ready).against(stock.0.median()),
        Measured::of("local_cold_namespace", &namespace).against(stock.1.median()),
        Measured::of("local_cold_variant", &ready).against(variant.median()),
        Measured::of("local_cold_kubectl", &by_kubectl).against(stock.0.median()),
        Measured::of("own_share", &own),
    ]
}

/// With a bare HTTP client: create, exchange, first answer.
async fn bare(server: &Server, job: &Job) -> Start {
    let token = server.token(job);
    let client = world::client(server);
    let began = Instant::now();
    let made = world::create(server, &client, &token).await;
    let id = made["id"].as_str().expect("an id");
    let session = world::exchange(server, &client, &token, id).await;
    let way = Way::new(server, client.clone(), id, session);
    way.until_found(DEFAULT_ACCOUNT).await;
    let ready = milliseconds(began.elapsed());
    way.make_namespace("bench").await;
    let namespace = milliseconds(began.elapsed());
    let own = ready - waited(server, id);
    world::release(server, &client, &server.token(job), id).await;
    Start {
        ready,
        namespace,
        own,
    }
}

/// How long the engine waited for the started control plane: from its own log.
fn waited(server: &Server, id: &str) -> f64 {
    let log = server.log();
    let line = log
        .lines()
        .rfind(|line| line.contains("an environment is usable") && line.contains(id))
        .unwrap_or_else(|| panic!("the server's log does not say when {id} was usable"));
    let line: Value = serde_json::from_str(line).expect("a line of JSON");
    number(&line["fields"], "waited_microseconds") / 1e3
}

/// With the environment's kubeconfig and a kubectl that has seen nothing yet.
async fn with_kubectl(server: &Server, job: &Job) -> f64 {
    let home = world::private_folder();
    let file = |name: &str| home.path().join(name);
    let token = server.token(job);
    std::fs::write(file("token"), &token).expect("a token file");
    let client = world::client(server);
    let began = Instant::now();
    let made = world::create(server, &client, &token).await;
    std::fs::write(
        file("kubeconfig"),
        made["kubeconfig"].as_str().expect("a kubeconfig"),
    )
    .expect("a kubeconfig");
    let mut command = kubectl(&file("kubeconfig"), home.path());
    let path = std::env::join_paths([server.programs().folder(), "/usr/bin".as_ref()]);
    command
        .args([
            "get",
            "serviceaccount",
            "default",
            "--namespace",
            "default",
            "--output",
            "name",
        ])
        .env("PATH", path.expect("a PATH"))
        .env("KUBLER_TOKEN_FILE", file("token"))
        .env("KUBLER_JOBS_FOLDER", home.path())
        .env_remove("BUILDKITE_JOB_ID");
    let answer = tokio::process::Command::from(command).output().await;
    let took = milliseconds(began.elapsed());
    let answer = answer.expect("kubectl");
    assert!(
        answer.status.success(),
        "kubectl: {}",
        String::from_utf8_lossy(&answer.stderr)
    );
    let id = made["id"].as_str().expect("an id");
    world::release(server, &client, &server.token(job), id).await;
    took
}
