//! What nobody can do without end, and what is never waited for without end.
#![allow(
    clippy::await_holding_lock,
    reason = "a disk is slow for as long as its lock is held"
)]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{Request, StatusCode};
use kubler_core::environment::EndReason;
use kubler_core::ids::{EnvironmentId, RequestId, SessionId};
use kubler_core::ledger::record::{Body as RecordBody, Kind, LedgerAction, Record};
use rstest::rstest;

use super::world::{World, at, eventually, job, next, read, records};
use crate::gateway::admission::{ADMISSIONS_MAX, Admissions};
use crate::gateway::forward::forward;
use crate::gateway::load::Demand;
use crate::gateway::{Arrival, Bounds, in_flight_max, read as understand};
use crate::ledger::Durability;
use crate::session::Session;

fn refusals(world: &World) -> Vec<Record> {
    let mut records = records(&world.ledger);
    records.retain(|record| record.body.action == LedgerAction::KubernetesRequest);
    records
}

/// How many refusals were counted instead of recorded.
fn counted(world: &World) -> u64 {
    world.clock.advance(Duration::from_secs(11));
    world.ledger.checkpoint().unwrap();
    let records = records(&world.ledger).into_iter();
    let many = records.filter(|record| record.body.action == LedgerAction::CallerRefuseMany);
    many.map(|record| record.body.details["count"].as_u64().unwrap())
        .sum()
}

fn with(token: &str, id: EnvironmentId) -> http::request::Builder {
    Request::get(format!("/k8s/{id}/api/v1/pods"))
        .header("authorization", format!("Bearer {token}"))
}

#[tokio::test]
async fn a_thousand_refused_requests_of_one_session_are_a_few_records_and_a_count() {
    let world = World::new().await;
    let (token, other) = (world.session(100_000), EnvironmentId::from_random([8; 16]));
    for nth in 0..1000 {
        if nth == 500 {
            world.clock.advance(Duration::from_secs(1));
        }
        let answer = world.send(with(&token, other)).await;
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    }
    // Another code, and another session, are told apart.
    let header = with(&token, world.id).header("impersonate_user", "x");
    assert_eq!(world.send(header).await.status(), StatusCode::FORBIDDEN);
    let another = world.session(100_000);
    world.send(with(&another, other)).await;
    let recorded = refusals(&world);
    assert_eq!(recorded.len(), 4, "{recorded:#?}");
    assert_eq!(counted(&world), 998);
}

#[rstest]
#[case::expired(9, None)]
#[case::ended(100, Some(EndReason::Released))]
#[tokio::test]
async fn a_session_that_is_over_writes_no_records(
    #[case] seconds: i64,
    #[case] end: Option<EndReason>,
) {
    let world = World::new().await;
    let token = world.session(seconds);
    if let Some(reason) = end {
        world.release(reason);
    }
    let other = EnvironmentId::from_random([8; 16]);
    for id in [other, world.id] {
        assert!(
            world
                .send(with(&token, id))
                .await
                .status()
                .is_client_error()
        );
    }
    assert!(refusals(&world).is_empty(), "{:#?}", refusals(&world));
    assert_eq!(counted(&world), 2);
}

#[tokio::test]
async fn open_watches_are_bounded_and_the_next_one_is_told() {
    let world = World::narrow().await;
    let token = world.session(100_000);
    let watch = |below: &str| {
        Request::get(format!("/k8s/{}{below}", world.id))
            .header("authorization", format!("Bearer {token}"))
    };
    let mut open = Vec::new();
    for nth in 0..4 {
        let below = if nth % 2 == 0 {
            "/api/v1/pods?watch=1"
        } else {
            "/api/v1/namespaces/a/pods/b/log?follow=true"
        };
        let answer = world.send(watch(below)).await;
        assert_eq!(answer.status(), StatusCode::OK, "the {nth}th");
        open.push(answer.into_body());
    }
    let refused = world.send(watch("/api/v1/pods?watch=1")).await;
    assert_eq!(refused.headers()["retry-after"], "1");
    let (status, object) = read(refused).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(
        (
            &object["kind"],
            &object["reason"],
            &object["details"]["retryAfterSeconds"]
        ),
        (&"Status".into(), &"TooManyRequests".into(), &1.into())
    );
    assert!(
        object["message"]
            .as_str()
            .unwrap()
            .contains("4 watches and followed logs open"),
        "{object}"
    );
    // What is short passes all the same, and an answer that is over gives its room back.
    let short = world.send(watch("/api/v1/pods")).await;
    assert_eq!(short.status(), StatusCode::OK);
    drop(open.pop());
    let mut next_one = world.send(watch("/api/v1/pods?watch=1")).await;
    assert_eq!(next_one.status(), StatusCode::OK);
    world.upstream.send("{}\n");
    assert!(next(next_one.body_mut()).await.unwrap().is_ok());
}

