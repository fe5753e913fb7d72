//! What reaches the API server, and what comes back.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::Ordering;

use axum::body::Body;
use http::{Request, StatusCode};
use kubler_core::ledger::record::Kind;

use super::world::{World, eventually, read, records};

#[tokio::test]
async fn a_request_passes_with_its_bytes_and_its_answer_comes_back() {
    let world = World::new().await;
    let target = "/apis/apps/v1/namespaces/default/deployments/a?fieldManager=kubectl&force=true";
    let request = world
        .request("PATCH", target)
        .header("content-type", "application/apply-patch+yaml");
    let response = world.send_with(request, "kind: Deployment").await;
    assert_eq!(response.headers()["x-kubernetes-pf-flowschema-uid"], "flow");
    assert!(!response.headers().contains_key("set-cookie"));
    assert_eq!(
        read(response).await,
        (StatusCode::OK, serde_json::json!({ "kind": "ConfigMap" }))
    );

    let arrived = world.upstream.arrived().remove(0);
    assert_eq!(
        (arrived.method.as_str(), arrived.target.as_str()),
        ("PATCH", target)
    );
    assert_eq!(&arrived.body[..], b"kind: Deployment");
    assert_eq!(
        arrived.headers["content-type"],
        "application/apply-patch+yaml"
    );
    assert_eq!(arrived.headers["content-length"], "16");
}

#[tokio::test]
async fn h1_the_api_server_sees_our_identity_and_nothing_of_the_clients() {
    let world = World::new().await;
    let request = world
        .request("GET", "/api/v1/pods")
        .header("accept", "application/json")
        .header("connection", "authorization, audit-id, host, keep-alive")
        .header("te", "trailers")
        .header("proxy-authorization", "Basic x")
        .header("x-remote-user", "system:admin")
        .header("cookie", "a=b");
    assert_eq!(world.send(request).await.status(), StatusCode::OK);
    let headers = world.upstream.arrived().remove(0).headers;
    let mut names: Vec<_> = headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["accept", "audit-id", "authorization", "host"]);
    assert_eq!(headers["authorization"], "Bearer upstream-secret");
}

#[tokio::test]
async fn h4_a_credential_that_was_replaced_is_used_from_the_next_request_on_and_no_other_gate_is_opened()
 {
    let world = World::new().await;
    let sent = async || {
        let answer = world.send(world.request("GET", "/api/v1/pods")).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let arrived = world.upstream.arrived();
        arrived.last().unwrap().headers["authorization"].clone()
    };
    let gates = || -> Vec<_> {
        let gates = world.gateway.shared.gates.read().unwrap();
        gates.values().map(std::sync::Arc::as_ptr).collect()
    };
    assert_eq!(sent().await, "Bearer upstream-secret");
    let before = gates();
    let token = &world.upstream.upstream.token;
    token.replace(&"another-secret".into()).unwrap();
    assert!(token.replace(&"bad\nsecret".into()).is_err());
    assert_eq!(sent().await, "Bearer another-secret");
    assert_eq!(gates(), before, "what is open stays open");
    assert_eq!(before.len(), 1);
}

#[tokio::test]
async fn h5_one_id_joins_the_answer_the_ledger_and_the_api_servers_own_log() {
    let world = World::new().await;
    let response = world
        .send(
            world
                .request("GET", "/api/v1/pods")
                .header("Audit-ID", "theirs"),
        )
        .await;
    let answered = response.headers()["audit-id"].to_str().unwrap().to_owned();
    assert_eq!(response.headers().get_all("audit-id").iter().count(), 1);
    let recorded = records(&world.ledger)
        .remove(0)
        .body
        .request_id
        .unwrap()
        .to_string();
    let sent = world.upstream.arrived().remove(0).headers["audit-id"]
        .to_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        (answered.as_str(), sent.as_str()),
        (recorded.as_str(), recorded.as_str())
    );
}

#[tokio::test]
async fn l4_nothing_is_sent_on_before_its_record() {
    let world = World::new().await;
    for nth in 0..3 {
        let _ = read(world.get("/api/v1/pods").await).await;
        world.outcome().await;
        assert_eq!(
            world.upstream.arrived()[nth].records,
            2 * nth + 1,
            "start records before, end records after"
        );
    }
}

