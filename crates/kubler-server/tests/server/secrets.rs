//! Secrets are where they belong and nowhere else: looked for after real work, in everything that is kept.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kubler_testkit::buildkite::Buildkite;
use kubler_testkit::kubler::Server;
use kubler_testkit::leaks::files_in;
use reqwest::Method;
use serde_json::{Value, json};

use crate::buildkite_jobs::{JOB_BOUND, World};

/// A text that is nowhere else.
const CANARY: &str = "canary-5f9c1d7e3b2a4860-does-not-sing";

/// Those who live for a moment only.
const SHORT_LIVED: [&str; 2] = ["oidc request-token", "kubler credential"];

/// Something that must not be found.
struct Secret {
    what: &'static str,
    /// The part of it that alone is secret: of a token its signature.
    text: String,
}

impl Secret {
    fn new(what: &'static str, text: &str) -> Self {
        let text = text
            .trim()
            .rsplit('.')
            .next()
            .unwrap_or_default()
            .to_owned();
        assert!(
            text.len() >= 16,
            "`{what}` is too short to be looked for: `{text}`"
        );
        Self { what, text }
    }

    fn is_in(&self, bytes: &[u8]) -> bool {
        bytes
            .windows(self.text.len())
            .any(|window| window == self.text.as_bytes())
    }
}

/// What a job and its server leave.
struct Aftermath {
    world: World,
    job_log: String,
    arguments: BTreeSet<String>,
    secrets: Vec<Secret>,
}

