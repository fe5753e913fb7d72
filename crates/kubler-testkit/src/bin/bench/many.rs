//! Many environments at once: what a start costs beside them, and how many fit.

use std::time::{Duration, Instant};

use kubler_testkit::buildkite::Buildkite;
use kubler_testkit::kubler::Server;

use crate::figure::Measured;
use crate::memory::{self, BYTES_PER_KIBIBYTE};
use crate::statistics::Samples;
use crate::world::{self, DEFAULT_ACCOUNT, Length, Way, World, milliseconds};

pub(crate) const IDS: &[&str] = &["local_many_start", "local_many_start_10", "local_many_fit"];
/// Starts that are measured beside so many live environments.
const ROUNDS: usize = 10;
/// Environments that are alive while starts are measured; the last one only by `--long`.
const ALIVE: [usize; 3] = [0, 10, 30];
const ALIVE_LONG: usize = 100;
/// The room that is to be filled, in bytes.
const ROOM_BYTES: f64 = 20e9;
/// What an environment takes while it starts, and what is left to the rest of the machine, in MiB.
const START_MEBIBYTES: u64 = 260;
const SPARE_MEBIBYTES: u64 = 6 << 10;
/// A lease that nothing here outlives, in seconds: nobody renews.
const LEASE_SECONDS: u64 = 3600;
/// How long nothing happens before memory is read: a control plane gives back what its start needed within five.
const IDLE: Duration = Duration::from_secs(10);

pub(crate) async fn measure(world: World) -> Vec<Measured> {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite)
        .log_filter("info")
        .lease_seconds(LEASE_SECONDS)
        .section("limits: { environments_max: 200, queue_max: 200 }")
        .start()
        .await;
    // Files are in memory, and what the first one makes the server load is loaded, from here on.
    start(&server, &buildkite).await;
    tokio::time::sleep(IDLE).await;
    let empty = of_everything(&server);

    let mut levels = ALIVE.to_vec();
    if world.length == Length::Long {
        levels.push(ALIVE_LONG);
    }
    let mut starts = Vec::new();
    let mut ways = Vec::new();
    for alive in levels {
        while ways.len() < alive && has_room() {
            ways.push(world::environment(&server, &world::job(&buildkite)).await);
        }
        let mut samples = Samples::default();
        for _ in 0..world.length.rounds(ROUNDS) {
            samples.add(start(&server, &buildkite).await);
        }
        println!(
            "bench: {} alive: a start takes {:.0} ms (p50)",
            ways.len(),
            samples.median()
        );
        starts.push(samples);
        if ways.len() < alive {
            println!("bench: there is no memory for {alive} environments");
            break;
        }
    }
    tokio::time::sleep(IDLE).await;
    let full = of_everything(&server);
    let planes = server.control_planes();
    assert_eq!(planes.len(), ways.len(), "one process each: {planes:#?}");
    #[allow(clippy::cast_precision_loss, reason = "a few hundred at most")]
    let seen = ways.len() as f64;
    // Their program is in memory once, however many there are.
    let program = planes.first().map_or(0.0, memory::of_files) * BYTES_PER_KIBIBYTE;
    let each = (full - empty) / seen;
    let fit = ((ROOM_BYTES - empty - program) / each).floor();
    println!(
        "bench: {seen} alive and idle: {:.0} MiB each, its share of etcd and server included; {fit} fit into 20 GB{}",
        each / f64::from(1 << 20),
        if fit > seen {
            ", extrapolated from these"
        } else {
            ""
        }
    );
    let last = starts.last().expect("a level");
    let first = starts.first().expect("a level").median();
    vec![
        Measured::of("local_many_start", last).against(first),
        Measured::of("local_many_start_10", starts.get(1).unwrap_or(last)).against(first),
        Measured::single("local_many_fit", fit),
    ]
}

/// From an identity token to the first answer of a new environment, in milliseconds. It is ended again.
async fn start(server: &Server, buildkite: &Buildkite) -> f64 {
    let job = world::job(buildkite);
    let token = server.token(&job);
    let client = world::client(server);
    let began = Instant::now();
    let made = world::create(server, &client, &token).await;
    let id = made["id"].as_str().expect("an id");
    let session = world::exchange(server, &client, &token, id).await;
    let way = Way::new(server, client.clone(), id, session);
    way.until_found(DEFAULT_ACCOUNT).await;
    let took = milliseconds(began.elapsed());
    world::release(server, &client, &server.token(&job), id).await;
    took
}

/// What cannot be shared of all processes of a server, in bytes.
fn of_everything(server: &Server) -> f64 {
    let processes = server.processes();
    processes.iter().map(memory::private).sum::<f64>() * BYTES_PER_KIBIBYTE
}

/// Others use this machine too.
fn has_room() -> bool {
    let text = std::fs::read_to_string("/proc/meminfo").expect("/proc/meminfo");
    let available = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .expect("MemAvailable");
    available >> 10 > SPARE_MEBIBYTES + START_MEBIBYTES
}
