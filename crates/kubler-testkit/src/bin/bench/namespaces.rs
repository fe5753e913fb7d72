//! What an environment on a host cluster costs, in turns with the same calls of the API without Kubler.
//!
//! The calls are those that Kubler made: the host's audit log has them with their bodies, and the baseline sends them
//! again, one after the other on one connection, each time about another namespace.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kubler_testkit::buildkite::{Buildkite, Job};
use kubler_testkit::cluster::{Cluster, Pair};
use kubler_testkit::kubler::Server;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::figure::Measured;
use crate::statistics::Samples;
use crate::world::{self, POLL, Way, World, milliseconds, number};

pub(crate) const COLD_IDS: &[&str] = &[
    "namespace_cold",
    "namespace_cold_tail",
    "namespace_rate",
    "namespace_calls",
];
pub(crate) const GONE_IDS: &[&str] = &["namespace_dead", "namespace_gone", "namespace_gone_added"];
pub(crate) const MANY_IDS: &[&str] = &["namespace_1000_memory", "namespace_1000_cpu"];
/// Rounds, and environments of each side in one round.
const ROUNDS: usize = 10;
const ENVIRONMENTS: usize = 20;
/// Rounds of a rate, environments of each side in one round, and how many of them at once.
const RATE_ROUNDS: usize = 3;
const RATE_ENVIRONMENTS: usize = 96;
const AT_ONCE: usize = 32;
/// Rounds of ends, and environments of each side in one round.
const GONE_ROUNDS: usize = 3;
const GONE_ENVIRONMENTS: usize = 10;
/// How many live at once, and how long nothing changes then.
const MANY: usize = 1000;
const QUIET: Duration = Duration::from_secs(60);
/// Longest wait for anything of the host's.
const BOUND: Duration = Duration::from_secs(120);
/// Who Kubler is on the host.
const BROKER: &str = "kubler";
/// With bodies, for the calls that are replayed.
const AUDIT_POLICY: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Request}]\n";

/// A host, and a server that makes environments there. The server goes first.
struct Scene {
    server: Arc<Server>,
    buildkite: Buildkite,
    cluster: Cluster,
    pair: PathBuf,
    folder: TempDir,
}

impl Scene {
    async fn new() -> Self {
        let audited = |folder: &Path, _: &_| {
            fs::write(folder.join("audit-policy.yaml"), AUDIT_POLICY).expect("a policy")
        };
        let cluster = Cluster::draft().start_with(audited).await;
        let buildkite = Buildkite::start();
        let kubeconfig = cluster.kubeconfig_of(BROKER, &[]);
        let hosts = format!(
            "  - name: east\n    kubeconfig: {}\n    environments_max: 2000",
            kubeconfig.display()
        );
        let draft = Server::of(&buildkite)
            .log_filter("info")
            .on_hosts(&hosts, &[])
            .lease_seconds(3600)
            .section("limits: {environments_max: 2000, queue_max: 2000, provisioning_max: 32}");
        let server = Arc::new(draft.start().await);
        let rights = Command::new(server.programs().server())
            .args(["host-rbac", "--user", BROKER, "--config"])
            .arg(server.folder().join("kubler.yaml"))
            .output()
            .expect("kubler-server");
        let said = String::from_utf8_lossy(&rights.stderr);
        assert!(rights.status.success(), "host-rbac: {said}");
        cluster.apply(&String::from_utf8(rights.stdout).expect("text"));
        let (folder, Pair { certificate, key }) = (
            world::private_folder(),
            cluster.authority().client(BROKER, &[]),
        );
        let pair = folder.path().join("pair.pem");
        fs::write(&pair, certificate + &key).expect("a file");
        Self {
            server,
            buildkite,
            cluster,
            pair,
            folder,
        }
    }

    /// Arguments of the baseline that sends the calls.
    fn replay(&self, calls: &Path, count: usize, workers: usize) -> Vec<String> {
        vec![
            format!("--url={}", self.cluster.url()),
            format!("--ca={}", self.cluster.ca().display()),
            format!("--pair={}", self.pair.display()),
            format!("--calls={}", calls.display()),
            format!("--count={count}"),
            format!("--workers={workers}"),
        ]
    }

    /// The calls that one environment took, as the host saw them, with DIGITS in the place of its own.
    async fn calls(&self) -> (PathBuf, usize) {
        let made = made(&self.server, &world::job(&self.buildkite)).await;
        let digits = made.id.trim_start_matches("env_").to_owned();
        let is_its = |event: &Value| {
            event["requestURI"]
                .as_str()
                .is_some_and(|uri| uri.contains(&digits))
                || event["objectRef"]["name"]
                    .as_str()
                    .is_some_and(|name| name.contains(&digits))
                || is_review(event, &digits)
        };
        let events = self.cluster.audit_events();
        let its: Vec<&Value> = events
            .iter()
            .filter(|event| is_its(event) && is_kublers(event))
            .collect();
        let lines: Vec<String> = its
            .iter()
            .map(|event| call(event, &digits).to_string())
            .collect();
        let file = self.folder.path().join("calls");
        fs::write(&file, lines.join("\n")).expect("a file");
        (file, its.len())
    }
}

