//! What environments and Kubler itself keep in memory while nothing happens. Of environments and etcd RssAnon +
//! RssShmem, which is what no other process shares and the kernel cannot drop; of the one server all of VmRSS, its
//! own program included.

use std::time::Duration;

use kubler_testkit::buildkite::Buildkite;
use kubler_testkit::kubler::Server;
use kubler_testkit::leaks::Process;

use crate::figure::Measured;
use crate::statistics::Samples;
use crate::world::{self, World, number};

pub(crate) const IDS: &[&str] = &[
    "local_memory",
    "own_memory",
    "own_memory_per_environment",
    "etcd_memory_per_environment",
];
/// Servers that are started anew.
const ROUNDS: usize = 3;
/// Environments that live at once in each.
const ALIVE: usize = 10;
/// How long nothing happens before memory is read, in seconds. A control plane gives back what its start needed
/// within five.
const IDLE_SECONDS: u64 = 10;
pub(crate) const BYTES_PER_KIBIBYTE: f64 = 1024.0;

pub(crate) async fn measure(world: World) -> Vec<Measured> {
    let (mut planes, mut stock) = (Samples::default(), Samples::default());
    let (mut own, mut own_each, mut etcd_each) =
        (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..world.length.rounds(ROUNDS) {
        let idle_stock = world.start_stock(IDLE_SECONDS).await;
        stock.add(number(&idle_stock, "private_mebibytes"));
        let buildkite = Buildkite::start();
        let server = world::server(&buildkite).await;
        idle().await;
        own.add(of_server(&server) * BYTES_PER_KIBIBYTE / 1e6);

        // One came and went before: what the first one makes the server load is not what each one adds.
        let job = world::job(&buildkite);
        let (id, _) = world::environment(&server, &job).await;
        let client = world::client(&server);
        world::release(&server, &client, &server.token(&job), &id).await;
        idle().await;
        let (server_before, etcd_before) = (of_server(&server), of_etcd(&server));
        let mut ways = Vec::new();
        for _ in 0..ALIVE {
            ways.push(world::environment(&server, &world::job(&buildkite)).await);
        }
        idle().await;
        let each = |before: f64, after: f64| {
            (after - before) * BYTES_PER_KIBIBYTE / 1e3 / f64::from(u32::try_from(ALIVE).unwrap())
        };
        own_each.add(each(server_before, of_server(&server)));
        etcd_each.add(each(etcd_before, of_etcd(&server)));
        let alive = server.control_planes();
        assert_eq!(alive.len(), ALIVE, "one process each: {alive:#?}");
        planes.extend(alive.iter().map(|plane| private(plane) / 1024.0));
    }
    vec![
        Measured::of("local_memory", &planes).against(stock.median()),
        Measured::of("own_memory", &own),
        Measured::of("own_memory_per_environment", &own_each),
        Measured::of("etcd_memory_per_environment", &etcd_each),
    ]
}

async fn idle() {
    tokio::time::sleep(Duration::from_secs(IDLE_SECONDS)).await;
}

pub(crate) fn of_server(server: &Server) -> f64 {
    kibibytes(&server.process(), &["VmRSS"])
}

fn of_etcd(server: &Server) -> f64 {
    let all = server.processes();
    let etcd: Vec<_> = all
        .iter()
        .filter(|process| process.command.contains("/etcd "))
        .collect();
    assert_eq!(etcd.len(), 1, "one etcd for all: {all:#?}");
    etcd.into_iter().map(private).sum()
}

/// What no other process shares and the kernel cannot drop, in KiB.
pub(crate) fn private(process: &Process) -> f64 {
    kibibytes(process, &["RssAnon", "RssShmem"])
}

/// What it has of files in memory, its program first of all, in KiB.
pub(crate) fn of_files(process: &Process) -> f64 {
    kibibytes(process, &["RssFile"])
}

/// The sum of these lines of its status.
fn kibibytes(process: &Process, names: &[&str]) -> f64 {
    let path = format!("/proc/{}/status", process.pid);
    let text = std::fs::read_to_string(path).expect("a process that lives");
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let ours = lines.filter(|(name, _)| names.contains(name));
    ours.map(|(_, value)| {
        let value = value.trim().trim_end_matches(" kB");
        f64::from(value.parse::<u32>().expect("a number"))
    })
    .sum()
}
