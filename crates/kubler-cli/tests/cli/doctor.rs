//! What `kubler doctor` finds.

use std::process::Output;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::desk::{Desk, token};

struct Scene {
    desk: Desk,
    files: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("token"), token("j")).unwrap();
        Self {
            desk: Desk::open(),
            files,
        }
    }

    fn doctor(&self, arguments: &[&str]) -> Output {
        let jobs = tempfile::tempdir().unwrap();
        let mut command = self.desk.kubler(jobs.path());
        command
            .arg("--token-file")
            .arg(self.files.path().join("token"))
            .args(["--audience", "https://elsewhere.example", "doctor"])
            .args(arguments);
        command.output().unwrap()
    }

    /// State, message and hint of one thing.
    fn finding(&self, what: &str, arguments: &[&str]) -> [String; 3] {
        let output = self.doctor(&[arguments, &["--output", "json"]].concat());
        let findings: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        let finding = findings
            .iter()
            .find(|finding| finding["what"] == what)
            .unwrap_or_else(|| panic!("nothing of `{what}`: {findings:#?}"));
        ["state", "message", "hint"].map(|key| finding[key].as_str().unwrap_or_default().to_owned())
    }
}

#[test]
fn a_profile_that_is_allowed_leaves_nothing_behind() {
    let scene = Scene::new();
    let [state, message, _] = scene.finding("policy", &["--profile", "ci-small"]);
    assert_eq!(state, "ok", "{message}");
    assert!(
        message.starts_with("profile `ci-small` is allowed: env_j_doctor"),
        "{message}"
    );
    assert_eq!(scene.desk.count("POST /v1/environments"), 2);
    assert_eq!(scene.desk.alive(), Vec::<String>::new());
}

#[test]
fn a_profile_that_is_not_allowed_says_why_not() {
    let scene = Scene::new();
    scene.desk.refuse_creation(
        403,
        "denied",
        "no policy allows `create_environment` on profile `big`; closest `acme/create`: pipeline_id",
        "ask for `ci-small`",
    );
    let [state, message, hint] = scene.finding("policy", &["--profile", "big"]);
    assert_eq!(state, "wrong");
    assert!(
        message.starts_with("profile `big` is not allowed: no policy allows")
            && message.contains("closest `acme/create`"),
        "{message}"
    );
    assert_eq!(hint, "ask for `ci-small`");
    let output = scene.doctor(&["--profile", "big"]);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
}

#[test]
fn what_the_job_has_is_not_asked_for_again() {
    let scene = Scene::new();
    scene.desk.put("env_1");
    let [state, message, _] = scene.finding("policy", &["--profile", "ci-small", "env_1"]);
    assert_eq!(state, "ok");
    assert!(message.contains("env_1 was made of it"), "{message}");
    assert_eq!(scene.desk.count("POST /v1/environments"), 0);
}

#[test]
fn pods_that_wait_for_a_node_are_named_and_why() {
    let scene = Scene::new();
    scene.desk.put("env_1");
    let [state, message, _] = scene.finding("pods", &["env_1"]);
    assert_eq!(state, "ok");
    assert!(
        message.starts_with("none is Pending")
            && message.contains("`local` environment has no nodes"),
        "{message}"
    );
    let pod = |name: &str| json!({ "metadata": { "namespace": "default", "name": name }, "status": { "phase": "Pending" } });
    scene.desk.pods(vec![pod("web-1"), pod("web-2")]);
    let [state, message, _] = scene.finding("pods", &["env_1"]);
    assert_eq!(state, "note", "nothing is wrong where there are no nodes");
    assert!(
        message.starts_with(
            "2 Pending: default/web-1, default/web-2; a `local` environment has no nodes"
        ) && message.ends_with("do not wait for them"),
        "{message}"
    );
    assert!(
        scene.desk.calls().iter().any(|noted| noted.call
            == "GET /k8s/env_1/api/v1/pods?fieldSelector=status.phase%3DPending&limit=100"),
        "{:#?}",
        scene.desk.calls()
    );
}

#[test]
fn what_a_scheduler_said_is_repeated() {
    let scene = Scene::new();
    scene.desk.put("env_1");
    scene.desk.pods(vec![json!({ "metadata": { "namespace": "default", "name": "big" },
        "status": { "conditions": [{ "type": "PodScheduled", "status": "False", "message": "0/3 nodes are available" }] } })]);
    let [_, message, _] = scene.finding("pods", &["env_1"]);
    assert!(
        message.contains("default/big (0/3 nodes are available)"),
        "{message}"
    );
}

#[test]
fn without_an_environment_it_says_what_was_not_looked_at() {
    let scene = Scene::new();
    let [state, message, _] = scene.finding("pods", &[]);
    assert_eq!(state, "note");
    assert!(message.contains("KUBLER_ENVIRONMENT"), "{message}");
    let [state, message, _] = scene.finding("policy", &[]);
    assert_eq!(state, "ok");
    assert!(message.contains("`--profile PROFILE`"), "{message}");
    assert_eq!(scene.desk.count("POST"), 0, "looking changes nothing");
}

impl Scene {
    /// The token says this of itself.
    fn token_with(&self, claims: &Value) {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}.c2ln", part(&json!({ "alg": "RS256" })), part(claims));
        std::fs::write(self.files.path().join("token"), text).unwrap();
    }
}

#[test]
fn a_caller_that_is_not_believed_is_told_what_may_be_the_cause() {
    let scene = Scene::new();
    scene.token_with(&json!({ "iss": "https://agent.example", "aud": "https://elsewhere.example",
        "organization_id": "0194b014-8517-7cef-b232-76a827315f08", "job_id": "j", "exp": 4_000_000_000_u64 }));
    scene.desk.believe_nobody();
    let [state, message, hint] = scene.finding("identity", &["--profile", "ci-small"]);
    assert_eq!(state, "wrong");
    assert_eq!(message, "the caller could not be verified");
    for part in [
        "https://elsewhere.example",
        &scene.desk.url(),
        "0194b014-8517-7cef-b232-76a827315f08",
        "https://agent.example",
        "`kubler ledger records`",
        "`caller.refuse`",
    ] {
        assert!(hint.contains(part), "no {part}: {hint}");
    }
    assert!(!hint.contains("kubler doctor"), "a circle: {hint}");
    let [state, message, _] = scene.finding("audience", &[]);
    assert_eq!(state, "note", "{message}");
    assert!(message.contains(&scene.desk.url()), "{message}");
    let output = scene.doctor(&["--profile", "ci-small"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(7), "{text}");
    assert!(
        !text.contains("policy:") && !text.contains("ok    identity"),
        "{text}"
    );
}

#[test]
fn an_expired_token_is_no_identity() {
    let scene = Scene::new();
    scene.token_with(
        &json!({ "iss": "https://agent.example", "job_id": "j", "exp": 1_000_000_000 }),
    );
    scene.desk.believe_nobody();
    let [state, message, hint] = scene.finding("token", &[]);
    assert_eq!(state, "wrong");
    assert!(
        message.contains("it expired at 2001-09-09T01:46:40Z"),
        "{message}"
    );
    assert!(hint.contains("fresh"), "{hint}");
    let [state, ..] = scene.finding("identity", &[]);
    assert_eq!(state, "wrong");
}
