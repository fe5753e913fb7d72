//! The server is killed behind each durable step on a host, and started again: nothing is there twice, and nothing stays.

use kubler_server::crash::{CRASH_AT, Point};
use kubler_testkit::buildkite::Job;
use reqwest::Method;
use serde_json::json;

use super::hosted::Hosted;
use crate::LONG;

async fn create(hosted: &Hosted, job: &Job) -> reqwest::Result<kubler_testkit::kubler::Answer> {
    let body = json!({ "profile": "ci-small", "name": "main", "wait_seconds": 60 });
    let token = hosted.server.token(job);
    let server = &hosted.server;
    server
        .try_request(Method::POST, "/v1/environments", Some(&token), Some(&body))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn l9_killed_behind_a_step_on_a_host_nothing_is_there_twice_and_nothing_stays() {
    let mut hosted = Hosted::new(&[]).await;
    let mut made = Vec::new();
    for point in [
        Point::ProvisioningStored,
        Point::NamespaceMade,
        Point::WallsMade,
        Point::ManifestsApplied,
    ] {
        println!("{}", point.name());
        let job = hosted.build.job("test").run();
        hosted.server.stop().await;
        hosted.server.launch(&[(CRASH_AT, point.name())]);
        hosted.server.wait_until_it_answers().await;
        let _ = create(&hosted, &job).await;
        let killed = hosted.server.wait_until_it_is_killed(LONG).await;
        killed.unwrap();
        hosted.server.restart().await;
        let again = create(&hosted, &job).await.unwrap();
        assert_eq!(
            again.body["phase"],
            "ready",
            "{again:?}\n{}",
            hosted.server.log()
        );
        made.push((job, again.body["id"].as_str().unwrap().to_owned()));
    }
    let namespaces = hosted.cluster.kubectl_ok(&[
        "get",
        "namespaces",
        "--selector=kubler.dev/environment",
        "--output=name",
    ]);
    assert_eq!(namespaces.lines().count(), made.len(), "{namespaces}");

    for point in [Point::AccountRemoved, Point::NamespaceDeleted] {
        println!("{}", point.name());
        let (job, id) = &made[made.len() - 1 - usize::from(point == Point::NamespaceDeleted)];
        hosted.server.stop().await;
        hosted.server.launch(&[(CRASH_AT, point.name())]);
        hosted.server.wait_until_it_answers().await;
        let (server, path) = (&hosted.server, format!("/v1/environments/{id}/release"));
        let token = server.token(job);
        let _ = server
            .try_request(Method::POST, &path, Some(&token), None)
            .await;
        let killed = hosted.server.wait_until_it_is_killed(LONG).await;
        killed.unwrap();
        hosted.server.restart().await;
    }
    // Again also of those: the server may have been killed by another's end before it was asked.
    for (job, id) in &made {
        let path = format!("/v1/environments/{id}/release");
        let token = hosted.server.token(job);
        let released = hosted
            .server
            .request(Method::POST, &path, Some(&token), None);
        assert_eq!(released.await.status, 200);
    }
    hosted.nothing_is_left().await;
}
