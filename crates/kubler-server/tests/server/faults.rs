//! What goes wrong around an environment: it grows too large, it resists its end, the server's terminal
//! is interrupted. Each is told to whom it concerns, and nothing else suffers.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use kubler_testkit::buildkite::{Buildkite, Job};
use kubler_testkit::kubler::Server;
use reqwest::Method;
use rustix::process::{Pid, Signal, getpgid, kill_process_group};
use serde_json::{Value, json};

use crate::SOON;

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_stores_more_than_its_profile_allows_loses_its_environment_and_is_told_why() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite)
        .profile_line("stored_bytes_max: 2097152")
        .start()
        .await;
    let build = buildkite.build("app").start();
    let (greedy, neighbour) = (build.job("greedy").run(), build.job("neighbour").run());
    let id = create(&server, &greedy).await;
    let other = create(&server, &neighbour).await;
    let session = server.session(&greedy, &id).await;
    let path = format!("/k8s/{id}/api/v1/namespaces/default/configmaps");
    let value = "x".repeat(700_000);
    for number in 0..4 {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": format!("m{number}") }, "data": { "value": value },
        });
        server
            .request(Method::POST, &path, Some(&session), Some(&map))
            .await;
    }
    server.wait_until_gone(&id, SOON).await;
    let late = server
        .request(Method::GET, &path, Some(&session), None)
        .await;
    let own = server
        .request(
            Method::GET,
            &format!("/v1/environments/{id}"),
            Some(&server.token(&greedy)),
            None,
        )
        .await;
    let told = [
        late.body["message"].as_str().unwrap(),
        own.body["end"]["message"].as_str().unwrap(),
    ];
    for told in told {
        assert!(
            told.contains("stores at least 2.")
                && told.contains("2.0 MiB")
                && told.contains("`stored_bytes_max`"),
            "{told}"
        );
    }
    let session = server.session(&neighbour, &other).await;
    assert_eq!(reads(&server, &other, &session).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_that_resists_its_end_is_releasing_until_nothing_of_it_is_found() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let id = create(&server, &job).await;
    let folder = run_folder(&server, &id);
    let planting = Planting::begin(folder.join("planted"));
    let token = server.token(&job);
    let path = format!("/v1/environments/{id}/release");
    let released = server
        .request(Method::POST, &path, Some(&token), None)
        .await;
    assert_eq!(released.status, 200, "{released:?}");
    // Several tries, each later than the one before.
    let deadline = Instant::now() + SOON;
    let failures = || {
        let log = server.log();
        let lines: Vec<Value> = log
            .lines()
            .filter(|line| line.contains("could not be ended; trying again"))
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        lines
    };
    while failures().len() < 3 {
        assert_eq!(server.environment(&id).await["phase"], "releasing");
        assert!(Instant::now() < deadline, "{}", server.log());
    }
    let failed = failures();
    let at = |nth: usize| -> jiff::Timestamp {
        failed[nth]["timestamp"].as_str().unwrap().parse().unwrap()
    };
    let gaps = [(0, 150), (1, 300)];
    for (nth, milliseconds_min) in gaps {
        let gap = at(nth + 1).duration_since(at(nth));
        assert!(
            gap.as_millis() >= milliseconds_min,
            "no back-off: {failed:#?}"
        );
    }
    drop(planting);
    let gone = server.wait_until_gone(&id, SOON).await;
    assert_eq!(gone["end"]["code"], "released");
    assert!(!folder.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn h4_an_upstream_credential_is_worth_nothing_outside_its_own_environment() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let build = buildkite.build("app").start();
    let (first, second) = (
        create(&server, &build.job("first").run()).await,
        create(&server, &build.job("second").run()).await,
    );
    let tokens = std::fs::read_to_string(run_folder(&server, &first).join("tokens.csv")).unwrap();
    let tokens: Vec<_> = tokens
        .lines()
        .map(|line| line.split(',').next().unwrap())
        .collect();
    assert_eq!(tokens.len(), 2, "the job's and the server's own");
    for token in tokens {
        // At home it is what the gateway forwards with; next door it is nobody.
        assert_eq!(upstream_status(&server, &first, token).await, 200);
        assert_eq!(upstream_status(&server, &second, token).await, 401);
        // Nor does it open the gateway or the broker.
        for path in [
            format!("/k8s/{first}/api/v1/namespaces"),
            format!("/k8s/{second}/api/v1/namespaces"),
            format!("/v1/environments/{first}"),
            "/v1/environments".to_owned(),
        ] {
            let answer = server.request(Method::GET, &path, Some(token), None).await;
            assert_eq!(answer.status, 401, "{path}: {answer:?}");
        }
        assert_eq!(server.exchange(token, &first).await.status, 401);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_from_the_servers_terminal_stops_it_and_no_environment() {
    let buildkite = Buildkite::start();
    let mut server = Server::of(&buildkite).start().await;
    server.stop().await;
    let mut foreground = Command::new(server.programs().server())
        .args(["serve", "--config"])
        .arg(server.folder().join("kubler.yaml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    let health = format!("{}/healthz", server.url());
    let deadline = Instant::now() + SOON;
    while server.client().get(&health).send().await.is_err() {
        assert!(Instant::now() < deadline, "it does not serve");
    }
    let job = buildkite.build("app").start().job("test").run();
    let id = create(&server, &job).await;
    let session = server.session(&job, &id).await;

    // What a terminal does on Ctrl-C: everybody in the foreground gets it.
    let group = Pid::from_raw(i32::try_from(foreground.id()).unwrap()).unwrap();
    let environments = server.control_planes();
    for process in server.processes() {
        let its_group = getpgid(Pid::from_raw(process.pid)).unwrap();
        assert_eq!(
            its_group == group,
            process.pid == group.as_raw_pid(),
            "{process:?}"
        );
    }
    kill_process_group(group, Signal::INT).unwrap();
    let deadline = Instant::now() + SOON;
    let ended = loop {
        if let Some(ended) = foreground.try_wait().unwrap() {
            break ended;
        }
        assert!(Instant::now() < deadline, "it does not stop");
        tokio::task::yield_now().await;
    };
    assert!(ended.success(), "{ended:?}");
    let mut left = server.control_planes();
    for process in &mut left {
        // Orphans have another parent.
        process.parent = environments[0].parent;
    }
    assert_eq!(left, environments);
    server.restart().await;
    assert_eq!(reads(&server, &id, &session).await, 200);
}

/// Fills a folder with files, faster than they are deleted, until it is dropped.
struct Planting {
    goes_on: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Planting {
    /// How many are there when it begins: whoever deletes them is not done before more have come.
    const FILES: usize = 5000;

    fn begin(folder: PathBuf) -> Self {
        let plant = move |number: usize| {
            let _ = std::fs::create_dir_all(&folder);
            let _ = std::fs::write(folder.join(number.to_string()), "");
        };
        (0..Self::FILES).for_each(&plant);
        let goes_on = Arc::new(AtomicBool::new(true));
        let asked = Arc::clone(&goes_on);
        let thread = std::thread::spawn(move || {
            let wanted = (Self::FILES..).take_while(|_| asked.load(Ordering::Relaxed));
            wanted.for_each(plant);
        });
        let thread = Some(thread);
        Self { goes_on, thread }
    }
}

impl Drop for Planting {
    fn drop(&mut self) {
        self.goes_on.store(false, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

async fn create(server: &Server, job: &Job) -> String {
    let made = server.create(job, "main").await;
    made["id"].as_str().unwrap().to_owned()
}

async fn reads(server: &Server, id: &str, session: &str) -> u16 {
    let path = format!("/k8s/{id}/api/v1/namespaces");
    let read = server
        .request(Method::GET, &path, Some(session), None)
        .await;
    read.status.as_u16()
}

fn run_folder(server: &Server, id: &str) -> PathBuf {
    let folder = server.folder().join("data/local/run").join(id);
    assert!(folder.is_dir(), "{}", folder.display());
    folder
}

/// Asks an environment's API server itself, on its socket.
async fn upstream_status(server: &Server, id: &str, token: &str) -> u16 {
    let folder: &Path = &run_folder(server, id);
    let authority = std::fs::read(folder.join("ca.crt")).unwrap();
    let client = reqwest::Client::builder()
        .use_rustls_tls()
        .tls_certs_only([reqwest::Certificate::from_pem(&authority).unwrap()])
        .unix_socket(folder.join("api.sock"))
        .build()
        .unwrap();
    let answer = client
        .get("https://kubernetes.default.svc/api/v1/namespaces")
        .bearer_auth(token)
        .send()
        .await
        .unwrap();
    answer.status().as_u16()
}
