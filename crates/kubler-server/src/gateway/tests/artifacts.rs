//! What a job runs is in the record that is written before its request goes on.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use kubler_core::artifact::{Artifact, BODY_BYTES_MAX, NotUnderstood};
use kubler_core::ledger::record::{Kind, Record};

use super::world::{World, read, records};
use crate::gateway::Bounds;

const PODS: &str = "/api/v1/namespaces/shop/pods";
const BODY: &str = r#"{"metadata":{"name":"web"},"spec":{"containers":[{"image":"nginx:1.27"}]}}"#;

fn starts(world: &World) -> Vec<Record> {
    let mut records = records(&world.ledger);
    records.retain(|record| record.body.kind == Kind::Start);
    records
}

fn artifact(record: &Record) -> &Artifact {
    record.body.artifact.as_ref().unwrap()
}

#[tokio::test]
async fn l4_what_a_request_brings_is_written_down_before_it_goes_on() {
    let world = World::new().await;
    let (first, second) = BODY.split_at(30);
    let pieces = vec![
        Bytes::from_static(first.as_bytes()),
        Bytes::from_static(second.as_bytes()),
    ];
    let answer = world.send_pieces(world.request("POST", PODS), pieces).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let starts = starts(&world);
    assert_eq!(artifact(&starts[0]).images, ["nginx:1.27"]);
    let arrived = world.upstream.arrived();
    assert_eq!(
        (&*arrived[0].body, arrived[0].records),
        (BODY.as_bytes(), 1)
    );
    assert_eq!(
        arrived[0].headers["content-length"],
        BODY.len().to_string().as_str()
    );
}

#[tokio::test]
async fn a_body_that_is_not_understood_goes_on_and_the_record_says_so() {
    let world = World::new().await;
    let request = world
        .request("POST", PODS)
        .header("content-type", "application/cbor");
    assert_eq!(
        world.send_with(request, "\u{7f}").await.status(),
        StatusCode::OK
    );
    let starts = starts(&world);
    assert_eq!(
        artifact(&starts[0]).not_understood,
        Some(NotUnderstood::MediaType)
    );
    assert_eq!(&*world.upstream.arrived()[0].body, b"\x7f");
}

#[tokio::test]
async fn a_body_that_is_longer_than_any_that_is_read_goes_on_as_it_comes() {
    let world = World::bounded(Bounds::default(), |profile| {
        profile.request_bytes_max = 64 << 20;
    })
    .await;
    let piece = Bytes::from(vec![b' '; 1 << 20]);
    let request = world.request("POST", PODS);
    let answer = world.send_pieces(request, vec![piece; 5]).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let starts = starts(&world);
    let artifact = artifact(&starts[0]);
    assert_eq!(artifact.not_understood, Some(NotUnderstood::TooLong));
    assert_eq!(artifact.sha256, None);
    const { assert!(BODY_BYTES_MAX < 5 << 20) };
    assert_eq!(world.upstream.arrived()[0].body.len(), 5 << 20);
}

#[tokio::test]
async fn of_a_secret_and_of_what_runs_nothing_there_is_no_artifact() {
    let world = World::new().await;
    for target in [
        "/api/v1/namespaces/a/secrets",
        "/api/v1/namespaces/a/configmaps",
    ] {
        let answer = world.send_with(world.request("POST", target), BODY).await;
        assert_eq!(answer.status(), StatusCode::OK);
    }
    assert!(
        starts(&world)
            .iter()
            .all(|start| start.body.artifact.is_none())
    );
}

