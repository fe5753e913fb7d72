//! What an environment costs in CPU while nobody uses it: the control planes' own time, and what etcd and
//! kubler-server need more than without environments.

use std::time::{Duration, Instant};

use kubler_testkit::buildkite::Buildkite;
use kubler_testkit::kubler::Server;
use kubler_testkit::leaks::Process;

use crate::figure::Measured;
use crate::statistics::Samples;
use crate::world::{self, Length, World};

pub(crate) const IDS: &[&str] = &[
    "idle_cpu",
    "idle_cpu_control_plane",
    "idle_cpu_etcd",
    "idle_cpu_server",
];
/// Environments that idle together.
const ALIVE: usize = 5;
/// How long nothing happens before, in seconds: what a start leaves to do is done, and memory given back.
const SETTLE_SECONDS: u64 = 30;
/// One window, in seconds.
const WINDOW_SECONDS: u64 = 60;
/// Windows that are measured one after the other.
const WINDOWS: usize = 3;
/// Clock ticks in a second, as `/proc` counts them on every Linux that runs Rust: one is a percent of a core.
const TICKS_PER_SECOND: f64 = 100.0;

pub(crate) async fn measure(world: World) -> Vec<Measured> {
    let buildkite = Buildkite::start();
    let server = world::server(&buildkite).await;
    // One came and went: what the first one makes the others load is not what each one costs.
    let job = world::job(&buildkite);
    let (id, _) = world::environment(&server, &job).await;
    world::release(&server, &world::client(&server), &server.token(&job), &id).await;
    pause(SETTLE_SECONDS).await;
    let window = match world.length {
        Length::Full | Length::Long => WINDOW_SECONDS,
        Length::Quick => WINDOW_SECONDS / 10,
    };
    let without = over(window, &server).await;
    let mut ways = Vec::new();
    for _ in 0..ALIVE {
        ways.push(world::environment(&server, &world::job(&buildkite)).await);
    }
    pause(SETTLE_SECONDS).await;
    let mut samples: [Samples; 4] = Default::default();
    let each = f64::from(u32::try_from(ALIVE).expect("a few"));
    for _ in 0..world.length.rounds(WINDOWS) {
        let with = over(window, &server).await;
        let planes = with.planes / each;
        let etcd = (with.etcd - without.etcd) / each;
        let own = (with.server - without.server) / each;
        let parts = [planes + etcd + own, planes, etcd, own];
        for (samples, sample) in samples.iter_mut().zip(parts) {
            samples.add(sample);
        }
    }
    let measured = IDS.iter().zip(&samples);
    measured
        .map(|(id, samples)| Measured::of(id, samples))
        .collect()
}

async fn pause(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// Percent of one core.
struct Used {
    planes: f64,
    etcd: f64,
    server: f64,
}

/// What everybody uses from now on for so many seconds.
async fn over(seconds: u64, server: &Server) -> Used {
    let (began, before) = (Instant::now(), ticks(server));
    pause(seconds).await;
    let (after, seconds) = (ticks(server), began.elapsed().as_secs_f64());
    let percent = |nth: usize| (after[nth] - before[nth]) * 100.0 / TICKS_PER_SECOND / seconds;
    Used {
        planes: percent(0),
        etcd: percent(1),
        server: percent(2),
    }
}

/// Of all control planes, etcd and the server.
fn ticks(server: &Server) -> [f64; 3] {
    let all = server.processes();
    let sum = |part: &str| {
        let meant = all.iter().filter(|process| process.command.contains(part));
        meant.map(of).sum()
    };
    [
        sum("kubler-control-plane"),
        sum("/etcd "),
        of(&server.process()),
    ]
}

/// User and system time of a process.
fn of(process: &Process) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid));
    let stat = stat.expect("a process that lives");
    let (_, fields) = stat.rsplit_once(") ").expect("fields");
    let times = fields.split_whitespace().skip(11).take(2);
    times
        .map(|ticks| f64::from(ticks.parse::<u32>().expect("a number")))
        .sum()
}
