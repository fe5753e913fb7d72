//! Configuration and policies loaded anew while requests come in.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kubler_testkit::buildkite::{Buildkite, Job};
use kubler_testkit::kubler::Server;
use reqwest::Method;
use serde_json::json;
use tokio::net::TcpStream;

use crate::{SOON, metric};

/// How often the configuration is swapped.
const SWAPS: usize = 20;

/// Waits for a condition.
async fn until(server: &Server, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let bound = Instant::now() + SOON;
    while !condition().await {
        assert!(Instant::now() < bound, "{what}: {}", server.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The profiles that are offered, as a refusal lists them.
async fn offered(server: &Server, job: &Job) -> String {
    let body = json!({ "profile": "no-such-profile" });
    let token = server.token(job);
    let refused = server
        .request(Method::POST, "/v1/environments", Some(&token), Some(&body))
        .await;
    assert_eq!(refused.status, 404, "{refused:?}");
    refused.body["hint"].as_str().unwrap().to_owned()
}

async fn is_bad(server: &Server) -> bool {
    let metrics = server.operator(Method::GET, "/metrics").await;
    metrics
        .body
        .as_str()
        .unwrap()
        .contains("\nkubler_configuration_bad 1\n")
}

/// How often the server said that it loaded, or did not.
fn loads(server: &Server) -> usize {
    let log = server.log();
    log.matches("the configuration is loaded").count()
        + log.matches("the configuration cannot be loaded").count()
}

struct Files {
    folder: PathBuf,
    configuration: String,
}

impl Files {
    fn of(server: &Server) -> Self {
        let folder = server.folder();
        let configuration = std::fs::read_to_string(folder.join("kubler.yaml")).unwrap();
        Self {
            folder,
            configuration,
        }
    }

    fn write(&self, configuration: &str) {
        std::fs::write(self.folder.join("kubler.yaml"), configuration).unwrap();
    }

    fn with_profile(&self, name: &str) -> String {
        let profile = format!(
            "profiles:\n  - name: {name}\n    kubernetes: \"1.34\"\n    description: new\n"
        );
        self.configuration.replacen("profiles:\n", &profile, 1)
    }

    /// Something that cannot be loaded, another thing each time; and what is said of it.
    fn spoil(&self, nth: usize) -> &'static str {
        let policy = self.folder.join("policies/bad.cedar");
        match nth % 6 {
            0 => {
                self.write(&self.configuration.replacen("profiles:", "profiles: [", 1));
                "kubler.yaml"
            }
            1 => {
                self.write(
                    &self
                        .configuration
                        .replacen("profiles:", "proflies: 1\nprofiles:", 1),
                );
                "proflies"
            }
            2 => {
                let manifests = "name: ci-small\n    manifests: [missing.yaml]";
                self.write(&self.configuration.replacen("name: ci-small", manifests, 1));
                "missing.yaml"
            }
            4 => {
                std::fs::write(self.folder.join("broken.yaml"), "foo: [\n").unwrap();
                let manifests = "name: ci-small\n    manifests: [broken.yaml]";
                self.write(&self.configuration.replacen("name: ci-small", manifests, 1));
                "manifest `broken.yaml` is not YAML"
            }
            3 => {
                std::fs::write(policy, "permit (principal, action, resource);").unwrap();
                "bad.cedar:1"
            }
            _ => {
                self.write(&self.configuration.replacen(
                    "policies: policies",
                    "policies: absent",
                    1,
                ));
                "absent"
            }
        }
    }

    fn mend(&self) {
        let _ = std::fs::remove_file(self.folder.join("policies/bad.cedar"));
        self.write(&self.configuration);
    }
}

/// Asks one thing after the other until told to stop; every answer must be good.
async fn keeps_asking(
    server: &Server,
    job: &Job,
    id: &str,
    session: &str,
    over: &AtomicBool,
    asked: &AtomicU64,
) {
    let namespaces = format!("/k8s/{id}/api/v1/namespaces/default");
    let create = json!({ "profile": "ci-small" });
    while !over.load(Ordering::Relaxed) {
        let token = server.token(job);
        let answers = [
            server
                .request(
                    Method::POST,
                    "/v1/environments",
                    Some(&token),
                    Some(&create),
                )
                .await,
            server
                .request(Method::GET, "/v1/environments", Some(&token), None)
                .await,
            server
                .request(Method::GET, &namespaces, Some(session), None)
                .await,
            server
                .operator(Method::GET, &format!("/v1/environments/{id}"))
                .await,
        ];
        for answer in answers {
            assert_eq!(answer.status, 200, "{answer:?}\n{}", server.log());
            asked.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn configuration_is_swapped_between_good_and_bad_without_a_lost_request() {
    let buildkite = Buildkite::builder().organization("acme", &["app"]).start();
    let server = Arc::new(Server::of(&buildkite).lease_seconds(300).start().await);
    let job = buildkite.build("app").start().job("test").run();
    let made = server.create(&job, "main").await;
    let (id, digest) = (
        made["id"].as_str().unwrap().to_owned(),
        made["digest"].clone(),
    );
    let session = server.session(&job, &id).await;
    let files = Files::of(&server);
    let (over, asked) = (AtomicBool::new(false), AtomicU64::new(0));

    let swapping = async {
        for nth in 0..SWAPS {
            let (before, asked_before) = (loads(&server), asked.load(Ordering::Relaxed));
            let said = if nth % 2 == 0 {
                files.mend();
                files.write(&files.with_profile(&format!("extra-{nth}")));
                None
            } else {
                Some(files.spoil(nth / 2))
            };
            server.reload();
            until(&server, "a load", async || loads(&server) > before).await;
            until(&server, "requests meanwhile", async || {
                asked.load(Ordering::Relaxed) > asked_before + 8
            })
            .await;
            // The last good one is in force, and a bad one is said with its place.
            let hint = offered(&server, &job).await;
            let good = format!("extra-{}", nth - nth % 2);
            assert!(hint.contains(&good), "{hint}");
            until(&server, "the metric", async || {
                is_bad(&server).await == said.is_some()
            })
            .await;
            if let Some(said) = said {
                let last = server
                    .log()
                    .lines()
                    .rev()
                    .find(|line| line.contains("cannot be loaded"))
                    .unwrap()
                    .to_owned();
                assert!(last.contains(said), "{said}: {last}");
            }
        }
        over.store(true, Ordering::Relaxed);
    };
    let asking = |_| keeps_asking(&server, &job, &id, &session, &over, &asked);
    let all_asking = futures_util::future::join_all((0..3).map(asking));
    let ((), _) = tokio::join!(swapping, all_asking);
    assert!(asked.load(Ordering::Relaxed) > 100);

    files.mend();
    changes_of_all_kinds(&server, &files, &job).await;
    let other = buildkite.build("app").start().job("other").run();
    a_removed_profile_is_refused_but_to_whom_it_was_given(&server, &files, &job, &other, &id).await;
    let now = server.environment(&id).await;
    assert_eq!(
        (&now["phase"], &now["digest"]),
        (&json!("ready"), &digest),
        "it keeps what it was made of"
    );
}

/// Who has an environment of it goes on being given it.
async fn a_removed_profile_is_refused_but_to_whom_it_was_given(
    server: &Server,
    files: &Files,
    job: &Job,
    other: &Job,
    id: &str,
) {
    let text = files
        .with_profile("fresh")
        .replacen("name: ci-small", "name: ci-large", 1);
    files.write(&text);
    let before = loads(server);
    server.reload();
    until(server, "a load", async || loads(server) > before).await;
    let body = json!({ "profile": "ci-small" });
    let token = server.token(job);
    let own = server
        .request(Method::POST, "/v1/environments", Some(&token), Some(&body))
        .await;
    assert_eq!(
        (own.status.as_u16(), &own.body["id"]),
        (200, &json!(id)),
        "{own:?}"
    );
    let token = server.token(other);
    let refused = server
        .request(Method::POST, "/v1/environments", Some(&token), Some(&body))
        .await;
    assert_eq!(refused.status, 404, "{refused:?}");
}

/// A new profile can be used, a removed one is refused in words, and what needs a restart is named.
async fn changes_of_all_kinds(server: &Server, files: &Files, job: &Job) {
    let text = files
        .with_profile("fresh")
        .replacen("name: untrusted", "name: distrusted", 1);
    let text = text.replacen(
        "policies: policies",
        "limits: {environments_per_job_max: 2}\nledger: {checkpoint_seconds: 11}\npolicies: policies",
        1,
    );
    files.write(&text);
    let policies = files.folder.join("policies");
    for entry in std::fs::read_dir(policies).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"untrusted\"", "\"distrusted\"")).unwrap();
    }
    let before = loads(server);
    server.reload();
    until(server, "a load", async || loads(server) > before).await;
    let ask = async |profile: &str, name: &str| {
        let body = json!({ "profile": profile, "name": name });
        let token = server.token(job);
        server
            .request(Method::POST, "/v1/environments", Some(&token), Some(&body))
            .await
    };
    let made = ask("fresh", "fresh").await;
    assert_eq!(made.status, 200, "{made:?}\n{}", server.log());
    let removed = ask("untrusted", "other").await;
    assert_eq!(removed.status, 404, "{removed:?}");
    assert_eq!(removed.body["detail"], "there is no profile `untrusted`");
    assert!(
        removed.body["hint"]
            .as_str()
            .unwrap()
            .contains("distrusted"),
        "{removed:?}"
    );
    let third = ask("fresh", "third").await;
    assert_eq!(third.status, 429, "the new limit: {third:?}");
    assert!(
        server.log().contains("\"keys\":\"ledger\""),
        "{}",
        server.log()
    );
    let records = server
        .operator(Method::GET, "/v1/ledger/records?limit=1000")
        .await
        .body["records"]
        .clone();
    let loaded = records
        .as_array()
        .unwrap()
        .iter()
        .filter(|record| record["action"] == "configuration.load")
        .count();
    assert!(loaded > SWAPS, "{loaded} loads are recorded");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_bounds_on_connections_hold_from_the_next_one_on() {
    let buildkite = Buildkite::builder().organization("acme", &["app"]).start();
    let server = Server::of(&buildkite).start().await;
    let files = Files::of(&server);
    let load = async |limits: &str| {
        let policies = "policies: policies\n";
        let limits = format!("limits: {{{limits}}}\n{policies}");
        files.write(&files.configuration.replacen(policies, &limits, 1));
        let before = loads(&server);
        server.reload();
        until(&server, "a load", async || loads(&server) > before).await;
    };
    let address = server.url().trim_start_matches("https://").to_owned();
    // Whether somebody is let in while two others of the same address are there.
    let is_third_let_in = async || {
        let [_one, _two] = [
            TcpStream::connect(&address).await.unwrap(),
            TcpStream::connect(&address).await.unwrap(),
        ];
        let asked = server.try_request(Method::GET, "/healthz", None, None);
        asked.await.is_ok()
    };
    assert!(is_third_let_in().await);
    load("connections_max: 77").await;
    assert_eq!(metric(&server, "connections_max").await, 77);
    load("connections_per_address_max: 2").await;
    // The two wait for 10 s at most: again, should a busy machine have been slower.
    until(&server, "a refusal", async || !is_third_let_in().await).await;
    load("connections_per_address_max: 3").await;
    until(&server, "a third", async || is_third_let_in().await).await;
}