#[tokio::test]
async fn a_body_that_does_not_come_whole_is_never_sent_on() {
    let world = World::narrow().await;
    let long = vec![Bytes::from_static(&[b'x'; 600]); 2];
    let (status, _) = read(world.send_pieces(world.request("POST", PODS), long).await).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    let silent =
        axum::body::Body::from_stream(tokio_stream::pending::<Result<Bytes, std::io::Error>>());
    let request = world.request("POST", PODS).body(silent).unwrap();
    let peer = std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    let answer = tokio::time::timeout(Duration::from_secs(60), world.gateway.handle(request, peer));
    assert_eq!(answer.await.unwrap().status(), StatusCode::REQUEST_TIMEOUT);
    let broken = tokio_stream::iter([
        Ok(Bytes::from_static(b"{")),
        Err(std::io::Error::other("gone")),
    ]);
    let request = world
        .request("POST", PODS)
        .body(axum::body::Body::from_stream(broken))
        .unwrap();
    assert_eq!(
        world.gateway.handle(request, peer).await.status(),
        StatusCode::BAD_REQUEST
    );
    assert!(world.upstream.arrived().is_empty());
    assert!(starts(&world).is_empty());
}

#[tokio::test]
async fn a_session_that_ends_while_its_body_comes_starts_nothing() {
    let world = World::new().await;
    let token = world.session(20);
    let request = http::Request::post(format!("/k8s/{}{PODS}", world.id))
        .header("authorization", format!("Bearer {token}"));
    let clock = std::sync::Arc::clone(&world.clock);
    let late = slow_body(clock);
    let peer = std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    let answer = world
        .gateway
        .handle(request.body(late).unwrap(), peer)
        .await;
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert!(world.upstream.arrived().is_empty());
}

/// A body before whose end a minute goes by.
fn slow_body(clock: std::sync::Arc<crate::clock::ManualClock>) -> axum::body::Body {
    let last = move |nth| {
        if nth == 1 {
            clock.advance(Duration::from_secs(60));
        }
        Ok::<_, std::convert::Infallible>(Bytes::from_static(b"{}"))
    };
    axum::body::Body::from_stream(tokio_stream::iter((0..2).map(last)))
}

#[tokio::test]
async fn bodies_that_are_held_back_take_so_much_memory_and_the_next_one_is_told_to_come_back() {
    let bounds = Bounds {
        wait_max: Duration::from_millis(50),
        ..Bounds::default()
    };
    let world = World::bounded(bounds, |profile| profile.request_bytes_max = 64 << 20).await;
    let peer = std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    let mut held = Vec::new();
    // Of unknown length, each may become as long as any that is read, and two of those are all that is kept.
    for _ in 0..2 {
        let (reached, is_reached) = tokio::sync::oneshot::channel();
        let mut reached = Some(reached);
        let never = std::iter::once(()).map(move |()| {
            let _ = reached.take().map(|reached| reached.send(()));
            Ok::<_, std::io::Error>(Bytes::from_static(b"{"))
        });
        let never =
            tokio_stream::StreamExt::chain(tokio_stream::iter(never), tokio_stream::pending());
        let request = world
            .request("POST", PODS)
            .body(axum::body::Body::from_stream(never))
            .unwrap();
        let gateway = world.gateway.clone();
        held.push(tokio::spawn(
            async move { gateway.handle(request, peer).await },
        ));
        tokio::time::timeout(Duration::from_secs(60), is_reached)
            .await
            .unwrap()
            .unwrap();
    }
    let (status, object) = read(world.send_with(world.request("POST", PODS), BODY).await).await;
    assert_eq!(
        (status, &object["details"]["causes"][0]["reason"]),
        (StatusCode::TOO_MANY_REQUESTS, &"TooManyBodies".into())
    );
    assert_eq!(world.get(PODS).await.status(), StatusCode::OK);
    let other = "/api/v1/namespaces/a/configmaps";
    assert_eq!(
        world
            .send_with(world.request("POST", other), BODY)
            .await
            .status(),
        StatusCode::OK
    );
    for held in held {
        held.abort();
        let _ = held.await;
    }
    assert_eq!(
        world
            .send_with(world.request("POST", PODS), BODY)
            .await
            .status(),
        StatusCode::OK
    );
}
