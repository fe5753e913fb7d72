//! The real kubectl through the gateway: it works as on any cluster, goes on when its session ends, and is told
//! what happened when its environment does.

mod tools;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kubler_testkit::agent::kube_folder;
use kubler_testkit::buildkite::{Buildkite, Job, OidcRequest};
use kubler_testkit::kubler::{Server, ServerDraft};
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::SOON;

mod artifacts;
mod guardrails;

/// A job with its environment, and a folder with what its kubectl needs.
pub(crate) struct Desk {
    folder: TempDir,
    pub(crate) job: Job,
    pub(crate) id: String,
    is_over: Arc<AtomicBool>,
    tokens: Option<std::thread::JoinHandle<()>>,
    // Ends last: everything above uses it.
    pub(crate) server: Server,
    _buildkite: Buildkite,
}

impl Desk {
    pub(crate) async fn new(change: impl FnOnce(ServerDraft) -> ServerDraft) -> Self {
        let buildkite = Buildkite::start();
        let server = change(Server::of(&buildkite)).start().await;
        let job = buildkite.build("app").start().job("test").run();
        let made = server.create(&job, "main").await;
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = made["kubeconfig"].as_str().unwrap();
        std::fs::write(folder.path().join("kubeconfig"), kubeconfig).unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let file = folder.path().join("token");
        let tokens = keep_fresh(&job, server.url(), file, Arc::clone(&is_over));
        Self {
            folder,
            id: made["id"].as_str().unwrap().to_owned(),
            job,
            is_over,
            tokens: Some(tokens),
            server,
            _buildkite: buildkite,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// kubectl with the answer of the create for a kubeconfig, and nothing else but a token that is fresh.
    fn command(&self, arguments: &[&str]) -> Command {
        self.command_of("kubectl", arguments)
    }

    /// The same with another program that reads a kubeconfig.
    fn command_of(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(kube_folder().join(program));
        self.surround(&mut command).args(arguments);
        command
    }

    /// What every client of the job's has around it.
    pub(crate) fn surround<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let path = [
            self.server.programs().folder(),
            Path::new("/usr/bin"),
            Path::new("/bin"),
        ];
        command
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env_clear()
            .env("HOME", self.folder.path())
            .env("PATH", std::env::join_paths(path).unwrap())
            .env("KUBECONFIG", self.path("kubeconfig"))
            .env("KUBLER_JOBS_FOLDER", self.folder.path())
            .env("KUBLER_TOKEN_FILE", self.path("token"))
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        self.run_of("kubectl", arguments).await
    }

    /// The standard output of a command that must end well.
    async fn kubectl(&self, arguments: &[&str]) -> String {
        self.ok_of("kubectl", arguments).await
    }

    async fn run_of(&self, program: &str, arguments: &[&str]) -> Output {
        finish(self.command_of(program, arguments).spawn().unwrap()).await
    }

    /// The standard output of a program that must end well.
    async fn ok_of(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.run_of(program, arguments).await;
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}",
            text(&output)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    async fn release(&self) {
        let released = self
            .server
            .request(
                Method::POST,
                &format!("/v1/environments/{}/release", self.id),
                Some(&self.server.token(&self.job)),
                None,
            )
            .await;
        assert_eq!(released.status, 200, "{released:?}");
    }

    /// How many things of the job have begun, as the ledger says.
    async fn starts(&self, is_meant: impl Fn(&Value) -> bool) -> usize {
        let path = format!("/v1/ledger/records?limit=1000&job={}", self.job.id());
        let found = self.server.operator(Method::GET, &path).await;
        let records = found.body["records"].as_array().unwrap().iter();
        records
            .filter(|record| record["kind"] == "start" && is_meant(record))
            .count()
    }

    /// Recorded refusals of changes that were too many.
    async fn too_many(&self) -> usize {
        let path = format!("/v1/ledger/records?limit=1000&job={}", self.job.id());
        let found = self.server.operator(Method::GET, &path).await;
        let records = found.body["records"].as_array().unwrap().iter();
        let refused = records.filter(|record| record["outcome"]["code"] == "TooManyChanges");
        refused.count()
    }

    async fn exchanges(&self) -> usize {
        self.starts(|record| record["action"] == "session.issue")
            .await
    }

    /// Watches of config maps that were begun.
    pub(crate) async fn watches(&self) -> usize {
        self.starts(|record| {
            record["request"]["verb"] == "watch" && record["request"]["resource"] == "configmaps"
        })
        .await
    }

    async fn watches_of(&self, name: &str) -> usize {
        self.starts(|record| {
            record["request"]["verb"] == "watch" && record["request"]["name"] == name
        })
        .await
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        if let Some(tokens) = self.tokens.take() {
            let _ = tokens.join();
        }
    }
}

/// Writes a fresh token into `file` all the time, as something does that keeps a token file fresh.
fn keep_fresh(
    job: &Job,
    audience: &str,
    file: PathBuf,
    is_over: Arc<AtomicBool>,
) -> std::thread::JoinHandle<()> {
    let (job, request) = (job.clone(), OidcRequest::for_kubler(audience));
    let write = move || {
        if let Ok(token) = job.oidc_token(&request) {
            let next = file.with_extension("next");
            std::fs::write(&next, token).unwrap();
            std::fs::rename(next, &file).unwrap();
        }
    };
    write();
    std::thread::spawn(move || {
        while !is_over.load(Ordering::SeqCst) {
            write();
            std::thread::sleep(Duration::from_millis(100));
        }
    })
}

async fn finish(child: Child) -> Output {
    let waiting = tokio::task::spawn_blocking(move || child.wait_with_output());
    let output = tokio::time::timeout(SOON, waiting).await;
    output.expect("kubectl ends").unwrap().unwrap()
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

const FIRST: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {colour: red, size: small}\n";
const SECOND: &str =
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {colour: blue}\n";

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_works_as_on_any_cluster() {
    let desk = Desk::new(|draft| draft).await;
    let kinds = desk.kubectl(&["api-resources", "--output=name"]).await;
    for kind in [
        "configmaps",
        "deployments.apps",
        "customresourcedefinitions.apiextensions.k8s.io",
    ] {
        assert!(kinds.lines().any(|line| line == kind), "{kinds}");
    }
    let explained = desk.kubectl(&["explain", "deployment.spec.replicas"]).await;
    assert!(explained.contains("replicas"), "{explained}");

    let colour = async || {
        let field = "--output=jsonpath={.data.colour} {.data.size}";
        desk.kubectl(&["get", "configmap", "settings", field]).await
    };
    desk.file("first.yaml", FIRST);
    desk.file("second.yaml", SECOND);
    desk.kubectl(&["apply", "-f", "first.yaml"]).await;
    assert_eq!(colour().await, "red small");
    desk.kubectl(&["apply", "-f", "second.yaml"]).await;
    assert_eq!(
        colour().await,
        "blue ",
        "what an apply leaves out is taken away"
    );
    let patch = r#"{"data":{"colour":"green"}}"#;
    desk.kubectl(&[
        "patch",
        "configmap",
        "settings",
        "--type=merge",
        "-p",
        patch,
    ])
    .await;
    assert_eq!(colour().await, "green ");

    let server_side = [
        "apply",
        "--server-side",
        "-f",
        "first.yaml",
        "--field-manager=other",
    ];
    let conflict = desk.run(&server_side).await;
    assert!(
        !conflict.status.success() && text(&conflict).contains("conflict"),
        "{}",
        text(&conflict)
    );
    desk.kubectl(&[&server_side[..], &["--force-conflicts"]].concat())
        .await;
    assert_eq!(colour().await, "red small");
    desk.kubectl(&["delete", "configmap", "settings", "--wait=true"])
        .await;
    let missing = desk.run(&["get", "configmap", "settings"]).await;
    assert!(
        text(&missing).contains("configmaps \"settings\" not found"),
        "{}",
        text(&missing)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_that_is_told_to_come_back_does_so_by_itself() {
    let desk = Desk::new(|draft| draft.profile_line("changes_per_second_max: 1")).await;
    let session = desk.server.session(&desk.job, &desk.id).await;
    // All that may be asked for at once, and all that may wait; the last ones are refused.
    let maps = format!("/k8s/{}/api/v1/namespaces/default/configmaps", desk.id);
    let fill = (0..30).map(|number| {
        let (server, session, maps) = (&desk.server, &session, &maps);
        let name = json!({ "name": format!("filling-{number}") });
        let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": name });
        async move {
            let made = server
                .request(Method::POST, maps, Some(session), Some(&map))
                .await;
            made.status.as_u16()
        }
    });
    let refused = async {
        while desk.too_many().await == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    desk.file("first.yaml", FIRST);
    let apply = async {
        tokio::time::timeout(SOON, refused)
            .await
            .expect("nobody is refused");
        desk.kubectl(&["apply", "-f", "first.yaml"]).await
    };
    let (answers, applied) = tokio::join!(futures_util::future::join_all(fill), apply);
    assert!(applied.contains("created"), "{applied}");
    let taken = answers.iter().filter(|status| **status == 201).count();
    assert!((10..30).contains(&taken), "{answers:?}");
    assert!(
        answers.iter().all(|status| [201, 429].contains(status)),
        "{answers:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_reads_lists_of_many_pages_and_megabytes() {
    let desk = Desk::new(|draft| draft).await;
    // Text that does not compress to nothing, far longer than a connection's buffers.
    let blob: String = (0_u64..40_000)
        .map(|nth| format!("{:x}\n", nth.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
        .collect();
    let name = |nth: usize| format!("large-{nth:03}");
    let large = |nth: usize| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name(nth) }, "data": { "blob": blob } });
    let small = |nth: usize| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": format!("small-{nth:03}"), "labels": { "size": "small" } } });
    let list = |items: Vec<Value>| {
        json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string()
    };
    desk.file("large.json", &list((0..8).map(large).collect()));
    desk.file("small.json", &list((0..60).map(small).collect()));
    desk.kubectl(&["create", "-f", "large.json"]).await;
    desk.kubectl(&["create", "-f", "small.json"]).await;

    let pages = [
        "get",
        "configmaps",
        "--output=name",
        "--chunk-size=7",
        "--selector=size=small",
    ];
    assert_eq!(desk.kubectl(&pages).await.lines().count(), 60);
    let all = desk.kubectl(&["get", "configmaps", "--output=json"]).await;
    let all: Value = serde_json::from_str(&all).unwrap();
    let blobs = all["items"].as_array().unwrap().iter();
    assert_eq!(
        blobs.filter(|item| item["data"]["blob"] == *blob).count(),
        8
    );

    // What kubectl asks for, as it is on the wire.
    let session = desk.server.session(&desk.job, &desk.id).await;
    let url = format!(
        "{}/k8s/{}/api/v1/namespaces/default/configmaps",
        desk.server.url(),
        desk.id
    );
    let request = desk.server.client().get(url).bearer_auth(session);
    let answer = request
        .header("accept-encoding", "gzip")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.headers()["content-encoding"], "gzip");
    let bytes = answer.bytes().await.unwrap();
    assert_eq!(bytes[..2], [0x1f, 0x8b]);
    assert!(bytes.len() < 8 * blob.len(), "it is compressed");
}

#[tokio::test(flavor = "multi_thread")]
async fn e1_e3_a_watch_and_whoever_comes_after_the_end_are_told_when_and_why() {
    let desk = Desk::new(|draft| draft).await;
    let mut watch = desk
        .command(&["get", "configmaps", "--watch"])
        .spawn()
        .unwrap();
    let mut first = String::new();
    let mut lines = BufReader::new(watch.stdout.take().unwrap());
    lines.read_line(&mut first).unwrap();
    assert!(first.starts_with("NAME"), "{first}");
    desk.release().await;
    let output = finish(watch).await;
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut lines, &mut rest).unwrap();
    let told = format!("{rest}{}", text(&output));
    assert!(
        told.contains("ended") && told.contains("released"),
        "{told}"
    );

    // Its session would still be good for minutes.
    for arguments in [
        &["get", "configmaps"][..],
        &["apply", "-f", "-"],
        &["api-resources"],
        &["version"],
    ] {
        let mut command = desk.command(arguments);
        let mut late = command.stdin(Stdio::piped()).spawn().unwrap();
        late.stdin
            .take()
            .unwrap()
            .write_all(FIRST.as_bytes())
            .unwrap();
        let late = finish(late).await;
        let told = text(&late);
        assert!(!late.status.success(), "{arguments:?}: {told}");
        assert!(
            told.contains("ended") && told.contains(&desk.job.id().to_string()),
            "{arguments:?}: {told}"
        );
        assert!(
            !told.to_lowercase().contains("forbidden"),
            "{arguments:?}: {told}"
        );
    }
    assert_eq!(desk.exchanges().await, 1, "the kept session was used");
}

/// A program that does not end by itself; it ends with this, also when the test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sessions of the shortest life there is.
fn short(draft: ServerDraft) -> ServerDraft {
    draft.profile_line("session_seconds: 5")
}

#[tokio::test(flavor = "multi_thread")]
async fn e1_commands_that_take_longer_than_a_session_go_on() {
    let desk = Desk::new(short).await;
    desk.kubectl(&["create", "configmap", "early"]).await;
    // One asks again and again, the other watches.
    let asking = ["wait", "--for=create", "configmap/late", "--timeout=25s"];
    let watching = [
        "wait",
        "--for=jsonpath={.data.state}=done",
        "configmap/early",
        "--timeout=25s",
    ];
    let mut waiting = [
        desk.command(&asking).spawn().unwrap(),
        desk.command(&watching).spawn().unwrap(),
    ];
    let bound = Instant::now() + SOON;
    while desk.watches_of("early").await == 0 {
        assert!(Instant::now() < bound, "nobody watches");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let before = desk.exchanges().await;
    tokio::time::sleep(Duration::from_secs(6)).await; // longer than a session lives
    for child in &mut waiting {
        assert!(child.try_wait().unwrap().is_none(), "it waits no more");
    }
    assert_eq!(
        desk.watches_of("early").await,
        1,
        "the watch was not begun anew"
    );
    assert!(
        desk.exchanges().await > before,
        "who asks again got another session"
    );
    desk.kubectl(&["create", "configmap", "late"]).await;
    let patch = r#"{"data":{"state":"done"}}"#;
    desk.kubectl(&["patch", "configmap", "early", "-p", patch])
        .await;
    for child in waiting {
        let output = finish(child).await;
        assert!(output.status.success(), "{}", text(&output));
        assert!(text(&output).contains("condition met"), "{}", text(&output));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn e3_a_401_makes_a_client_run_its_exec_plugin_again_and_go_on() {
    let desk = Desk::new(short).await;
    // A plugin that says nothing of an end, so that only a 401 can tell.
    let plugin = desk.file(
        "credential",
        "#!/bin/sh\necho run >> runs\nkubler \"$@\" | sed 's/\"expirationTimestamp\":\"[^\"]*\",//'\n",
    );
    std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o700)).unwrap();
    let kubeconfig = std::fs::read_to_string(desk.path("kubeconfig")).unwrap();
    let mut kubeconfig: Value = serde_json::from_str(&kubeconfig).unwrap();
    kubeconfig["users"][0]["user"]["exec"]["command"] = plugin.to_str().unwrap().into();
    desk.file("kubeconfig", &kubeconfig.to_string());
    let runs = || {
        std::fs::read_to_string(desk.path("runs"))
            .unwrap_or_default()
            .lines()
            .count()
    };

    // A client that lives longer than its session.
    let mut proxy = desk.command(&["proxy", "--port=0", "--append-server-path"]);
    let mut proxy = Running(proxy.spawn().unwrap());
    let mut line = String::new();
    BufReader::new(proxy.0.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let address = line.trim().rsplit(' ').next().unwrap().to_owned();
    let get = async || {
        let url = format!("http://{address}/api/v1/namespaces/default");
        let answer = reqwest::get(url).await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let (status, body) = get().await;
    assert_eq!((status, runs()), (200, 1), "{body}");
    tokio::time::sleep(Duration::from_secs(6)).await; // longer than a session lives
    let (status, body) = get().await;
    assert_eq!(status, 401, "{body}");
    let told: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        told["details"]["causes"][0]["reason"], "SessionExpired",
        "{told}"
    );
    assert_eq!(runs(), 2, "the 401 ran the plugin");
    let (status, body) = get().await;
    assert_eq!((status, runs()), (200, 2), "{body}");
}