fn is_review(event: &Value, digits: &str) -> bool {
    event["user"]["username"]
        .as_str()
        .is_some_and(|user| user.contains(digits))
        && event["objectRef"]["resource"] == "selfsubjectaccessreviews"
}

/// Whether it is one of the calls that make an environment; what a job asks through the gateway is none.
fn is_kublers(event: &Value) -> bool {
    let is_broker = event["user"]["username"] == BROKER;
    // The first part of a watch that goes on is told as well.
    event["stage"] == "ResponseComplete"
        && (is_broker || event["objectRef"]["resource"] == "selfsubjectaccessreviews")
}

fn call(event: &Value, digits: &str) -> Value {
    let verb = event["verb"].as_str().expect("a verb");
    let uri = event["requestURI"].as_str().expect("a path");
    let (method, kind) = match verb {
        "create" => ("POST", "application/json"),
        "patch" | "apply" => ("PATCH", "application/apply-patch+yaml"),
        "update" => ("PUT", "application/json"),
        // A watch that waits for something is a look at it here: the floor waits for nothing.
        "get" | "list" | "watch" => ("GET", ""),
        other => panic!("Kubler `{other}`s to make an environment"),
    };
    let path = uri.replace("watch=true", "").replace("watch=1", "");
    let body = event
        .get("requestObject")
        .map(Value::to_string)
        .unwrap_or_default();
    let anew = |text: &str| text.replace(digits, "DIGITS");
    json!({ "method": method, "path": anew(&path), "type": kind, "body": anew(&body) })
}

/// An environment, and how long its job waited for it, in milliseconds.
struct Made {
    id: String,
    way: Way,
    namespace: String,
    job: Job,
    took: f64,
}

/// Token to first authorised answer through the gateway.
async fn made(server: &Server, job: &Job) -> Made {
    let (client, token) = (world::client(server), server.token(job));
    let began = Instant::now();
    let made = world::create(server, &client, &token).await;
    let id = made["id"].as_str().expect("an id").to_owned();
    let namespace = made["namespace"].as_str().expect("a namespace").to_owned();
    let session = world::exchange(server, &client, &token, &id).await;
    let way = Way::new(server, client, &id, session);
    let status = way
        .look(&format!("/api/v1/namespaces/{namespace}/pods"))
        .await;
    assert_eq!(status, StatusCode::OK, "not usable");
    Made {
        id,
        way,
        namespace,
        job: job.clone(),
        took: milliseconds(began.elapsed()),
    }
}

pub(crate) async fn cold(world: World) -> Vec<Measured> {
    let scene = Scene::new().await;
    let (calls, count) = scene.calls().await;
    let (mut kubler, mut bare) = (Samples::default(), Samples::default());
    for _ in 0..world.length.rounds(ROUNDS) {
        let replayed = world
            .baseline("replay", &scene.replay(&calls, ENVIRONMENTS, 1))
            .await;
        bare.extend(
            replayed["milliseconds"]
                .as_array()
                .expect("samples")
                .iter()
                .filter_map(Value::as_f64),
        );
        for _ in 0..ENVIRONMENTS {
            kubler.add(
                made(&scene.server, &world::job(&scene.buildkite))
                    .await
                    .took,
            );
        }
    }
    let (mut rate, mut bare_rate) = (Samples::default(), Samples::default());
    for _ in 0..world.length.rounds(RATE_ROUNDS) {
        let replayed = world
            .baseline("replay", &scene.replay(&calls, RATE_ENVIRONMENTS, AT_ONCE))
            .await;
        bare_rate.add(number(&replayed, "per_second"));
        rate.add(at_once(&scene).await);
    }
    vec![
        Measured::of("namespace_cold", &kubler).against(bare.median()),
        Measured::of("namespace_cold_tail", &kubler).against(bare.percentile(99)),
        Measured::of("namespace_rate", &rate).against(bare_rate.median()),
        #[allow(clippy::cast_precision_loss, reason = "a dozen")]
        Measured::single("namespace_calls", count as f64),
    ]
}

/// Makes and uses so many environments, [`AT_ONCE`] at once.
async fn make(scene: &Scene, count: usize) {
    let mut making = JoinSet::new();
    for nth in 0..count {
        if nth >= AT_ONCE {
            making
                .join_next()
                .await
                .expect("a task")
                .expect("an environment");
        }
        let (server, job) = (Arc::clone(&scene.server), world::job(&scene.buildkite));
        making.spawn(async move { drop(made(&server, &job).await) });
    }
    making.join_all().await;
}