#[tokio::test]
async fn a_body_that_stops_coming_is_not_waited_for() {
    let world = World::narrow().await;
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let body = Body::from_stream(tokio_stream::wrappers::UnboundedReceiverStream::new(
        receiver,
    ));
    sender
        .send(Ok::<_, std::io::Error>(Bytes::from_static(b"{")))
        .unwrap();
    let request = world
        .request("POST", "/api/v1/namespaces")
        .body(body)
        .unwrap();
    let response = world.gateway.handle(request, [127, 0, 0, 1].into()).await;
    let (status, object) = read(response).await;
    assert_eq!(status, StatusCode::REQUEST_TIMEOUT);
    assert_eq!(object["details"]["causes"][0]["reason"], "BodyTimeout");
    assert_eq!(world.outcome().await.code.as_deref(), Some("BodyTimeout"));
    eventually(|| world.upstream.seen.open.load(Ordering::SeqCst) == 0).await;
    drop(sender);
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_not_waited_for() {
    let world = World::narrow().await;
    let (status, object) = read(world.get("/never").await).await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(object["details"]["causes"][0]["reason"], "UpstreamTimeout");
    assert_eq!(
        world.outcome().await.code.as_deref(),
        Some("UpstreamTimeout")
    );
    eventually(|| world.upstream.seen.open.load(Ordering::SeqCst) == 0).await;
    // Whoever goes on is not asked to hurry.
    let watch = world.get("/api/v1/pods?watch=1").await;
    let mut body = watch.into_body();
    tokio::time::sleep(Duration::from_millis(400)).await; // twice what a short answer may take
    world.upstream.send("{}\n");
    assert!(next(&mut body).await.unwrap().is_ok());
}

#[rstest]
#[tokio::test]
async fn h1_a_header_that_slipped_through_is_stopped_before_a_byte_is_sent(
    #[values(
        ("x-remote-user", "system:admin"),
        ("authorization", "Bearer another"),
        ("impersonate_user", "jane")
    )]
    header: (&'static str, &'static str),
) {
    let world = World::new().await;
    let token = world.session(100);
    let (head, ()) = with(&token, world.id).body(()).unwrap().into_parts();
    let (id, understood) = understand(&head);
    let arrival = Arrival {
        request_id: RequestId::from_random([1; 16]),
        peer: [127, 0, 0, 1].into(),
        now: world.clock_now(),
        head,
        body: Body::empty(),
        crossing: None,
    };
    let Ok((gate, mut admitted)) = world.gateway.shared.admit(&arrival, id, understood) else {
        panic!("it is admitted");
    };
    let value = HeaderValue::from_static(header.1);
    admitted
        .outgoing
        .slip(HeaderName::from_static(header.0), value);
    let start = RecordBody::new(Kind::Start, LedgerAction::KubernetesRequest);
    let entry = world
        .ledger
        .start(start, Durability::Process)
        .await
        .unwrap();
    let demand = Demand {
        is_change: false,
        is_short: true,
        bytes: 0,
    };
    let turn = gate.load().turn(demand).await.unwrap();
    let Err(refused) = forward(gate, admitted, turn, arrival.body, entry).await else {
        panic!("it was sent");
    };
    assert_eq!(
        (refused.status, refused.code),
        (StatusCode::INTERNAL_SERVER_ERROR, "BrokenSeal")
    );
    assert!(!refused.message.contains(header.1), "{}", refused.message);
    assert_eq!(world.upstream.seen.connections.load(Ordering::SeqCst), 0);
    assert_eq!(world.outcome().await.code.as_deref(), Some("BrokenSeal"));
}

#[rstest]
#[tokio::test]
async fn l4_what_changes_something_waits_for_the_disk_and_a_read_does_not(
    // A way into something behind the API server counts as a change, whatever its method.
    #[values(
        ("POST", "/api/v1/namespaces/a/configmaps"),
        ("PUT", "/api/v1/namespaces/a/configmaps/b"),
        ("PATCH", "/api/v1/namespaces/a/configmaps/b"),
        ("DELETE", "/api/v1/namespaces/a/configmaps/b"),
        ("GET", "/api/v1/namespaces/a/services/b/proxy/")
    )]
    (method, below): (&str, &str),
) {
    let world = World::new().await;
    let slow_disk = world.ledger.hold();
    let read = world.get("/api/v1/namespaces/a/configmaps/b").await;
    assert_eq!(read.status(), StatusCode::OK);
    let change = world.send(world.request(method, below));
    let answered = tokio::time::timeout(Duration::from_millis(100), change).await;
    assert!(answered.is_err(), "it did not wait for the disk");
    assert_eq!(world.upstream.arrived().len(), 1, "it was sent on");
    drop(slow_disk);
    let change = world.send(world.request(method, below)).await;
    assert_eq!(change.status(), StatusCode::OK);
    assert_eq!(world.upstream.arrived().len(), 2);
}

