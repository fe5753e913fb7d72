//! What a create answers, and what it says inside: everything the job needs, and no secret.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use kubler_testkit::buildkite::Buildkite;
use kubler_testkit::kubler::{Answer, Server};
use reqwest::Method;
use serde_json::{Value, json};

/// A branch and a step key as somebody writes them who means harm.
const BRANCH: &str = "feature/$(rm -rf /)\u{202e}\n\u{1b}[31m<b>&\"'";
const STEP: &str = "step \u{1b}]0;\n`id`";

fn moment(environment: &Value, key: &str) -> Timestamp {
    environment[key].as_str().unwrap().parse().unwrap()
}

async fn post(server: &Server, url: &str, token: &str, body: Option<&Value>) -> Answer {
    let path = url.strip_prefix(server.url()).expect("a URL of the server");
    server.request(Method::POST, path, Some(token), body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_answers_with_hooks_that_work_and_no_secret() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let build = buildkite.build("app").start();
    let job = build.job("test").run();
    let token = server.token(&job);
    let body = json!({ "profile": "ci-small", "wait_seconds": 60 });
    let made = server
        .request(Method::POST, "/v1/environments", Some(&token), Some(&body))
        .await;
    assert!(
        !made.body.to_string().contains(&token),
        "the token is in it"
    );
    let made = made.body;
    assert_eq!(made["phase"], "ready", "{made}");
    let id = made["id"].as_str().unwrap();

    let (created, lease_end) = (moment(&made, "created_at"), moment(&made, "lease_end"));
    let deadline = moment(&made, "deadline");
    assert_eq!(
        deadline.duration_since(created),
        SignedDuration::from_hours(2)
    );
    let minted = job.mints().last().unwrap().at;
    let lease = lease_end.duration_since(minted);
    assert!(
        lease <= SignedDuration::from_secs(300) && lease > SignedDuration::from_secs(298),
        "the lease runs from the mint: {lease:?}"
    );

    let gateway = format!("{}/k8s/{id}", server.url());
    let ca = std::fs::read_to_string(server.ca()).unwrap();
    assert_eq!(made["gateway"], json!({ "url": gateway, "ca": ca }));
    let digest = made["digest"].as_str().unwrap();
    assert!(
        digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{digest}"
    );
    let other = server.create(&build.job("other").run(), "main").await;
    assert_eq!(other["digest"], digest, "same digest, same environment");
    assert_ne!(other["id"], id);

    kubeconfig_is_complete_and_has_no_secret(&made, &server, &gateway, &ca);
    hooks_work(&made, &server, &gateway, || server.token(&job)).await;
}

fn kubeconfig_is_complete_and_has_no_secret(
    made: &Value,
    server: &Server,
    gateway: &str,
    ca: &str,
) {
    let text = made["kubeconfig"].as_str().unwrap();
    let kubeconfig: Value = serde_json::from_str(text).unwrap();
    assert_eq!(
        kubeconfig["clusters"][0]["cluster"],
        json!({ "server": gateway, "certificate-authority-data": STANDARD.encode(ca) })
    );
    let user = kubeconfig["users"][0]["user"].as_object().unwrap();
    assert_eq!(user.keys().collect::<Vec<_>>(), ["exec"]);
    let exec = &user["exec"];
    assert_eq!(exec["command"], "kubler");
    let arguments: Vec<_> = exec["args"].as_array().unwrap().iter().collect();
    assert_eq!(
        arguments,
        [
            "credential",
            "--server",
            server.url(),
            "--audience",
            server.url(),
            "--environment",
            made["id"].as_str().unwrap()
        ]
    );
    for word in ["token:", "\"token\"", "password", "key-data", "PRIVATE"] {
        assert!(!text.contains(word), "`{word}` is in {text}");
    }
}

async fn hooks_work(made: &Value, server: &Server, gateway: &str, token: impl Fn() -> String) {
    let id = made["id"].as_str().unwrap();
    let hooks = &made["hooks"];
    let url = |hook: &str| hooks[hook]["url"].as_str().unwrap().to_owned();
    for (hook, command) in [
        ("deploy", "kubectl apply -f FILE".to_owned()),
        (
            "credential",
            format!("kubler credential --environment {id}"),
        ),
        ("renew", format!("kubler env renew {id}")),
        ("teardown", format!("kubler env release {id}")),
    ] {
        assert_eq!(hooks[hook]["command"], command, "{hook}");
    }
    let every = hooks["renew"]["every_seconds"].as_u64().unwrap();
    assert!(every * 3 <= 300, "a lease survives two failed renewals");

    let renewed = post(server, &url("renew"), &token(), None).await;
    assert_eq!(renewed.status, 200, "{renewed:?}");
    assert_eq!(url("credential"), format!("{}/v1/token", server.url()));
    let issued = server.exchange(&token(), id).await;
    let session = issued.body["access_token"].as_str().unwrap();
    assert_eq!(url("deploy"), gateway);
    let namespace =
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "deployed" } });
    let deployed = post(
        server,
        &format!("{}/api/v1/namespaces", url("deploy")),
        session,
        Some(&namespace),
    )
    .await;
    assert_eq!(deployed.status, 201, "{deployed:?}");
    let wait = json!({ "wait_seconds": 30 });
    let ended = post(server, &url("teardown"), &token(), Some(&wait)).await;
    assert_eq!(ended.body["phase"], "gone", "{ended:?}");
    assert_eq!(ended.body["end"]["code"], "released");
}

