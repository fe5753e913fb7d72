//! What all measurements share: where programs are, the separate programs they are compared with, and a bare client.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use kubler_testkit::agent::kube_folder;
use kubler_testkit::buildkite::{Buildkite, Job};
use kubler_testkit::kubler::Server;
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// How often a condition is looked at, on both sides of a comparison.
pub(crate) const POLL: Duration = Duration::from_millis(5);
/// Longest time that anything may take that is waited for.
const BOUND: Duration = Duration::from_secs(90);
/// The service account whose presence says that an environment is ready.
pub(crate) const DEFAULT_ACCOUNT: &str = "/api/v1/namespaces/default/serviceaccounts/default";

/// Where everything is.
#[derive(Debug, Clone)]
pub(crate) struct World {
    /// Upstream's programs, and the baseline.
    pub(crate) kube: PathBuf,
    /// Where cargo puts what it builds: on a disk, as a ledger would be.
    pub(crate) target: PathBuf,
    /// How much is measured.
    pub(crate) length: Length,
}

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Length {
    /// What the figures need.
    Full,
    /// A tenth of it: shows that everything works, and is not kept.
    Quick,
    /// And what needs a machine of its own.
    Long,
}

impl Length {
    /// How many rounds of a full measurement are run.
    pub(crate) const fn rounds(self, full: usize) -> usize {
        match self {
            Self::Full | Self::Long => full,
            Self::Quick => full.div_ceil(10),
        }
    }
}

impl World {
    pub(crate) fn find(target: PathBuf, length: Length) -> Self {
        let kube = kube_folder();
        for name in ["baseline", "kube-apiserver", "kube-controller-manager"] {
            assert!(
                kube.join(name).is_file(),
                "`{name}` is missing: run `kube/build stock baseline`"
            );
        }
        Self {
            kube,
            target,
            length,
        }
    }

    /// Runs a baseline and gives the line it prints.
    pub(crate) async fn baseline(&self, command: &str, arguments: &[String]) -> Value {
        let output = self.baseline_command(command, arguments).output();
        let output = output.await.expect("the baseline runs");
        assert!(
            output.status.success(),
            "baseline {command}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).expect("a line of JSON")
    }

    /// A baseline that is not run yet. It ends with us.
    pub(crate) fn baseline_command(&self, command: &str, arguments: &[String]) -> Command {
        let mut program = Command::new(self.kube.join("baseline"));
        program
            .arg(command)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        program
    }

    /// Starts the two stock processes on an empty prefix; `idle` seconds later their memory is taken.
    pub(crate) async fn start_stock(&self, idle: u64) -> Value {
        let folder = private_folder();
        let mut arguments = self.start_arguments(folder.path(), idle);
        arguments.push(self.flag("apiserver", "kube-apiserver"));
        arguments.push(self.flag("controller-manager", "kube-controller-manager"));
        self.baseline("start-stock", &arguments).await
    }

    /// Starts Kubler's control plane on a prepared prefix, without Kubler.
    pub(crate) async fn start_variant(&self) -> Value {
        let folder = private_folder();
        let mut arguments = self.start_arguments(folder.path(), 0);
        arguments.push(self.flag("control-plane", "kubler-control-plane"));
        arguments.push(self.flag("template", "template"));
        self.baseline("start-variant", &arguments).await
    }

    fn start_arguments(&self, folder: &Path, idle: u64) -> Vec<String> {
        vec![
            format!("--folder={}", folder.display()),
            format!("--idle={idle}s"),
            self.flag("etcd", "etcd"),
        ]
    }

    fn flag(&self, name: &str, program: &str) -> String {
        format!("--{name}={}", self.kube.join(program).display())
    }
}

/// A folder that only we may enter, with a path that is short enough for sockets; gone when dropped.
pub(crate) fn private_folder() -> TempDir {
    tempfile::Builder::new()
        .prefix("kb")
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in("/tmp")
        .expect("a folder")
}

/// A server as an operator runs it, in the usual log level.
pub(crate) async fn server(buildkite: &Buildkite) -> Server {
    Server::of(buildkite).log_filter("info").start().await
}

/// A running job of its own.
pub(crate) fn job(buildkite: &Buildkite) -> Job {
    buildkite.build("app").start().job("bench").run()
}

/// A new client that trusts the server and keeps its connections.
pub(crate) fn client(server: &Server) -> Client {
    let ca = std::fs::read(server.ca()).expect("the CA");
    Client::builder()
        .use_rustls_tls()
        .tls_certs_only([reqwest::Certificate::from_pem(&ca).expect("a CA")])
        // The server closes what rests for 15 s: a connection that is taken up just then would count as no answer.
        .pool_idle_timeout(Duration::from_secs(5))
        .build()
        .expect("a client")
}

/// The way to one environment, with a session.
#[derive(Clone)]
pub(crate) struct Way {
    client: Client,
    url: String,
    session: String,
}

impl Way {
    pub(crate) fn new(server: &Server, client: Client, id: &str, session: String) -> Self {
        let url = format!("{}/k8s/{id}", server.url());
        Self {
            client,
            url,
            session,
        }
    }

