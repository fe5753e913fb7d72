//! What the ledger says of tokens that were refused, and how often.

use jiff::{SignedDuration, Timestamp};
use kubler_testkit::buildkite::{Buildkite, IssuerFault, Job, OidcRequest};
use kubler_testkit::kubler::Server;
use reqwest::Method;
use serde_json::{Value, json};

async fn refused(server: &Server, token: &str) -> u16 {
    let body = json!({ "profile": "ci-small" });
    let answer = server
        .request(Method::POST, "/v1/environments", Some(token), Some(&body))
        .await;
    answer.status.as_u16()
}

fn minted(job: &Job, server: &Server, from_now: i64) -> String {
    let then = Timestamp::now() + SignedDuration::from_secs(from_now);
    job.forge(&OidcRequest::for_kubler(server.url()))
        .minted_at(then, 300)
        .sign()
}

async fn records(server: &Server, of: impl Fn(&Value) -> bool) -> Vec<Value> {
    let read = server
        .operator(Method::GET, "/v1/ledger/records?limit=1000")
        .await;
    assert_eq!(read.status, 200, "{read:?}");
    let records = read.body["records"].as_array().unwrap();
    records
        .iter()
        .filter(|record| of(record))
        .cloned()
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn t6_the_ledger_says_by_how_much_clocks_differ_and_the_caller_does_not_learn_it() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    assert_eq!(
        refused(&server, &minted(&job, &server, 7)).await,
        200,
        "7 s are within the allowed 30"
    );
    let too_early = minted(&job, &server, 47);
    let answer = server
        .request(Method::GET, "/v1/environments", Some(&too_early), None)
        .await;
    assert_eq!(answer.status, 401);
    for told in ["detail", "hint"] {
        let told = answer.body[told].as_str().unwrap();
        assert!(
            !told.contains(|letter: char| letter.is_ascii_digit()),
            "{told}"
        );
    }
    let skews: Vec<_> = records(&server, |record| record["kind"] != "end")
        .await
        .iter()
        .filter_map(|record| record["clock_skew_seconds"].as_i64())
        .collect();
    assert!(matches!(skews.as_slice(), [5..=7, 45..=47]), "{skews:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_dead_token_again_and_again_is_one_record_and_a_count() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let dead = minted(&job, &server, -1000);
    for _ in 0..50 {
        assert_eq!(refused(&server, &dead).await, 401);
    }
    let told = records(&server, |record| record["action"] == "caller.refuse").await;
    assert_eq!(told.len(), 1, "{told:#?}");
    assert_eq!(told[0]["details"]["reason"], "token_expired");
    assert_eq!(told[0]["identity"]["job"]["id"], job.id().to_string());
    assert_eq!(told[0]["token_sha256"].as_str().unwrap().len(), 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_was_never_reached_is_our_trouble_and_not_the_tokens() {
    let buildkite = Buildkite::start();
    buildkite.issuer_fault(IssuerFault::Down);
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let body = json!({ "profile": "ci-small" });
    let answer = server
        .request(
            Method::POST,
            "/v1/environments",
            Some(&server.token(&job)),
            Some(&body),
        )
        .await;
    assert_eq!(
        (answer.status.as_u16(), &answer.body["code"]),
        (503, &json!("unavailable")),
        "{answer:?}"
    );
    let ready = server.request(Method::GET, "/readyz", None, None).await;
    assert_eq!(ready.status, 200, "{ready:?}");
    let remarks = json!({ "issuers[0]": "its keys are missing" });
    assert_eq!(ready.body["remarks"], remarks);
}
