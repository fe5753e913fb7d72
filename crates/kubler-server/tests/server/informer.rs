//! A program with client-go's informer through the gateway, whose watch ends with each session: it gets itself a new one
//! and misses nothing.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use reqwest::Method;
use serde_json::json;

use crate::LONG;
use crate::kubectl::Desk;

/// How often the session has to end while things happen.
const SESSIONS: usize = 3;

/// Builds the program of `kube/kubernetes/tests/informer`, as kube/build builds, so that hardly anything is compiled.
fn build(program: &Path) {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kube/kubernetes");
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(program)
        .arg("./tests/informer")
        .current_dir(module)
        .envs([("GOWORK", "off"), ("CGO_ENABLED", "0")])
        .env("GOFLAGS", "-mod=readonly -buildvcs=false -trimpath")
        .output()
        .expect("go is installed");
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{said}");
}

/// The lines that come until one of them is `last`.
fn until(lines: &Receiver<String>, last: &str) -> Vec<String> {
    let (deadline, mut seen) = (Instant::now() + LONG, Vec::new());
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = lines.recv_timeout(left);
        let line = line.unwrap_or_else(|_| panic!("`{last}` does not come; so far: {seen:#?}"));
        let is_last = line == last;
        seen.push(line);
        if is_last {
            return seen;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn e3_an_informer_outlives_its_sessions_and_misses_no_event() {
    let strict = "session_seconds: 5\n    streams_end_with: session";
    let desk = Desk::new(|draft| draft.profile_line(strict)).await;
    let program = desk.path("informer");
    build(&program);
    let mut informer = Command::new(&program);
    desk.surround(&mut informer).arg("default");
    let mut informer = informer.stdin(Stdio::piped()).spawn().unwrap();
    let (sender, lines) = channel();
    let output = BufReader::new(informer.stdout.take().unwrap()).lines();
    std::thread::spawn(move || {
        output
            .map_while(Result::ok)
            .try_for_each(|line| sender.send(line))
    });
    until(&lines, "synchronised");

    let maps = format!("/k8s/{}/api/v1/namespaces/default/configmaps", desk.id);
    let make = async |name: &str| {
        let session = desk.server.session(&desk.job, &desk.id).await;
        let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name } });
        let made = desk
            .server
            .request(Method::POST, &maps, Some(&session), Some(&map))
            .await;
        assert_eq!(made.status, 201, "{made:?}");
    };
    let (before, mut count) = (desk.watches().await, 0);
    let deadline = Instant::now() + LONG;
    while desk.watches().await < before + SESSIONS {
        assert!(Instant::now() < deadline, "its sessions do not end");
        make(&format!("map-{count}")).await;
        count += 1;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    make("last").await;
    let seen = tokio::task::spawn_blocking(move || until(&lines, "added last"));
    let seen = seen.await.unwrap();
    let expected: Vec<String> = (0..count).map(|nth| format!("added map-{nth}")).collect();
    let added: Vec<_> = seen
        .iter()
        .filter(|line| line.starts_with("added map-"))
        .cloned()
        .collect();
    assert_eq!(added, expected, "{seen:#?}");
    drop(informer.stdin.take());
    assert!(informer.wait().unwrap().success());
}
