//! The supervisor: makes a world, waits, and ends it.

use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use kubler_testkit::leaks::Mark;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::place::Place;

/// How long the new world may take to be there.
const WORLD_BOUND: Duration = Duration::from_secs(30);
/// How often it is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Brings it up, says where it is, and ends it when it is told to.
pub(crate) async fn run() -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        eprintln!("lab: a node needs root");
        return ExitCode::FAILURE;
    }
    let place = Place::take();
    place.prepare();
    // Ends all of it also when something below stops this program.
    let guard = Guard(&place);
    let code = tokio::select! {
        () = told_to_end() => ExitCode::SUCCESS,
        () = serve(&place) => ExitCode::FAILURE,
    };
    drop(guard);
    // A thread may still wait for standard input.
    std::process::exit(if code == ExitCode::SUCCESS { 0 } else { 1 });
}

struct Guard<'a>(&'a Place);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.sweep();
    }
}

/// Standard input has closed, or a signal has come.
async fn told_to_end() {
    let [mut interrupt, mut terminate, mut hangup] = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ]
    .map(|kind| signal(kind).expect("a signal"));
    let (close, closed) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = close.send(());
    });
    tokio::select! {
        _ = interrupt.recv() => (),
        _ = terminate.recv() => (),
        _ = hangup.recv() => (),
        _ = closed => (),
    }
}

/// Returns only when the lab ends by itself, which it should not.
async fn serve(place: &Place) {
    let mut world = start(place);
    let pid = world.id().expect("a process");
    wait_for_world(pid).await;
    place.connect(pid);
    let output = world.stdout.take().expect("its output");
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        // What is said on the way is for people; the one line that says where it is is for programs, too.
        match line.strip_prefix("ready ") {
            Some(ready) => {
                println!("{ready}");
                tell_people(place, ready);
            }
            None => eprintln!("lab: {line}"),
        }
    }
    let ended = world.wait().await;
    eprintln!("lab: it has ended by itself: {ended:?}");
}

/// How it is used, until it ends.
fn tell_people(place: &Place, ready: &str) {
    let ready: serde_json::Value = serde_json::from_str(ready).expect("JSON");
    let kubeconfig = ready["kubeconfig"].as_str().expect("a path");
    eprintln!(
        "lab: logs are in {}; it has no names (DNS)",
        place.folder().display()
    );
    eprintln!(
        "lab: images: docker.io/library/busybox:1.37 and those in the tests' names, never pulled"
    );
    eprintln!("lab: until standard input closes, or Ctrl-C, in another shell:");
    eprintln!("\n    export KUBECONFIG={kubeconfig}\n");
}

/// The first process of a world of its own. It dies with this program, and its world with it.
fn start(place: &Place) -> Child {
    let own = std::env::current_exe().expect("this program's path");
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .args(["unshare", "--mount", "--net", "--pid", "--ipc"])
        .args(["--fork", "--kill-child=KILL", "--mount-proc"])
        .arg(own)
        .args(["first", &place.number().to_string()])
        .env(Mark::VARIABLE, place.mark().as_str())
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command.spawn().expect("a world of its own")
}

/// Waits until the process is in a network of its own.
async fn wait_for_world(pid: u32) {
    let network = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
    let deadline = Instant::now() + WORLD_BOUND;
    while network(&pid.to_string()) == network("self") {
        assert!(Instant::now() < deadline, "no world of its own");
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}
