//! `make conformance`: Kubernetes' own suite against what Kubler makes, one process for each test.
//!
//!     conformance local-direct|local|lab [new] [workers=N] [seconds=N] [only=TEXT]
//!
//! `local-direct` asks a `local` environment past the gateway, `local` through it, `lab` the lab. What is listed in
//! `docs/conformance/` must pass: one that fails is a failure. `new` tries those conformance tests of the five groups
//! that are not listed, each for so many seconds, and adds those that passed: the list never loses any.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a check talks, and stops at the first thing that does not hold"
)]

mod forward;
mod suite;
mod target;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use suite::{Outcome, Ran, Suite};
use target::Target;
use tokio::signal::unix::{SignalKind, signal};

/// How many tests run at once. They wait more than they work.
const WORKERS: u64 = 4;
/// The way past the gateway.
const DIRECT: &str = "local-direct";
/// Longest time for a test that is known to pass.
const KNOWN_SECONDS: u64 = 900;
/// The same for one that is not: what waits for that which will never be waits for five minutes and more.
const TRIED_SECONDS: u64 = 100;

#[tokio::main]
async fn main() -> ExitCode {
    let [mut interrupt, mut terminate, mut hangup] = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ]
    .map(|kind| signal(kind).expect("a signal"));
    // Whatever ends it drops what was started, which ends that too.
    tokio::select! {
        code = run() => code,
        _ = interrupt.recv() => ExitCode::FAILURE,
        _ = terminate.recv() => ExitCode::FAILURE,
        _ = hangup.recv() => ExitCode::FAILURE,
    }
}

async fn run() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((target, options)) = arguments.split_first() else {
        println!(
            "usage: conformance local-direct|local|lab [new] [workers=N] [seconds=N] [only=TEXT]"
        );
        return ExitCode::FAILURE;
    };
    let text_of = |name: &str| {
        let mut found = options.iter().filter_map(|option| option.split_once('='));
        found.find_map(|(known, value)| (known == name).then_some(value))
    };
    let number = |name, usual| text_of(name).map_or(usual, |text| text.parse().expect("a number"));
    let new = options.iter().any(|option| option == "new");
    let workers = usize::try_from(number("workers", WORKERS)).expect("a small number");
    let seconds = number("seconds", if new { TRIED_SECONDS } else { KNOWN_SECONDS });
    let list = list_of(target);
    let mut known = read(&list);
    if target == DIRECT {
        known.extend(read(&list.with_file_name("local-direct.txt")));
    }
    let begun = Instant::now();
    let target = Target::start(target).await;
    let suite = Suite::new(&target, Duration::from_secs(seconds));
    let mut tests: Vec<String> = if new {
        let all = suite.conformance_tests().into_iter();
        all.filter(|name| !known.contains(name)).collect()
    } else {
        known.iter().cloned().collect()
    };
    tests.retain(|name| name.contains(text_of("only").unwrap_or_default()));
    println!("conformance: {} tests, {workers} at once", tests.len());
    let ran = suite.run(tests, workers, !new).await;
    drop(target);
    let passed = names(&ran, |it| it.outcome == Outcome::Passed);
    println!(
        "conformance: {} of {} passed ({} only when tried again, alone) in {} s",
        passed.len(),
        ran.len(),
        ran.iter()
            .filter(|it| it.again && it.outcome == Outcome::Passed)
            .count(),
        begun.elapsed().as_secs()
    );
    if new {
        // What is known to pass past the gateway alone stays where it is.
        let union = read(&list);
        let union: Vec<&str> = union.union(&passed).map(String::as_str).collect();
        fs::write(&list, format!("{}\n", union.join("\n"))).expect("the list");
        return ExitCode::SUCCESS;
    }
    let lost = names(&ran, |it| it.outcome != Outcome::Passed);
    for name in &lost {
        println!("DID NOT PASS: {name}");
    }
    if lost.is_empty() {
        println!(
            "verified: {} of upstream's tests on `{}`",
            passed.len(),
            suite.target()
        );
        return ExitCode::SUCCESS;
    }
    println!(
        "conformance: what they said is in {}",
        suite.logs().display()
    );
    ExitCode::FAILURE
}

fn names(ran: &[Ran], is_meant: impl Fn(&Ran) -> bool) -> BTreeSet<String> {
    let meant = ran.iter().filter(|it| is_meant(it));
    meant.map(|it| it.name.clone()).collect()
}

/// Both ways into a `local` environment have one list: what passes directly passes through the gateway. What does not is
/// in a list of its own, with its reason in `docs/conformance.md`.
fn list_of(target: &str) -> PathBuf {
    let name = if target == "lab" { "lab" } else { "local" };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.join("docs/conformance").join(format!("{name}.txt"))
}

fn read(list: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(list).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}
