//! `kubler policy explain JOB`: what a job was refused, from the ledger.

use kubler_testkit::buildkite::Buildkite;
use kubler_testkit::kubler::Server;
use reqwest::Method;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_job_is_explained_with_the_smallest_change_that_would_allow_it() {
    let buildkite = Buildkite::builder().organization("acme", &["app"]).start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite
        .build("app")
        .source("webhook")
        .start()
        .job("test")
        .run();
    let body = json!({ "profile": "ci-small", "name": "wanted" });
    let token = server.token(&job);
    let denied = server
        .request(Method::POST, "/v1/environments", Some(&token), Some(&body))
        .await;
    assert_eq!(denied.status, 403, "{denied:?}");
    let hint = denied.body["hint"].as_str().unwrap();
    assert!(
        hint.starts_with("this job may ask for `untrusted`; "),
        "{hint}"
    );

    let config = server.folder().join("kubler.yaml");
    let id = job.id().to_string();
    let explain = [
        "policy",
        "explain",
        &id,
        "--config",
        config.to_str().unwrap(),
    ];
    let explained = server.cli(&explain);
    let text = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert_eq!(explained.status.code(), Some(3), "{text}");
    for part in [
        "refused: environment.create",
        "profile `ci-small`",
        "name `wanted`",
        "close: `acme/create",
        "fork_branches_are_prefixed",
        "now: still denied",
        "this job may have untrusted",
        denied.body["request_id"].as_str().unwrap(),
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }

    // The change that was advised, and what is said then.
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(
        &config,
        text.replacen("prefixed: false", "prefixed: true", 1),
    )
    .unwrap();
    let explained = server.cli(&[&explain[..], &["--output", "json"]].concat());
    let refusals: Value = serde_json::from_slice(&explained.stdout).unwrap();
    assert_eq!(refusals[0]["now"]["allowed"], true, "{refusals:#}");
    assert_eq!(refusals[0]["asked"]["profile"], "ci-small");
    assert_eq!(
        refusals[0]["now"]["allowed_profiles"],
        json!(["ci-small", "untrusted"])
    );

    // Who was not refused, and who may not ask.
    let unknown = server.cli(&["policy", "explain", "01945ecf-0000-4000-8000-0000000000bb"]);
    assert_eq!(unknown.status.code(), Some(4));
    let file = server.folder().join("token");
    std::fs::write(&file, server.token(&job)).unwrap();
    let own = server
        .cli_command(&["policy", "explain", &id])
        .env_remove("KUBLER_CLIENT_CERTIFICATE")
        .env_remove("KUBLER_CLIENT_KEY")
        .env("KUBLER_TOKEN_FILE", file)
        .output()
        .unwrap();
    assert_eq!(
        own.status.code(),
        Some(3),
        "reading the ledger is for operators"
    );
    assert!(String::from_utf8_lossy(&own.stderr).contains("may not read the ledger"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_doctor_says_what_the_system_holds_environments_to() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let doctor = server.cli(&["doctor"]);
    let text = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert_eq!(doctor.status.code(), Some(0), "{text}");
    let line = text.lines().find(|line| line.contains("by the system"));
    let line = line.unwrap_or_else(|| panic!("no bounds: {text}"));
    for bound in ["memory dumps", "open files"] {
        assert!(line.contains(bound), "{line}");
    }
}
