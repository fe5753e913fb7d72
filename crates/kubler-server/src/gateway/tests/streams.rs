//! Answers that go on, and what ends them.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use http::{Request, StatusCode};
use kubler_core::environment::EndReason;
use kubler_core::profile::StreamEnd;
use rstest::rstest;
use tokio::time::Instant;

use super::world::{EnvironmentScope, World, at, eventually, next};

const WATCH: &str = "/api/v1/pods?watch=1";
const EVENT: &str = "{\"type\":\"ADDED\"}\n";

/// An open watch that has sent one event.
async fn watch(world: &World) -> Body {
    opened(world, world.get(WATCH).await).await
}

async fn opened(world: &World, response: http::Response<Body>) -> Body {
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    world.upstream.send(EVENT);
    assert_eq!(next(&mut body).await.unwrap().unwrap(), EVENT);
    body
}

/// Reads the last event of a watch that was ended by us: its Status.
async fn last(body: &mut Body) -> serde_json::Value {
    let line = next(body).await.unwrap().unwrap();
    assert!(line.ends_with('\n'));
    let event: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(event["type"], "ERROR");
    assert!(next(body).await.is_none());
    event["object"].clone()
}

async fn upstream_is_closed(world: &World) {
    eventually(|| world.upstream.seen.open.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn e7_events_pass_one_by_one_as_they_come() {
    let world = World::new().await;
    let mut body = watch(&world).await;
    for _ in 0..3 {
        world.upstream.send(EVENT);
        assert_eq!(next(&mut body).await.unwrap().unwrap(), EVENT);
    }
    world.upstream.end_watches();
    assert!(next(&mut body).await.is_none());
    let outcome = world.outcome().await;
    assert_eq!(
        (outcome.close_reason.as_deref(), outcome.bytes_out),
        (Some("upstream"), 4 * EVENT.len() as u64)
    );
}

#[tokio::test]
async fn e2_a_released_environment_ends_its_watches_at_once_and_says_why() {
    let world = World::new().await;
    let (mut one, mut other) = (
        watch(&world).await,
        opened(&world, world.get(WATCH).await).await,
    );
    let _ = next(&mut one).await;
    let released = Instant::now();
    world.release(EndReason::Released);
    for body in [&mut one, &mut other] {
        let status = last(body).await;
        assert_eq!(
            (&status["code"], &status["reason"]),
            (&404.into(), &"NotFound".into())
        );
        assert!(
            status["message"]
                .as_str()
                .unwrap()
                .contains("its job released it")
        );
    }
    assert!(
        released.elapsed() < Duration::from_secs(1),
        "{:?}",
        released.elapsed()
    );
    assert_eq!(
        world.outcome().await.close_reason.as_deref(),
        Some("released")
    );
    upstream_is_closed(&world).await;
}

#[rstest]
#[case(290, "lease_end")]
#[case(7190, "deadline")]
#[tokio::test]
async fn e1_a_watch_ends_with_lease_and_deadline(#[case] seconds: u64, #[case] close_reason: &str) {
    let world = World::new().await;
    let mut body = watch(&world).await;
    world.clock.advance(Duration::from_secs(seconds));
    let passed = Instant::now();
    assert_eq!(last(&mut body).await["code"], 404);
    assert!(
        passed.elapsed() < Duration::from_secs(1),
        "{:?}",
        passed.elapsed()
    );
    assert_eq!(
        world.outcome().await.close_reason.as_deref(),
        Some(close_reason)
    );
}

#[tokio::test]
async fn e1_a_renewal_carries_an_open_watch_and_its_session_does_not_end_it() {
    let world = World::new().await;
    let token = world.session(20);
    let request = Request::get(format!("/k8s/{}{WATCH}", world.id))
        .header("authorization", format!("Bearer {token}"));
    let mut body = opened(&world, world.send(request).await).await;
    world.change(|environment| environment.lease_end = at(900));
    world.clock.advance(Duration::from_secs(600));
    // Longer than the gate sleeps, so that it has looked at the clock.
    tokio::time::sleep(Duration::from_millis(600)).await;
    world.upstream.send(EVENT);
    assert_eq!(next(&mut body).await.unwrap().unwrap(), EVENT);
}

#[tokio::test]
async fn e1_downtime_carries_an_open_watch() {
    let world = World::new().await;
    let mut body = watch(&world).await;
    world.directory.resumed(at(200));
    world.clock.advance(Duration::from_secs(400));
    tokio::time::sleep(Duration::from_millis(600)).await;
    world.upstream.send(EVENT);
    assert_eq!(next(&mut body).await.unwrap().unwrap(), EVENT);
}

#[tokio::test]
async fn e1_in_the_strict_form_a_watch_ends_with_its_session() {
    let world = World::with(|environment| {
        environment.resolved.profile.streams_end_with = StreamEnd::Session
    })
    .await;
    ends_with_its_session(&world).await;
}

#[tokio::test]
async fn e1_c8_a_watch_into_an_environment_of_a_build_ends_with_its_session() {
    let world = World::with(|environment| environment.scope = EnvironmentScope::Build).await;
    // Another job of the build keeps it alive.
    world.change(|environment| environment.lease_end = at(900));
    ends_with_its_session(&world).await;
}

async fn ends_with_its_session(world: &World) {
    let token = world.session(20);
    let request = Request::get(format!("/k8s/{}{WATCH}", world.id))
        .header("authorization", format!("Bearer {token}"));
    let mut body = opened(world, world.send(request).await).await;
    world.clock.advance(Duration::from_secs(11));
    let status = last(&mut body).await;
    assert_eq!(
        (&status["code"], &status["details"]["causes"][0]["reason"]),
        (&401.into(), &"SessionExpired".into())
    );
    assert_eq!(
        world.outcome().await.close_reason.as_deref(),
        Some("session_expired")
    );
}

#[tokio::test]
async fn e1_a_policy_that_denies_ends_a_watch() {
    let world = World::new().await;
    let mut body = watch(&world).await;
    std::fs::remove_file(world.folder.path().join("policies/acme.cedar")).unwrap();
    let changed = Instant::now();
    world.read_policies_anew();
    assert_eq!(last(&mut body).await["code"], 403);
    assert!(
        changed.elapsed() < Duration::from_secs(1),
        "{:?}",
        changed.elapsed()
    );
    assert_eq!(
        world.outcome().await.close_reason.as_deref(),
        Some("policy")
    );
}

#[tokio::test]
async fn e1_a_policy_that_still_allows_leaves_a_watch_alone() {
    let world = World::new().await;
    let mut body = watch(&world).await;
    let path = world.folder.path().join("policies/acme.cedar");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{text}\n// changed\n")).unwrap();
    world.read_policies_anew();
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.upstream.send(EVENT);
    assert_eq!(next(&mut body).await.unwrap().unwrap(), EVENT);
}

#[tokio::test]
async fn a_server_that_stops_tells_its_watches_to_come_back() {
    let world = World::new().await;
    let mut body = watch(&world).await;
    world.shutdown.cancel();
    assert_eq!(last(&mut body).await["code"], 503);
    assert_eq!(
        world.outcome().await.close_reason.as_deref(),
        Some("shutdown")
    );
}

#[tokio::test]
async fn e1_half_an_event_is_never_followed_by_another() {
    let world = World::new().await;
    let mut body = watch(&world).await;
    world.upstream.send("{\"type\":\"MOD");
    assert_eq!(next(&mut body).await.unwrap().unwrap(), "{\"type\":\"MOD");
    world.release(EndReason::Released);
    assert!(
        next(&mut body).await.unwrap().is_err(),
        "the connection is broken off"
    );
}

#[tokio::test]
async fn e1_a_followed_log_just_ends() {
    let world = World::new().await;
    let mut body = opened(
        &world,
        world
            .get("/api/v1/namespaces/a/pods/b/log?follow=true")
            .await,
    )
    .await;
    world.release(EndReason::Released);
    assert!(next(&mut body).await.is_none());
    assert_eq!(
        world.outcome().await.close_reason.as_deref(),
        Some("released")
    );
}

#[tokio::test]
async fn e1_half_a_list_is_never_taken_for_a_list() {
    let world = World::new().await;
    let mut body = world.get("/endless").await.into_body();
    assert!(next(&mut body).await.unwrap().is_ok());
    world.release(EndReason::Released);
    eventually_broken(&mut body).await;
    upstream_is_closed(&world).await;
}

async fn eventually_broken(body: &mut Body) {
    for _ in 0..10_000 {
        match next(body).await {
            Some(Ok(_)) => tokio::task::yield_now().await,
            Some(Err(_)) => return,
            None => panic!("it looks complete"),
        }
    }
    panic!("it went on");
}

#[tokio::test]
async fn e2_whoever_reads_nothing_is_cut_off_all_the_same() {
    let world = World::new().await;
    let body = world.get(WATCH).await.into_body();
    world.upstream.send(EVENT);
    world.release(EndReason::AgentLost);
    upstream_is_closed(&world).await;
    assert_eq!(
        world.outcome().await.close_reason.as_deref(),
        Some("agent_lost")
    );
    drop(body);
}

#[tokio::test]
async fn e2_a_request_that_waits_for_its_answer_ends_too() {
    let world = World::new().await;
    let request = world.request("GET", "/never").body(Body::empty()).unwrap();
    let gateway = world.gateway.clone();
    let waiting = tokio::spawn(async move {
        gateway
            .handle(request, [127, 0, 0, 1].into())
            .await
            .status()
    });
    eventually(|| world.upstream.arrived().len() == 1).await;
    world.release(EndReason::Released);
    assert_eq!(waiting.await.unwrap(), StatusCode::NOT_FOUND);
    assert_eq!(
        world.outcome().await.close_reason.as_deref(),
        Some("released")
    );
    upstream_is_closed(&world).await;
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_connection_with_it() {
    let world = World::new().await;
    let body = watch(&world).await;
    drop(body);
    assert_eq!(
        world.outcome().await.close_reason.as_deref(),
        Some("client")
    );
    upstream_is_closed(&world).await;
}

#[tokio::test]
async fn a_slow_reader_slows_the_api_server_and_fills_nothing() {
    let world = World::new().await;
    let mut body = world.get("/endless").await.into_body();
    assert!(next(&mut body).await.unwrap().is_ok());
    // Nobody reads now; what was read meanwhile can only be what fits into the socket and one buffer.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut at_once = 0;
    while let Ok(Some(Ok(bytes))) =
        tokio::time::timeout(Duration::ZERO, http_body_util::BodyExt::frame(&mut body)).await
    {
        at_once += bytes.into_data().unwrap().len();
        if at_once > 1024 * 1024 {
            break;
        }
    }
    drop(body);
    let outcome = world.outcome().await;
    assert!(outcome.bytes_out < 4 * 1024 * 1024, "{outcome:?}");
}

#[tokio::test]
async fn e8_sixty_watches_of_one_session_live_side_by_side() {
    let world = World::new().await;
    let token = world.session(100_000);
    let mut bodies = Vec::new();
    for _ in 0..60 {
        let request = Request::get(format!("/k8s/{}{WATCH}", world.id))
            .header("authorization", format!("Bearer {token}"));
        bodies.push(world.send(request).await.into_body());
    }
    world.upstream.send(EVENT);
    for body in &mut bodies {
        assert_eq!(next(body).await.unwrap().unwrap(), EVENT);
    }
    world.release(EndReason::Released);
    for body in &mut bodies {
        assert_eq!(last(body).await["code"], 404);
    }
}
