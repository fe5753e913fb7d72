//! The record, as an operator reads it: by environment, job, build and commit.

use kubler_testkit::buildkite::Buildkite;
use kubler_testkit::kubler::Server;
use reqwest::Method;

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_finds_what_a_job_did_by_whatever_is_at_hand() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let commit = "5d41402abc4b2a76b9719d911017c592aaaaaaaa";
    let build = buildkite.build("app").commit(commit).start();
    let (job, other) = (build.job("test").run(), build.job("lint").run());
    let id = server.create(&job, "main").await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    server.create(&other, "main").await;
    let session = server.session(&job, &id).await;
    let path = format!("/k8s/{id}/api/v1/namespaces");
    assert_eq!(
        server
            .request(Method::GET, &path, Some(&session), None)
            .await
            .status,
        200
    );

    let printed = |arguments: &[&str]| {
        let output = server.cli(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let number = format!("app/{}", build.record().number);
    let as_shown = format!("{}/{number}", job.organization().slug);
    let build_id = build.id().to_string();
    let job_id = job.id().to_string();
    for at_hand in [
        id.as_str(),
        &job_id,
        &number,
        &as_shown,
        &build_id,
        commit,
        &commit[..8],
        "app",
    ] {
        let found = printed(&["trace", at_hand]);
        assert!(found.contains(&id), "`{at_hand}`: {found}");
    }

    let other_organization = [format!("other/{number}"), "other/app".to_owned()];
    for elsewhere in other_organization {
        let found = server.cli(&["trace", &elsewhere]);
        let found = String::from_utf8_lossy(&found.stdout).into_owned();
        assert!(!found.contains(&id), "`{elsewhere}`: {found}");
    }
    let slug = job.organization().slug.clone();
    for (pipeline, is_here) in [(format!("{slug}/app"), true), ("other/app".into(), false)] {
        let found = printed(&["env", "list", "--pipeline", &pipeline]);
        assert_eq!(found.contains(&id), is_here, "`{pipeline}`: {found}");
    }

    let records = printed(&["ledger", "records", "--job", &job_id]);
    for told in [
        "environment.create",
        "allowed by acme/create",
        "ready",
        "session.issue",
        "list namespaces",
        &id,
    ] {
        assert!(records.contains(told), "`{told}`: {records}");
    }
    assert!(!records.contains(&other.id().to_string()), "{records}");
    let of_environment = printed(&["ledger", "records", "--environment", &id]);
    assert!(
        of_environment.contains("list namespaces"),
        "{of_environment}"
    );
    let two = server.cli(&["ledger", "records", "--limit", "2", "--output", "json"]);
    let two: Vec<serde_json::Value> = serde_json::from_slice(&two.stdout).unwrap();
    assert_eq!(two.len(), 2);
}