#[tokio::test]
async fn a_record_that_was_tampered_with_is_never_a_way_in() {
    // Before the gate was ever used, and after.
    for uses in [0, 1] {
        let world = World::new().await;
        for _ in 0..uses {
            assert_eq!(world.get("/api").await.status(), StatusCode::OK);
        }
        world.change(|environment| environment.digest = "0".repeat(64));
        let answer = world.get("/api/v1/pods").await;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND);
        assert_eq!(world.upstream.arrived().len(), uses);
    }
}

#[tokio::test]
async fn an_api_server_that_changes_the_protocol_unasked_is_refused() {
    let world = World::new().await;
    let (status, object) = read(world.get("/switched").await).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert_eq!(object["details"]["causes"][0]["reason"], "UpstreamProtocol");
    eventually(|| world.upstream.seen.open.load(Ordering::SeqCst) == 0).await;
}

#[rstest]
#[tokio::test]
async fn a_redirect_past_the_gateway_is_dropped(#[values("host", "url", "word")] to: &str) {
    let world = World::new().await;
    let response = world.get(&format!("/moved/{to}")).await;
    assert_eq!(response.status(), StatusCode::MOVED_PERMANENTLY);
    assert_eq!(response.headers().get("location"), None);
}

#[tokio::test]
async fn a_wish_to_change_the_protocol_alone_is_refused_in_words() {
    let world = World::new().await;
    let request = world
        .request("GET", "/api/v1/pods")
        .header("upgrade", "anything");
    let (status, object) = read(world.send(request).await).await;
    assert_eq!(status, StatusCode::NOT_IMPLEMENTED);
    assert_eq!(
        object["details"]["causes"][0]["reason"],
        "UpgradeNotSupported"
    );
    assert!(world.upstream.arrived().is_empty());
}

#[tokio::test]
async fn every_record_of_a_request_says_whose_it_is() {
    let world = World::new().await;
    let below = "/api/v1/pods?fieldSelector=spec.nodeName%3Da&labelSelector=app%3Dweb";
    let _ = read(world.get(below).await).await;
    let request = world.request("GET", below).header("impersonate_user", "x");
    let _ = world.send(request).await;
    let mut seen = 0;
    for record in records(&world.ledger) {
        if record.body.kind == Kind::End {
            continue;
        }
        seen += 1;
        let identity = record.body.identity.expect("an identity");
        assert_eq!(*identity, super::world::job(1));
        let request = record.body.request.unwrap();
        assert_eq!(request.field_selector.as_deref(), Some("spec.nodeName=a"));
        assert_eq!(request.label_selector.as_deref(), Some("app=web"));
    }
    assert_eq!(seen, 2);
    // What a search for the job finds.
    let query = crate::ledger::Query {
        job: Some(super::world::job(1).job.id),
        ..Default::default()
    };
    assert!(world.ledger.read(&query).unwrap().records.len() >= 2);
}

#[test]
fn the_bounds_are_these() {
    let bounds = Bounds::default();
    assert_eq!(bounds.open_max, 256);
    assert_eq!(bounds.answer_max, Duration::from_secs(75));
    assert_eq!(bounds.silence_max, Duration::from_secs(30));
    assert_eq!([1, 2, 8, 128].map(in_flight_max), [8, 16, 64, 64]);
    assert_eq!(bounds.wait_max, Duration::from_secs(5));
    assert_eq!(bounds.patience.ping_every, Duration::from_secs(20));
    assert_eq!(bounds.patience.stall_max, Duration::from_secs(300));
}

#[tokio::test]
async fn so_many_admissions_are_remembered_and_no_more() {
    let world = World::new().await;
    let environment = world.directory.get(world.id).unwrap();
    let admissions = Admissions::default();
    for nth in 0..1000_u16 {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&nth.to_be_bytes());
        let session = Arc::new(Session {
            id: SessionId::from_random(id),
            environment: world.id,
            identity: job(1),
            issued_at: at(0),
            expires_at: at(300),
        });
        let admitted = admissions.admit(&session, &environment, &world.policies);
        assert!(admitted.is_ok());
        assert!((1..=ADMISSIONS_MAX).contains(&admissions.count()));
    }
}
