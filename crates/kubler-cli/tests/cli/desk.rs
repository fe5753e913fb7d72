//! A server that answers like kubler-server, as far as `kubler` can tell: HTTPS with a CA of its own, environments
//! in memory, every call noted. It checks no signatures; the real server's own tests do.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

/// Life of a session, in seconds.
const SESSION_SECONDS: u64 = 600;

/// One call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noted {
    /// Method and path.
    pub call: String,
    /// The job that the bearer token speaks for.
    pub job: Option<String>,
    /// The token's own id, to tell tokens apart.
    pub token_id: Option<String>,
}

/// How long something takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Takes {
    /// No time.
    #[default]
    None,
    /// As long as a call waits for it.
    Wait,
    /// For ever: a call that waits for it is not answered.
    Ever,
    /// It comes to nothing.
    Fails,
}

/// Whether a call, as method and path, is meant.
type Which = fn(&str) -> bool;

#[derive(Default)]
struct State {
    calls: Vec<Noted>,
    environments: BTreeMap<String, Value>,
    refusal: Option<(u16, Value)>,
    refusals: Vec<(Which, (u16, Value))>,
    lease_seconds: u64,
    making: Takes,
    removal: Takes,
    pods: Vec<Value>,
    download: Vec<u8>,
    is_silent: bool,
}

/// The server. Ends with its value.
pub struct Desk {
    state: Arc<(Mutex<State>, Condvar)>,
    port: u16,
    folder: tempfile::TempDir,
}

