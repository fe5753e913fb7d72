//! Leases and deadlines: renewal is proof of life, anchored to when a token was minted.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use kubler_testkit::buildkite::{Buildkite, Job, OidcRequest};
use kubler_testkit::kubler::Server;
use reqwest::Method;
use serde_json::{Value, json};

use crate::SOON;

/// What a lapse may take beyond its lease: one tick of the reconciler and the work itself, on a busy machine.
const SLACK: Duration = Duration::from_secs(15);

/// An environment of a job that renews while it waits: making one may take longer than a short lease.
async fn create(server: &Server, job: &Job) -> Value {
    let body = json!({ "profile": "ci-small", "wait_seconds": 1 });
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let token = server.token(job);
        let asked = server.request(Method::POST, "/v1/environments", Some(&token), Some(&body));
        let made = asked.await;
        let id = made.body["id"]
            .as_str()
            .unwrap_or_else(|| panic!("{made:?}"));
        let renewed = server.renew(job, id).await;
        assert_eq!(renewed.status, 200, "{renewed:?}");
        if renewed.body["phase"] == "ready" {
            return renewed.body;
        }
        assert!(Instant::now() < deadline, "{made:?}\n{}", server.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_renewal_an_environment_lapses_one_lease_after_its_last_token_was_minted() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).lease_seconds(6).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let environment = create(&server, &job).await;
    let id = environment["id"].as_str().unwrap();
    let gone = server.wait_until_gone(id, SOON).await;
    assert_eq!(gone["end"]["code"], "lapsed");
    let moment = |key: &str| gone[key].as_str().unwrap().parse::<Timestamp>().unwrap();
    let late = moment("dead_at").duration_since(moment("lease_end"));
    assert!(
        !late.is_negative() && late.unsigned_abs() < SLACK,
        "dead {late:?} after its lease"
    );
    server.wait_until_no_control_plane(SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn t5_a_hundred_hoarded_tokens_spent_late_buy_no_time() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).lease_seconds(8).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let environment = create(&server, &job).await;
    let id = environment["id"].as_str().unwrap();
    let hoard: Vec<_> = (0..100).map(|_| server.token(&job)).collect();
    let last_mint = job.mints().last().unwrap().at;
    job.finish(0);
    let renew = format!("/v1/environments/{id}/renew");
    let mut spent = 0;
    for token in &hoard {
        let renewed = server
            .request(Method::POST, &renew, Some(token), None)
            .await;
        if renewed.status == 200 {
            spent += 1;
            let lease_end: Timestamp = renewed.body["lease_end"].as_str().unwrap().parse().unwrap();
            let bought = lease_end.duration_since(last_mint);
            assert!(
                bought.as_secs() <= 8,
                "a hoarded token bought {bought:?} after it was minted"
            );
        }
        tokio::time::sleep(Duration::from_millis(20)).await; // spread over the lease's last seconds, not waited for
    }
    assert!(spent > 0);
    let gone = server.wait_until_gone(id, SOON).await;
    let dead_at: Timestamp = gone["dead_at"].as_str().unwrap().parse().unwrap();
    let outlived = dead_at.duration_since(last_mint).unsigned_abs();
    assert!(
        outlived < Duration::from_secs(8) + SLACK,
        "it outlived the last mint by {outlived:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_environments_live_on_until_the_deadline_and_no_longer() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite)
        .lease_seconds(5)
        .profile_line("deadline_seconds: 9")
        .start()
        .await;
    let job = buildkite.build("app").start().job("test").run();
    // Renewed from the first moment on, usable or not: a busy machine may need longer for that.
    let body = json!({ "profile": "ci-small" });
    let token = server.token(&job);
    let asked = server.request(Method::POST, "/v1/environments", Some(&token), Some(&body));
    let environment = asked.await.body;
    let id = environment["id"].as_str().unwrap();
    let renew = format!("/v1/environments/{id}/renew");
    loop {
        let renewed = server
            .request(Method::POST, &renew, Some(&server.token(&job)), None)
            .await;
        if renewed.status != 200 {
            assert_eq!(renewed.body["code"], "environment_ended", "{renewed:?}");
            break;
        }
        tokio::time::sleep(Duration::from_millis(300)).await; // a renewer's own pace
    }
    let gone = server.wait_until_gone(id, SOON).await;
    assert_eq!(gone["end"]["code"], "deadline_reached");
    let moment = |key: &str| gone[key].as_str().unwrap().parse::<Timestamp>().unwrap();
    let lived = moment("dead_at")
        .duration_since(moment("created_at"))
        .as_secs();
    assert!((9..60).contains(&lived), "it lived {lived} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn t4_an_old_token_with_a_long_life_is_refused() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let long = job
        .oidc_token(&OidcRequest::for_kubler(server.url()).lifetime(7200))
        .unwrap();
    let body = serde_json::json!({ "profile": "ci-small" });
    let refused = server
        .request(Method::POST, "/v1/environments", Some(&long), Some(&body))
        .await;
    assert_eq!(refused.status, 401, "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn downtime_is_not_death() {
    let buildkite = Buildkite::start();
    let mut server = Server::of(&buildkite).lease_seconds(6).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let environment = create(&server, &job).await;
    let id = environment["id"].as_str().unwrap();
    let lease_end: Timestamp = environment["lease_end"].as_str().unwrap().parse().unwrap();
    server.stop().await;
    while Timestamp::now() < lease_end {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    server.restart().await;
    let renewed = server.renew(&job, id).await;
    assert_eq!(
        renewed.status, 200,
        "a job that could not renew lost its environment: {renewed:?}"
    );
    let session = server.session(&job, id).await;
    let read = server.read(id, &session, "/api/v1/namespaces").await;
    assert_eq!(read.status, 200, "{read:?}");
    job.finish(0);
    server.wait_until_gone(id, SOON).await;
}
