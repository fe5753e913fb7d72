//! Sessions: bound to one environment, refused elsewhere, explained when over.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use kubler_api::{GRANT_TOKEN_EXCHANGE, TOKEN_TYPE_JWT};
use kubler_testkit::buildkite::Buildkite;
use kubler_testkit::kubler::Server;
use reqwest::Method;
use serde_json::json;

use crate::SOON;

#[tokio::test(flavor = "multi_thread")]
async fn h6_a_session_reaches_its_own_environment_only() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let build = buildkite.build("app").start();
    let (mine, theirs) = (build.job("mine").run(), build.job("theirs").run());
    let my_id = server.create(&mine, "main").await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let their_id = server.create(&theirs, "main").await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let session = server.session(&mine, &my_id).await;
    let own = server
        .request(
            Method::GET,
            &format!("/k8s/{my_id}/api"),
            Some(&session),
            None,
        )
        .await;
    assert_eq!(own.status, 200, "{own:?}");
    let other = server
        .request(
            Method::GET,
            &format!("/k8s/{their_id}/api"),
            Some(&session),
            None,
        )
        .await;
    assert_eq!(other.status, 403, "{other:?}");
    // c8: nor can the other job's identity be exchanged, renewed or released with.
    let token = || server.token(&mine);
    assert_eq!(server.exchange(&token(), &their_id).await.status, 404);
    for act in ["renew", "release"] {
        let refused = server
            .request(
                Method::POST,
                &format!("/v1/environments/{their_id}/{act}"),
                Some(&token()),
                None,
            )
            .await;
        assert_eq!(refused.status, 404, "{act}: {refused:?}");
    }
    assert_eq!(server.environment(&their_id).await["phase"], "ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn t5_a_token_is_exchanged_once_and_repeats_within_ten_seconds_give_the_same_session() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let one = server.create(&job, "one").await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let two = server.create(&job, "two").await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let token = server.token(&job);
    let first = server.exchange(&token, &one).await;
    let again = server.exchange(&token, &one).await;
    assert_eq!(
        first.body["session_id"], again.body["session_id"],
        "{again:?}"
    );
    assert_eq!(first.body["access_token"], again.body["access_token"]);
    let elsewhere = server.exchange(&token, &two).await;
    assert_eq!(elsewhere.status, 409, "{elsewhere:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn c8_another_job_of_the_build_attaches_to_a_build_scoped_environment_by_name() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let build = buildkite.build("app").start();
    let (deploy, test) = (build.job("deploy").run(), build.job("test").run());
    let stranger = buildkite.build("app").start().job("test").run();
    let body =
        json!({ "profile": "ci-small", "name": "shared", "scope": "build", "wait_seconds": 60 });
    let ask = async |job| {
        server
            .request(
                Method::POST,
                "/v1/environments",
                Some(&server.token(job)),
                Some(&body),
            )
            .await
    };
    let made = ask(&deploy).await;
    assert_eq!(made.body["phase"], "ready", "{made:?}");
    // What a step asks for by another profile it does not get, also when it would make nothing.
    let other =
        json!({ "profile": "ci-large", "name": "shared", "scope": "build", "attach": true });
    let token = server.token(&test);
    let path = "/v1/environments";
    let refused = server
        .request(Method::POST, path, Some(&token), Some(&other))
        .await;
    assert_eq!(refused.status, 409, "{refused:?}");
    let attached = ask(&test).await;
    assert_eq!(attached.body["id"], made.body["id"], "{attached:?}");
    let id = made.body["id"].as_str().unwrap();
    let session = server.session(&test, id).await;
    let read = server.read(id, &session, "/api/v1/namespaces").await;
    assert_eq!(read.status, 200, "{read:?}");
    assert_eq!(
        server.exchange(&server.token(&stranger), id).await.status,
        404,
        "another build got in"
    );
    let own = ask(&stranger).await;
    assert_ne!(own.body["id"], made.body["id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_creates_on_a_small_limit_are_made_or_refused_clearly() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite)
        .section("limits: {environments_max: 4, provisioning_max: 2}")
        .start()
        .await;
    let build = buildkite.build("app").start();
    let jobs: Vec<_> = (0..50).map(|_| build.job("test").run()).collect();
    let body = json!({ "profile": "ci-small", "wait_seconds": 60 });
    let ask = async |job| {
        server
            .request(
                Method::POST,
                "/v1/environments",
                Some(&server.token(job)),
                Some(&body),
            )
            .await
    };
    let answers = futures_util::future::join_all(jobs.iter().map(ask)).await;
    let (made, refused): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer.status == 200);
    assert_eq!(made.len(), 4, "{made:?}");
    assert!(
        made.iter().all(|answer| answer.body["phase"] == "ready"),
        "{made:?}"
    );
    for answer in refused {
        assert_eq!(
            (
                answer.status.as_u16(),
                answer.body["code"].as_str().unwrap()
            ),
            (503, "unavailable"),
            "{answer:?}"
        );
        assert!(
            answer.body["detail"].as_str().unwrap().contains("limit"),
            "{answer:?}"
        );
    }
    assert_eq!(server.control_planes().len(), 4);
}

/// An exchange with everything the answer says.
async fn exchanged(server: &Server, token: &str, id: &str) -> reqwest::Response {
    let form = [
        ("grant_type", GRANT_TOKEN_EXCHANGE),
        ("subject_token", token),
        ("subject_token_type", TOKEN_TYPE_JWT),
        ("resource", id),
    ];
    let request = server
        .client()
        .post(format!("{}/v1/token", server.url()))
        .form(&form);
    request.send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn t5_a_token_buys_one_session_also_for_the_same_environment() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let made = server.create(&job, "main").await;
    let id = made["id"].as_str().unwrap();
    let token = server.token(&job);
    let begun = Instant::now();
    assert_eq!(exchanged(&server, &token, id).await.status(), 200);
    // The time within which a repetition is the same exchange.
    tokio::time::sleep(Duration::from_millis(11_200).saturating_sub(begun.elapsed())).await;
    let spent = server.exchange(&token, id).await;
    assert_eq!(
        (spent.status.as_u16(), spent.body["code"].as_str().unwrap()),
        (409, "conflict"),
        "{spent:?}"
    );
    assert_eq!(
        exchanged(&server, &server.token(&job), id).await.status(),
        200,
        "a fresh token is good"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn e3_there_is_no_session_before_there_is_something_to_reach() {
    let buildkite = Buildkite::start();
    // It is never ready: what its manifest needs does not come.
    let server = Server::of(&buildkite)
        .profile_line("manifests: [later.yaml]")
        .file(
            "later.yaml",
            "apiVersion: nowhere.example/v1\nkind: Thing\nmetadata: {name: x}\n",
        )
        .start()
        .await;
    let job = buildkite.build("app").start().job("test").run();
    let asked = server
        .request(
            Method::POST,
            "/v1/environments",
            Some(&server.token(&job)),
            Some(&json!({ "profile": "ci-small" })),
        )
        .await;
    let id = asked.body["id"].as_str().unwrap();
    server
        .wait_for(id, SOON, |environment| {
            environment["phase"] == "provisioning"
        })
        .await;
    let refused = exchanged(&server, &server.token(&job), id).await;
    assert_eq!(refused.status(), 503);
    let seconds: u64 = refused.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=10).contains(&seconds), "{seconds}");
    let problem: serde_json::Value = refused.json().await.unwrap();
    assert_eq!(problem["code"], "unavailable", "{problem}");
    assert!(
        problem["detail"].as_str().unwrap().contains("provisioning"),
        "{problem}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_not_kept_by_caches_and_does_not_outlive_its_lease() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).lease_seconds(60).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let made = server.create(&job, "main").await;
    let id = made["id"].as_str().unwrap();
    let lease_end = made["lease_end"].as_str().unwrap();
    // Later than the token that the environment was asked for with, so that a lease of its own would end later.
    let bound = Instant::now() + SOON;
    let token = loop {
        let token = server.token(&job);
        let minted = job.mints().last().unwrap().at;
        if minted.as_second() >= lease_end.parse::<Timestamp>().unwrap().as_second() - 58 {
            break token;
        }
        assert!(Instant::now() < bound, "the clock stands still");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let issued = exchanged(&server, &token, id).await;
    assert_eq!(issued.headers()["cache-control"], "no-store");
    let issued: serde_json::Value = issued.json().await.unwrap();
    let stored = server.environment(id).await;
    let moment = |value: &serde_json::Value| value.as_str().unwrap().parse::<Timestamp>().unwrap();
    let expires_at = moment(&issued["expires_at"]);
    assert!(
        expires_at <= moment(&stored["lease_end"]) && expires_at <= moment(&stored["deadline"]),
        "{issued} {stored}"
    );
    let refused = exchanged(&server, "nonsense", id).await;
    assert_eq!(refused.status(), 401);
}
