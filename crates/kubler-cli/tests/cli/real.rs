//! Against the real server: what it refuses is told as it is, and a kubectl that outlives its session goes on.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use kubler_testkit::buildkite::{Buildkite, Job, OidcRequest};
use kubler_testkit::kubler::{Server, kubectl};
use kubler_testkit::leaks::files_in;

/// How long anything may take on a busy machine.
const BOUND: Duration = Duration::from_secs(60);

fn kubler(server: &Server, folder: &Path, arguments: &[&str]) -> Output {
    crate::desk::kubler(folder)
        .env("KUBLER_SERVER", server.url())
        .env("KUBLER_CA", server.ca())
        .env("KUBLER_TOKEN_FILE", folder.join("token"))
        .args(arguments)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[allow(
    clippy::disallowed_methods,
    reason = "tokens are judged by the real time"
)]
fn seconds_ago(seconds: i64) -> Timestamp {
    Timestamp::now() - SignedDuration::from_secs(seconds)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_refused_says_why_and_what_next() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let folder = tempfile::tempdir().unwrap();
    let build = buildkite.build("app").start();
    let job = build.job("test").run();
    let create = |token: String| {
        std::fs::write(folder.path().join("token"), token).unwrap();
        let output = kubler(
            &server,
            folder.path(),
            &["env", "create", "--profile", "ci-small"],
        );
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        said(&output)
    };
    let request = OidcRequest::for_kubler(server.url());
    let mut told = std::collections::BTreeMap::new();
    let old = job.forge(&request).minted_at(seconds_ago(3600), 300);
    told.insert("old", create(old.sign()));
    let elsewhere = OidcRequest::for_kubler("https://elsewhere.example");
    told.insert(
        "other audience",
        create(job.oidc_token(&elsewhere).unwrap()),
    );
    let bare = OidcRequest::for_audience(server.url());
    told.insert("no ids", create(job.oidc_token(&bare).unwrap()));
    for (what, told) in &told {
        assert!(
            told.starts_with("error: ") && told.contains("\nhint: "),
            "{what}: {told}"
        );
        assert!(told.contains("\nrequest: "), "{what}: {told}");
    }
    assert!(told["old"].contains("expired"), "{}", told["old"]);
    assert!(told["no ids"].contains("--claim"), "{}", told["no ids"]);
    // Whoever is none of the server's is told no more than that; the command knows what usually is wrong.
    assert!(
        told["other audience"].contains("kubler doctor"),
        "{}",
        told["other audience"]
    );
    let doctor = kubler(
        &server,
        folder.path(),
        &["--audience", "https://elsewhere.example", "doctor"],
    );
    assert_eq!(doctor.status.code(), Some(7), "{doctor:?}");

    std::fs::write(folder.path().join("token"), server.token(&job)).unwrap();
    let unknown = kubler(
        &server,
        folder.path(),
        &["env", "create", "--profile", "big"],
    );
    let told = said(&unknown);
    assert!(
        told.contains("`big`") && told.contains("ci-small"),
        "{told}"
    );
    let trial = kubler(&server, folder.path(), &["doctor", "--profile", "ci-small"]);
    let text = String::from_utf8_lossy(&trial.stdout).into_owned();
    assert!(text.contains("profile `ci-small` is allowed"), "{text}");
    server_is_empty(&server).await;
}

/// What was tried is gone.
async fn server_is_empty(server: &Server) {
    let begun = Instant::now();
    while !server.control_planes().is_empty() {
        assert!(begun.elapsed() < BOUND, "{:#?}", server.control_planes());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Keeps the file fresh, as `kubler` expects of whoever gives it one.
fn keep_fresh(server: &Server, job: &Job, path: &Path) {
    let fresh = path.with_extension("fresh");
    std::fs::write(&fresh, server.token(job)).unwrap();
    std::fs::rename(fresh, path).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubectl_that_outlives_its_session_gets_another_and_goes_on() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite)
        .profile_line("session_seconds: 10")
        .start()
        .await;
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    let job = buildkite.build("app").start().job("test").run();
    keep_fresh(&server, &job, &token);
    let config = folder.path().join("kubeconfig");
    let made = kubler(
        &server,
        folder.path(),
        &[
            "env",
            "create",
            "--profile",
            "ci-small",
            "--kubeconfig",
            config.to_str().unwrap(),
        ],
    );
    assert!(made.status.success(), "{}", said(&made));
    let run = |arguments: &[&str]| {
        let mut command = kubectl(&config, folder.path());
        command
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    };
    keep_fresh(&server, &job, &token);
    let map = run(&["create", "configmap", "x"]).output().unwrap();
    assert!(map.status.success(), "{}", said(&map));
    let mut waiting = run(&[
        "wait",
        "configmap/x",
        "--for=jsonpath={.data.done}=yes",
        "--timeout=120s",
    ])
    .spawn()
    .unwrap();
    // The first watch was cut with its session, and the second with the next: nobody but this kubectl asks for any.
    let begun = Instant::now();
    let mut sessions = BTreeSet::new();
    while sessions.len() < 3 {
        keep_fresh(&server, &job, &token);
        assert!(waiting.try_wait().unwrap().is_none(), "kubectl gave up");
        assert!(begun.elapsed() < BOUND, "only {} sessions", sessions.len());
        let files = files_in(folder.path());
        let kept = files.iter().filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "session")
        });
        sessions.extend(kept.filter_map(|path| std::fs::read(path).ok()));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let done = run(&[
        "patch",
        "configmap",
        "x",
        "--patch",
        r#"{"data":{"done":"yes"}}"#,
    ])
    .output()
    .unwrap();
    assert!(done.status.success(), "{}", said(&done));
    while waiting.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < BOUND * 2, "kubectl does not see it");
        keep_fresh(&server, &job, &token);
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let output = waiting.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
}
