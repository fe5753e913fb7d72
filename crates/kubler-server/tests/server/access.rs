//! Who may call what: every route by every kind of caller. A route without a row fails the test.

use kubler_server::http::{ACCESS, Access, openapi};
use kubler_testkit::buildkite::Buildkite;
use kubler_testkit::kubler::Server;
use reqwest::Method;
use serde_json::json;

/// Answers to (nobody, another organization, another pipeline, the job itself, an operator).
/// 401: not let in. 403: refused by policy. 404: as if it were not there. 200: answered.
/// 400: let in, but this call makes no sense for this caller.
const TABLE: &[(&str, &str, [u16; 5])] = &[
    ("post", "/v1/environments", [401, 401, 200, 200, 400]),
    ("get", "/v1/environments", [401, 401, 200, 200, 200]),
    ("get", "/v1/environments/{id}", [401, 401, 404, 200, 200]),
    (
        "post",
        "/v1/environments/{id}/renew",
        [401, 401, 404, 200, 400],
    ),
    ("get", "/v1/trace/{anything}", [401, 401, 404, 200, 200]),
    ("post", "/v1/token", [401, 401, 404, 200, 401]),
    ("get", "/v1/ledger/checkpoint", [401, 401, 200, 200, 200]),
    ("get", "/v1/ledger/records", [401, 401, 403, 403, 200]),
    ("get", "/metrics", [401, 401, 403, 403, 200]),
    ("post", "/v1/hooks/buildkite", [401, 401, 401, 401, 401]),
    ("get", "/v1/tombstones/{id}", [404, 404, 404, 404, 404]),
    ("get", "/healthz", [200, 200, 200, 200, 200]),
    ("get", "/readyz", [200, 200, 200, 200, 200]),
    ("get", "/openapi.json", [200, 200, 200, 200, 200]),
    // Last, since it ends what the others look at.
    (
        "post",
        "/v1/environments/{id}/release",
        [401, 401, 404, 200, 200],
    ),
];

#[test]
fn every_documented_route_has_an_action_and_a_row() {
    let mut documented = Vec::new();
    let document = serde_json::to_value(openapi()).unwrap();
    for (path, item) in document["paths"].as_object().unwrap() {
        documented.extend(
            item.as_object()
                .unwrap()
                .keys()
                .map(|method| (method.clone(), path.clone())),
        );
    }
    documented.sort();
    let mut with_action: Vec<_> = ACCESS
        .iter()
        .map(|row| (row.method.to_owned(), row.path.to_owned()))
        .collect();
    with_action.sort();
    let mut with_row: Vec<_> = TABLE
        .iter()
        .map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned()))
        .collect();
    with_row.sort();
    assert_eq!(
        documented, with_action,
        "ACCESS and the OpenAPI document differ"
    );
    assert_eq!(
        documented, with_row,
        "the table of this test and the OpenAPI document differ"
    );
    let open: Vec<_> = ACCESS
        .iter()
        .filter(|row| row.access == Access::Anybody)
        .map(|row| row.path)
        .collect();
    assert_eq!(
        open,
        [
            "/v1/tombstones/{id}",
            "/healthz",
            "/readyz",
            "/openapi.json"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_answers_every_kind_of_caller_as_the_table_says() {
    let buildkite = Buildkite::builder()
        .organization("acme", &["app", "docs"])
        .organization("other", &["app"])
        .start();
    let server = Server::of(&buildkite).start().await;
    let own = buildkite.build("acme/app").start().job("test").run();
    let other_pipeline = buildkite.build("acme/docs").start().job("test").run();
    let other_organization = buildkite.build("other/app").start().job("test").run();
    let id = server.create(&own, "main").await["id"]
        .as_str()
        .unwrap()
        .to_owned();

    let mut faults = Vec::new();
    for (method, path, expected) in TABLE {
        let method: Method = method.to_uppercase().parse().unwrap();
        let path_here = path.replace("{id}", &id).replace("{anything}", &id);
        let jobs = [
            None,
            Some(&other_organization),
            Some(&other_pipeline),
            Some(&own),
        ];
        let mut answers = Vec::new();
        for job in jobs {
            let token = job.map(|job| server.token(job));
            let answer = match *path {
                "/v1/token" => {
                    server
                        .exchange(token.as_deref().unwrap_or("nothing"), &id)
                        .await
                }
                "/v1/environments" if method == Method::POST => {
                    let body = json!({ "profile": "ci-small" });
                    server
                        .request(method.clone(), &path_here, token.as_deref(), Some(&body))
                        .await
                }
                _ => {
                    server
                        .request(method.clone(), &path_here, token.as_deref(), None)
                        .await
                }
            };
            answers.push(answer.status.as_u16());
        }
        answers.push(operator(&server, &method, path, &path_here, &id).await);
        if answers != expected {
            faults.push(format!(
                "{method} {path}: {answers:?} instead of {expected:?}"
            ));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

async fn operator(server: &Server, method: &Method, path: &str, path_here: &str, id: &str) -> u16 {
    match path {
        // An operator has no identity token to exchange.
        "/v1/token" => server.exchange("nothing", id).await.status.as_u16(),
        "/v1/environments" if method == Method::POST => {
            let body = json!({ "profile": "ci-small" });
            server
                .operator_with(method.clone(), path_here, &body)
                .await
                .status
                .as_u16()
        }
        _ => server
            .operator(method.clone(), path_here)
            .await
            .status
            .as_u16(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_lists_its_own_pipeline_only() {
    let buildkite = Buildkite::builder()
        .organization("acme", &["app", "docs"])
        .start();
    let server = Server::of(&buildkite).start().await;
    let app = buildkite.build("acme/app").start().job("test").run();
    let docs = buildkite.build("acme/docs").start().job("test").run();
    let app_id = server.create(&app, "main").await["id"].clone();
    let docs_id = server.create(&docs, "main").await["id"].clone();
    let ids = |answer: &kubler_testkit::kubler::Answer| -> Vec<_> {
        answer.body["environments"]
            .as_array()
            .unwrap()
            .iter()
            .map(|environment| environment["id"].clone())
            .collect()
    };
    let mine = server
        .request(
            Method::GET,
            "/v1/environments",
            Some(&server.token(&app)),
            None,
        )
        .await;
    assert_eq!(ids(&mine), std::slice::from_ref(&app_id));
    let theirs = server
        .request(
            Method::GET,
            "/v1/trace/docs",
            Some(&server.token(&app)),
            None,
        )
        .await;
    assert!(ids(&theirs).is_empty(), "{theirs:?}");
    let all = server.operator(Method::GET, "/v1/environments").await;
    assert_eq!(ids(&all), [docs_id, app_id]);
}