impl Desk {
    pub fn open() -> Self {
        let key = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), key.cert.pem()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let private =
            rustls_pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![key.cert.der().clone()], private)
            .unwrap();
        let tls = Arc::new(tls);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new((
            Mutex::new(State {
                lease_seconds: 300,
                ..State::default()
            }),
            Condvar::new(),
        ));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (tls, shared) = (Arc::clone(&tls), Arc::clone(&shared));
                std::thread::spawn(move || serve(stream, tls, &shared, port));
            }
        });
        Self {
            state,
            port,
            folder,
        }
    }

    pub fn lease_seconds(self, seconds: u64) -> Self {
        self.state.0.lock().unwrap().lease_seconds = seconds;
        self
    }

    /// How long it takes until an environment is usable; with [`Takes::Wait`] it never is.
    pub fn making(&self, takes: Takes) {
        self.state.0.lock().unwrap().making = takes;
        self.state.1.notify_all();
    }

    /// How long it takes until a released environment is gone.
    pub fn removal(&self, takes: Takes) {
        self.state.0.lock().unwrap().removal = takes;
    }

    /// The pods of every environment.
    pub fn pods(&self, pods: Vec<Value>) {
        self.state.0.lock().unwrap().pods = pods;
    }

    /// What `GET /download/kubler` gives.
    pub fn offer(&self, program: Vec<u8>) {
        self.state.0.lock().unwrap().download = program;
    }

    /// Accepts every call from now on, and answers none.
    pub fn is_silent(&self) {
        self.state.0.lock().unwrap().is_silent = true;
    }

    /// Refuses everything from now on.
    pub fn refuse(&self, status: u16, code: &str, detail: &str, hint: &str) {
        self.state.0.lock().unwrap().refusal = Some(refusal(status, code, detail, hint));
    }

    /// Refuses from now on to make environments.
    pub fn refuse_creation(&self, status: u16, code: &str, detail: &str, hint: &str) {
        let which: Which = |call| call == "POST /v1/environments";
        self.refuse_some(which, refusal(status, code, detail, hint));
    }

    /// Gives no sessions from now on.
    pub fn refuse_sessions(&self, status: u16, code: &str, detail: &str, hint: &str) {
        let which: Which = |call| call == "POST /v1/token";
        self.refuse_some(which, refusal(status, code, detail, hint));
    }

    /// Believes nobody from now on, and says no more than that.
    pub fn believe_nobody(&self) {
        let which: Which = |call| call != "GET /readyz";
        let told = refusal(
            401,
            "unauthenticated",
            "the caller could not be verified",
            "`kubler doctor` names the usual causes",
        );
        self.refuse_some(which, told);
    }

    fn refuse_some(&self, which: Which, refusal: (u16, Value)) {
        self.state.0.lock().unwrap().refusals.push((which, refusal));
    }

    /// Puts an environment there, as if a job had asked for it long ago.
    pub fn put(&self, id: &str) {
        let mut state = self.state.0.lock().unwrap();
        let environment = environment(id, "main", "ready", self.port, state.lease_seconds);
        state.environments.insert(id.to_owned(), environment);
    }

    /// It is the whole build's from now on.
    pub fn share(&self, id: &str) {
        let mut state = self.state.0.lock().unwrap();
        state.environments.get_mut(id).unwrap()["scope"] = "build".into();
    }

    pub fn release(&self, id: &str) {
        release(&mut self.state.0.lock().unwrap(), id);
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    pub fn calls(&self) -> Vec<Noted> {
        self.state.0.lock().unwrap().calls.clone()
    }

    pub fn count(&self, beginning: &str) -> usize {
        self.calls()
            .iter()
            .filter(|noted| noted.call.starts_with(beginning))
            .count()
    }

    /// Waits until `holds` is true of the calls so far.
    pub fn wait_for(&self, what: &str, holds: impl Fn(&[Noted]) -> bool) {
        let bound = Instant::now() + Duration::from_secs(30);
        let mut state = self.state.0.lock().unwrap();
        while !holds(&state.calls) {
            let left = bound.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {what}: {:#?}", state.calls);
            state = self.state.1.wait_timeout(state, left).unwrap().0;
        }
    }

    pub fn is_released(&self, id: &str) -> bool {
        self.phase(id) == "gone" || self.phase(id) == "releasing"
    }

    pub fn is_gone(&self, id: &str) -> bool {
        self.phase(id) == "gone"
    }

    fn phase(&self, id: &str) -> Value {
        let state = self.state.0.lock().unwrap();
        state
            .environments
            .get(id)
            .map_or(Value::Null, |environment| environment["phase"].clone())
    }

    /// The environments that are not released.
    pub fn alive(&self) -> Vec<String> {
        let state = self.state.0.lock().unwrap();
        let alive = state.environments.iter().filter(|(_, environment)| {
            environment["phase"] != "gone" && environment["phase"] != "releasing"
        });
        alive.map(|(id, _)| id.clone()).collect()
    }

    /// `kubler` with this server and nothing else in its environment.
    pub fn kubler(&self, jobs: &Path) -> Command {
        let mut command = kubler(jobs);
        command
            .env("KUBLER_SERVER", self.url())
            .env("KUBLER_CA", self.ca());
        command
    }
}

/// `kubler` with nothing in its environment.
pub fn kubler(jobs: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubler"));
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("KUBLER_JOBS_FOLDER", jobs);
    command
}

/// An unsigned token of a job.
pub fn token(job: &str) -> String {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!(
        "{}.{}.c2ln",
        part(json!({ "alg": "RS256" })),
        part(json!({ "job_id": job, "jti": "t1" }))
    )
}

fn serve(stream: TcpStream, tls: Arc<ServerConfig>, shared: &(Mutex<State>, Condvar), port: u16) {
    let Ok(connection) = ServerConnection::new(tls) else {
        return;
    };
    let mut stream = BufReader::new(StreamOwned::new(connection, stream));
    while let Some((call, authorization, body)) = request(&mut stream) {
        let claims = authorization.as_deref().and_then(claims);
        let claim = |name: &str| {
            claims
                .as_ref()
                .and_then(|claims| claims[name].as_str())
                .map(str::to_owned)
        };
        let (status, answer) = {
            let mut state = shared.0.lock().unwrap();
            state.calls.push(Noted {
                call: call.clone(),
                job: claim("job_id"),
                token_id: claim("jti"),
            });
            let of_some = state
                .refusals
                .iter()
                .find(|(which, _)| which(&call))
                .map(|(_, refusal)| refusal.clone());
            let answer = state
                .refusal
                .clone()
                .or(of_some)
                .unwrap_or_else(|| answer(&mut state, &call, &body, claim("job_id"), port));
            shared.1.notify_all();
            let waits = String::from_utf8_lossy(&body).replace(' ', "");
            let waits =
                waits.contains("\"wait_seconds\":") && !waits.contains("\"wait_seconds\":0");
            let is_held = |state: &State| {
                let takes = if call.ends_with("/release") {
                    state.removal
                } else {
                    state.making
                };
                state.is_silent || (waits && takes == Takes::Ever)
            };
            while is_held(&state) {
                state = shared.1.wait(state).unwrap();
            }
            answer
        };
        let (status, text) = if call == "GET /download/kubler" {
            (200, shared.0.lock().unwrap().download.clone())
        } else {
            (status, answer.to_string().into_bytes())
        };
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            text.len()
        );
        if stream
            .get_mut()
            .write_all(&[head.as_bytes(), &text].concat())
            .is_err()
        {
            return;
        }
    }
}

