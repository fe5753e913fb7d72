//! How many start records a second the ledger makes durable when many callers wait at once (group commit).
//! Prints one line of JSON. `make bench` runs it in turns with a program that syncs each line by itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a measurement stops at the first thing that does not hold"
)]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kubler_core::configuration::Ledger as LedgerSettings;
use kubler_core::identity::Identity;
use kubler_core::ledger::record::{Body, Kind, LedgerAction, Outcome};
use kubler_server::clock::SystemClock;
use kubler_server::entropy;
use kubler_server::ledger::{Durability, Ledger};
use serde_json::json;

/// Callers that wait at once unless `--callers` says otherwise.
const CALLERS: usize = 256;
/// Time before counting begins: the first sync of a new file is another one.
const WARM_UP: Duration = Duration::from_millis(300);

fn main() {
    let folder: PathBuf = argument("--folder").expect("--folder FOLDER").into();
    let milliseconds = argument("--milliseconds").map_or(1000, |text| text.parse().unwrap());
    let callers = argument("--callers").map_or(CALLERS, |text| text.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let per_second = runtime.block_on(measure(
        &folder,
        callers,
        Duration::from_millis(milliseconds),
    ));
    let line_bytes = body().seal().unwrap().line_bytes_max();
    println!(
        "{}",
        json!({ "per_second": per_second, "callers": callers, "line_bytes": line_bytes })
    );
}

/// `cargo bench` adds arguments of its own, which mean nothing here.
fn argument(name: &str) -> Option<String> {
    std::env::args()
        .skip_while(|argument| argument != name)
        .nth(1)
}

async fn measure(folder: &std::path::Path, callers: usize, span: Duration) -> f64 {
    let settings = LedgerSettings::default();
    let ledger = Ledger::open(folder, "bench/ledger", &settings, Arc::new(SystemClock)).unwrap();
    let durable = Arc::new(AtomicU64::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let (ledger, durable, over) = (ledger.clone(), Arc::clone(&durable), Arc::clone(&over));
            tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let entry = ledger.start(body(), Durability::Disk).await.unwrap();
                    durable.fetch_add(1, Ordering::Relaxed);
                    // As in life: every start gets its end, which does not wait for the disk.
                    entry
                        .end(Outcome {
                            status: 200,
                            ..Outcome::default()
                        })
                        .await;
                }
            })
        })
        .collect();
    tokio::time::sleep(WARM_UP).await;
    let (began, before) = (Instant::now(), durable.load(Ordering::Relaxed));
    tokio::time::sleep(span).await;
    let (counted, took) = (durable.load(Ordering::Relaxed) - before, began.elapsed());
    over.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    ledger.checkpoint().unwrap();
    f64::from(u32::try_from(counted).unwrap()) / took.as_secs_f64()
}

/// What the broker writes before it makes an environment.
fn body() -> Body {
    let mut body = Body::new(Kind::Start, LedgerAction::EnvironmentCreate);
    body.request_id = Some(entropy::request_id().unwrap());
    body.peer = Some("192.0.2.17".into());
    body.identity = Some(Box::new(identity()));
    body.token_sha256 = Some("6f".repeat(32));
    body.token_id = Some("0190c1c4-8b4e-7c44-9a0e-2f6e5a0b7d11".into());
    body
}

fn identity() -> Identity {
    serde_json::from_value(json!({
        "issuer": "https://agent.buildkite.com",
        "organization": { "id": "0190c1c4-8b4e-7c44-9a0e-2f6e5a0b7d12", "slug": "acme" },
        "project": { "id": "0190c1c4-8b4e-7c44-9a0e-2f6e5a0b7d13", "slug": "web" },
        "run": { "id": "0190c1c4-8b4e-7c44-9a0e-2f6e5a0b7d14", "number": 1234, "url": "https://buildkite.com/acme/web/builds/1234" },
        "job": {
            "id": "0190c1c4-8b4e-7c44-9a0e-2f6e5a0b7d15", "step_key": "integration-tests",
            "url": "https://buildkite.com/acme/web/builds/1234#0190c1c4-8b4e-7c44-9a0e-2f6e5a0b7d15",
        },
        "source": { "branch": "main", "tag": null, "commit": "5f0c2d9e8b7a6c5d4e3f2a1b0c9d8e7f6a5b4c3d", "trigger": "ui" },
        "runner": {
            "environment": "self-hosted", "agent_id": "0190c1c4-8b4e-7c44-9a0e-2f6e5a0b7d16", "cluster_id": null,
            "queue_id": null, "queue_key": "default",
        },
    }))
    .unwrap()
}
