//! Ends that are resisted: what is in the way is said, nobody else waits, and only what the profile lists is taken away.

use kubler_core::host::rbac::Resource;
use reqwest::Method;
use serde_json::json;

use super::hosted::{Environment, Hosted, rights};
use crate::LONG;

fn hold(environment: &Environment<'_>, finalizer: &str) {
    environment.kubectl_ok(&["create", "configmap", "held"]);
    let patch = json!({"metadata": {"finalizers": [finalizer]}}).to_string();
    environment.kubectl_ok(&[
        "patch",
        "configmap",
        "held",
        "--type=merge",
        "--patch",
        &patch,
    ]);
}

async fn ask_for_the_end(environment: &Environment<'_>) {
    let path = format!("/v1/environments/{}/release", environment.id);
    let server = &environment.hosted.server;
    let token = server.token(&environment.job);
    let released = server
        .request(Method::POST, &path, Some(&token), None)
        .await;
    assert_eq!(released.status, 200, "{released:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_finalizer_holds_is_named_and_only_a_listed_finalizer_is_taken_away() {
    let mut rights = rights();
    rights.stripped = vec![Resource {
        group: String::new(),
        resource: "configmaps".into(),
    }];
    let listed = "strip_finalizers: [{resource: configmaps, finalizer: example.com/listed}]";
    let hosted = Hosted::with_rights(&rights, &[listed], |draft| draft).await;
    let (held, stripped, free) = (
        hosted.environment().await,
        hosted.environment().await,
        hosted.environment().await,
    );
    hold(&held, "example.com/guard");
    hold(&stripped, "example.com/listed");
    for environment in [&held, &stripped, &free] {
        ask_for_the_end(environment).await;
    }
    // Nobody waits for the one that is held.
    let server = &hosted.server;
    for environment in [&free, &stripped] {
        server
            .wait_for(&environment.id, LONG, |it| it["phase"] == "gone")
            .await;
    }
    let names_it = |it: &serde_json::Value| {
        let said = it["last_failure"].as_str().unwrap_or_default();
        said.contains("`configmaps/held` waits for `example.com/guard`")
    };
    let seen = server.wait_for(&held.id, LONG, names_it).await;
    assert_eq!(seen["phase"], "releasing");

    let path = "/v1/ledger/records?limit=1000";
    let records = server.operator(Method::GET, path).await;
    let records = records.body["records"].as_array().unwrap().clone();
    let taken: Vec<_> = records
        .iter()
        .filter(|record| record["action"] == "environment.finalizer")
        .collect();
    assert_eq!(taken.len(), 1, "{taken:?}");
    assert_eq!(taken[0]["environment_id"], stripped.id.as_str());
    assert_eq!(
        taken[0]["details"]["finalizers"],
        json!(["example.com/listed"])
    );

    let patch = r#"{"metadata": {"finalizers": null}}"#;
    hosted.cluster.kubectl_ok(&[
        "patch",
        "configmap",
        "held",
        "--type=merge",
        "--patch",
        patch,
        "--namespace",
        &held.namespace,
    ]);
    server
        .wait_for(&held.id, LONG, |it| it["phase"] == "gone")
        .await;
    hosted.nothing_is_left().await;
}