#[tokio::test(flavor = "multi_thread")]
async fn c6_hostile_names_are_harmless_in_the_answer_and_inside() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let long = format!("{BRANCH}{}", "x".repeat(2000));
    let job = buildkite.build("app").branch(&long).start().job(STEP).run();
    let made = server.create(&job, "main").await;
    let id = made["id"].as_str().unwrap();
    let is_harmless = |text: &str| {
        text.chars().count() <= 256 && !text.contains(['\n', '\u{1b}', '\u{202e}', '\u{7}'])
    };
    for key in ["branch", "step_key"] {
        let text = made["owner"][key].as_str().unwrap();
        assert!(is_harmless(text) && !text.is_empty(), "{key}: {text:?}");
    }

    let session = server.session(&job, id).await;
    let read = async |path: &str| {
        let path = format!("/k8s/{id}/api/v1/namespaces/{path}");
        let answer = server
            .request(Method::GET, &path, Some(&session), None)
            .await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    };
    let map = read("default/configmaps/kubler-build").await;
    let data: BTreeMap<String, String> = serde_json::from_value(map["data"].clone()).unwrap();
    for (name, text) in &data {
        assert!(is_harmless(text), "{name}: {text:?}");
    }
    let owner = &made["owner"];
    for (name, expected) in [
        ("environment", &made["id"]),
        ("organization", &owner["organization"]),
        ("pipeline-id", &owner["pipeline_id"]),
        ("build-id", &owner["build_id"]),
        ("job", &owner["job_id"]),
        ("commit", &owner["commit"]),
        ("job-url", &owner["url"]),
        ("branch", &owner["branch"]),
        ("step", &owner["step_key"]),
    ] {
        assert_eq!(data[name], expected.as_str().unwrap(), "{name}");
    }
    assert_eq!(data["build"], owner["build_number"].to_string());
    for object in [&map, &read("default").await] {
        let labels = object["metadata"]["labels"].as_object().unwrap();
        let label = |name: &str| labels[&format!("kubler.dev/{name}")].as_str().unwrap();
        assert_eq!(label("job"), owner["job_id"]);
        assert_eq!(label("environment"), id);
        let branch = label("branch");
        assert!(branch.starts_with("feature---rm--rf"), "{branch}");
        assert!(branch.len() <= 63);
    }
}
