//! A server without a memory: of the namespaces on its host it ends those that carry a mark of its own and are over, and
//! touches nothing else. Its rights there are what `host-rbac` prints.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use ed25519_dalek::SigningKey;
use jiff::Timestamp;
use kubler_core::host::ENVIRONMENT_LABEL;
use kubler_core::host::mark::{MARK_ANNOTATION, Mark};
use kubler_core::ids::EnvironmentId;
use kubler_testkit::buildkite::Buildkite;
use kubler_testkit::cluster::Cluster;
use kubler_testkit::kubler::Server;
use kubler_testkit::leaks;
use reqwest::Method;
use serde_json::json;

use super::hosted::{BROKER, PREFIX, draft, host_lines};
use crate::LONG;

/// An hour, in seconds.
const HOUR: i64 = 3600;

fn id(number: u8) -> EnvironmentId {
    EnvironmentId::from_random([number; 16])
}

fn name(number: u8) -> String {
    format!("{PREFIX}{}", id(number).digits())
}

/// Makes a namespace as somebody on the host could, with a label or without; gives its UID.
fn namespace(cluster: &Cluster, name: &str, label: Option<&str>) -> String {
    let labels = label.map_or_else(|| json!({}), |label| json!({ ENVIRONMENT_LABEL: label }));
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
    cluster.apply(&object.to_string());
    let made = cluster.get(&["namespace", name]);
    made["metadata"]["uid"].as_str().unwrap().to_owned()
}

fn annotate(cluster: &Cluster, name: &str, mark: &str) {
    let patch = json!({"metadata": {"annotations": { MARK_ANNOTATION: mark }}}).to_string();
    cluster.kubectl_ok(&[
        "patch",
        "namespace",
        name,
        "--type=merge",
        "--patch",
        &patch,
    ]);
}

/// A namespace with a mark of this key, that is over since or in an hour.
fn marked(cluster: &Cluster, number: u8, key: &SigningKey, seconds: i64) -> String {
    let uid = namespace(cluster, &name(number), Some(&id(number).to_string()));
    let second = Timestamp::now().as_second() + seconds;
    let mark = Mark {
        environment: id(number),
        namespace_uid: uid,
        deadline: Timestamp::from_second(second).unwrap(),
    };
    let mark = mark.sign(key);
    annotate(cluster, &name(number), &mark);
    mark
}

fn key(path: &Path) -> SigningKey {
    let text = std::fs::read_to_string(path).unwrap();
    let mut bytes = [0; 32];
    hex::decode_to_slice(text.trim(), &mut bytes).unwrap();
    SigningKey::from_bytes(&bytes)
}

/// Forgets everything but the configuration.
fn forget(server: &Server) {
    std::fs::remove_dir_all(server.folder().join("data")).unwrap();
}

/// Waits until the page of metrics says these numbers of namespaces that wait, and that are not touched.
async fn wait_for(server: &Server, waiting: usize, untouched: usize) {
    let deadline = Instant::now() + LONG;
    loop {
        let page = server.operator(Method::GET, "/metrics").await;
        let page = page.body.as_str().unwrap_or_default().to_owned();
        let is_so = [("waiting", waiting), ("untouched", untouched)]
            .iter()
            .all(|(what, count)| {
                page.contains(&format!(
                    "kubler_host_namespaces_{what}{{host=\"east\"}} {count}\n"
                ))
            });
        if is_so {
            return;
        }
        assert!(Instant::now() < deadline, "{page}\n{}", server.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Everything that begins as environments' namespaces do, and is not ending.
fn alive(cluster: &Cluster) -> Vec<String> {
    let found = cluster.get(&["namespaces"]);
    let items = found["items"].as_array().unwrap().iter();
    let items = items.filter(|it| it["metadata"]["deletionTimestamp"].is_null());
    let names = items.map(|it| it["metadata"]["name"].as_str().unwrap().to_owned());
    names.filter(|name| name.starts_with(PREFIX)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_memory_ends_what_is_surely_its_own_and_over_and_touches_nothing_else() {
    let cluster = Cluster::start().await;
    let buildkite = Buildkite::start();
    let lines = host_lines("east", &cluster.kubeconfig_of(BROKER, &[]));
    let mut server = draft(&buildkite, &lines, &[])
        .section("mark_key: marks.key")
        .start()
        .await;
    let printed = Command::new(server.programs().server())
        .arg("host-rbac")
        .arg("--config")
        .arg(server.folder().join("kubler.yaml"))
        .output()
        .unwrap();
    assert!(printed.status.success(), "{printed:?}");
    cluster.apply(&String::from_utf8(printed.stdout).unwrap());
    let build = buildkite.build("app").start();
    let job = build.job("test").run();
    let made = server.create(&job, "main").await;
    let own = made["namespace"].as_str().unwrap().to_owned();

    server.stop().await;
    forget(&server);
    let path = server.folder().join("marks.key");
    let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let key = key(&path);
    let mark = marked(&cluster, 1, &key, -HOUR);
    marked(&cluster, 2, &key, HOUR);
    // Nothing of these is ours: forged labels, a copied mark, a changed one, one of another server, look-alike names.
    let label = |number| id(number).to_string();
    namespace(&cluster, &name(3), Some(&label(3)));
    namespace(&cluster, &name(4), Some(&label(4)));
    annotate(&cluster, &name(4), &mark);
    namespace(&cluster, &name(5), Some(&label(1)));
    annotate(&cluster, &name(5), &mark);
    marked(&cluster, 6, &SigningKey::from_bytes(&[6; 32]), -HOUR);
    namespace(&cluster, &format!("{PREFIX}x"), Some(&label(1)));
    annotate(&cluster, &format!("{PREFIX}x"), &mark);
    namespace(&cluster, &name(7), None);
    annotate(&cluster, &name(7), &mark);
    let mut expected = vec![own, format!("{PREFIX}x")];
    expected.extend([2, 3, 4, 5, 6, 7].map(name));
    expected.sort();

    server.restart().await;
    let left = || {
        let found = cluster.kubectl(&["get", "namespace", &name(1), "--output=name"]);
        if found.status.success() {
            vec![name(1)]
        } else {
            Vec::new()
        }
    };
    let gone = leaks::wait_until_none("namespaces that are over", LONG, left).await;
    gone.unwrap_or_else(|left| panic!("{left:?}\n{}", server.log()));
    // Its own environment and the second; and five that only look so. What carries no label is not even looked at.
    wait_for(&server, 2, 5).await;
    let mut found = alive(&cluster);
    found.sort();
    assert_eq!(found, expected, "{}", server.log());
    let records = server
        .operator(Method::GET, "/v1/ledger/records?limit=1000")
        .await;
    let records = records.body["records"].as_array().unwrap().clone();
    let orphans = records
        .iter()
        .filter(|it| it["action"] == "environment.orphan");
    let orphans: Vec<_> = orphans.map(|it| it["environment_id"].clone()).collect();
    assert_eq!(orphans, [json!(label(1))]);

    // Without its key it knows none of them.
    server.stop().await;
    forget(&server);
    std::fs::remove_file(&path).unwrap();
    marked(&cluster, 8, &key, -HOUR);
    expected.push(name(8));
    expected.sort();
    server.restart().await;
    wait_for(&server, 0, 8).await;
    let mut found = alive(&cluster);
    found.sort();
    assert_eq!(found, expected, "{}", server.log());
    let told = server.log().matches("it is not touched").count();
    assert_eq!(told, 5 + 8, "each is told once: {}", server.log());
}