    /// The same with a connection of its own.
    pub(crate) fn with_client(&self, client: Client) -> Self {
        Self {
            client,
            ..self.clone()
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        let request = self.client.get(self.url(path)).bearer_auth(&self.session);
        request.send().await.expect("an answer")
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> StatusCode {
        let request = self.client.post(self.url(path)).bearer_auth(&self.session);
        let answer = request.json(body).send().await.expect("an answer");
        let status = answer.status();
        answer.bytes().await.expect("a body");
        status
    }

    /// A GET of which only the status is wanted.
    pub(crate) async fn look(&self, path: &str) -> StatusCode {
        let answer = self.get(path).await;
        let status = answer.status();
        answer.bytes().await.expect("a body");
        status
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> StatusCode {
        let request = self.client.put(self.url(path)).bearer_auth(&self.session);
        let answer = request.json(body).send().await.expect("an answer");
        let status = answer.status();
        answer.bytes().await.expect("a body");
        status
    }

    /// Looks every 5 ms until something is there.
    pub(crate) async fn until_found(&self, path: &str) {
        let deadline = Instant::now() + BOUND;
        loop {
            let answer = self.get(path).await;
            let status = answer.status();
            answer.bytes().await.expect("a body");
            if status == StatusCode::OK {
                return;
            }
            assert!(Instant::now() < deadline, "still {status}: {path}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Makes a namespace, and waits until a controller has made its service account.
    pub(crate) async fn make_namespace(&self, name: &str) {
        let object =
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        let status = self.post("/api/v1/namespaces", &object).await;
        assert_eq!(status, StatusCode::CREATED, "no namespace");
        self.until_found(&format!(
            "/api/v1/namespaces/{name}/serviceaccounts/default"
        ))
        .await;
    }
}

/// Asks for an environment with this token and waits until it is ready.
pub(crate) async fn create(server: &Server, client: &Client, token: &str) -> Value {
    let body = json!({ "profile": "ci-small", "wait_seconds": 60 });
    let request = client
        .post(format!("{}/v1/environments", server.url()))
        .bearer_auth(token);
    let made = json_of(request.json(&body)).await;
    assert_eq!(
        made["phase"],
        "ready",
        "no environment: {made}\n{}",
        server.log()
    );
    made
}

/// Exchanges the token for a session.
pub(crate) async fn exchange(server: &Server, client: &Client, token: &str, id: &str) -> String {
    let form = [
        (
            "grant_type",
            "urn:ietf:params:oauth:grant-type:token-exchange",
        ),
        ("subject_token", token),
        ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
        ("resource", id),
    ];
    let request = client.post(format!("{}/v1/token", server.url()));
    let issued = json_of(request.form(&form)).await;
    let session = issued["access_token"].as_str();
    session
        .unwrap_or_else(|| panic!("no session: {issued}"))
        .to_owned()
}

/// Releases an environment and waits until it is verified gone.
pub(crate) async fn release(server: &Server, client: &Client, token: &str, id: &str) {
    let url = format!("{}/v1/environments/{id}/release", server.url());
    let request = client.post(url).bearer_auth(token);
    let released = json_of(request.json(&json!({ "wait_seconds": 60 }))).await;
    assert_eq!(
        released["phase"],
        "gone",
        "not gone: {released}\n{}",
        server.log()
    );
}

/// An environment with a session, made and used once.
pub(crate) async fn environment(server: &Server, job: &Job) -> (String, Way) {
    let (client, token) = (client(server), server.token(job));
    let made = create(server, &client, &token).await;
    let id = made["id"].as_str().expect("an id").to_owned();
    let session = exchange(server, &client, &token, &id).await;
    let way = Way::new(server, client, &id, session);
    way.until_found(DEFAULT_ACCOUNT).await;
    (id, way)
}

async fn json_of(request: reqwest::RequestBuilder) -> Value {
    let answer = request.send().await.expect("an answer");
    let text = answer.text().await.expect("a body");
    serde_json::from_str(&text).unwrap_or(Value::String(text))
}

/// Starts a program and gives the first line it prints. Dropped, it ends.
pub(crate) async fn first_line(mut command: Command) -> (Child, String) {
    let mut child = command.spawn().expect("a program that starts");
    let output = child.stdout.take().expect("its output");
    let mut lines = BufReader::new(output).lines();
    let line = tokio::time::timeout(BOUND, lines.next_line()).await;
    let line = line.expect("a line in time").expect("its output");
    (child, line.expect("a line"))
}

/// All of them at once.
pub(crate) async fn all(tasks: impl Iterator<Item = impl Future<Output = ()>>) {
    let mut tasks: Vec<_> = tasks.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        tasks.retain_mut(|task| task.as_mut().poll(context).is_pending());
        if tasks.is_empty() {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
}

/// A JSON number.
pub(crate) fn number(value: &Value, key: &str) -> f64 {
    value[key]
        .as_f64()
        .unwrap_or_else(|| panic!("no `{key}` in {value}"))
}

pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
