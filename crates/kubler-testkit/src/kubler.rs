//! The real `kubler-server` and `kubler`, run as a user would run them: `init`, then `serve`, against the stand-in.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! # use kubler_testkit::{buildkite::{Buildkite, OidcRequest}, kubler::Server};
//! let buildkite = Buildkite::start();
//! let server = Server::of(&buildkite).lease_seconds(5).start().await;
//! let job = buildkite.build("app").start().job("test").run();
//! let environment = server.create(&job, "main").await;
//! assert_eq!(environment["phase"], "ready");
//! # Ok(()) }
//! ```

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::agent::kube_folder;
use crate::buildkite::{Buildkite, Job, OidcRequest};
use crate::leaks::{Left, Mark, Process};

/// How long a server may take to answer its first request: etcd starts with it.
const START_BOUND: Duration = Duration::from_secs(30);
/// How long a graceful stop may take.
const STOP_BOUND: Duration = Duration::from_secs(20);
/// What a server under test logs.
const LOG_FILTER: &str = "info,kubler_server=debug";
/// How often a condition is looked at again.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// The programs under test: beside the running test, or in `KUBLER_PROGRAMS`.
#[derive(Clone, Debug)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Finds them.
    ///
    /// # Panics
    /// When they have not been built.
    pub fn find() -> Self {
        let folder = std::env::var_os("KUBLER_PROGRAMS").map_or_else(
            || {
                let test = std::env::current_exe().expect("this program's path");
                let folders = test.ancestors().skip(1).take(2);
                let found = folders.filter(|folder| folder.join("kubler-server").is_file());
                let nearest = found.last().map(Path::to_owned);
                nearest.unwrap_or_else(|| {
                    panic!(
                        "kubler-server is not beside `{}`: run `cargo build --workspace --bins`",
                        test.display()
                    )
                })
            },
            PathBuf::from,
        );
        assert!(
            folder.join("kubler").is_file(),
            "`kubler` is not in `{}`: run `cargo build --workspace --bins`",
            folder.display()
        );
        Self { folder }
    }

    /// The folder, for a PATH.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// `kubler-server`.
    pub fn server(&self) -> PathBuf {
        self.folder.join("kubler-server")
    }

    /// `kubler`.
    pub fn cli(&self) -> PathBuf {
        self.folder.join("kubler")
    }
}

/// A server that is not started yet.
#[must_use]
pub struct ServerDraft {
    folder: TempDir,
    programs: Programs,
    port: u16,
    edits: Vec<(String, String)>,
    log_filter: String,
}

impl ServerDraft {
    fn new(buildkite: &Buildkite) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("ks")
            .rand_bytes(8)
            .tempdir_in("/tmp")
            .expect("a folder");
        let programs = Programs::find();
        // Free at this moment, and chosen by the kernel from a range where the next choice is another one.
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        let issuer_ca = folder.path().join("issuer-ca.pem");
        fs::write(&issuer_ca, buildkite.ca_pem()).expect("the issuer's CA");
        let organization = buildkite.first_organization();
        let output = Command::new(programs.server())
            .arg("init")
            .arg(folder.path().join("k"))
            .args([
                "--organization-id",
                &organization.id.to_string(),
                "--organization",
                &organization.slug,
            ])
            .args([
                "--url",
                &format!("https://127.0.0.1:{port}"),
                "--listen",
                &format!("127.0.0.1:{port}"),
            ])
            .args(["--issuer", buildkite.issuer_url(), "--issuer-ca"])
            .arg(issuer_ca)
            .output()
            .expect("kubler-server init");
        assert!(
            output.status.success(),
            "init: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Self {
            folder,
            programs,
            port,
            edits: Vec::new(),
            log_filter: LOG_FILTER.to_owned(),
        }
    }

    /// The folder of everything that it and its processes write.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What it logs, instead of more than an operator would want: figures are taken as a server runs.
    pub fn log_filter(mut self, filter: &str) -> Self {
        filter.clone_into(&mut self.log_filter);
        self
    }

    /// Changes a text of the configuration that `init` wrote.
    pub fn edit(mut self, from: &str, to: &str) -> Self {
        self.edits.push((from.to_owned(), to.to_owned()));
        self
    }

    /// Adds a line to the first profile, `ci-small`.
    pub fn profile_line(self, line: &str) -> Self {
        let name = "  - name: ci-small\n";
        self.edit(name, &format!("{name}    {line}\n"))
    }

    /// The lease of the first profile.
    pub fn lease_seconds(self, seconds: u64) -> Self {
        self.profile_line(&format!("lease_seconds: {seconds}"))
    }

    /// Adds a top-level section, such as `limits: {...}`.
    pub fn section(self, yaml: &str) -> Self {
        self.edit(
            "policies: policies\n",
            &format!("policies: policies\n{yaml}\n"),
        )
    }

    /// Writes another file into the configuration's folder.
    pub fn file(self, path: &str, text: &str) -> Self {
        fs::write(self.folder.path().join("k").join(path), text).expect("a file");
        self
    }

    /// Starts it, and waits until it answers.
    ///
    /// # Panics
    /// With its log, when it does not.
    pub async fn start(self) -> Server {
        let config = self.folder.path().join("k/kubler.yaml");
        let mut text = fs::read_to_string(&config).expect("the configuration");
        for (from, to) in &self.edits {
            assert!(text.contains(from), "the configuration has no `{from}`");
            text = text.replacen(from, to, 1);
        }
        fs::write(&config, text).expect("the configuration");
        let ca = fs::read(self.folder.path().join("k/tls/ca.pem")).expect("the CA");
        let client = |identity: Option<reqwest::Identity>| {
            let builder = reqwest::Client::builder()
                .use_rustls_tls()
                .tls_certs_only([reqwest::Certificate::from_pem(&ca).expect("a CA")])
                .pool_max_idle_per_host(0);
            identity
                .into_iter()
                .fold(builder, reqwest::ClientBuilder::identity)
                .build()
                .expect("a client")
        };
        let tls = self.folder.path().join("k/tls");
        let mut operator = fs::read(tls.join("operator.pem")).expect("the operator");
        operator.extend(fs::read(tls.join("operator.key")).expect("the operator's key"));
        let mut server = Server {
            url: format!("https://127.0.0.1:{}", self.port),
            client: client(None),
            operator: client(Some(
                reqwest::Identity::from_pem(&operator).expect("an identity"),
            )),
            programs: self.programs,
            folder: self.folder,
            log_filter: self.log_filter,
            child: None,
        };
        server.restart().await;
        server
    }
}