fn request(
    stream: &mut BufReader<StreamOwned<ServerConnection, TcpStream>>,
) -> Option<(String, Option<String>, Vec<u8>)> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    let header = |name: &str| {
        lines.iter().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
    };
    let call = lines.first()?.rsplit_once(' ')?.0.to_owned();
    let mut body = vec![
        0;
        header("content-length")
            .and_then(|length| length.parse().ok())
            .unwrap_or(0)
    ];
    stream.read_exact(&mut body).ok()?;
    Some((call, header("authorization"), body))
}

fn claims(authorization: &str) -> Option<Value> {
    let payload = authorization.strip_prefix("Bearer ")?.split('.').nth(1)?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

fn answer(
    state: &mut State,
    call: &str,
    body: &[u8],
    job: Option<String>,
    port: u16,
) -> (u16, Value) {
    let (method, path) = call.split_once(' ').unwrap();
    let parts: Vec<&str> = path
        .split('?')
        .next()
        .unwrap()
        .trim_start_matches('/')
        .split('/')
        .collect();
    let ended = |id: &str| {
        problem(
            404,
            "environment_ended",
            &format!("environment {id} has ended"),
        )
    };
    match (method, parts.as_slice()) {
        ("POST", ["v1", "environments"]) => {
            let asked: Value = serde_json::from_slice(body).unwrap();
            let name = asked["name"].as_str().unwrap();
            let id = format!("env_{}_{name}", job.unwrap().replace('-', ""));
            let phase = if asked["wait_seconds"] == 0 || state.making != Takes::None {
                "provisioning"
            } else {
                "ready"
            };
            let lease = state.lease_seconds;
            let is_new = !state.environments.contains_key(&id);
            let known = state
                .environments
                .entry(id.clone())
                .or_insert_with(|| environment(&id, name, phase, port, lease));
            known["scope"] = asked["scope"].clone();
            if is_new {
                let made_at = now();
                known["created_at"] = made_at.to_string().into();
                let ready_at = made_at + jiff::SignedDuration::from_millis(1500);
                known["ready_at"] = ready_at.to_string().into();
            }
            if state.making == Takes::Fails {
                known["phase"] = "failed".into();
                known["end"] =
                    json!({ "code": "failed", "message": "its API server did not start" });
            }
            if known["phase"] == "provisioning" {
                known["phase"] = phase.into();
            }
            (200, known.clone())
        }
        ("GET", ["v1", "environments" | "trace"] | ["v1", "trace", _]) => {
            let all: Vec<_> = state.environments.values().cloned().collect();
            (200, json!({ "environments": all, "truncated": false }))
        }
        ("GET", ["v1", "environments", id]) => match state.environments.get(*id) {
            Some(environment) => (200, environment.clone()),
            None => problem(404, "not_found", "there is no such environment"),
        },
        ("POST", ["v1", "environments", id, what]) => {
            let Some(environment) = state.environments.get(*id).cloned() else {
                return problem(404, "not_found", "there is no such environment");
            };
            match (*what, environment["phase"] == "gone") {
                ("renew", true) => ended(id),
                ("release", false) => {
                    let asked: Value = serde_json::from_slice(body).unwrap();
                    release(state, id);
                    if state.removal == Takes::Ever
                        || (state.removal == Takes::Wait && asked["wait_seconds"] == 0)
                    {
                        state.environments.get_mut(*id).unwrap()["phase"] = "releasing".into();
                    }
                    (200, state.environments[*id].clone())
                }
                _ => (200, environment),
            }
        }
        ("POST", ["v1", "token"]) => {
            let form = String::from_utf8_lossy(body).into_owned();
            let id = form
                .split('&')
                .find_map(|pair| pair.strip_prefix("resource="))
                .unwrap_or_default()
                .to_owned();
            match state.environments.get(&id) {
                Some(environment) if environment["phase"] != "gone" => {
                    (200, session(state.calls.len()))
                }
                Some(_) => ended(&id),
                None => problem(404, "not_found", "there is no such environment"),
            }
        }
        ("GET", ["v1", "tombstones", id]) => match state.environments.get(*id) {
            Some(environment) if environment["phase"] == "gone" => (
                200,
                json!({ "id": id, "ended_at": "2026-01-02T03:04:05Z", "gone": true,
                "end": { "code": "released", "message": "its job released it" }, "run_url": "https://buildkite.com/acme/app/builds/7#job" }),
            ),
            _ => problem(404, "not_found", "there is no tombstone"),
        },
        ("GET", ["v1", "ledger", "checkpoint"]) => (
            200,
            json!({ "note": "kubler.test/ledger\n1\nabc\n\n— kubler.test/ledger xyz\n", "size": 1 }),
        ),
        ("GET", ["v1", "ledger", "records"]) => (200, json!({ "records": [], "next": null })),
        ("GET", ["readyz"]) => (
            200,
            json!({ "status": "ok", "checks": { "store": "ok" }, "version": "0.1.0", "now": now().to_string() }),
        ),
        ("GET", ["k8s", id, "api", "v1", "pods"]) => match state.environments.get(*id) {
            Some(environment) if environment["phase"] == "ready" => (
                200,
                json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": state.pods }),
            ),
            _ => (404, json!({ "kind": "Status", "code": 404 })),
        },
        _ => problem(404, "not_found", "there is no such path"),
    }
}

fn refusal(status: u16, code: &str, detail: &str, hint: &str) -> (u16, Value) {
    (
        status,
        json!({ "type": "about:blank", "title": code, "status": status, "code": code, "detail": detail,
            "hint": hint, "request_id": "req_0123" }),
    )
}

fn problem(status: u16, code: &str, detail: &str) -> (u16, Value) {
    (
        status,
        json!({ "type": "about:blank", "title": code, "status": status, "code": code, "detail": detail, "hint": "look", "request_id": "req_0" }),
    )
}

#[allow(clippy::disallowed_methods, reason = "the server's own clock")]
fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

fn session(number: usize) -> Value {
    json!({ "access_token": format!("session.number.{number}"), "issued_token_type": "x", "token_type": "Bearer",
        "expires_in": SESSION_SECONDS, "expires_at": "2026-01-02T03:14:05Z", "session_id": "ses_0" })
}

fn release(state: &mut State, id: &str) {
    let environment = state.environments.get_mut(id).unwrap();
    environment["phase"] = "gone".into();
    environment["end"] = json!({ "code": "released", "message": "its job released it" });
}

fn environment(id: &str, name: &str, phase: &str, port: u16, lease_seconds: u64) -> Value {
    let server = format!("https://127.0.0.1:{port}");
    let hook = |path: &str| json!({ "method": "POST", "url": format!("{server}{path}"), "command": "kubler" });
    let kubeconfig = json!({ "apiVersion": "v1", "kind": "Config", "current-context": "kubler",
        "clusters": [{ "name": "kubler", "cluster": { "server": format!("{server}/k8s/{id}") } }],
        "contexts": [{ "name": "kubler", "context": { "cluster": "kubler", "user": "kubler" } }],
        "users": [{ "name": "kubler", "user": { "exec": { "apiVersion": "client.authentication.k8s.io/v1", "command": "kubler",
            "args": ["credential", "--server", server, "--environment", id], "interactiveMode": "Never", "provideClusterInfo": true } } }] });
    json!({ "id": id, "name": name, "scope": "job", "phase": phase, "profile": "ci-small", "engine": "local",
        "kubernetes_version": "v1.34.4", "digest": "d".repeat(64), "created_at": "2026-01-02T03:00:00Z", "ready_at": "2026-01-02T03:00:01.5Z",
        "owner": { "issuer": "https://agent.buildkite.com", "organization_id": "o", "organization": "acme", "pipeline_id": "p",
            "pipeline": "app", "build_id": "b", "build_number": 7, "job_id": "j", "step_key": null, "branch": "main",
            "commit": "5f0c2d9e8b7a6c5d4e3f2a1b0c9d8e7f6a5b4c3d", "url": "https://buildkite.com/acme/app/builds/7" },
        "lease_end": "2026-01-02T03:05:00Z", "lease_seconds": lease_seconds, "deadline": "2026-01-02T05:00:00Z", "end": null,
        "dead_at": null, "gone_at": null, "gateway": { "url": format!("{server}/k8s/{id}"), "ca": null },
        "hooks": { "deploy": hook("/k8s"), "credential": hook("/v1/token"), "renew": hook("/renew"), "teardown": hook("/release") },
        "kubeconfig": kubeconfig.to_string() })
}