/// Environments that are made in a second, many at once.
async fn at_once(scene: &Scene) -> f64 {
    let began = Instant::now();
    make(scene, RATE_ENVIRONMENTS).await;
    #[allow(clippy::cast_precision_loss, reason = "a hundred")]
    let count = RATE_ENVIRONMENTS as f64;
    count / began.elapsed().as_secs_f64()
}

pub(crate) async fn gone(world: World) -> Vec<Measured> {
    let scene = Scene::new().await;
    let (mut dead, mut gone, mut platform) =
        (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..world.length.rounds(GONE_ROUNDS) {
        let mut all = Vec::new();
        for _ in 0..GONE_ENVIRONMENTS {
            all.push(made(&scene.server, &world::job(&scene.buildkite)).await);
        }
        for one in &all {
            let end = end(&scene.server, one).await;
            dead.add(end.0);
            gone.add(end.1);
            platform.add(deleted(&scene.cluster, &one.namespace).await);
        }
    }
    let mut added = Measured::of("namespace_gone_added", &gone);
    added.p50 = Some(gone.median() - platform.median());
    (added.p95, added.p99) = (None, None);
    vec![
        Measured::of("namespace_dead", &dead),
        Measured::of("namespace_gone", &gone).against(platform.median()),
        added,
    ]
}

/// Milliseconds from a release to the credential's death, and to verified gone.
async fn end(server: &Server, one: &Made) -> (f64, f64) {
    let way = one.way.with_client(world::client(server));
    let path = format!("/api/v1/namespaces/{}/pods", one.namespace);
    assert_eq!(way.look(&path).await, StatusCode::OK);
    let (client, token) = (world::client(server), server.token(&one.job));
    let began = Instant::now();
    let gone = async {
        world::release(server, &client, &token, &one.id).await;
        milliseconds(began.elapsed())
    };
    let dead = async {
        while way.look(&path).await == StatusCode::OK {
            tokio::time::sleep(POLL).await;
        }
        milliseconds(began.elapsed())
    };
    tokio::join!(dead, gone)
}

/// What the platform itself takes for a namespace like the one that has just gone, deleted by its administrator.
async fn deleted(cluster: &Cluster, like: &str) -> f64 {
    let (client, url) = (
        cluster.client(),
        format!("{}/api/v1/namespaces", cluster.url()),
    );
    let name = format!("bare-{}", like.rsplit('-').next().unwrap_or_default());
    let body = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
    ok(client.post(&url).json(&body)).await;
    let maps =
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "kubler-build" } });
    ok(client.post(format!("{url}/{name}/configmaps")).json(&maps)).await;
    let began = Instant::now();
    ok(client.delete(format!("{url}/{name}"))).await;
    until_gone(client, &format!("{url}/{name}")).await;
    milliseconds(began.elapsed())
}

async fn ok(request: reqwest::RequestBuilder) {
    let answer = request.send().await.expect("an answer");
    let status = answer.status();
    let text = answer.text().await.expect("a body");
    assert!(status.is_success(), "{status}: {text}");
}

async fn until_gone(client: &Client, url: &str) {
    let deadline = Instant::now() + BOUND;
    loop {
        let answer = client.get(url).send().await.expect("an answer");
        if answer.status() == StatusCode::NOT_FOUND {
            return;
        }
        assert!(Instant::now() < deadline, "{url} is still there");
        tokio::time::sleep(POLL).await;
    }
}

pub(crate) async fn many(world: World) -> Vec<Measured> {
    let scene = Scene::new().await;
    made(&scene.server, &world::job(&scene.buildkite)).await;
    let process = scene.server.process();
    let empty = usage(process.pid);
    let count = world.length.rounds(MANY);
    make(&scene, count).await;
    tokio::time::sleep(QUIET / 4).await;
    let full = usage(process.pid);
    tokio::time::sleep(QUIET).await;
    let later = usage(process.pid);
    #[allow(clippy::cast_precision_loss, reason = "a thousand")]
    let each = (full["memory"] - empty["memory"]) / 1e3 / count as f64;
    let cpu = (later["cpu"] - full["cpu"]) / QUIET.as_secs_f64() * 100.0;
    vec![
        Measured::single("namespace_1000_memory", each),
        Measured::single("namespace_1000_cpu", cpu),
    ]
}

/// Resident bytes and seconds of CPU of a process.
fn usage(pid: i32) -> BTreeMap<&'static str, f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("its memory");
    let kibibytes: f64 = line
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .expect("a number");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("its times");
    let behind = stat.rsplit_once(')').expect("its name").1;
    let ticks: f64 = behind
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum();
    BTreeMap::from([("memory", kibibytes * 1024.0), ("cpu", ticks / 100.0)])
}
