//! What one job's work costs its neighbour: the same requests by one client, while another environment of the server
//! rests and while its job does whatever it can to be in the way, in turns. The attacker's clients stand behind
//! everybody else for the processor: they would run on the CI's machines, not on the server's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kubler_testkit::buildkite::Buildkite;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinSet;

use crate::figure::Measured;
use crate::statistics::Samples;
use crate::world::{self, Way, World, milliseconds};

pub(crate) const IDS: &[&str] = &["neighbour", "neighbour_quiet"];
/// Rounds, each quiet once and under attack once.
const ROUNDS: usize = 6;
/// Requests of the neighbour in each half of a round, and the pause between two.
const REQUESTS: usize = 400;
const PAUSE: Duration = Duration::from_millis(10);
/// How long an attack goes on before it is measured, in seconds: what was saved up is used up first.
const WARM_SECONDS: u64 = 10;
/// Clients that ask one after the other without a pause.
const READERS: usize = 16;
const WRITERS: usize = 16;
const LARGE_WRITERS: usize = 4;
/// Clients that share the watches.
const WATCHERS: usize = 4;
/// Watches that are told of everything.
const WATCHES: usize = 100;
/// Bytes of a large object: more than any API server keeps, so that it is read and refused again and again.
const LARGE_BYTES: usize = 2_900_000;
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

pub(crate) async fn measure(world: World) -> Vec<Measured> {
    let buildkite = Buildkite::start();
    let server = world::server(&buildkite).await;
    let (_, victim) = world::environment(&server, &world::job(&buildkite)).await;
    let (_, attacker) = world::environment(&server, &world::job(&buildkite)).await;
    let clients: Vec<Way> = (0..READERS + WRITERS + LARGE_WRITERS + WATCHERS)
        .map(|_| attacker.with_client(world::client(&server)))
        .collect();
    for (way, name) in [
        (&victim, "read"),
        (&victim, "written"),
        (&attacker, "read"),
        (&attacker, "written"),
    ] {
        assert_eq!(way.post(MAPS, &map(name, 1024)).await, StatusCode::CREATED);
    }
    let elsewhere = elsewhere();
    let (mut quiet, mut attacked) = (Samples::default(), Samples::default());
    let mut answered = [0; 2];
    for _ in 0..world.length.rounds(ROUNDS) {
        requests(&victim, 20).await;
        quiet.extend(requests(&victim, REQUESTS).await);
        let attack = Attack::begin(&clients, &elsewhere);
        tokio::time::sleep(Duration::from_secs(WARM_SECONDS)).await;
        attacked.extend(requests(&victim, REQUESTS).await);
        let [taken, refused] = attack.end().await;
        answered[0] += taken;
        answered[1] += refused;
    }
    elsewhere.shutdown_background();
    println!(
        "bench: the attacker was answered {} times, and told to come back {} times",
        answered[0], answered[1]
    );
    let quiet = Measured::of("neighbour_quiet", &quiet);
    let mut figure = Measured::of("neighbour", &attacked);
    // The bar is about tails.
    figure.baseline = quiet.p99;
    vec![figure, quiet]
}

/// What kubectl does: reads and now and then a change, one after the other, with a pause between.
async fn requests(way: &Way, count: usize) -> Vec<f64> {
    let mut samples = Vec::new();
    for number in 0..count {
        tokio::time::sleep(PAUSE).await;
        let began = Instant::now();
        let status = if number % 10 == 0 {
            let object = map("written", 1024);
            way.put(&format!("{MAPS}/written"), &object).await
        } else {
            way.look(&format!("{MAPS}/read")).await
        };
        assert_eq!(status, StatusCode::OK, "the neighbour is refused");
        samples.push(milliseconds(began.elapsed()));
    }
    samples
}

fn map(name: &str, bytes: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "text": "x".repeat(bytes) },
    })
}

/// Threads that get what nobody else wants of the processor.
fn elsewhere() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(2)
        .on_thread_start(|| {
            rustix::process::nice(19).expect("a lower priority");
        })
        .enable_all()
        .build()
        .expect("threads")
}

/// Everything at once.
struct Attack {
    elsewhere: Handle,
    is_over: Arc<AtomicBool>,
    counts: Arc<[AtomicUsize; 2]>,
    tasks: JoinSet<()>,
}

impl Attack {
    fn begin(clients: &[Way], elsewhere: &Runtime) -> Self {
        let mut attack = Self {
            elsewhere: elsewhere.handle().clone(),
            is_over: Arc::default(),
            counts: Arc::default(),
            tasks: JoinSet::new(),
        };
        let (readers, rest) = clients.split_at(READERS);
        let (writers, rest) = rest.split_at(WRITERS);
        let (large, watchers) = rest.split_at(LARGE_WRITERS);
        for way in readers {
            attack.again_and_again(way, |way, _| async move { way.look(MAPS).await });
        }
        // Events for everybody who watches.
        for way in writers {
            attack.again_and_again(way, |way, number| async move {
                let object = map("written", 1000 + number % 7);
                way.put(&format!("{MAPS}/written"), &object).await
            });
        }
        for way in large {
            attack.again_and_again(way, |way, _| async move {
                way.post(MAPS, &map("large", LARGE_BYTES)).await
            });
        }
        for number in 0..WATCHES {
            let way = watchers[number % watchers.len()].clone();
            attack.tasks.spawn_on(
                async move {
                    loop {
                        let mut watch = way.get(&format!("{MAPS}?watch=true")).await;
                        while let Ok(Some(_)) = watch.chunk().await {}
                        // Refused, or cut off since it read too slowly.
                        tokio::time::sleep(PAUSE).await;
                    }
                },
                elsewhere.handle(),
            );
        }
        attack
    }

    fn again_and_again<F: Future<Output = StatusCode> + Send>(
        &mut self,
        way: &Way,
        once: impl Fn(Way, usize) -> F + Send + 'static,
    ) {
        let (is_over, counts) = (Arc::clone(&self.is_over), Arc::clone(&self.counts));
        let way = way.clone();
        let elsewhere = self.elsewhere.clone();
        self.tasks.spawn_on(
            async move {
                let mut number = 0;
                while !is_over.load(Ordering::Relaxed) {
                    number += 1;
                    let status = once(way.clone(), number).await;
                    let is_refused = status == StatusCode::TOO_MANY_REQUESTS;
                    counts[usize::from(is_refused)].fetch_add(1, Ordering::Relaxed);
                }
            },
            &elsewhere,
        );
    }

    /// How many requests were answered, and how many were told to come back.
    async fn end(mut self) -> [usize; 2] {
        self.is_over.store(true, Ordering::Relaxed);
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
        let [taken, refused] = &*self.counts;
        [
            taken.load(Ordering::Relaxed),
            refused.load(Ordering::Relaxed),
        ]
    }
}
