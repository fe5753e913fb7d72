//! Walls of a living environment that somebody on the host changes: put right, with who it was in the ledger, or only
//! written down where the profile says so.

use std::time::{Duration, Instant};

use kubler_core::host::ENVIRONMENT_LABEL;
use reqwest::Method;
use serde_json::{Value, json};

use super::hosted::{Environment, Hosted};
use crate::LONG;

/// As the host's administrator, in the environment's namespace.
fn admin(environment: &Environment<'_>, arguments: &[&str]) -> String {
    let place = ["--namespace", &environment.namespace];
    let arguments = [arguments, &place].concat();
    environment.hosted.cluster.kubectl_ok(&arguments)
}

async fn until<T>(
    environment: &Environment<'_>,
    what: &str,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        let server = &environment.hosted.server;
        assert!(Instant::now() < deadline, "{what}: {}", server.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What `GET …/drift` says of an object.
async fn drift(environment: &Environment<'_>, object: &str) -> Value {
    let path = format!("/v1/environments/{}/drift", environment.id);
    until(environment, object, async || {
        let answer = environment.hosted.server.operator(Method::GET, &path).await;
        let all = answer.body["drifts"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        all.into_iter().find(|it| it["object"] == object)
    })
    .await
}

async fn records(environment: &Environment<'_>) -> Vec<Value> {
    let path = format!(
        "/v1/ledger/records?limit=1000&environment={}",
        environment.id
    );
    let records = environment.hosted.server.operator(Method::GET, &path).await;
    let records = records.body["records"].as_array().unwrap().clone();
    let is_drift = |record: &Value| record["action"] == "environment.drift";
    records.into_iter().filter(is_drift).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn walls_that_somebody_changed_are_put_right_and_it_is_told_who_it_was() {
    let hosted = Hosted::new(&["limits: {default: {cpu: 1000m}}"]).await;
    let environment = hosted.environment().await;
    let namespace = environment.namespace.clone();
    let read = |arguments: &[&str]| {
        let place = ["--namespace", &namespace];
        hosted.cluster.get(&[arguments, &place].concat())
    };
    let version = |kind: &str| {
        let found = read(&[kind, "kubler"]);
        found["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    // The server writes a thousand thousandths as one: that is no change, and nothing puts it right for ever.
    assert_eq!(
        read(&["limitrange", "kubler"])["spec"]["limits"][0]["default"]["cpu"],
        "1"
    );
    let limits = version("limitrange");

    let more = r#"{"spec": {"hard": {"pods": "5000"}}}"#;
    admin(
        &environment,
        &[
            "patch",
            "resourcequota",
            "kubler",
            "--type=merge",
            "--patch",
            more,
            "--field-manager=jane",
        ],
    );
    admin(&environment, &["delete", "networkpolicy", "kubler"]);
    let subjects = r#"{"subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "mallory"}]}"#;
    let patch = [
        "patch",
        "rolebinding",
        "kubler",
        "--type=merge",
        "--patch",
        subjects,
    ];
    admin(&environment, &patch);
    admin(
        &environment,
        &[
            "create",
            "rolebinding",
            "theirs",
            "--clusterrole=view",
            "--user=jane",
        ],
    );
    let unlabelled = format!("{ENVIRONMENT_LABEL}-");
    hosted.cluster.kubectl_ok(&[
        "label",
        "namespace",
        &namespace,
        "--overwrite",
        "pod-security.kubernetes.io/enforce=privileged",
        &unlabelled,
    ]);

    let quota = drift(&environment, "resourcequotas/kubler").await;
    assert_eq!(quota["answer"], "repaired", "{quota}");
    assert_eq!(quota["by"]["manager"], "jane");
    assert_eq!(quota["changes"][0]["path"], "spec.hard.pods");
    assert_eq!(
        read(&["resourcequota", "kubler"])["spec"]["hard"]["pods"],
        "50"
    );
    assert_eq!(
        drift(&environment, "networkpolicies/kubler").await["answer"],
        "repaired"
    );
    let policy = read(&["networkpolicy", "kubler"]);
    assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
    let role = until(&environment, "its role", async || {
        let found = hosted.cluster.kubectl(&[
            "get",
            "rolebinding",
            "kubler",
            "--namespace",
            &namespace,
            "--output=jsonpath={.roleRef.name}{.subjects[*].name}",
        ]);
        let found = String::from_utf8(found.stdout).unwrap();
        (found == format!("kubler:tenant:edit{namespace}")).then_some(found)
    })
    .await;
    assert!(!role.contains("mallory"));
    let named = format!("namespaces/{namespace}");
    assert_eq!(drift(&environment, &named).await["answer"], "repaired");
    let labels = hosted.cluster.get(&["namespace", &namespace])["metadata"]["labels"].clone();
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "baseline");
    assert_eq!(labels[ENVIRONMENT_LABEL], environment.id.as_str());
    // Somebody else's is theirs.
    assert_eq!(
        drift(&environment, "rolebindings/theirs").await["answer"],
        "reported"
    );
    admin(&environment, &["get", "rolebinding", "theirs"]);
    assert_eq!(version("limitrange"), limits);

    let records = records(&environment).await;
    let of = |object: &str| {
        let record = records.iter().find(|it| {
            let found = it["details"]["object"].as_str().unwrap();
            found.ends_with(object)
        });
        record.unwrap_or_else(|| panic!("no {object} in {records:?}"))["details"].clone()
    };
    assert_eq!(of("resourcequotas/kubler")["by"]["manager"], "jane");
    assert_eq!(of("networkpolicies/kubler")["what"], "removed");
    assert_eq!(of("rolebindings/theirs")["what"], "added");
    assert!(
        !records
            .iter()
            .any(|it| it.to_string().contains("limitranges")),
        "{records:?}"
    );

    let shown = hosted.server.cli(&["env", "drift", &environment.id]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(
        shown.contains("resourcequotas/kubler") && shown.contains("jane"),
        "{shown}"
    );
    let released = environment.release().await;
    assert_eq!(
        released.body["phase"],
        "gone",
        "{released:?}\n{}",
        hosted.server.log()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_may_have_changes_only_written_down() {
    let hosted = Hosted::new(&["on_drift: report"]).await;
    let environment = hosted.environment().await;
    admin(&environment, &["delete", "networkpolicy", "kubler"]);
    let found = drift(&environment, "networkpolicies/kubler").await;
    assert_eq!(found["answer"], "reported");
    let records = records(&environment).await;
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!(records[0]["details"]["answer"], "report");
    let left = admin(&environment, &["get", "networkpolicies", "--output=name"]);
    assert_eq!(left.trim(), "");
    environment.release().await;
}
