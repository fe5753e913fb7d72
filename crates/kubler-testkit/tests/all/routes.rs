//! Every route of the Agent API with every kind of token, and what is wrong with a body.

use std::time::Duration;

use anyhow::Result;
use kubler_testkit::buildkite::{ApiFault, Buildkite, Job};
use reqwest::Method;
use serde_json::{Value, json};

/// A client of the Agent API.
struct Api {
    client: reqwest::Client,
    endpoint: String,
}

impl Api {
    fn of(buildkite: &Buildkite) -> Self {
        let client = reqwest::Client::builder()
            .timeout(Duration::from_secs(5))
            .build()
            .unwrap();
        Self {
            client,
            endpoint: buildkite.agent_endpoint().to_owned(),
        }
    }

    async fn call(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: &[u8],
    ) -> Result<(u16, Value)> {
        let method: Method = method.parse()?;
        let mut request = self
            .client
            .request(method, format!("{}{path}", self.endpoint))
            .body(body.to_vec());
        request = request.header("X-Buildkite-Lock-Acquire-Job", "1");
        if let Some(token) = token {
            request = request.header("Authorization", format!("Token {token}"));
        }
        let answer = request.send().await?;
        let status = answer.status().as_u16();
        let body = serde_json::from_slice(&answer.bytes().await?).unwrap_or(Value::Null);
        if status >= 400 {
            assert!(
                body["message"].is_string(),
                "{path} answers {status} without a message: {body}"
            );
        }
        Ok((status, body))
    }

    async fn register(&self, buildkite: &Buildkite) -> Result<String> {
        let token = buildkite.first_organization().registration_token;
        let body = json!({"name": "written by hand", "meta_data": ["queue=default"]}).to_string();
        let (status, answer) = self
            .call("POST", "/register", Some(&token), body.as_bytes())
            .await?;
        assert_eq!(status, 200);
        Ok(answer["access_token"].as_str().unwrap().to_owned())
    }
}

/// The token that opens a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Registration,
    Session,
    /// That of the job `OWN`.
    Job,
    /// That of the job `TAKEN`, which nobody has started.
    Taken,
}

