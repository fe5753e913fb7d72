//! The end of an environment: credentials die at once, nothing is left, and late callers get an explanation.

use std::path::Path;
use std::process::Command;

use kubler_testkit::buildkite::{Buildkite, WebhookEvent};
use kubler_testkit::kubler::{Server, kubectl};
use kubler_testkit::leaks::files_in;
use reqwest::Method;

use crate::SOON;

#[tokio::test(flavor = "multi_thread")]
async fn a_released_environment_is_dead_at_once_and_gone_when_it_says_so() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let (id, session) = server.create_with_session(&job).await;
    let path = format!("/k8s/{id}/api/v1/namespaces");
    assert_eq!(
        server
            .request(Method::GET, &path, Some(&session), None)
            .await
            .status,
        200
    );
    assert_eq!(server.control_planes().len(), 1);

    let token = server.token(&job);
    let released = server
        .request(
            Method::POST,
            &format!("/v1/environments/{id}/release"),
            Some(&token),
            None,
        )
        .await;
    assert_eq!(released.status, 200, "{released:?}");
    let late = server
        .request(Method::GET, &path, Some(&session), None)
        .await;
    assert_eq!(late.status, 404, "{late:?}");

    server.wait_until_gone(&id, SOON).await;
    assert!(
        server.control_planes().is_empty(),
        "{:#?}",
        server.control_planes()
    );
    let digits = id.trim_start_matches("env_");
    let left: Vec<_> = files_in(&server.folder())
        .into_iter()
        .filter(|path| path.to_string_lossy().contains(digits))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn e3_after_the_end_everybody_is_told_when_why_and_which_run() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let (id, session) = server.create_with_session(&job).await;
    let alive = server
        .request(Method::GET, &format!("/v1/tombstones/{id}"), None, None)
        .await;
    assert_eq!(
        alive.status, 404,
        "a living environment has no tombstone: {alive:?}"
    );

    let token = server.token(&job);
    let body = serde_json::json!({ "wait_seconds": 30 });
    let released = server
        .request(
            Method::POST,
            &format!("/v1/environments/{id}/release"),
            Some(&token),
            Some(&body),
        )
        .await;
    assert_eq!(released.body["phase"], "gone", "{released:?}");

    let late = server.read(&id, &session, "/api/v1/namespaces").await;
    assert_eq!(late.status, 404);
    assert_eq!(late.body["kind"], "Status", "{late:?}");
    let message = late.body["message"].as_str().unwrap();
    assert!(
        message.contains("ended")
            && message.contains("released")
            && message.contains(&job.id().to_string()),
        "{message}"
    );

    let tombstone = server
        .request(Method::GET, &format!("/v1/tombstones/{id}"), None, None)
        .await;
    assert_eq!(tombstone.status, 200);
    assert_eq!(tombstone.body["end"]["code"], "released");
    assert_eq!(tombstone.body["gone"], true);
    assert!(
        tombstone.body["run_url"]
            .as_str()
            .unwrap()
            .contains(&job.id().to_string())
    );

    let exchange = server.exchange(&server.token(&job), &id).await;
    assert_eq!(
        (
            exchange.status.as_u16(),
            exchange.body["code"].as_str().unwrap()
        ),
        (404, "environment_ended")
    );
    let again = serde_json::json!({ "profile": "ci-small" });
    let again = server
        .request(
            Method::POST,
            "/v1/environments",
            Some(&server.token(&job)),
            Some(&again),
        )
        .await;
    assert_eq!(
        again.body["phase"], "gone",
        "the same job and name mean the same environment: {again:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn e3_kubectl_tells_of_the_end_with_a_session_that_has_not_expired_and_without_any() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let id = server.create(&job, "main").await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let home = tempfile::tempdir().unwrap();
    let (kubeconfig, token) = (home.path().join("kubeconfig"), home.path().join("token"));
    let as_the_job = |mut command: Command| {
        let output = command
            .env("KUBLER_SERVER", server.url())
            .env("KUBLER_CA", server.ca())
            .env("KUBLER_TOKEN_FILE", &token)
            .env("KUBLER_JOBS_FOLDER", home.path())
            .env("BUILDKITE_JOB_ID", job.id().to_string())
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    };
    let get = |home: &Path| {
        let mut command = kubectl(&kubeconfig, home);
        command.args(["get", "namespaces"]);
        command
    };
    std::fs::write(&token, server.token(&job)).unwrap();
    let mut write = Command::new(server.programs().cli());
    write.args(["kubeconfig", &id, "--file"]).arg(&kubeconfig);
    let (is_well, told) = as_the_job(write);
    assert!(is_well, "{told}");
    let (is_well, told) = as_the_job(get(home.path()));
    assert!(is_well && told.contains("kube-system"), "{told}");

    let path = format!("/v1/environments/{id}/release");
    server
        .request(Method::POST, &path, Some(&server.token(&job)), None)
        .await;
    job.finish(0);
    let is_explained = |told: &str| {
        ["ended at", "its job released it", &job.id().to_string()]
            .iter()
            .all(|part| told.contains(part))
            && !told.to_lowercase().contains("forbidden")
    };
    // One that remembers what the API offers, and one that has to ask for that first.
    let empty = tempfile::tempdir().unwrap();
    for memory in [home.path(), empty.path()] {
        let (is_well, told) = as_the_job(get(memory));
        assert!(!is_well && is_explained(&told), "{told}");
        assert!(
            told.contains("Error from server") && !told.contains("error: environment"),
            "it was the gateway that explained, since the session was good: {told}"
        );
    }

    let sessions = files_in(home.path()).into_iter();
    for session in sessions.filter(|path| path.extension().is_some_and(|end| end == "session")) {
        std::fs::remove_file(session).unwrap();
    }
    std::fs::remove_file(&token).unwrap();
    let (is_well, told) = as_the_job(get(home.path()));
    assert!(!is_well && is_explained(&told), "{told}");
    assert!(
        told.contains("error: environment"),
        "it was `kubler credential` that explained: {told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn e2_an_open_watch_is_cut_when_its_environment_is_released() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let (id, session) = server.create_with_session(&job).await;
    let url = format!("{}/k8s/{id}/api/v1/namespaces?watch=true", server.url());
    let mut watch = server
        .client()
        .get(url)
        .bearer_auth(&session)
        .send()
        .await
        .unwrap();
    assert_eq!(watch.status(), 200);
    let first = watch.chunk().await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&first).contains("ADDED"));

    let token = server.token(&job);
    server
        .request(
            Method::POST,
            &format!("/v1/environments/{id}/release"),
            Some(&token),
            None,
        )
        .await;
    let begun = std::time::Instant::now();
    let mut rest = String::new();
    while let Ok(Some(chunk)) = tokio::time::timeout(SOON, watch.chunk())
        .await
        .expect("the watch is cut")
    {
        rest.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert!(
        begun.elapsed() < std::time::Duration::from_secs(5),
        "cut after {:?}",
        begun.elapsed()
    );
    let last: serde_json::Value = serde_json::from_str(rest.lines().last().unwrap()).unwrap();
    assert_eq!(last["type"], "ERROR", "{rest}");
    assert!(
        last["object"]["message"]
            .as_str()
            .unwrap()
            .contains("ended"),
        "{last}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_webhook_ends_the_jobs_environments_of_its_own_organization_only() {
    let buildkite = Buildkite::builder()
        .organization("acme", &["app"])
        .organization("other", &["app"])
        .start();
    let other = buildkite.organization("other").id;
    let secret_line = "        # webhook_secret: secrets/buildkite-webhook   # ends environments a little faster\n";
    let with_secrets = format!(
        "        webhook_secret: secrets/acme\n      - id: \"{other}\"\n        slug: other\n        webhook_secret: secrets/other\n"
    );
    let server = Server::of(&buildkite)
        .edit(secret_line, &with_secrets)
        .file("secrets/acme", "acme's secret")
        .file("secrets/other", "the other's secret")
        .start()
        .await;
    let job = buildkite.build("acme/app").start().job("test").run();
    let environment = server.create(&job, "main").await;
    let id = environment["id"].as_str().unwrap();
    let url = format!("{}/v1/hooks/buildkite", server.url());
    let ca = std::fs::read_to_string(server.ca()).unwrap();
    let webhook = || buildkite.webhook(WebhookEvent::JobFinished, &job);
    let status = async |delivery: kubler_testkit::buildkite::Delivery| {
        delivery.send(&url, Some(&ca)).await.unwrap().0
    };

    assert_eq!(status(webhook().unsigned()).await, 401);
    assert_eq!(
        status(webhook().with_plain_token("acme's secret")).await,
        401,
        "the plain-token mode is off"
    );
    assert_eq!(status(webhook().signed("wrong")).await, 401);
    let old = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(301);
    assert_eq!(status(webhook().signed_at("acme's secret", old)).await, 401);
    assert_eq!(status(webhook().signed("the other's secret")).await, 204);
    assert_eq!(
        server.environment(id).await["phase"],
        "ready",
        "another organization's secret ended it"
    );

    assert_eq!(status(webhook().signed("acme's secret")).await, 204);
    let gone = server.wait_until_gone(id, SOON).await;
    assert_eq!(gone["end"]["code"], "job_finished");
}
