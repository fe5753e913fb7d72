//! Webhooks: a hint that ends environments faster, and only those that it is about.

use jiff::{SignedDuration, Timestamp};
use kubler_testkit::buildkite::{Buildkite, Delivery, WebhookEvent};
use kubler_testkit::kubler::Server;
use reqwest::Method;
use serde_json::json;

use crate::SOON;

const SECRET: &str = "acme's secret";
const OTHER_SECRET: &str = "the other organization's secret";

fn two_organizations() -> Buildkite {
    Buildkite::builder()
        .organization("acme", &["app"])
        .organization("other", &["app"])
        .start()
}

async fn server_with_secrets(buildkite: &Buildkite) -> Server {
    let commented = "        # webhook_secret: secrets/buildkite-webhook   # ends environments a little faster\n";
    let other = buildkite.organization("other").id;
    let secrets = format!(
        "        webhook_secret: secrets/acme\n      - {{id: \"{other}\", slug: other, webhook_secret: secrets/other}}\n"
    );
    Server::of(buildkite)
        .edit(commented, &secrets)
        .file("secrets/acme", SECRET)
        .file("secrets/other", OTHER_SECRET)
        .start()
        .await
}

async fn deliver(server: &Server, delivery: Delivery) -> u16 {
    let ca = std::fs::read_to_string(server.ca()).unwrap();
    let url = format!("{}/v1/hooks/buildkite", server.url());
    delivery.send(&url, Some(&ca)).await.unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_agent_takes_its_own_environment_and_no_other() {
    let buildkite = two_organizations();
    let server = server_with_secrets(&buildkite).await;
    let build = buildkite.build("acme/app").start();
    let (lost, alive) = (build.job("lost").run(), build.job("alive").run());
    let of_lost = server.create(&lost, "main").await;
    let of_alive = server.create(&alive, "main").await;
    let shared =
        json!({ "profile": "ci-small", "name": "shared", "scope": "build", "wait_seconds": 60 });
    let shared = server
        .request(
            Method::POST,
            "/v1/environments",
            Some(&server.token(&lost)),
            Some(&shared),
        )
        .await;
    assert_eq!(shared.body["phase"], "ready", "{shared:?}");

    let webhook = buildkite.webhook(WebhookEvent::AgentLost, &lost);
    // Who may sign for one organization says nothing about another's agents and jobs.
    let finished = || buildkite.webhook(WebhookEvent::JobFinished, &alive);
    for foreign in [webhook.clone(), finished()] {
        assert_eq!(deliver(&server, foreign.signed(OTHER_SECRET)).await, 204);
    }
    let living = [&of_lost, &of_alive].map(|made| made["id"].as_str().unwrap());
    for id in living {
        assert_eq!(server.environment(id).await["phase"], "ready");
    }
    assert_eq!(deliver(&server, webhook.signed(SECRET)).await, 204);
    let id = |environment: &serde_json::Value| environment["id"].as_str().unwrap().to_owned();
    let gone = server.wait_until_gone(&id(&of_lost), SOON).await;
    assert_eq!(gone["end"]["code"], "agent_lost");
    assert_eq!(server.environment(&id(&of_alive)).await["phase"], "ready");
    assert_eq!(
        server.environment(&id(&shared.body)).await["phase"],
        "ready",
        "an environment of the whole build ended with one of its jobs"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_believed_when_it_is_long_and_not_when_it_is_from_another_time() {
    let buildkite = two_organizations();
    let server = server_with_secrets(&buildkite).await;
    let job = buildkite.build("acme/app").start().job("test").run();
    let environment = server.create(&job, "main").await;
    let id = environment["id"].as_str().unwrap();
    let finished = || buildkite.webhook(WebhookEvent::JobFinished, &job);
    // The later one comes nearer while it is on its way, on a busy machine by many seconds.
    for seconds in [-301, 400] {
        let then = Timestamp::now() + SignedDuration::from_secs(seconds);
        assert_eq!(
            deliver(&server, finished().signed_at(SECRET, then)).await,
            401
        );
    }
    let mut endless = finished();
    endless.payload()["build"]["message"] = "x".repeat(1024 * 1024).into();
    assert_eq!(deliver(&server, endless.signed(SECRET)).await, 413);
    assert_eq!(server.environment(id).await["phase"], "ready");

    let mut long = finished();
    long.payload()["build"]["message"] = "x".repeat(200 * 1024).into();
    assert_eq!(deliver(&server, long.signed(SECRET)).await, 204);
    server.wait_until_gone(id, SOON).await;
}
