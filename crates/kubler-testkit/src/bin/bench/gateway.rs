//! What the gateway costs a request: the same GET to the same API server, directly, through `kubectl proxy` and
//! through the gateway, by the same client, in turns.
//!
//! An environment listens on a Unix socket only, which kubectl cannot dial: a forwarder that only carries bytes
//! stands between the two. What it costs is measured as well.

use std::path::{Path, PathBuf};

use kubler_testkit::buildkite::{Buildkite, Job};
use kubler_testkit::kubler::Server;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::figure::Measured;
use crate::statistics::Samples;
use crate::world::{self, Way, World, number};

pub(crate) const LATENCY_IDS: &[&str] = &[
    "gateway_latency",
    "get_direct",
    "get_forwarded",
    "get_kubectl_proxy",
    "get_gateway",
    "get_gateway_http2",
];
pub(crate) const THROUGHPUT_IDS: &[&str] = &["gateway_throughput", "throughput_direct"];
pub(crate) const WATCH_IDS: &[&str] = &["watch_latency"];
/// Rounds, and events in one round.
const WATCH_ROUNDS: usize = 6;
const EVENTS: usize = 500;
/// Rounds and requests of each side in one round.
const LATENCY_ROUNDS: usize = 12;
const REQUESTS: usize = 500;
/// Rounds, seconds and connections of each side in one round.
const THROUGHPUT_ROUNDS: usize = 6;
const SECONDS: usize = 4;
const CONNECTIONS: usize = 32;
/// What is got.
const CONFIG_MAP: &str = "/api/v1/namespaces/default/configmaps/one-kibibyte";
const SERVER_NAME: &str = "kubernetes.default.svc";

pub(crate) async fn latency(world: World) -> Vec<Measured> {
    let scene = Scene::new(&world).await;
    let mut samples: [Samples; 6] = Default::default();
    for round in 0..world.length.rounds(LATENCY_ROUNDS) {
        let sides = scene.sides().await;
        let http2 = |mut side: Vec<String>| {
            side.push("--http2".to_owned());
            side
        };
        let (direct, gateway) = (sides.direct.clone(), sides.gateway.clone());
        let arms = [
            sides.direct,
            sides.forwarded,
            sides.kubectl_proxy,
            sides.gateway,
            http2(direct),
            http2(gateway),
        ];
        for turn in in_turns(round, arms.len()) {
            let mut arguments = arms[turn].clone();
            arguments.push(format!("--count={REQUESTS}"));
            let got = world.baseline("get", &arguments).await;
            let got = got["milliseconds"].as_array().expect("samples");
            samples[turn].extend(got.iter().filter_map(Value::as_f64));
        }
    }
    let [
        direct,
        forwarded,
        kubectl_proxy,
        gateway,
        direct_http2,
        gateway_http2,
    ] = samples;
    let mut added = Measured::of("gateway_latency", &gateway);
    // No request takes both ways, so only the medians are compared: a difference of two tails says nothing.
    added.p50 = Some(gateway.median() - direct.median());
    (added.p95, added.p99) = (None, None);
    vec![
        added.against(kubectl_proxy.median() - forwarded.median()),
        Measured::of("get_direct", &direct),
        Measured::of("get_forwarded", &forwarded).against(direct.median()),
        Measured::of("get_kubectl_proxy", &kubectl_proxy).against(direct.median()),
        Measured::of("get_gateway", &gateway).against(direct.median()),
        Measured::of("get_gateway_http2", &gateway_http2).against(direct_http2.median()),
    ]
}

pub(crate) async fn throughput(world: World) -> Vec<Measured> {
    let scene = Scene::new(&world).await;
    let mut samples: [Samples; 4] = Default::default();
    for round in 0..world.length.rounds(THROUGHPUT_ROUNDS) {
        let sides = scene.sides().await;
        let arms = [
            sides.direct,
            sides.forwarded,
            sides.kubectl_proxy,
            sides.gateway,
        ];
        for turn in in_turns(round, arms.len()) {
            let mut arguments = arms[turn].clone();
            arguments.push(format!("--connections={CONNECTIONS}"));
            arguments.push(format!("--for={SECONDS}s"));
            let measured = world.baseline("throughput", &arguments).await;
            samples[turn].add(number(&measured, "requests_per_second"));
        }
    }
    let [direct, forwarded, kubectl_proxy, gateway] = samples;
    vec![
        Measured::of("gateway_throughput", &gateway).against(kubectl_proxy.median()),
        Measured::of("throughput_direct", &direct).against(forwarded.median()),
    ]
}

/// One object is watched in both ways at once, so that each event has its own difference.
pub(crate) async fn watch(world: World) -> Vec<Measured> {
    let scene = Scene::new(&world).await;
    let mut samples = Samples::default();
    for _ in 0..world.length.rounds(WATCH_ROUNDS) {
        let sides = scene.sides().await;
        let via = sides
            .gateway
            .iter()
            .map(|flag| flag.replacen("--", "--via-", 1));
        let mut arguments = [sides.direct.clone(), via.collect()].concat();
        arguments.push(format!("--count={EVENTS}"));
        let measured = world.baseline("watch", &arguments).await;
        let later = measured["milliseconds"].as_array().expect("samples");
        samples.extend(later.iter().filter_map(Value::as_f64));
    }
    vec![Measured::of("watch_latency", &samples)]
}