/// Runs one real job with the plugin and kubectl, and takes everything secret that it had. What lives for a moment
/// only, such as whoever mints a token, is run again until somebody who looks all the time has seen it.
async fn after_a_job() -> Aftermath {
    let world = World::with_lease(60).await;
    let saved = tempfile::tempdir().unwrap();
    let folder = saved.path().display();
    let file = |name: &str| fs::read_to_string(saved.path().join(name)).unwrap();
    fs::write(saved.path().join("canary"), CANARY).unwrap();
    let job = world.job(&format!(
        r#"kubectl create secret generic canary --namespace default --from-file=value={folder}/canary
kubectl get secret canary --namespace default --output yaml > {folder}/read-back
kubectl create token default --namespace default > {folder}/service-account
until test -e {folder}/seen; do
  rm "${{KUBECONFIG%/*}}"/*.session
  kubler credential > /dev/null
done
cp "${{KUBECONFIG%/*}}"/*.session {folder}/session
printf %s "$BUILDKITE_AGENT_ACCESS_TOKEN" > {folder}/access"#
    ));
    let sampler = Sampler::start(saved.path().join("seen"));
    let mut agent = world.agent(&job).start();
    let record = job.wait_until_over(JOB_BOUND).await.unwrap();
    assert_eq!(record.exit_status, Some(0), "{}", job.log());
    agent.wait(JOB_BOUND).await.unwrap();
    world.gone(&job).await;
    let arguments = sampler.stop();

    let session: Value = serde_json::from_str(&file("session")).unwrap();
    let encoded = STANDARD.encode(CANARY);
    assert!(
        file("read-back").contains(&encoded),
        "{}",
        file("read-back")
    );
    let mut secrets = vec![
        Secret::new("the session", session["token"].as_str().unwrap()),
        Secret::new("the agent's access token", &file("access")),
        Secret::new("a service account's token", &file("service-account")),
        Secret::new("the Secret's value", CANARY),
        Secret::new("the Secret's value in base64", &encoded),
    ];
    let tokens: Vec<_> = record
        .mints
        .iter()
        .filter_map(|mint| mint.outcome.as_ref().ok())
        .map(|token| Secret::new("an OIDC token", token))
        .collect();
    assert!(!tokens.is_empty(), "the job minted nothing");
    secrets.extend(tokens);
    Aftermath {
        job_log: job.log() + &agent.output(),
        world,
        arguments,
        secrets,
    }
}

/// Everything that a server keeps for people or for itself, without what is a cluster's own.
fn kept(server: &Server) -> Vec<(String, Vec<u8>)> {
    let is_kept = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        path.components().any(|part| part.as_os_str() == "ledger")
            || name.starts_with("store.sqlite")
            || name.ends_with(".log")
    };
    let files = files_in(&server.folder()).into_iter();
    let mut kept: Vec<_> = files
        .filter(|path| is_kept(path))
        .filter_map(|path| Some((path.display().to_string(), fs::read(&path).ok()?)))
        .collect();
    kept.push(("the server's log".into(), server.log().into_bytes()));
    for part in ["/ledger/", "store.sqlite", "the server's log"] {
        let found = kept
            .iter()
            .find(|(name, bytes)| name.contains(part) && !bytes.is_empty());
        assert!(found.is_some(), "`{part}` was not looked at");
    }
    kept
}

fn found<'a>(
    secrets: &'a [Secret],
    places: impl IntoIterator<Item = (&'a str, &'a [u8])> + Clone,
) -> Vec<String> {
    let mut found = Vec::new();
    for secret in secrets {
        for (place, bytes) in places.clone() {
            if secret.is_in(bytes) {
                found.push(format!("{} is in {place}", secret.what));
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn l1_no_credential_is_in_a_log_a_record_or_a_row() {
    let Aftermath {
        world,
        job_log,
        secrets,
        ..
    } = after_a_job().await;
    let mut kept = kept(&world.server);
    kept.push(("the job's and its agent's log".into(), job_log.into_bytes()));
    let places = kept
        .iter()
        .map(|(name, bytes)| (name.as_str(), bytes.as_slice()));
    let found = found(&secrets, places);
    assert!(found.is_empty(), "{found:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn l2_no_credential_is_in_an_argument_of_any_process() {
    let Aftermath {
        arguments, secrets, ..
    } = after_a_job().await;
    for seen in [
        "kubler-server",
        "kubler-control-plane",
        "kubler hook pre-command",
        "renewer",
        "kubler hook pre-exit",
        SHORT_LIVED[0],
        SHORT_LIVED[1],
    ] {
        assert!(
            arguments.iter().any(|one| one.contains(seen)),
            "`{seen}` was not seen"
        );
    }
    let places = arguments.iter().map(|one| (one.as_str(), one.as_bytes()));
    let found = found(&secrets, places);
    assert!(found.is_empty(), "{found:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn l3_no_body_is_in_a_log_a_record_or_a_row() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let (id, session) = server.create_with_session(&job).await;
    let call = async |method: Method, path: &str, body: Option<Value>| {
        let path = format!("/k8s/{id}/api/v1/namespaces/default/{path}");
        server
            .request(method, &path, Some(&session), body.as_ref())
            .await
    };
    let object = |kind: &str| json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": "canary" }, "data": {} });
    let mut secret = object("Secret");
    secret["stringData"] = json!({ "value": CANARY });
    let mut map = object("ConfigMap");
    map["data"] = json!({ "value": CANARY });
    let mut refused = object("Secret");
    refused["immutable"] = json!(CANARY);
    assert_eq!(
        call(Method::POST, "secrets", Some(secret)).await.status,
        201
    );
    assert_eq!(
        call(Method::POST, "configmaps", Some(map)).await.status,
        201
    );
    let refused = call(Method::POST, "secrets", Some(refused)).await;
    assert_eq!(refused.status, 400, "{refused:?}");
    let read = call(Method::GET, "secrets/canary", None).await;
    let encoded = read.body["data"]["value"].as_str().unwrap().to_owned();
    let review =
        json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
    let issued = call(Method::POST, "serviceaccounts/default/token", Some(review)).await;
    let issued = issued.body["status"]["token"].as_str().unwrap().to_owned();

    let secrets = [
        Secret::new("a body", CANARY),
        Secret::new("a body in base64", &encoded),
        Secret::new("a service account's token", &issued),
        Secret::new("the session", &session),
    ];
    let kept = kept(&server);
    let is_recorded = |resource: &str| {
        let word = format!("\"resource\":\"{resource}\"");
        kept.iter()
            .any(|(_, bytes)| String::from_utf8_lossy(bytes).contains(&word))
    };
    assert!(is_recorded("secrets") && is_recorded("configmaps"));
    let places = kept
        .iter()
        .map(|(name, bytes)| (name.as_str(), bytes.as_slice()));
    let found = found(&secrets, places);
    assert!(found.is_empty(), "{found:#?}");
}

/// Reads the arguments of all processes of this machine, again and again.
struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BTreeSet<String>>,
}

impl Sampler {
    /// Writes the file once it has seen everybody who is hard to see.
    fn start(seen_all: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut seen = BTreeSet::new();
            while !stopped.load(Ordering::Relaxed) {
                for process in fs::read_dir("/proc").unwrap().flatten() {
                    if let Ok(arguments) = fs::read(process.path().join("cmdline")) {
                        seen.insert(String::from_utf8_lossy(&arguments).replace('\0', " "));
                    }
                }
                let was_seen = |short: &&str| seen.iter().any(|one: &String| one.contains(*short));
                if !seen_all.exists() && SHORT_LIVED.iter().all(was_seen) {
                    fs::write(&seen_all, "").unwrap();
                }
            }
            seen
        });
        Self { stop, thread }
    }

    fn stop(self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
