//! How fast the ledger makes records durable, in turns with a file whose every line is synced by itself.

use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;

use crate::figure::Measured;
use crate::statistics::Samples;
use crate::world::{World, number};

pub(crate) const IDS: &[&str] = &["ledger_append"];
const ROUNDS: usize = 10;
/// Length of each measurement, in milliseconds.
const SPAN: u64 = 1500;

pub(crate) async fn measure(world: World) -> Vec<Measured> {
    let folder = tempfile::Builder::new()
        .prefix("bench-ledger")
        .tempdir_in(&world.target)
        .expect("a folder");
    let (mut grouped, mut single) = (Samples::default(), Samples::default());
    for round in 0..world.length.rounds(ROUNDS) {
        let ledger = folder.path().join(round.to_string());
        let appended = append(&ledger).await;
        grouped.add(number(&appended, "per_second"));
        std::fs::remove_dir_all(&ledger).expect("a ledger");
        let arguments = [
            format!("--folder={}", folder.path().display()),
            format!("--bytes={}", number(&appended, "line_bytes")),
            format!("--for={SPAN}ms"),
        ];
        let synced = world.baseline("fdatasync", &arguments).await;
        single.add(number(&synced, "per_second"));
    }
    vec![Measured::of("ledger_append", &grouped).against(single.median())]
}

/// The ledger itself, by a program that holds nothing else; the Makefile has built it.
async fn append(ledger: &std::path::Path) -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "bench",
            "--quiet",
            "--workspace",
            "--locked",
            "--bench",
            "ledger_append",
            "--",
            "--folder",
        ])
        .arg(ledger)
        .args(["--milliseconds", &SPAN.to_string()])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("cargo");
    assert!(
        output.status.success(),
        "the ledger's benchmark: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("a line of JSON")
}
