//! Bad input gets a clear error, changes nothing and loses nothing.

use kubler_testkit::buildkite::{Buildkite, IssuerFault, OidcRequest, Signature};
use kubler_testkit::kubler::{Answer, Server};
use reqwest::Method;
use serde_json::{Value, json};

use crate::SOON;

async fn create_with(server: &Server, token: &str) -> Answer {
    server
        .request(
            Method::POST,
            "/v1/environments",
            Some(token),
            Some(&json!({ "profile": "ci-small" })),
        )
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn t10_every_hostile_token_gets_one_and_the_same_answer() {
    let buildkite = Buildkite::builder()
        .organization("acme", &["app"])
        .organization("other", &["app"])
        .start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("acme/app").start().job("test").run();
    let other = buildkite.build("other/app").start().job("test").run();
    let ours = OidcRequest::for_kubler(server.url());
    let forge = || job.forge(&ours);
    let mut hostile: Vec<(String, String)> = Signature::HOSTILE
        .iter()
        .map(|signature| (format!("{signature:?}"), forge().sign_with(*signature)))
        .collect();
    let long_ago = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(2);
    hostile.extend([
        ("another organization".into(), other.forge(&ours).sign()),
        (
            "another audience".into(),
            job.oidc_token(&OidcRequest::for_kubler("https://elsewhere.example"))
                .unwrap(),
        ),
        (
            "the default audience".into(),
            forge()
                .claim("aud", json!("https://buildkite.com/acme"))
                .sign(),
        ),
        (
            "two audiences".into(),
            forge()
                .claim("aud", json!([server.url(), "https://elsewhere.example"]))
                .sign(),
        ),
        ("expired".into(), forge().minted_at(long_ago, 300).sign()),
        (
            "from the future".into(),
            forge()
                .minted_at(
                    jiff::Timestamp::now() + jiff::SignedDuration::from_mins(10),
                    300,
                )
                .sign(),
        ),
        (
            "minted long ago with a long life".into(),
            forge().minted_at(long_ago, 7200 + 300).sign(),
        ),
        (
            "a duplicate claim".into(),
            forge()
                .claim_again(
                    "organization_id",
                    json!("01945ecf-0000-4000-8000-000000000001"),
                )
                .sign(),
        ),
        (
            "a wrong type".into(),
            forge().claim("build_number", json!("5")).sign(),
        ),
        ("no expiry".into(), forge().without_claim("exp").sign()),
        ("a megabyte".into(), forge().padded_to(1024 * 1024).sign()),
        ("a job token".into(), job.access_token().unwrap()),
        ("nothing at all".into(), "x".into()),
    ]);
    let mut bodies = std::collections::BTreeSet::new();
    for (what, token) in &hostile {
        // Longer than a header may be: the exchange takes it in its body.
        let refused = if token.len() > 16 * 1024 {
            server
                .exchange(token, "env_00000000000000000000000000000000")
                .await
        } else {
            create_with(&server, token).await
        };
        if token.len() > 16 * 1024 {
            assert!(refused.status.is_client_error(), "{what}: {refused:?}");
            continue;
        }
        assert_eq!(refused.status, 401, "{what}: {refused:?}");
        // Faults of validly signed tokens for us may be disclosed; those of all others look alike.
        if refused.body["detail"] == "the caller could not be verified" {
            let mut body = refused.body.clone();
            body["request_id"] = Value::Null;
            bodies.insert(body.to_string());
        }
    }
    assert_eq!(bodies.len(), 1, "{bodies:#?}");
    let listed = server.operator(Method::GET, "/v1/environments").await;
    assert_eq!(listed.body["environments"], json!([]), "something was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_claim_is_named_with_the_flag_that_adds_it() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let token = job
        .oidc_token(&OidcRequest::for_audience(server.url()).claims(&["organization_id"]))
        .unwrap();
    let refused = create_with(&server, &token).await;
    assert_eq!(refused.status, 401);
    assert!(
        refused.body["hint"].as_str().unwrap().contains("--claim"),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_an_ended_job_gets_nothing_but_the_explanation_of_the_end() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let id = server.create(&job, "main").await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let [releasing, creating, exchanging, renewing] = [(); 4].map(|()| server.token(&job));
    let post = async |path: &str, token: &str| {
        let path = format!("/v1/environments/{id}/{path}");
        server.request(Method::POST, &path, Some(token), None).await
    };
    assert_eq!(post("release", &releasing).await.status, 200);
    job.finish(0);
    assert!(
        job.oidc_token(&OidcRequest::for_kubler(server.url()))
            .is_err(),
        "an ended job minted a token"
    );

    let exchanged = server.exchange(&exchanging, &id).await;
    let renewed = post("renew", &renewing).await;
    for (what, refused) in [("exchange", exchanged), ("renew", renewed)] {
        assert_eq!(refused.status, 404, "{what}: {refused:?}");
        assert_eq!(refused.body["code"], "environment_ended", "{what}");
        let detail = refused.body["detail"].as_str().unwrap();
        for told in [" ended at ", "its job released it", &job.id().to_string()] {
            assert!(detail.contains(told), "{what}: no `{told}` in `{detail}`");
        }
    }
    // The same job and name mean the same environment, dead or alive: asking again is told of the end.
    let created = create_with(&server, &creating).await;
    assert_eq!(created.body["id"], id, "{created:?}");
    assert_eq!(created.body["end"]["code"], "released", "{created:?}");
    assert!(created.body["dead_at"].is_string(), "{created:?}");
    let url = created.body["owner"]["url"].as_str().unwrap();
    assert!(url.contains(&job.id().to_string()), "{url}");

    let listed = server.operator(Method::GET, "/v1/environments").await;
    let made = listed.body["environments"].as_array().unwrap();
    assert_eq!(made.len(), 1, "something was made: {listed:?}");
    server.wait_until_gone(&id, SOON).await;
    assert!(server.control_planes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_token_of_an_ended_job_makes_lapses_one_lease_after_it_was_minted() {
    // Longer than it takes to make one on a busy machine.
    const LEASE_SECONDS: u64 = 15;
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite)
        .lease_seconds(LEASE_SECONDS)
        .start()
        .await;
    let job = buildkite.build("app").start().job("test").run();
    let token = server.token(&job);
    let minted_at = job.mints().last().unwrap().at;
    job.finish(0);
    let made = create_with(&server, &token).await;
    let id = made.body["id"].as_str().unwrap();
    let gone = server.wait_until_gone(id, SOON).await;
    assert_eq!(gone["end"]["code"], "lapsed", "{gone}");
    let lease_end: jiff::Timestamp = gone["lease_end"].as_str().unwrap().parse().unwrap();
    let bought = lease_end.duration_since(minted_at).unsigned_abs();
    assert!(
        bought <= std::time::Duration::from_secs(LEASE_SECONDS),
        "the token bought {bought:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_cannot_be_meant_are_refused_by_field() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let post = async |body: Value| {
        server
            .request(
                Method::POST,
                "/v1/environments",
                Some(&server.token(&job)),
                Some(&body),
            )
            .await
    };
    for (body, code, names) in [
        (json!({}), "invalid_request", "profile"),
        (
            json!({ "profile": "ci-small", "profil": 1 }),
            "invalid_request",
            "profil",
        ),
        (
            json!({ "profile": "ci-small", "name": "../x" }),
            "invalid_request",
            "../x",
        ),
        (
            json!({ "profile": "ci-small", "name": "x".repeat(41) }),
            "invalid_request",
            "cannot be an environment's name",
        ),
        (json!({ "profile": "nope" }), "not_found", "nope"),
        (json!([1, 2]), "invalid_request", ""),
    ] {
        let refused = post(body.clone()).await;
        assert_eq!(refused.body["code"], code, "{body}: {refused:?}");
        assert!(
            refused.body["detail"].as_str().unwrap().contains(names),
            "{body}: {refused:?}"
        );
        assert!(!refused.body["hint"].as_str().unwrap().is_empty());
        assert!(
            refused.body["request_id"]
                .as_str()
                .unwrap()
                .starts_with("req_")
        );
    }
    let large = post(json!({ "profile": "x".repeat(100_000) })).await;
    assert_eq!(large.body["code"], "too_large", "{large:?}");
    let nowhere = server.request(Method::GET, "/v1/nowhere", None, None).await;
    assert_eq!(nowhere.body["code"], "not_found");
    let method = server
        .request(Method::DELETE, "/v1/environments", None, None)
        .await;
    assert_eq!(method.body["code"], "method_not_allowed");
    let dead = server
        .request(
            Method::GET,
            "/v1/environments/env_zz",
            Some(&server.token(&job)),
            None,
        )
        .await;
    assert_eq!(dead.body["code"], "not_found", "{dead:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn h2_h7_hostile_gateway_requests_never_reach_the_cluster() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let (id, session) = server.create_with_session(&job).await;
    for path in [
        "/api//v1",
        "/api/v1/namespaces%2fdefault",
        "/api/v1;x/namespaces",
        "/api/v1/%00",
    ] {
        let refused = server
            .request(
                Method::GET,
                &format!("/k8s/{id}{path}"),
                Some(&session),
                None,
            )
            .await;
        assert!(
            matches!(refused.status.as_u16(), 400 | 403),
            "{path}: {refused:?}"
        );
        assert_eq!(refused.body["kind"], "Status", "{path}: {refused:?}");
    }
    for header in [
        "Impersonate_User",
        "IMPERSONATE-EXTRA",
        "impersonate-user-",
        "Impersonate_Group",
    ] {
        let request = server
            .client()
            .get(format!("{}/k8s/{id}/api/v1/namespaces", server.url()));
        let refused = request
            .bearer_auth(&session)
            .header(header, "system:admin")
            .send()
            .await
            .unwrap();
        assert_eq!(refused.status(), 403, "{header}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn t7_a_job_is_served_while_its_issuer_is_down() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let id = server.create(&job, "main").await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    buildkite.issuer_fault(IssuerFault::Down);
    let renewed = server.renew(&job, &id).await;
    assert_eq!(renewed.status, 200, "{renewed:?}");
}

/// A request as bytes that are not what they say they are.
async fn raw(
    server: &Server,
    (method, path): (Method, &str),
    bearer: Option<&str>,
    (content_type, body): (&str, &str),
) -> (u16, Value) {
    let request = server
        .client()
        .request(method, format!("{}{path}", server.url()))
        .header("content-type", content_type)
        .body(body.to_owned());
    let request = bearer
        .into_iter()
        .fold(request, reqwest::RequestBuilder::bearer_auth);
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    assert_eq!(
        answer.headers()["content-type"],
        "application/problem+json",
        "{path} {body}"
    );
    (status, answer.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_a_problem_that_says_so() {
    const JSON: &str = "application/json";
    const FORM: &str = "application/x-www-form-urlencoded";
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let id = server.create(&job, "main").await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let release = format!("/v1/environments/{id}/release");
    let exchange = format!(
        "grant_type={}&subject_token=a.b.c&subject_token_type={}&resource={id}",
        kubler_api::GRANT_TOKEN_EXCHANGE,
        kubler_api::TOKEN_TYPE_JWT
    );
    let unknown_in_form = format!("{exchange}&scope=everything");
    let twice_in_form = format!("{exchange}&resource={id}");
    let (post, get) = (Method::POST, Method::GET);
    // Method, path, content type, body, and a word that the detail must have.
    let cases = [
        (&post, "/v1/environments", JSON, "{\"profile\":", "EOF"),
        (&post, "/v1/environments", JSON, "", "EOF"),
        (
            &post,
            "/v1/environments",
            JSON,
            "{\"profile\":\"ci-small\"} x",
            "trailing",
        ),
        (
            &post,
            "/v1/environments",
            JSON,
            "{\"profile\":\"ci-small\",\"profile\":\"x\"}",
            "duplicate",
        ),
        (
            &post,
            "/v1/environments",
            JSON,
            "{\"profile\":\"ci-small\",\"wait\":1}",
            "wait",
        ),
        (
            &post,
            "/v1/environments",
            JSON,
            "{\"profile\":\"\u{0}\"}",
            "control",
        ),
        (
            &post,
            "/v1/environments",
            "text/plain",
            "{\"profile\":\"ci-small\"}",
            "ontent",
        ),
        (&post, release.as_str(), JSON, "{", "EOF"),
        (&post, release.as_str(), JSON, "[]x", ""),
        (&post, release.as_str(), JSON, "{\"wait\":1}", "wait"),
        (&post, release.as_str(), JSON, "{\"wait_seconds\":-1}", "-1"),
        (&post, "/v1/token", FORM, "", "grant_type"),
        (&post, "/v1/token", FORM, "grant_type=%ff%fe", ""),
        (&post, "/v1/token", FORM, "grant_type=x", ""),
        (&post, "/v1/token", FORM, &unknown_in_form, "scope"),
        (&post, "/v1/token", FORM, &twice_in_form, "duplicate"),
        (&post, "/v1/token", JSON, "{}", "ontent"),
        (&get, "/v1/environments?build=x", JSON, "", "build"),
        (
            &get,
            "/v1/environments?build=1&build=2",
            JSON,
            "",
            "duplicate",
        ),
        (&get, "/v1/environments?nonsense=1", JSON, "", "nonsense"),
        (&get, "/v1/environments?phase=alive", JSON, "", "alive"),
        (&get, "/v1/ledger/records?limit=-1", JSON, "", "limit"),
        (
            &get,
            "/v1/ledger/records?job=a&limits=1",
            JSON,
            "",
            "limits",
        ),
        (
            &get,
            "/v1/ledger/records?environment=env_x",
            JSON,
            "",
            "env_x",
        ),
    ];
    let mut faults = Vec::new();
    for (method, path, content_type, body, word) in cases {
        let token = server.token(&job);
        let bearer = (path != "/v1/token").then_some(token.as_str());
        let call = (method.clone(), path);
        let (status, problem) = raw(&server, call, bearer, (content_type, body)).await;
        let code = problem["code"].as_str().unwrap_or_default();
        let is_clear = status == 400 && code == "invalid_request"
            || path.ends_with("env_x") && status == 404 && code == "not_found";
        let detail = problem["detail"].as_str().unwrap_or_default();
        let has_all = ["title", "hint", "request_id"]
            .iter()
            .all(|key| problem[key].as_str().is_some_and(|text| !text.is_empty()));
        if !is_clear || !has_all || !detail.contains(word) {
            faults.push(format!("{method} {path} {body}: {problem}"));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
    assert_eq!(server.environment(&id).await["phase"], "ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_credentials_are_none() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let (id, session) = server.create_with_session(&job).await;
    for (path, token) in [
        ("/v1/environments".to_owned(), server.token(&job)),
        (format!("/k8s/{id}/api"), session),
    ] {
        let get = || {
            server
                .client()
                .get(format!("{}{path}", server.url()))
                .bearer_auth(&token)
        };
        assert_eq!(get().send().await.unwrap().status(), 200, "{path}");
        let twice = get().bearer_auth(&token).send().await.unwrap();
        assert_eq!(twice.status(), 401, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_and_bodies_are_what_the_openapi_document_says() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    for query in [
        "environments?build=9223372036854775808",
        "environments?build=-1",
        "environments?build=",
        "environments?phase=undead",
        "ledger/records?from=9223372036854775808",
        "ledger/records?limit=-1",
    ] {
        let answer = server.operator(Method::GET, &format!("/v1/{query}")).await;
        assert_eq!(answer.status, 400, "{query}: {answer:?}");
    }
    let environment = server.create(&job, "main").await;
    let path = format!(
        "/v1/environments/{}/release",
        environment["id"].as_str().unwrap()
    );
    let release = async |body: &Value| {
        let token = server.token(&job);
        let answer = server.request(Method::POST, &path, Some(&token), Some(body));
        answer.await.status.as_u16()
    };
    for wrong in [
        json!({ "wait_seconds": 1_u64 << 63 }),
        json!({ "wait_seconds": -1 }),
        json!([]),
        json!([0]),
    ] {
        assert_eq!(release(&wrong).await, 400, "{wrong}");
    }
    let listed = json!(["ci-small", "second", "job", 0]);
    let answer = server
        .request(
            Method::POST,
            "/v1/environments",
            Some(&server.token(&job)),
            Some(&listed),
        )
        .await;
    assert_eq!(answer.status, 400, "a list is no object: {answer:?}");
    assert_eq!(release(&Value::Null).await, 200, "nothing is said");
}
