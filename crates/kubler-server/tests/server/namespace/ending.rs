//! Ends that are resisted: what is in the way is said, nobody else waits, and only what the profile lists is taken away.

use std::time::{Duration, Instant};

use kubler_core::host::rbac::Resource;
use kubler_testkit::kubler::Server;
use reqwest::Method;
use serde_json::{Value, json};

use super::hosted::{Environment, Hosted, rights};
use crate::LONG;

const LOOK_EVERY: Duration = Duration::from_millis(200);

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

/// As the server's own, but seldom: each look is a record of the ledger.
async fn wait_for(server: &Server, id: &str, condition: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + LONG;
    loop {
        let seen = server.environment(id).await;
        if condition(&seen) {
            return seen;
        }
        assert!(Instant::now() < deadline, "{seen:#}\n{}", server.log());
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn is_gone(server: &Server, id: &str) {
    wait_for(server, id, |it| it["phase"] == "gone").await;
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
        is_gone(server, &environment.id).await;
    }
    let names_it = |it: &Value| {
        let said = it["last_failure"].as_str().unwrap_or_default();
        said.contains("`configmaps/held` waits for `example.com/guard`")
    };
    let path = format!("/v1/ledger/records?limit=1000&environment={}", stripped.id);
    let records = server.operator(Method::GET, &path).await;
    let records = records.body["records"].as_array().unwrap().clone();
    let taken: Vec<_> = records
        .iter()
        .filter(|record| record["action"] == "environment.finalizer")
        .collect();
    assert_eq!(taken.len(), 1, "{records:#?}\n{}", server.log());
    assert_eq!(taken[0]["environment_id"], stripped.id.as_str());
    assert_eq!(
        taken[0]["details"]["finalizers"],
        json!(["example.com/listed"])
    );

    let seen = wait_for(server, &held.id, names_it).await;
    assert_eq!(seen["phase"], "releasing");
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
    is_gone(server, &held.id).await;
    hosted.nothing_is_left().await;
}