#[tokio::test]
async fn an_end_says_what_came_of_it() {
    let world = World::new().await;
    let _ = read(
        world
            .send_with(
                world.request("POST", "/api/v1/namespaces/a/configmaps/missing"),
                "{}",
            )
            .await,
    )
    .await;
    let outcome = world.outcome().await;
    assert_eq!(
        (outcome.status, outcome.bytes_in, outcome.bytes_out),
        (404, 2, 17)
    );
    assert_eq!(outcome.close_reason, None);
    let start = records(&world.ledger).remove(0);
    assert_eq!(start.body.kind, Kind::Start);
    assert_eq!(start.body.request.unwrap().verb, "create");
    assert!(start.body.decision.is_some() && start.body.session_id.is_some());
}

#[tokio::test]
async fn one_connection_serves_one_client_after_the_other() {
    let world = World::new().await;
    for _ in 0..10 {
        let _ = read(world.get("/api/v1/pods").await).await;
    }
    let _ = read(
        world
            .send_with(world.request("POST", "/api/v1/namespaces"), "{}")
            .await,
    )
    .await;
    let _ = read(world.get("/api/v1/pods").await).await;
    assert_eq!(world.upstream.seen.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_connection_that_was_closed_meanwhile_does_no_harm() {
    let world = World::new().await;
    for method in ["GET", "POST", "GET"] {
        let _ = read(world.get("/api/v1/pods").await).await;
        world.upstream.hang_up();
        eventually(|| world.upstream.seen.open.load(Ordering::SeqCst) == 0).await;
        assert_eq!(
            world
                .send_with(world.request(method, "/api/v1/namespaces"), "")
                .await
                .status(),
            StatusCode::OK
        );
    }
}

#[tokio::test]
async fn a_redirect_stays_behind_the_gateway() {
    let world = World::new().await;
    let response = world.get("/moved").await;
    assert_eq!(response.status(), StatusCode::MOVED_PERMANENTLY);
    assert_eq!(
        response.headers()["location"],
        format!("/k8s/{}/api/v1/there", world.id).as_str()
    );
}

#[tokio::test]
async fn a_head_request_tells_the_length_and_sends_nothing() {
    let world = World::new().await;
    let response = world
        .send(world.request("HEAD", "/api/v1/namespaces/a/configmaps/b"))
        .await;
    assert_eq!(response.headers()["content-length"], "20");
    assert_eq!(read(response).await.1, "");
}

#[tokio::test]
async fn a_bare_environment_is_its_root() {
    let world = World::new().await;
    for (below, target) in [("", "/"), ("/", "/"), ("?a=b", "/?a=b")] {
        assert_eq!(world.get(below).await.status(), StatusCode::OK);
        assert_eq!(world.upstream.arrived().last().unwrap().target, target);
    }
}

#[tokio::test]
async fn a_body_flows_on_while_it_comes() {
    let world = World::new().await;
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let body = Body::from_stream(tokio_stream::wrappers::UnboundedReceiverStream::new(
        receiver,
    ));
    let request = world
        .request("POST", "/api/v1/namespaces")
        .body(body)
        .unwrap();
    let gateway = world.gateway.clone();
    let answered = tokio::spawn(async move {
        gateway
            .handle(request, IpAddr::V4(Ipv4Addr::LOCALHOST))
            .await
            .status()
    });
    for part in ["{\"kind\":", "\"Namespace\"", "}"] {
        sender.send(Ok::<_, std::io::Error>(part)).unwrap();
    }
    eventually(|| world.upstream.seen.open.load(Ordering::SeqCst) == 1).await;
    assert!(world.upstream.arrived().is_empty(), "the body is not over");
    drop(sender);
    assert_eq!(answered.await.unwrap(), StatusCode::OK);
    assert_eq!(
        &world.upstream.arrived()[0].body[..],
        b"{\"kind\":\"Namespace\"}"
    );
}

#[tokio::test]
async fn h2_a_job_may_act_as_anybody_within_its_own_cluster() {
    let world = World::new().await;
    let request = world
        .request("GET", "/api/v1/pods")
        .header("Impersonate-User", "jane")
        .header("Impersonate-Group", "developers");
    assert_eq!(world.send(request).await.status(), StatusCode::OK);
    let headers = world.upstream.arrived().remove(0).headers;
    assert_eq!(
        (&headers["impersonate-user"], &headers["impersonate-group"]),
        (&"jane".parse().unwrap(), &"developers".parse().unwrap())
    );
    assert_eq!(headers["authorization"], "Bearer upstream-secret");
}

#[tokio::test]
async fn a_build_may_share_what_was_made_for_it() {
    let world =
        World::with(|environment| environment.scope = super::world::EnvironmentScope::Build).await;
    let token = world.session_of(super::world::job(2), 100);
    let request = Request::get(format!("/k8s/{}/api", world.id))
        .header("authorization", format!("bearer {token}"));
    assert_eq!(world.send(request).await.status(), StatusCode::OK);
}
