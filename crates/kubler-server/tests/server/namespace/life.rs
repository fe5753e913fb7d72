//! One environment from its making to its end.

use kubler_core::host::ENVIRONMENT_LABEL;
use reqwest::Method;

use super::hosted::{ACCOUNTS, Hosted};

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_of_a_real_cluster_is_made_used_and_gone_without_a_trace() {
    let hosted = Hosted::new(&[]).await;
    let environment = hosted.environment().await;
    let made = &environment.made;
    assert_eq!(made["host"], "east");
    assert_eq!(made["engine"], "namespace");
    assert_eq!(made["kubernetes_version"], "v1.34.4");

    // The job works in it as in any cluster, without naming the namespace.
    environment.kubectl_ok(&["create", "configmap", "mine", "--from-literal=a=b"]);
    let facts = environment.kubectl_ok(&["get", "configmap", "kubler-build", "--output=json"]);
    let facts: serde_json::Value = serde_json::from_str(&facts).unwrap();
    assert_eq!(facts["data"]["environment"], made["id"]);
    let namespace = &environment.namespace;
    let found = hosted
        .cluster
        .get(&["configmap", "mine", "--namespace", namespace]);
    assert_eq!(found["data"]["a"], "b");
    let found = hosted.cluster.get(&["namespace", namespace]);
    assert_eq!(found["metadata"]["labels"][ENVIRONMENT_LABEL], made["id"]);

    let released = environment.release().await;
    assert_eq!(released.status, 200, "{released:?}");
    assert_eq!(
        released.body["phase"],
        "gone",
        "{released:?}\n{}",
        hosted.server.log()
    );
    hosted.nothing_is_left().await;
    let accounts = hosted.cluster.kubectl_ok(&[
        "get",
        "serviceaccounts",
        "--namespace",
        ACCOUNTS,
        "--output=name",
    ]);
    assert_eq!(accounts.trim(), "serviceaccount/default");

    // The record of the end says what was looked for, and how long each phase took.
    let path = format!(
        "/v1/ledger/records?limit=1000&environment={}",
        environment.id
    );
    let records = hosted.server.operator(Method::GET, &path).await;
    let records = records.body["records"].as_array().unwrap().clone();
    let gone = records
        .iter()
        .find(|record| record.to_string().contains("credential_dead"))
        .unwrap_or_else(|| panic!("no phases in {records:?}"))
        .to_string();
    for phase in ["namespace_deleted", "workloads_stopped", "\"gone\""] {
        assert!(gone.contains(phase), "{phase}: {gone}");
    }
}
