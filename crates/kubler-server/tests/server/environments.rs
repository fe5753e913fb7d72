//! Asking for environments: what is the same one and what is another, and finding them again.

use std::time::Duration;

use jiff::Timestamp;
use kubler_testkit::buildkite::{Buildkite, Job, WebhookEvent};
use kubler_testkit::kubler::{Answer, Server};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};

use crate::SOON;

async fn ask(server: &Server, job: &Job, body: &Value) -> Answer {
    let token = server.token(job);
    server
        .request(Method::POST, "/v1/environments", Some(&token), Some(body))
        .await
}

async fn store(server: &Server) -> SqlitePool {
    let file = server.folder().join("data/store.sqlite");
    SqlitePool::connect_with(SqliteConnectOptions::new().filename(file))
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retried_job_is_a_new_job_and_a_repeat_by_the_same_job_is_not() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let first = server.create(&job, "main").await;
    assert_eq!(server.create(&job, "main").await["id"], first["id"]);
    job.finish(1);
    let retried = job.retry().run();
    let second = server.create(&retried, "main").await;
    assert_ne!(
        second["id"], first["id"],
        "a retry got its predecessor's environment"
    );
    assert_eq!(second["digest"], first["digest"]);
    let path = format!("/v1/environments/{}/renew", first["id"].as_str().unwrap());
    let stolen = server
        .request(Method::POST, &path, Some(&server.token(&retried)), None)
        .await;
    assert_eq!(stolen.status, 404, "{stolen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_that_kubernetes_does_not_have_fails_at_once_and_says_so() {
    let buildkite = Buildkite::start();
    let slip = "apiVersion: v1\nkind: Nmespace\nmetadata: {name: team}\n";
    let old = "apiVersion: apps/v1beta1\nkind: Deployment\nmetadata: {name: team}\n";
    let mut server = Server::of(&buildkite)
        .file("slip.yaml", slip)
        .file("old.yaml", old)
        .profile_line("manifests: [slip.yaml]")
        .edit(
            "  - name: untrusted\n",
            "  - name: untrusted\n    manifests: [old.yaml]\n",
        )
        .start()
        .await;
    let build = buildkite.build("app").start();
    for (profile, says) in [
        (
            "ci-small",
            "`Nmespace/team` of manifest `slip.yaml` is of a kind that `v1` does not have",
        ),
        (
            "untrusted",
            "`Deployment/team` of manifest `old.yaml` is of a kind that `apps/v1beta1` does not have",
        ),
    ] {
        let job = build.job(profile).run();
        let body = json!({ "profile": profile, "wait_seconds": 60 });
        let asked = ask(&server, &job, &body).await;
        assert_eq!(asked.body["end"]["code"], "failed", "{asked:?}");
        let told = asked.body["end"]["message"].as_str().unwrap();
        assert!(told.contains(says), "{told}");
    }
    let log = server.log();
    assert!(!log.contains("trying again"), "it was tried twice: {log}");
    server.stop().await;
    assert!(server.log().contains("stopped: "), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn why_the_last_try_to_make_one_failed_is_shown_while_it_is_tried_again() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    // Whatever is made ends before it is usable.
    let job = buildkite.build("app").start().job("test").run();
    let asked = ask(&server, &job, &json!({ "profile": "ci-small" })).await;
    let id = asked.body["id"].as_str().unwrap().to_owned();
    let mut told = String::new();
    let deadline = std::time::Instant::now() + SOON;
    while told.is_empty() && std::time::Instant::now() < deadline {
        for process in server.control_planes() {
            process.signal(rustix::process::Signal::KILL);
        }
        let environment = server.environment(&id).await;
        if environment["phase"] == "provisioning" {
            told = environment["last_failure"]
                .as_str()
                .unwrap_or_default()
                .into();
        } else if environment["phase"] != "requested" {
            break;
        }
    }
    assert!(
        told.contains("while it started"),
        "{told}: {}",
        server.log()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_creates_of_the_same_name_make_one() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let body = json!({ "profile": "ci-small", "wait_seconds": 60 });
    let asked = futures_util::future::join_all((0..8).map(|_| ask(&server, &job, &body))).await;
    for answer in &asked {
        assert_eq!(answer.body["phase"], "ready", "{answer:?}");
        assert_eq!(answer.body["id"], asked[0].body["id"]);
    }
    assert_eq!(server.control_planes().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_job_of_the_build_attaches_to_the_same_digest_and_to_no_other() {
    let buildkite = Buildkite::start();
    let mut server = Server::of(&buildkite).start().await;
    let build = buildkite.build("app").start();
    let (maker, sharer) = (build.job("make").run(), build.job("share").run());
    let body =
        json!({ "profile": "ci-small", "name": "shared", "scope": "build", "wait_seconds": 60 });
    let made = ask(&server, &maker, &body).await;
    assert_eq!(made.body["phase"], "ready", "{made:?}");
    let attached = ask(&server, &sharer, &body).await;
    assert_eq!(attached.body["id"], made.body["id"], "{attached:?}");

    let file = server.folder().join("kubler.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    let profile = "  - name: ci-small\n";
    let changed = text.replacen(profile, &format!("{profile}    session_seconds: 300\n"), 1);
    assert_ne!(changed, text);
    std::fs::write(&file, changed).unwrap();
    server.restart().await;
    let conflict = ask(&server, &sharer, &body).await;
    assert_eq!(
        (conflict.status.as_u16(), &conflict.body["code"]),
        (409, &json!("conflict"))
    );
    let detail = conflict.body["detail"].as_str().unwrap();
    let own = ask(&server, &sharer, &json!({ "profile": "ci-small" })).await;
    for digest in [&made.body["digest"], &own.body["digest"]] {
        assert!(
            detail.contains(digest.as_str().unwrap()),
            "{digest}: {detail}"
        );
    }
    assert_ne!(made.body["digest"], own.body["digest"]);
    let repeated = ask(&server, &maker, &body).await;
    assert_eq!(repeated.body["id"], made.body["id"], "{repeated:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_phase_record_says_what_the_environment_is_made_of() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let environment = server.create(&job, "main").await;
    let path = format!(
        "/v1/ledger/records?environment={}",
        environment["id"].as_str().unwrap()
    );
    let read = server.operator(Method::GET, &path).await;
    let records = read.body["records"].as_array().unwrap();
    let requested = records
        .iter()
        .find(|record| record["phase"]["to"] == "requested")
        .unwrap_or_else(|| panic!("no such record: {read:?}"));
    let details = &requested["details"];
    assert_eq!(details["digest"], environment["digest"], "{requested}");
    assert_eq!(details["profile"], "ci-small");
    let version = details["kubernetes_version"].as_str().unwrap();
    assert!(version.starts_with("v1.34."), "{version}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_never_promised_past_the_stored_lease() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).lease_seconds(30).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let environment = server.create(&job, "main").await;
    let id = environment["id"].as_str().unwrap();
    let first = job.mints().last().unwrap().at;
    // `iat` counts whole seconds: a later one is needed.
    while Timestamp::now().as_second() < first.as_second() + 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let issued = server.exchange(&server.token(&job), id).await;
    assert_eq!(issued.status, 200, "{issued:?}");
    let moment = |value: &Value| value.as_str().unwrap().parse::<Timestamp>().unwrap();
    let stored = server.environment(id).await;
    let (session_end, lease_end) = (
        moment(&issued.body["expires_at"]),
        moment(&stored["lease_end"]),
    );
    assert!(
        session_end <= lease_end,
        "session until {session_end}, lease until {lease_end}"
    );
    assert!(lease_end > moment(&environment["lease_end"]));
}

/// Copies each tombstone of the store 250 times, newer than everything.
async fn multiply_tombstones(server: &Server) {
    let pool = store(server).await;
    let copied = sqlx::query(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 250) \
         INSERT INTO environments SELECT printf('env_%016x%016x', e.rowid, i), unique_key || i, phase, organization_id, \
         project_id, project_slug, run_id, run_number, job_id, source_commit, profile, \
         (unixepoch('2099-01-01') + i) * 1000000, gone_at, version, \
         json_set(document, '$.id', printf('env_%016x%016x', e.rowid, i), \
         '$.created_at', strftime('%Y-%m-%dT%H:%M:%SZ', '2099-01-01', '+' || i || ' seconds')) \
         FROM environments AS e, n WHERE phase = 'gone'",
    )
    .execute(&pool)
    .await
    .unwrap();
    assert_eq!(copied.rows_affected(), 500);
    pool.close().await;
}

/// A job that had an environment, and saw its end.
async fn had(server: &Server, job: &Job) {
    let environment = server.create(job, "main").await;
    let id = environment["id"].as_str().unwrap();
    let release = format!("/v1/environments/{id}/release");
    let (token, body) = (server.token(job), json!({ "wait_seconds": 30 }));
    let gone = server
        .request(Method::POST, &release, Some(&token), Some(&body))
        .await;
    assert_eq!(gone.body["phase"], "gone", "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_finds_a_jobs_own_below_many_that_it_may_not_see() {
    let buildkite = Buildkite::start();
    let mut server = Server::of(&buildkite)
        .edit(
            "        slug:",
            "        webhook_secret: secrets/hook\n        slug:",
        )
        .file("secrets/hook", "hush")
        .file(
            "policies/own-build.cedar",
            "@id(\"own-build\") forbid (principal is Job, action == Action::\"read_environment\", \
             resource is Environment) when { resource.build_id != principal.build_id };",
        )
        .start()
        .await;
    let job = buildkite.build("app").start().job("test").run();
    let own = server.create(&job, "main").await;
    let id = own["id"].as_str().unwrap();
    let neighbour = buildkite.build("app").start().job("test").run();
    let stranger = buildkite.build("docs").start().job("test").run();
    had(&server, &neighbour).await;
    had(&server, &stranger).await;
    server.stop().await;
    multiply_tombstones(&server).await;
    server.restart().await;

    let list = async |job: &Job| {
        let token = server.token(job);
        let listed = server
            .request(Method::GET, "/v1/environments", Some(&token), None)
            .await;
        let found = listed.body["environments"].as_array().unwrap().clone();
        (found, listed.body["truncated"].clone())
    };
    let (found, truncated) = list(&job).await;
    let ids: Vec<_> = found.iter().map(|environment| &environment["id"]).collect();
    assert_eq!((json!(ids), truncated), (json!([id]), json!(false)));
    for other in [&neighbour, &stranger] {
        let (found, truncated) = list(other).await;
        assert_eq!((found.len(), truncated), (200, json!(true)));
    }
    let exact = server
        .operator(Method::GET, &format!("/v1/environments?job={}", job.id()))
        .await;
    assert_eq!(exact.body["environments"].as_array().unwrap().len(), 1);
    assert_eq!(exact.body["truncated"], false);

    // A webhook about a lost agent finds the living one below all of them, too.
    let lost = buildkite
        .webhook(WebhookEvent::AgentLost, &job)
        .signed("hush");
    let url = format!("{}/v1/hooks/buildkite", server.url());
    let ca = std::fs::read_to_string(server.ca()).unwrap();
    assert_eq!(lost.send(&url, Some(&ca)).await.unwrap().0, 204);
    let ended = server.wait_until_gone(id, SOON).await;
    assert_eq!(ended["end"]["code"], "agent_lost", "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_written_is_not_ready() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let ready = async || server.request(Method::GET, "/readyz", None, None).await;
    let pool = store(&server).await;
    let lock = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let deadline = Timestamp::now() + SOON;
    let unready = loop {
        let answer = ready().await;
        if answer.body["checks"]["store"] != "ok" {
            break answer;
        }
        assert!(Timestamp::now() < deadline, "still {answer:?}");
    };
    assert_eq!(unready.status, 503);
    assert_eq!(
        unready.body["checks"]["store"], "cannot be written",
        "{unready:?}"
    );
    lock.rollback().await.unwrap();
    let again = ready().await;
    assert_eq!(again.body["checks"]["store"], "ok", "{again:?}");
}
