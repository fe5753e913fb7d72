//! The whole server on a disk that is really full: nothing new begins, everything ends, and with room it goes on.

use std::time::{Duration, Instant};

use kubler_testkit::buildkite::{Buildkite, Job};
use kubler_testkit::disk::{self, Neighbour};
use kubler_testkit::kubler::{Answer, Server};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::json;

use crate::SOON;

/// Room for etcd, which takes 64 MB for its log and 64 MB for the next one before it stores anything.
const DISK: &str = "384m";
/// Time between two bites of whoever fills the disk.
const PAUSE: Duration = Duration::from_millis(2);

#[test]
fn l4_a_full_disk_refuses_what_is_new_and_stops_no_end_of_the_whole_server() {
    disk::on_a_disk_of(DISK, "full_disk::the_whole_server");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a small disk: `l4_a_full_disk_refuses…` runs it"]
async fn the_whole_server() {
    let Some(disk) = disk::disk() else { return };
    let data = disk.join("data");
    let _data = disk::Data::in_folder(data.clone());
    let buildkite = Buildkite::start();
    let mut server = Server::of(&buildkite)
        .edit("data: data", &format!("data: {}", data.display()))
        .profile_line("lease_seconds: 120")
        .start()
        .await;
    let build = buildkite.build("app").start();
    let jobs = ["released", "living", "late", "restarted"].map(|key| build.job(key).run());
    let mut ids = Vec::new();
    for job in &jobs {
        let made = server.create(job, "main").await;
        ids.push(made["id"].as_str().unwrap().to_owned());
    }
    let session = server.session(&jobs[0], &ids[0]).await;
    let path = format!("/k8s/{}/api/v1/namespaces", ids[0]);
    assert_eq!(get(&server, &path, &session).await.status, 200);

    let neighbour = Neighbour::moves_in(&disk, PAUSE);
    // Creates, sessions and forwards: refused, and told why.
    let refused = ask(&server, &build.job("late").run()).await;
    assert_eq!(
        (refused.status.as_u16(), refused.body["code"].as_str()),
        (507, Some("storage_full")),
        "{refused:?}"
    );
    let refused = server.exchange(&server.token(&jobs[1]), &ids[1]).await;
    assert_eq!(
        (refused.status.as_u16(), refused.body["code"].as_str()),
        (507, Some("storage_full")),
        "{refused:?}"
    );
    let refused = get(&server, &path, &session).await;
    assert_eq!(
        (
            refused.status.as_u16(),
            refused.body["kind"].as_str(),
            refused.body["details"]["causes"][0]["reason"].as_str()
        ),
        (503, Some("Status"), Some("StorageFull")),
        "{refused:?}"
    );

    // An end is none of that: its credential is dead at once, and nothing of it is left.
    let released = server
        .request(
            Method::POST,
            &format!("/v1/environments/{}/release", ids[0]),
            Some(&server.token(&jobs[0])),
            None,
        )
        .await;
    assert_eq!(released.status, 200, "{released:?}");
    let dead = get(&server, &path, &session).await;
    assert_eq!(dead.status, 404, "{dead:?}");
    wait_until_gone(&server, &jobs[0], &ids[0]).await;

    // etcd dies on the full disk, and comes back there. It gives blocks back and takes them again when it starts, as
    // SQLite does: who is faster than that must rest.
    neighbour.rests();
    let etcd: Vec<_> = server
        .processes()
        .into_iter()
        .filter(|process| process.command.contains("--data-dir=data"))
        .collect();
    assert_eq!(etcd.len(), 1, "{etcd:?}");
    etcd[0].signal(Signal::KILL);
    wait_until_gone(&server, &jobs[2], &ids[2]).await;

    // A restart there finds its room again, and still refuses and ends.
    server.restart().await;
    assert_eq!(ask(&server, &build.job("later").run()).await.status, 507);
    wait_until_gone(&server, &jobs[3], &ids[3]).await;

    neighbour.moves_out();
    // By itself, without a restart; and who lived through it lives.
    let deadline = Instant::now() + SOON;
    while ask(&server, &build.job("again").run()).await.status != 200 {
        assert!(Instant::now() < deadline, "{}", server.log());
    }
    let session = server.session(&jobs[1], &ids[1]).await;
    let path = format!("/k8s/{}/api/v1/namespaces", ids[1]);
    assert_eq!(get(&server, &path, &session).await.status, 200);
    for id in [&ids[0], &ids[2], &ids[3]] {
        let records = server.cli(&["ledger", "records", "--environment", id, "--output", "json"]);
        let records = String::from_utf8_lossy(&records.stdout).into_owned();
        assert!(records.contains("\"gone\""), "{records}");
    }
    // With the last checkpoint.
    server.stop().await;
    let verified = server.cli(&[
        "ledger",
        "verify",
        data.join("ledger").to_str().unwrap(),
        "--output",
        "json",
    ]);
    let verified = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(verified.contains("\"intact\": true"), "{verified}");
    server.restart().await;
}

async fn get(server: &Server, path: &str, session: &str) -> Answer {
    server.request(Method::GET, path, Some(session), None).await
}

async fn ask(server: &Server, job: &Job) -> Answer {
    let body = json!({ "profile": "ci-small", "name": "main", "wait_seconds": 60 });
    let token = server.token(job);
    server
        .request(Method::POST, "/v1/environments", Some(&token), Some(&body))
        .await
}

/// Asked by anybody who knows its id: that needs no record.
async fn wait_until_gone(server: &Server, job: &Job, id: &str) {
    let deadline = Instant::now() + SOON;
    loop {
        let told = server
            .request(
                Method::POST,
                &format!("/v1/environments/{id}/release"),
                Some(&server.token(job)),
                None,
            )
            .await;
        if told.body["phase"] == "gone" {
            return;
        }
        let phase = &told.body["phase"];
        assert!(Instant::now() < deadline, "{phase}\n{}", server.log());
    }
}
