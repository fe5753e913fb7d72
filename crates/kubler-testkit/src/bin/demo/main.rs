//! `make demo`: the main job on real parts. Five CI jobs end in five ways; each has a Kubernetes cluster of its own
//! while it runs, and nothing of it afterwards. Exits non-zero when any of that does not hold.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a demonstration talks, and stops at the first thing that does not hold"
)]

mod after;
mod jobs;
mod saved;
mod timeline;
mod traces;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kubler_testkit::agent::GitRepository;
use kubler_testkit::buildkite::Buildkite;
use kubler_testkit::kubler::Server;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::saved::Saved;
use self::timeline::Timeline;
use self::traces::Traces;

/// The demo's lease. A real one is five minutes.
const LEASE_SECONDS: u64 = 12;
/// How long the stand-in waits for a vanished agent. The real service waits three minutes and up to one more.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(10);
/// All of it, once built.
const DEMO_BOUND: Duration = Duration::from_secs(120);

/// Things that did not hold.
type Faults = Vec<String>;

#[tokio::main]
async fn main() -> ExitCode {
    let begun = Instant::now();
    let mut signals = Signals::listen();
    let traces = Traces::default();
    introduce();
    // Whatever ends it drops what was started, which ends that too.
    let mut faults = tokio::select! {
        faults = run(&traces) => faults,
        () = tokio::time::sleep(DEMO_BOUND) => vec![format!("it took longer than {} s", DEMO_BOUND.as_secs())],
        name = signals.first() => vec![format!("it was ended by {name}")],
    };
    let left = traces.left();
    let nothing_is_left = left.is_empty();
    faults.extend(left);
    say("");
    for fault in &faults {
        say(&format!("DID NOT HOLD: {fault}"));
    }
    if nothing_is_left {
        say("Nothing is left: no process, no file.");
    }
    if faults.is_empty() {
        let seconds = begun.elapsed().as_secs_f64();
        say(&format!("All of it held, in {seconds:.1} s."));
        return ExitCode::SUCCESS;
    }
    ExitCode::FAILURE
}

/// The signals by which people, terminals and supervisors end a program.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    fn listen() -> Self {
        let listen = |kind| signal(kind).expect("a signal can be listened to");
        Self {
            interrupt: listen(SignalKind::interrupt()),
            terminate: listen(SignalKind::terminate()),
            hang_up: listen(SignalKind::hangup()),
        }
    }

    async fn first(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hang_up.recv() => "SIGHUP",
        }
    }
}

fn introduce() {
    say(
        "Kubler: a Buildkite job gets a Kubernetes cluster of its own for its OIDC token, and loses it when it ends.",
    );
    say(
        "Real: kubler-server, kubler, kube-apiserver, controller manager, etcd, kubectl, buildkite-agent, the plugin.",
    );
    say(
        "Stand-in: the Buildkite service (Agent API and OIDC issuer), since it cannot be had on one machine.",
    );
    say(
        "A `local` environment has no nodes: objects are kept and controllers work, but pods do not run.",
    );
    say(&format!(
        "Shortened so that this takes under two minutes: leases of {LEASE_SECONDS} s (default 300), \
         agents given up after {} s (Buildkite: 180 to 240).",
        HEARTBEAT_TIMEOUT.as_secs()
    ));
}

async fn run(traces: &Traces) -> Faults {
    let mut faults = Faults::new();
    title(
        "1. Start the stand-in Buildkite, kubler-server (SQLite, TLS, `local` engine) and its etcd",
    );
    let buildkite = Buildkite::builder()
        .organization("acme", &["web"])
        .heartbeat_timeout(HEARTBEAT_TIMEOUT)
        .heartbeat_interval_seconds(1)
        .job_status_interval_seconds(1)
        .start();
    let draft = Server::of(&buildkite).lease_seconds(LEASE_SECONDS);
    traces.note(draft.folder());
    let mut server = draft.start().await;
    say(&format!(
        "issuer {}   kubler-server {}",
        buildkite.issuer_url(),
        server.url()
    ));

    title(
        "2. One build, five jobs: one passes, one fails, one is cancelled, one loses its agent, one loses everything",
    );
    let plugin = GitRepository::from_folder(
        "kubler-buildkite-plugin",
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/buildkite"),
    );
    traces.note(plugin.folder().parent().expect("a folder of its own"));
    let saved = Saved::new();
    traces.note(saved.folder());
    let mut running = jobs::start(&buildkite, &server, &plugin, &saved, traces);

    title("3. As it happens");
    let mut timeline = Timeline::new(&running);
    let late = jobs::see_through(&mut running, &server, &saved, &mut timeline, &mut faults).await;

    title("4. Afterwards");
    after::look(&server, &running, &saved, late.as_ref(), &mut faults);

    title("5. End everything");
    drop(running);
    server.stop().await;
    let left = server.processes();
    if !left.is_empty() {
        faults.push(format!(
            "processes are left after the server stopped: {left:#?}"
        ));
    }
    faults
}

fn say(text: &str) {
    println!("{text}");
}

fn title(text: &str) {
    if is_for_a_terminal() {
        println!("\n\x1b[1m{text}\x1b[0m");
    } else {
        println!("\n{text}");
    }
}

/// Whether somebody looks at it who wants it bold: nothing of it goes into a file.
fn is_for_a_terminal() -> bool {
    let is_unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !is_unwanted && std::io::IsTerminal::is_terminal(&std::io::stdout())
}