/// A running server. Dropping it ends it with everything that it started, and panics if something is left.
pub struct Server {
    url: String,
    client: reqwest::Client,
    operator: reqwest::Client,
    programs: Programs,
    folder: TempDir,
    log_filter: String,
    child: Option<Child>,
}

/// An answer: status and JSON (or null).
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// Body.
    pub body: Value,
}

impl Server {
    /// Says how to run a server for the first organization of `buildkite`.
    pub fn of(buildkite: &Buildkite) -> ServerDraft {
        ServerDraft::new(buildkite)
    }

    /// `https://127.0.0.1:PORT`, also the audience of its tokens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The folder that `init` wrote.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().join("k")
    }

    /// The CA that callers trust.
    pub fn ca(&self) -> PathBuf {
        self.folder().join("tls/ca.pem")
    }

    /// The programs under test.
    pub const fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Its own process.
    ///
    /// # Panics
    /// When it does not run.
    pub fn process(&self) -> Process {
        let pid = self.child.as_ref().expect("a server that runs").id();
        Process::find(i32::try_from(pid).expect("a pid")).expect("its process")
    }

    /// Everything that carries its folder: etcd, control planes and itself.
    pub fn processes(&self) -> Vec<Process> {
        self.mark().processes()
    }

    fn mark(&self) -> Mark {
        Mark::of(
            &self
                .folder
                .path()
                .file_name()
                .expect("a name")
                .to_string_lossy(),
        )
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default()
    }

    /// Starts it on the same folder; a running one is stopped gracefully before.
    ///
    /// # Panics
    /// With its log, when it does not answer.
    pub async fn restart(&mut self) {
        self.stop().await;
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("server.log"))
            .expect("a log");
        let child = Command::new(self.programs.server())
            .args(["serve", "--config"])
            .arg(self.folder().join("kubler.yaml"))
            .env("KUBLER_LOG", &self.log_filter)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("a server that starts");
        self.child = Some(child);
        let deadline = Instant::now() + START_BOUND;
        while !self.answers().await {
            let ended = self
                .child
                .as_mut()
                .and_then(|child| child.try_wait().ok().flatten());
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "the server does not answer: {}",
                self.log()
            );
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn answers(&self) -> bool {
        self.client
            .get(format!("{}/healthz", self.url))
            .send()
            .await
            .is_ok_and(|answer| answer.status().is_success())
    }

    /// SIGTERM, and waits for its end. Environments stay alive.
    pub async fn stop(&mut self) {
        self.end(Signal::TERM).await;
    }

    /// SIGKILL. Environments stay alive.
    pub async fn kill(&mut self) {
        self.end(Signal::KILL).await;
    }

    async fn end(&mut self, signal: Signal) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
        let deadline = Instant::now() + STOP_BOUND;
        while child.try_wait().expect("our child").is_none() {
            assert!(
                Instant::now() < deadline,
                "the server does not stop: {}",
                self.log()
            );
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// SIGHUP: loads policies anew.
    pub fn reload(&self) {
        self.process().signal(Signal::HUP);
    }

    /// A request with a bearer token (or none).
    ///
    /// # Panics
    /// When no answer comes.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Answer {
        let mut request = self.client.request(method, format!("{}{path}", self.url));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        answer(request).await
    }

    /// A request with the operator's certificate.
    ///
    /// # Panics
    /// When no answer comes.
    pub async fn operator(&self, method: Method, path: &str) -> Answer {
        answer(self.operator.request(method, format!("{}{path}", self.url))).await
    }

    /// The same with a JSON body.
    ///
    /// # Panics
    /// When no answer comes.
    pub async fn operator_with(&self, method: Method, path: &str, body: &Value) -> Answer {
        answer(
            self.operator
                .request(method, format!("{}{path}", self.url))
                .json(body),
        )
        .await
    }

    /// A client that trusts the server's CA, for requests of another kind.
    pub const fn client(&self) -> &reqwest::Client {
        &self.client
    }

    /// A fresh token of the job for this server.
    ///
    /// # Panics
    /// When the stand-in refuses, for example since the job has ended.
    pub fn token(&self, job: &Job) -> String {
        job.oidc_token(&OidcRequest::for_kubler(&self.url))
            .unwrap_or_else(|refusal| panic!("no token: {refusal:?}"))
    }

    /// Asks for an environment of profile `ci-small` and waits until it is usable.
    ///
    /// # Panics
    /// When it is refused or does not become usable.
    pub async fn create(&self, job: &Job, name: &str) -> Value {
        let body = json!({ "profile": "ci-small", "name": name, "wait_seconds": 60 });
        let made = self
            .request(
                Method::POST,
                "/v1/environments",
                Some(&self.token(job)),
                Some(&body),
            )
            .await;
        assert!(
            made.status == 200 && made.body["phase"] == "ready",
            "no environment: {made:?}\n{}",
            self.log()
        );
        made.body
    }

    /// Exchanges a fresh token for a session.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn session(&self, job: &Job, id: &str) -> String {
        let issued = self.exchange(&self.token(job), id).await;
        assert_eq!(issued.status, 200, "no session: {issued:?}");
        issued.body["access_token"]
            .as_str()
            .expect("a token")
            .to_owned()
    }

    /// `POST /v1/token` with this identity token.
    ///
    /// # Panics
    /// When no answer comes.
    pub async fn exchange(&self, token: &str, id: &str) -> Answer {
        let form = [
            (
                "grant_type",
                "urn:ietf:params:oauth:grant-type:token-exchange",
            ),
            ("subject_token", token),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
            ("resource", id),
        ];
        answer(
            self.client
                .post(format!("{}/v1/token", self.url))
                .form(&form),
        )
        .await
    }

    /// The environment as an operator sees it.
    ///
    /// # Panics
    /// When there is none.
    pub async fn environment(&self, id: &str) -> Value {
        let read = self
            .operator(Method::GET, &format!("/v1/environments/{id}"))
            .await;
        assert_eq!(read.status, 200, "{read:?}");
        read.body
    }

    /// Waits until the environment satisfies a condition.
    ///
    /// # Panics
    /// With the environment and the log, when it does not within `bound`.
    pub async fn wait_for(
        &self,
        id: &str,
        bound: Duration,
        condition: impl Fn(&Value) -> bool,
    ) -> Value {
        let deadline = Instant::now() + bound;
        loop {
            let environment = self.environment(id).await;
            if condition(&environment) {
                return environment;
            }
            assert!(
                Instant::now() < deadline,
                "still {environment:#}\n{}",
                self.log()
            );
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Runs `kubler` as an operator.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        self.cli_command(arguments).output().expect("kubler")
    }

    /// `kubler` with an operator's certificate in its environment.
    pub fn cli_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.cli());
        let tls = self.folder().join("tls");
        command
            .args(arguments)
            .env("KUBLER_SERVER", &self.url)
            .env("KUBLER_CA", tls.join("ca.pem"))
            .env("KUBLER_CLIENT_CERTIFICATE", tls.join("operator.pem"))
            .env("KUBLER_CLIENT_KEY", tls.join("operator.key"));
        command
    }

    /// Processes of environments, control planes only.
    pub fn control_planes(&self) -> Vec<Process> {
        self.processes()
            .into_iter()
            .filter(|process| process.command.contains("kubler-control-plane"))
            .collect()
    }

    /// Waits until no environment's process is left.
    ///
    /// # Errors
    /// `Left` after `bound`.
    pub async fn wait_until_no_control_plane(&self, bound: Duration) -> Result<(), Left> {
        crate::leaks::wait_until_none("control planes", bound, || self.control_planes()).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let left = self.mark().kill_processes(STOP_BOUND);
        let installation = self.folder().join("data/local/installation");
        if let Ok(installation) = fs::read_to_string(installation) {
            crate::leaks::sweep_groups(installation.trim(), STOP_BOUND);
        }
        if !left.is_empty() && !std::thread::panicking() {
            panic!("processes outlive their server: {left:#?}");
        }
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.expect("an answer");
    let status = response.status();
    let text = response.text().await.expect("a body");
    Answer {
        status,
        body: serde_json::from_str(&text).unwrap_or(Value::String(text)),
    }
}

/// A kubectl of the pinned version, with a home of its own.
pub fn kubectl(kubeconfig: &Path, home: &Path) -> Command {
    let mut command = Command::new(kube_folder().join("kubectl"));
    command
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .env("HOME", home)
        .env_remove("KUBECONFIG");
    command
}