#[rustfmt::skip]
const ROUTES: &[(&str, &str, Key, &str)] = &[
    ("POST",   "/register",                     Key::Registration, r#"{"name":"n"}"#),
    ("POST",   "/connect",                      Key::Session,      ""),
    ("POST",   "/heartbeat",                    Key::Session,      r#"{"sent_at":"now"}"#),
    ("PUT",    "/jobs/WAITING/acquire",         Key::Session,      ""),
    ("PUT",    "/jobs/OFFERED/accept",          Key::Session,      ""),
    ("PUT",    "/jobs/TAKEN/start",             Key::Taken,        "{}"),
    ("GET",    "/ping",                         Key::Session,      ""), // Last of these, since it assigns what waits.
    ("POST",   "/disconnect",                   Key::Session,      ""),
    ("GET",    "/jobs/OWN",                     Key::Job,          ""),
    ("POST",   "/jobs/OWN/chunks?sequence=1&offset=0&size=1", Key::Job, "x"),
    ("POST",   "/jobs/OWN/header_times",        Key::Job,          "{}"),
    ("POST",   "/jobs/OWN/oidc/tokens",         Key::Job,          "{}"),
    ("POST",   "/jobs/OWN/data/set",            Key::Job,          r#"{"key":"k","value":"v"}"#),
    ("POST",   "/jobs/OWN/data/set-batch",      Key::Job,          r#"{"items":[]}"#),
    ("POST",   "/jobs/OWN/data/get",            Key::Job,          r#"{"key":"k"}"#),
    ("POST",   "/jobs/OWN/data/exists",         Key::Job,          r#"{"key":"k"}"#),
    ("POST",   "/jobs/OWN/data/keys",           Key::Job,          ""),
    ("POST",   "/builds/BUILD/data/get",        Key::Job,          r#"{"key":"k"}"#),
    ("POST",   "/builds/BUILD/data/exists",     Key::Job,          r#"{"key":"k"}"#),
    ("POST",   "/builds/BUILD/data/keys",       Key::Job,          ""),
    ("POST",   "/jobs/OWN/annotations",         Key::Job,          r#"{"body":"b","context":"c"}"#),
    ("DELETE", "/jobs/OWN/annotations/c",       Key::Job,          ""),
    ("PUT",    "/jobs/OWN/finish",              Key::Job,          r#"{"exit_status":"0"}"#),
];

#[tokio::test]
async fn every_route_opens_for_its_own_kind_of_token_only() -> Result<()> {
    let buildkite = Buildkite::start();
    let api = Api::of(&buildkite);
    let build = buildkite.build("app").start();
    let (own, other) = (build.job("own").run(), build.job("other").run());
    let [waiting, offered, taken] =
        ["waiting", "offered", "taken"].map(|step| build.job(step).create());
    let registration = buildkite.first_organization().registration_token;
    let session = api.register(&buildkite).await?;
    let acquire = format!("/jobs/{}/acquire", taken.id());
    assert_eq!(api.call("PUT", &acquire, Some(&session), b"").await?.0, 200);
    let (job, other_job) = (own.access_token().unwrap(), other.access_token().unwrap());
    let taken_job = taken.access_token().unwrap();
    for (method, path, key, body) in ROUTES {
        // One for each route, since one of them ends it.
        let session = api.register(&buildkite).await?;
        let path = [
            ("OWN", own.id()),
            ("WAITING", waiting.id()),
            ("OFFERED", offered.id()),
            ("TAKEN", taken.id()),
            ("BUILD", build.id()),
        ]
        .iter()
        .fold((*path).to_owned(), |path, (name, id)| {
            path.replace(name, &id.to_string())
        });
        let call = async |token| {
            Ok::<u16, anyhow::Error>(api.call(method, &path, token, body.as_bytes()).await?.0)
        };
        assert_eq!(call(None).await?, 401, "{path} without a token");
        assert_eq!(call(Some("nonsense")).await?, 401, "{path} with nonsense");
        for (kind, token) in [
            (Key::Registration, &registration),
            (Key::Session, &session),
            (Key::Job, &job),
        ] {
            if kind != *key {
                assert_eq!(call(Some(token)).await?, 403, "{path} with {kind:?}");
            }
        }
        if path.starts_with("/jobs/") {
            assert_eq!(
                call(Some(&other_job)).await?,
                403,
                "{path} with the token of another job"
            );
        }
        let token = match key {
            Key::Registration => &registration,
            Key::Session => &session,
            Key::Job => &job,
            Key::Taken => &taken_job,
        };
        assert_eq!(call(Some(token)).await?, 200, "{path} with its own token");
    }
    let (status, _) = api
        .call("GET", &format!("/jobs/{}", own.id()), Some(&job), b"")
        .await?;
    assert_eq!(status, 401, "a finished job's token is dead");
    assert_eq!(
        api.call("POST", "/disconnect", Some(&session), b"")
            .await?
            .0,
        200
    );
    assert_eq!(
        api.call("GET", "/ping", Some(&session), b"").await?.0,
        401,
        "a session ends with disconnect"
    );
    Ok(())
}

#[tokio::test]
async fn wrong_methods_paths_and_bodies_are_refused() -> Result<()> {
    let buildkite = Buildkite::start();
    let api = Api::of(&buildkite);
    let job = buildkite.build("app").start().job("test").run();
    let token = job.access_token().unwrap();
    let own = format!("/jobs/{}", job.id());
    let long = "x".repeat((1 << 20) + 1);
    let annotation = |member: &str, value: Value| {
        let mut body = json!({"body": "b"});
        body[member] = value;
        body.to_string()
    };
    #[rustfmt::skip]
    let cases = [
        ("DELETE", "/register".to_owned(), 405, String::new()),
        ("GET", format!("{own}/oidc/tokens"), 405, String::new()),
        ("POST", "/agentedge.v1.AgentEdgeService/StreamPings".to_owned(), 404, String::new()),
        ("GET", "/nonsense".to_owned(), 404, String::new()),
        ("GET", "/jobs/nonsense".to_owned(), 404, String::new()),
        ("POST", format!("{own}/oidc/tokens"), 400, "not JSON".to_owned()),
        ("POST", format!("{own}/oidc/tokens"), 400, r#"{"lifetime":"300"}"#.to_owned()),
        ("POST", format!("{own}/oidc/tokens"), 422, r#"{"claims":["nonsense"]}"#.to_owned()),
        ("PUT", format!("{own}/finish"), 400, r#"{"exit_status":0}"#.to_owned()),
        ("PUT", format!("{own}/finish"), 422, r#"{"exit_status":"zero"}"#.to_owned()),
        ("PUT", format!("{own}/start"), 422, "{}".to_owned()),
        ("POST", format!("{own}/chunks?sequence=1&offset=0&size=2"), 422, "x".to_owned()),
        ("POST", format!("{own}/chunks?sequence=one&offset=0&size=1"), 400, "x".to_owned()),
        ("POST", format!("{own}/data/get"), 404, r#"{"key":"missing"}"#.to_owned()),
        ("POST", format!("{own}/data/set"), 422, json!({"key": "k", "value": long}).to_string()),
        ("POST", format!("{own}/annotations"), 422, annotation("body", json!(long))),
        ("POST", format!("{own}/annotations"), 422, annotation("style", json!("loud"))),
        ("POST", format!("{own}/annotations"), 422, annotation("priority", json!(11))),
        ("POST", format!("{own}/annotations"), 422, annotation("scope", json!("world"))),
        ("POST", format!("{own}/annotations"), 422, annotation("context", json!("c".repeat(101)))),
        ("DELETE", format!("{own}/annotations/missing"), 404, String::new()),
    ];
    for (method, path, expected, body) in cases {
        let (status, answer) = api
            .call(method, &path, Some(&token), body.as_bytes())
            .await?;
        assert_eq!(status, expected, "{method} {path}: {answer}");
    }
    Ok(())
}

#[tokio::test]
async fn chunks_are_put_together_by_their_sequence() -> Result<()> {
    let buildkite = Buildkite::start();
    let api = Api::of(&buildkite);
    let job = buildkite.build("app").start().job("test").run();
    let token = job.access_token().unwrap();
    let send = async |sequence: u64, offset: u64, text: &'static str| {
        let path = format!(
            "/jobs/{}/chunks?sequence={sequence}&offset={offset}&size={}",
            job.id(),
            text.len()
        );
        Ok::<u16, anyhow::Error>(
            api.call("POST", &path, Some(&token), text.as_bytes())
                .await?
                .0,
        )
    };
    assert_eq!(send(2, 4, "two\n").await?, 200);
    assert_eq!(send(1, 0, "one\n").await?, 200);
    assert_eq!(send(1, 0, "one\n").await?, 200, "sent again");
    assert_eq!(send(1, 0, "eins").await?, 422, "another one before");
    assert_eq!(job.log(), "one\ntwo\n");
    Ok(())
}

#[tokio::test]
async fn a_job_is_taken_once() -> Result<()> {
    let buildkite = Buildkite::builder()
        .organization("acme", &["app"])
        .organization("other", &["app"])
        .start();
    let api = Api::of(&buildkite);
    let (first, second) = (
        api.register(&buildkite).await?,
        api.register(&buildkite).await?,
    );
    let acquire = async |job: &Job, session: &str| {
        api.call(
            "PUT",
            &format!("/jobs/{}/acquire", job.id()),
            Some(session),
            b"",
        )
        .await
    };
    let job = buildkite.build("app").start().job("test").create();
    let (status, document) = acquire(&job, &first).await?;
    assert_eq!(status, 200);
    assert_eq!(document["token"], job.access_token().unwrap());
    assert_eq!(document["env"]["BUILDKITE_JOB_ID"], job.id().to_string());
    assert_eq!(acquire(&job, &second).await?.0, 422);
    let foreign = buildkite.build("other/app").start().job("test").create();
    assert_eq!(
        acquire(&foreign, &second).await?.0,
        404,
        "another organization's"
    );
    Ok(())
}

#[tokio::test]
async fn the_api_fails_as_told() -> Result<()> {
    let buildkite = Buildkite::start();
    let api = Api::of(&buildkite);
    let job = buildkite.build("app").start().job("test").run();
    let (path, token) = (
        format!("/jobs/{}/oidc/tokens", job.id()),
        job.access_token().unwrap(),
    );
    buildkite.api_fault(ApiFault::Status(502));
    assert_eq!(api.call("POST", &path, Some(&token), b"{}").await?.0, 502);
    buildkite.api_fault(ApiFault::Hold);
    let held = tokio::time::timeout(
        Duration::from_millis(200),
        api.call("POST", &path, Some(&token), b"{}"),
    )
    .await;
    assert!(held.is_err(), "answered: {held:?}");
    buildkite.api_fault(ApiFault::None);
    assert_eq!(api.call("POST", &path, Some(&token), b"{}").await?.0, 200);
    Ok(())
}
