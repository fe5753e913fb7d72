//! Several hosts: environments are spread, one that does not answer gets nothing new and delays nobody, and one that is
//! taken out of the configuration keeps what lives there from being forgotten.

use std::path::Path;

use kubler_testkit::buildkite::{Buildkite, Job};
use kubler_testkit::kubler::Server;
use reqwest::Method;
use serde_json::{Value, json};

use super::hosted::{BROKER, draft, host, host_lines, rights};
use crate::LONG;

async fn create(server: &Server, job: &Job) -> Value {
    server.create(job, "main").await
}

async fn release(server: &Server, job: &Job, id: &str) {
    let path = format!("/v1/environments/{id}/release");
    let token = server.token(job);
    let released = server
        .request(Method::POST, &path, Some(&token), None)
        .await;
    assert_eq!(released.status, 200, "{released:?}");
}

/// What the page of metrics says of a host.
async fn is_well(server: &Server, host: &str) -> bool {
    let page = server.operator(Method::GET, "/metrics").await;
    let page = page.body.as_str().unwrap().to_owned();
    page.contains(&format!("kubler_host_well{{host=\"{host}\"}} 1"))
}

async fn wait_until(server: &Server, host: &str, well: bool) {
    let deadline = std::time::Instant::now() + LONG;
    while is_well(server, host).await != well {
        assert!(std::time::Instant::now() < deadline, "{}", server.log());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sick_host_gets_nothing_new_delays_nobody_and_is_not_forgotten() {
    let rights = rights();
    let (mut east, west) = tokio::join!(host(&rights), host(&rights));
    let buildkite = Buildkite::start();
    let lines = [("east", &east), ("west", &west)]
        .map(|(name, cluster)| host_lines(name, &cluster.kubeconfig_of(BROKER, &[])))
        .concat();
    let mut server = draft(&buildkite, &lines, &[]).start().await;
    for name in ["east", "west"] {
        wait_until(&server, name, true).await;
    }
    let build = buildkite.build("app").start();
    let jobs: Vec<Job> = (0..3).map(|_| build.job("test").run()).collect();

    // Where there is most room.
    let first = create(&server, &jobs[0]).await;
    let second = create(&server, &jobs[1]).await;
    assert_eq!(
        (&first["host"], &second["host"]),
        (&json!("east"), &json!("west"))
    );

    east.stop_api_server();
    wait_until(&server, "east", false).await;
    let ready = server.request(Method::GET, "/readyz", None, None).await;
    assert_eq!(ready.body["remarks"]["hosts[0]"], "it is sick", "{ready:?}");
    let third = create(&server, &jobs[2]).await;
    assert_eq!(third["host"], "west", "a sick host gets nothing new");
    let id = |environment: &Value| environment["id"].as_str().unwrap().to_owned();
    release(&server, &jobs[0], &id(&first)).await;
    release(&server, &jobs[2], &id(&third)).await;
    server
        .wait_for(&id(&third), LONG, |it| it["phase"] == "gone")
        .await;
    let waiting = server
        .wait_for(&id(&first), LONG, |it| it["last_failure"].is_string())
        .await;
    assert_eq!(
        waiting["phase"], "releasing",
        "nothing is gone that nobody looked for"
    );

    // What lives on a host keeps it in the configuration.
    let config = server.folder().join("kubler.yaml");
    let text = std::fs::read_to_string(&config).unwrap();
    refuses_to_start(
        &mut server,
        &config,
        &text.replace("name: west", "name: north"),
    )
    .await;
    std::fs::write(&config, &text).unwrap();

    // It is back, and what waited for it ends; what lived through all of it is reached by the server of now.
    east.start_api_server().await;
    server.restart().await;
    server
        .wait_for(&id(&first), LONG, |it| it["phase"] == "gone")
        .await;
    let session = server.session(&jobs[1], &id(&second)).await;
    let path = format!(
        "/k8s/{}/api/v1/namespaces/{}/configmaps/kubler-build",
        id(&second),
        second["namespace"].as_str().unwrap()
    );
    let deadline = std::time::Instant::now() + LONG;
    loop {
        let read = server
            .request(Method::GET, &path, Some(&session), None)
            .await;
        if read.status == 200 {
            break;
        }
        // Its credential is asked for when it is first needed.
        assert!(
            read.status == 503 && std::time::Instant::now() < deadline,
            "{read:?}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    release(&server, &jobs[1], &id(&second)).await;
    server
        .wait_for(&id(&second), LONG, |it| it["phase"] == "gone")
        .await;
}

async fn refuses_to_start(server: &mut Server, config: &Path, text: &str) {
    server.stop().await;
    std::fs::write(config, text).unwrap();
    server.launch(&[]);
    assert!(!server.wait_until_it_answers_or_ends().await, "it started");
    let log = server.log();
    assert!(
        log.contains("live on host `west`: the configuration does not have it any more"),
        "{log}"
    );
    server.stop().await;
}
