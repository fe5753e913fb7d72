//! Who may call what: every route by every kind of caller. A route without a row fails the test.

use std::collections::BTreeSet;

use kubler_core::policy::{Action, TargetKind};
use kubler_server::http::{ACCESS, Access, openapi};
use kubler_testkit::buildkite::{Buildkite, Job};
use kubler_testkit::kubler::{Answer, Server, ServerDraft};
use reqwest::Method;
use serde_json::{Value, json};

use crate::SOON;

/// Answers to (nobody, another organization, another pipeline, the job itself, an operator).
/// 401: not let in. 403: refused by policy. 404: as if it were not there. 200: answered.
/// 400: let in, but this call makes no sense for this caller.
const TABLE: &[(&str, &str, [u16; 5])] = &[
    ("post", "/v1/environments", [401, 401, 200, 200, 400]),
    ("get", "/v1/environments", [401, 401, 200, 200, 200]),
    ("get", "/v1/environments/{id}", [401, 401, 404, 200, 200]),
    (
        "get",
        "/v1/environments/{id}/differences/{other}",
        [401, 401, 404, 200, 200],
    ),
    (
        "get",
        "/v1/environments/{id}/drift",
        [401, 401, 404, 200, 200],
    ),
    (
        "post",
        "/v1/environments/{id}/renew",
        [401, 401, 404, 200, 400],
    ),
    ("get", "/v1/trace/{anything}", [401, 401, 404, 200, 200]),
    ("post", "/v1/token", [401, 401, 404, 200, 401]),
    ("get", "/v1/ledger/checkpoint", [401, 401, 200, 200, 200]),
    ("get", "/v1/ledger/records", [401, 401, 403, 403, 200]),
    ("get", "/v1/approvals", [401, 401, 403, 403, 200]),
    (
        "post",
        "/v1/approvals/{approval}/approve",
        [401, 401, 403, 403, 404],
    ),
    (
        "post",
        "/v1/approvals/{approval}/refuse",
        [401, 401, 403, 403, 404],
    ),
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
fn every_parameter_is_documented_where_it_is() {
    let document = serde_json::to_value(openapi()).unwrap();
    for (path, item) in document["paths"].as_object().unwrap() {
        for operation in item.as_object().unwrap().values() {
            let parameters = operation["parameters"].as_array().cloned();
            for parameter in parameters.unwrap_or_default() {
                let name = parameter["name"].as_str().unwrap();
                let is_in_path = path.contains(&format!("{{{name}}}"));
                let place = if is_in_path { "path" } else { "query" };
                assert_eq!(parameter["in"], place, "`{name}` of {path}");
            }
        }
    }
}

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
        let path_here = path
            .replace("{id}", &id)
            .replace("{other}", &id)
            .replace("{anything}", &id);
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
    // By a policy that lets jobs see all environments of their organization.
    let server = with_a_permit_for_each_action(&buildkite).start().await;
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
    let path = format!("/v1/environments/{}", docs_id.as_str().unwrap());
    let token = server.token(&app);
    let seen = server.request(Method::GET, &path, Some(&token), None).await;
    assert_eq!(seen.status, 200, "the policy allows it: {seen:?}");
    let all = server.operator(Method::GET, "/v1/environments").await;
    assert_eq!(ids(&all), [docs_id, app_id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn h6_the_gateway_answers_every_kind_of_caller_for_a_session_of_the_environment_only() {
    let buildkite = Buildkite::builder()
        .organization("acme", &["app", "docs"])
        .organization("other", &["app"])
        .start();
    let server = Server::of(&buildkite).start().await;
    let own = buildkite.build("acme/app").start().job("test").run();
    let other_pipeline = buildkite.build("acme/docs").start().job("test").run();
    let other_organization = buildkite.build("other/app").start().job("test").run();
    let id = id_of(&server.create(&own, "main").await);
    let other_id = id_of(&server.create(&other_pipeline, "main").await);
    let path = format!("/k8s/{id}/api/v1/namespaces");
    let get = async |bearer: Option<&str>| {
        let answer = server.request(Method::GET, &path, bearer, None).await;
        assert!(
            answer.status == 200 || answer.body["kind"] == "Status",
            "{answer:?}"
        );
        answer.status.as_u16()
    };

    assert_eq!(get(None).await, 401, "nobody");
    // No session can be had there, and an identity token is none.
    let foreign = server.token(&other_organization);
    assert_eq!(server.exchange(&foreign, &id).await.status, 401);
    assert_eq!(get(Some(&foreign)).await, 401, "another organization");
    let elsewhere = server.session(&other_pipeline, &other_id).await;
    assert_eq!(get(Some(&elsewhere)).await, 403, "another pipeline");
    assert_eq!(
        get(Some(&server.token(&own))).await,
        401,
        "its own identity token"
    );
    assert_eq!(get(Some(&server.session(&own, &id).await)).await, 200);
    // Operators end environments; they do not work in them.
    let operator = server.operator(Method::GET, &path).await;
    assert_eq!(operator.status, 401, "an operator");
}

fn id_of(environment: &Value) -> String {
    environment["id"].as_str().unwrap().to_owned()
}

/// A server with one permit for each action and kind of caller, which the ledger names when it decides.
fn with_a_permit_for_each_action(buildkite: &Buildkite) -> ServerDraft {
    let organization = buildkite.first_organization();
    let (mut jobs, mut operators) = (String::new(), String::new());
    for action in Action::ALL {
        let kind = match action.target() {
            TargetKind::Profile => "Profile",
            TargetKind::Environment => "Environment",
            TargetKind::Server => "Server",
        };
        let question = format!("action == Action::\"{action}\", resource is {kind}");
        jobs += &format!(
            "@id(\"job/{action}\")\npermit (principal is Job, {question})\nwhen {{ principal.organization_id == \"{}\" }};\n",
            organization.id
        );
        operators +=
            &format!("@id(\"operator/{action}\")\npermit (principal is Operator, {question});\n");
    }
    Server::of(buildkite)
        .file(&format!("policies/{}.cedar", organization.slug), &jobs)
        .file("policies/operators.cedar", &operators)
}

/// Reads on in the ledger as an operator.
struct Reader<'a> {
    server: &'a Server,
    from: u64,
    own: BTreeSet<String>,
}

impl Reader<'_> {
    /// The policies that decided whatever others asked since the last time.
    async fn decisions(&mut self) -> Vec<Value> {
        let path = format!("/v1/ledger/records?limit=1000&from={}", self.from);
        let read = self.server.operator(Method::GET, &path).await;
        let records = read.body["records"].as_array().unwrap();
        let request = |record: &Value| record["request_id"].as_str().unwrap_or_default().to_owned();
        for record in records {
            self.from = record["sequence"].as_u64().unwrap() + 1;
            if record["action"] == "ledger.read" && record["operator"].is_string() {
                self.own.insert(request(record));
            }
        }
        let others = records
            .iter()
            .filter(|record| !self.own.contains(&request(record)));
        others
            .filter(|record| record["decision"].is_object())
            .map(|record| record["decision"]["policies"].clone())
            .collect()
    }
}

async fn call(server: &Server, job: &Job, id: &str, method: &str, path: &str) -> Answer {
    let method: Method = method.to_uppercase().parse().unwrap();
    let here = path
        .replace("{id}", id)
        .replace("{other}", id)
        .replace("{anything}", "app");
    let body = match path {
        "/v1/token" => return server.exchange(&server.token(job), id).await,
        "/v1/environments" if method == Method::POST => Some(json!({ "profile": "ci-small" })),
        _ => None,
    };
    let token = server.token(job);
    server
        .request(method, &here, Some(&token), body.as_ref())
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_is_decided_by_the_action_that_the_table_names() {
    let buildkite = Buildkite::builder().organization("acme", &["app"]).start();
    let server = with_a_permit_for_each_action(&buildkite).start().await;
    let job = buildkite.build("acme/app").start().job("test").run();
    let id = id_of(&server.create(&job, "main").await);
    let session = server.session(&job, &id).await;
    let mut reader = Reader {
        server: &server,
        from: 0,
        own: BTreeSet::new(),
    };
    reader.decisions().await;

    let mut decided = Vec::new();
    let gateway = format!("/k8s/{id}/api/v1/namespaces");
    let used = server
        .request(Method::GET, &gateway, Some(&session), None)
        .await;
    assert_eq!(used.status, 200, "{used:?}");
    let decisions = reader.decisions().await;
    decided.push((gateway, Action::UseKubernetes, decisions));
    let mut rows: Vec<_> = ACCESS.iter().collect();
    // Last, since it ends what the others look at.
    rows.sort_by_key(|row| row.access == Access::Policy(Action::ReleaseEnvironment));
    for row in rows {
        let Access::Policy(action) = row.access else {
            continue;
        };
        let answer = call(&server, &job, &id, row.method, row.path).await;
        // That no job answers approvals is no matter of policy.
        let expected = if action == Action::AnswerApproval {
            400
        } else {
            200
        };
        assert_eq!(
            answer.status, expected,
            "{} {}: {answer:?}",
            row.method, row.path
        );
        let route = format!("{} {}", row.method, row.path);
        decided.push((route, action, reader.decisions().await));
    }
    // A word may mean several things, each of which is searched for.
    let faults: Vec<_> = decided
        .iter()
        .filter(|(_, action, decisions)| {
            let expected = json!([format!("job/{action}")]);
            decisions.is_empty() || decisions.iter().any(|found| *found != expected)
        })
        .collect();
    assert!(faults.is_empty(), "{faults:#?}");
    let seen: BTreeSet<_> = decided.iter().map(|(_, action, _)| *action).collect();
    assert_eq!(seen, Action::ALL.iter().copied().collect(), "never asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_opens_for_whom_a_policy_names() {
    let buildkite = Buildkite::builder()
        .organization("acme", &["app", "docs"])
        .start();
    let server = Server::of(&buildkite).start().await;
    let app = buildkite.build("acme/app").start().job("test").run();
    let docs = buildkite.build("acme/docs").start().job("test").run();
    let read = async |job: &Job| {
        let token = server.token(job);
        let answer = server
            .request(Method::GET, "/v1/ledger/records", Some(&token), None)
            .await;
        answer.status.as_u16()
    };
    assert_eq!((read(&app).await, read(&docs).await), (403, 403));
    let operator = async || {
        server
            .operator(Method::GET, "/v1/ledger/records")
            .await
            .status
            .as_u16()
    };
    assert_eq!(operator().await, 200);

    let organization = buildkite.first_organization().id;
    let pipeline = app.build().record().pipeline_id;
    let named = format!(
        r#"@id("auditors") permit (principal is Job, action == Action::"read_ledger", resource is Server)
        when {{ principal.organization_id == "{organization}" && principal.pipeline_id == "{pipeline}" }};"#
    );
    let policies = server.folder().join("policies");
    std::fs::write(policies.join("auditors.cedar"), named).unwrap();
    let operators = policies.join("operators.cedar");
    let anybody = std::fs::read_to_string(&operators).unwrap();
    let another = anybody.replace(
        "resource is Server\n);",
        "resource is Server\n)\nwhen { principal.name == \"another\" };",
    );
    assert_ne!(anybody, another);
    std::fs::write(&operators, another).unwrap();
    server.reload();
    let bound = std::time::Instant::now() + SOON;
    while read(&app).await != 200 {
        assert!(std::time::Instant::now() < bound, "{}", server.log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(read(&docs).await, 403, "another pipeline");
    assert_eq!(operator().await, 403, "an operator of another name");
}
