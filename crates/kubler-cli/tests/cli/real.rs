//! Against the real server: what it refuses is told as it is, and a kubectl that outlives its session goes on.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Output, Stdio};
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
    let stranger = job.oidc_token(&elsewhere).unwrap();
    std::fs::write(folder.path().join("token"), stranger).unwrap();
    let doctor = kubler(
        &server,
        folder.path(),
        &["--audience", "https://elsewhere.example", "doctor"],
    );
    assert_eq!(doctor.status.code(), Some(7), "{doctor:?}");
    let text = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(
        text.contains("note  audience") && text.contains("WRONG identity"),
        "{text}"
    );
    assert!(!text.contains("policy: "), "nobody got as far: {text}");

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

    // By the server's own clock: what was there before lives on, and what a command made itself ends with it.
    let made = kubler(
        &server,
        folder.path(),
        &["env", "create", "--profile", "ci-small"],
    );
    assert!(made.status.success(), "{}", said(&made));
    let run = |name: &str| {
        std::fs::write(folder.path().join("token"), server.token(&job)).unwrap();
        let line = ["run", "--profile", "ci-small", "--name", name, "--", "true"];
        let output = kubler(&server, folder.path(), &line);
        assert!(output.status.success(), "{}", said(&output));
        said(&output)
    };
    let told = run("main");
    assert!(told.contains("was there before this command"), "{told}");
    let told = run("own");
    assert!(told.contains("nothing is left"), "{told}");
    assert!(!server.control_planes().is_empty(), "the first one lives");
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
    let socket = folder.path().join("proxy");
    let proxy = kubectl(&config, folder.path())
        .args(["proxy", "--append-server-path", "--unix-socket"])
        .arg(&socket)
        .stdout(Stdio::null())
        .spawn();
    let mut proxy = Ended(proxy.unwrap());
    let begun = Instant::now();
    // The file is there before anybody listens.
    while UnixStream::connect(&socket).is_err() {
        assert!(begun.elapsed() < BOUND, "kubectl does not listen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut sessions = BTreeSet::new();
    while sessions.len() < 3 {
        keep_fresh(&server, &job, &token);
        assert_eq!(status(&socket), "200", "after {} sessions", sessions.len());
        assert!(begun.elapsed() < BOUND, "only {} sessions", sessions.len());
        let files = files_in(folder.path());
        let kept = files.iter().filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "session")
        });
        sessions.extend(kept.filter_map(|path| std::fs::read(path).ok()));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(
        proxy.0.try_wait().unwrap().is_none(),
        "it was one and the same kubectl"
    );
}

/// A child that does not outlive its test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The status of a request that kubectl makes with its credential.
fn status(socket: &Path) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    let request =
        "GET /api/v1/namespaces/default HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap_or_default().to_owned()
}
