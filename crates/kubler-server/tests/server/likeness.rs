//! The same again, and what differs: also of environments that are gone.

use std::process::Output;

use kubler_testkit::buildkite::{Buildkite, Job};
use kubler_testkit::kubler::Server;
use serde_json::Value;

use crate::SOON;

const MANIFEST: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings, namespace: default}\ndata: {colour: red}\n";

/// `kubler` as this job.
fn kubler(server: &Server, job: &Job, arguments: &[&str]) -> Output {
    let file = server.folder().join(format!("token-{}", job.id()));
    std::fs::write(&file, server.token(job)).unwrap();
    let mut command = server.cli_command(arguments);
    command
        .env_remove("KUBLER_CLIENT_CERTIFICATE")
        .env_remove("KUBLER_CLIENT_KEY")
        .env("KUBLER_TOKEN_FILE", file);
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

async fn made_and_gone(server: &Server, job: &Job) -> String {
    let made = server.create(job, "main").await;
    let id = made["id"].as_str().unwrap().to_owned();
    server.cli(&["env", "release", &id]);
    server.wait_for(&id, SOON, |it| it["phase"] == "gone").await;
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retried_job_gets_the_same_again_and_a_changed_profile_is_named() {
    let buildkite = Buildkite::builder()
        .organization("acme", &["app", "web"])
        .start();
    let draft = Server::of(&buildkite).file("settings.yaml", MANIFEST);
    let mut server = draft
        .profile_line("manifests: [settings.yaml]")
        .start()
        .await;
    let failed = buildkite.build("app").start().job("test").run();
    let first = made_and_gone(&server, &failed).await;
    failed.finish(1);
    // What is gone is shown only when it is wanted.
    let listed = [
        said(&server.cli(&["env", "list"])),
        said(&server.cli(&["env", "list", "--all"])),
    ];
    assert!(listed[0].contains("nothing is alive"), "{listed:?}");
    assert!(listed[1].contains(&first), "{listed:?}");
    let retried = failed.retry().run();

    // Nothing has changed: the same digest, only another job.
    let again = kubler(
        &server,
        &retried,
        &["env", "create", "--like", &first, "--output", "json"],
    );
    assert_eq!(again.status.code(), Some(0), "{}", said(&again));
    assert!(
        said(&again).contains("made of the same as"),
        "{}",
        said(&again)
    );
    let again: Value = serde_json::from_slice(&again.stdout).unwrap();
    let second = again["id"].as_str().unwrap().to_owned();
    let diff = kubler(&server, &retried, &["env", "diff", &first, &second]);
    assert_eq!(diff.status.code(), Some(0), "{}", said(&diff));
    let told = said(&diff);
    assert!(
        told.contains("the same digest") && told.contains(&retried.id().to_string()),
        "{told}"
    );
    assert!(!told.contains("profile"), "{told}");

    // The profile changes: what differs is named, and it is made only when that is wanted all the same.
    let configuration = server.folder().join("kubler.yaml");
    let text = std::fs::read_to_string(&configuration).unwrap();
    let text = text.replacen(
        "manifests: [settings.yaml]",
        "manifests: [settings.yaml]\n    lease_seconds: 77",
        1,
    );
    std::fs::write(configuration, text).unwrap();
    std::fs::write(
        server.folder().join("settings.yaml"),
        MANIFEST.replace("red", "blue"),
    )
    .unwrap();
    server.restart().await;
    let like = ["env", "create", "--like", &first, "--name", "third"];
    let refused = kubler(&server, &retried, &like);
    assert_eq!(refused.status.code(), Some(7), "{}", said(&refused));
    for difference in [
        "`differs`",
        "profile lease_seconds: 300 -> 77",
        "ConfigMap default/settings: there -> changed in .data.colour",
    ] {
        assert!(
            said(&refused).contains(difference),
            "{difference}: {}",
            said(&refused)
        );
    }
    let all_the_same = [&like[..], &["--despite-differences"]].concat();
    let made = kubler(&server, &retried, &all_the_same);
    assert_eq!(made.status.code(), Some(0), "{}", said(&made));
    assert!(
        said(&made).contains("not made of the same as"),
        "{}",
        said(&made)
    );
    assert!(said(&made).contains("lease_seconds"), "{}", said(&made));
    let third = said(&made)
        .lines()
        .find_map(|line| {
            line.strip_prefix("environment")
                .map(|id| id.trim().to_owned())
        })
        .unwrap();
    let diff = server.cli(&["env", "diff", &second, &third, "--output", "json"]);
    assert_eq!(diff.status.code(), Some(7), "{}", said(&diff));
    let diff: Value = serde_json::from_slice(&diff.stdout).unwrap();
    assert_eq!(diff["same"], false);
    assert_eq!(diff["differences"].as_array().unwrap().len(), 2, "{diff:#}");

    // A job of another pipeline is told nothing of either.
    let stranger = buildkite.build("web").start().job("test").run();
    for arguments in [
        &["env", "diff", &first, &second][..],
        &["env", "create", "--like", &first],
    ] {
        let refused = kubler(&server, &stranger, arguments);
        assert_eq!(refused.status.code(), Some(4), "{}", said(&refused));
    }
}