/// Each of `count` sides once, another one first in each round: none is always the one after the pause.
fn in_turns(round: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |turn| (round + turn) % count)
}

/// One environment with everything through which it is reached. The server goes last.
struct Scene {
    way: Way,
    id: String,
    job: Job,
    environment: PathBuf,
    folder: TempDir,
    forwarded: String,
    proxied: String,
    _children: [Child; 2],
    server: Server,
    _buildkite: Buildkite,
}

/// Arguments of the client for each side.
struct Sides {
    direct: Vec<String>,
    forwarded: Vec<String>,
    kubectl_proxy: Vec<String>,
    gateway: Vec<String>,
}

impl Scene {
    async fn new(world: &World) -> Self {
        let buildkite = Buildkite::start();
        let server = world::server(&buildkite).await;
        let job = world::job(&buildkite);
        let (id, way) = world::environment(&server, &job).await;
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "one-kibibyte" },
            "data": { "text": "x".repeat(1024) },
        });
        let made = way
            .post("/api/v1/namespaces/default/configmaps", &object)
            .await;
        assert_eq!(made, StatusCode::CREATED, "no ConfigMap");

        let environment = environment_folder(&server);
        let folder = world::private_folder();
        let token = job_token(&environment);
        std::fs::write(folder.path().join("direct"), &token).expect("a token file");
        let socket = format!("--socket={}", environment.join("api.sock").display());
        let (forwarder, line) =
            world::first_line(world.baseline_command("forward", &[socket])).await;
        let line: Value = serde_json::from_str(&line).expect("a line of JSON");
        let forwarded = line["address"].as_str().expect("an address").to_owned();
        let (proxy, proxied) =
            kubectl_proxy(world, folder.path(), &environment, &forwarded, &token).await;
        Self {
            way,
            id,
            job,
            environment,
            folder,
            forwarded,
            proxied,
            _children: [proxy, forwarder],
            server,
            _buildkite: buildkite,
        }
    }

    /// With a new session each time, which also renews the lease.
    async fn sides(&self) -> Sides {
        let session = self.server.session(&self.job, &self.id).await;
        let session_file = self.folder.path().join("session");
        std::fs::write(&session_file, session).expect("a token file");
        let file = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let to_server = |url: String| {
            vec![
                format!("--url=https://{url}{CONFIG_MAP}"),
                format!("--server-name={SERVER_NAME}"),
                file("ca", &self.environment.join("ca.crt")),
                file("token-file", &self.folder.path().join("direct")),
            ]
        };
        let mut direct = to_server(SERVER_NAME.to_owned());
        direct.push(file("socket", &self.environment.join("api.sock")));
        Sides {
            direct,
            forwarded: to_server(self.forwarded.clone()),
            kubectl_proxy: vec![format!("--url=http://{}{CONFIG_MAP}", self.proxied)],
            gateway: vec![
                format!("--url={}", self.way.url(CONFIG_MAP)),
                file("ca", &self.server.ca()),
                file("token-file", &session_file),
            ],
        }
    }
}

/// The only environment's folder, as its control plane was told.
fn environment_folder(server: &Server) -> PathBuf {
    let [plane] = &server.control_planes()[..] else {
        panic!("there is more than one environment, or none");
    };
    let mut arguments = plane.command.split(' ');
    let folder = arguments.find_map(|argument| argument.strip_prefix("--folder="));
    folder.expect("its folder").into()
}

/// The credential that the gateway itself uses for this job.
fn job_token(environment: &Path) -> String {
    let tokens = std::fs::read_to_string(environment.join("tokens.csv")).expect("its tokens");
    let line = tokens.lines().find(|line| line.contains("kubler:job:"));
    let (token, _) = line
        .and_then(|line| line.split_once(','))
        .expect("the job's token");
    token.to_owned()
}

async fn kubectl_proxy(
    world: &World,
    folder: &Path,
    environment: &Path,
    forwarded: &str,
    token: &str,
) -> (Child, String) {
    let kubeconfig = folder.join("kubeconfig");
    let document = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{ "name": "c", "cluster": {
            "server": format!("https://{forwarded}"), "tls-server-name": SERVER_NAME,
            "certificate-authority": environment.join("ca.crt"),
        } }],
        "users": [{ "name": "u", "user": { "token": token } }],
        "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
    });
    std::fs::write(&kubeconfig, document.to_string()).expect("a kubeconfig");
    let mut command = Command::new(world.kube.join("kubectl"));
    command
        .args(["proxy", "--port=0", "--kubeconfig"])
        .arg(kubeconfig)
        .env("HOME", folder)
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true);
    let (child, line) = world::first_line(command).await;
    let address = line
        .strip_prefix("Starting to serve on ")
        .unwrap_or_else(|| panic!("kubectl proxy says `{line}`"));
    (child, address.to_owned())
}
