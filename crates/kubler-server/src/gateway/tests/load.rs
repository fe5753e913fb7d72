//! How much one environment may ask for: who asks for more waits or is told to come back, and nobody else notices.

use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use kubler_core::environment::EndReason;
use kubler_core::ledger::record::LedgerAction;

use super::world::{World, eventually, read, records};
use crate::gateway::load::{LoadBounds, Rate};

/// So little that waiting for more is of no use.
const LITTLE: Rate = Rate {
    per_second: 1,
    burst: 8,
};
/// Nobody waits.
const AT_ONCE: Duration = Duration::ZERO;
/// Longer than any test.
const PATIENT: Duration = Duration::from_secs(600);
const MAPS: &str = "/api/v1/namespaces/a/configmaps";

/// The answer says what a client library needs to try again, and people to understand.
async fn is_told_to_come_back(answer: http::Response<axum::body::Body>, code: &str) {
    let seconds = answer.headers()["retry-after"].to_str().unwrap().to_owned();
    assert!(
        (1..=10).contains(&seconds.parse::<u32>().unwrap()),
        "{seconds}"
    );
    let (status, object) = read(answer).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{object}");
    assert_eq!(object["kind"], "Status");
    assert_eq!(object["reason"], "TooManyRequests");
    assert_eq!(object["details"]["causes"][0]["reason"], code);
    assert!(object["details"]["retryAfterSeconds"].is_u64(), "{object}");
}

#[tokio::test]
async fn an_api_server_works_on_so_many_requests_at_once_and_no_more() {
    let world = World::with_load(LoadBounds {
        in_flight_max: 4,
        wait_max: Duration::from_millis(100),
        ..LoadBounds::default()
    })
    .await;
    let token = world.session(100_000);
    let get = |below: &str| {
        let path = format!("/k8s/{}{below}", world.id);
        http::Request::get(path).header("authorization", format!("Bearer {token}"))
    };
    let stuck: Vec<_> = (0..4)
        .map(|_| {
            let (gateway, request) = (world.gateway.clone(), get("/never"));
            let request = request.body(axum::body::Body::empty()).unwrap();
            tokio::spawn(async move { gateway.handle(request, [127, 0, 0, 1].into()).await })
        })
        .collect();
    eventually(|| world.upstream.arrived().len() == 4).await;
    is_told_to_come_back(world.send(get("/api/v1/pods")).await, "TooManyInFlight").await;
    assert_eq!(world.upstream.arrived().len(), 4, "it was sent on");
    // A watch has a bound of its own.
    let watch = world.send(get("/api/v1/pods?watch=1")).await;
    assert_eq!(watch.status(), StatusCode::OK);
    // Whoever gives up makes room.
    stuck[0].abort();
    let next = world.send(get("/api/v1/pods"));
    assert_eq!(next.await.status(), StatusCode::OK);
    stuck.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn more_changes_than_there_may_be_are_refused_and_reads_go_on() {
    let world = World::with_load(LoadBounds {
        changes: LITTLE,
        wait_max: AT_ONCE,
        ..LoadBounds::default()
    })
    .await;
    let change = || world.send_with(world.request("POST", MAPS), "{}");
    let mut taken = 0;
    let refused = loop {
        let answer = change().await;
        if answer.status() != StatusCode::OK {
            break answer;
        }
        taken += 1;
        assert!(taken < 1000, "nothing is refused");
    };
    is_told_to_come_back(refused, "TooManyChanges").await;
    assert!(taken >= 8, "only {taken} at once");
    assert_eq!(world.upstream.arrived().len(), taken, "it was sent on");
    assert_eq!(world.get("/api/v1/pods").await.status(), StatusCode::OK);
    let recorded = records(&world.ledger).into_iter().any(|record| {
        record.body.action == LedgerAction::KubernetesRequest
            && record
                .body
                .outcome
                .is_some_and(|outcome| outcome.code.as_deref() == Some("TooManyChanges"))
    });
    assert!(recorded, "nobody wrote it down");
}

#[rstest::rstest]
#[tokio::test]
async fn more_bytes_than_there_may_be_are_refused_whichever_way_they_go(
    #[values("sent", "got")] way: &str,
) {
    let world = World::with_load(LoadBounds {
        bytes: Rate {
            per_second: 1,
            burst: 3000,
        },
        wait_max: AT_ONCE,
        ..LoadBounds::default()
    })
    .await;
    let body: &'static str = Box::leak("x".repeat(900).into_boxed_str());
    let mut taken = 0;
    let refused = loop {
        let answer = match way {
            "sent" => world.send_with(world.request("POST", MAPS), body).await,
            _ => world.get(MAPS).await,
        };
        if answer.status() != StatusCode::OK {
            break answer;
        }
        let _ = read(answer).await;
        taken += 1;
        assert!(taken < 3000, "nothing is refused");
    };
    is_told_to_come_back(refused, "TooManyBytes").await;
    assert!(taken >= 3, "only {taken}");
}

#[tokio::test]
async fn a_burst_that_is_too_large_waits_for_its_turn_and_loses_nothing() {
    let world = World::with_load(LoadBounds {
        in_flight_max: 2,
        changes: Rate {
            per_second: 100,
            burst: 5,
        },
        wait_max: PATIENT,
        ..LoadBounds::default()
    })
    .await;
    let changes = (0..40).map(|_| async {
        let answer = world.send_with(world.request("POST", MAPS), "{}").await;
        read(answer).await.0
    });
    let answered = join_all(changes).await;
    assert_eq!(answered, vec![StatusCode::OK; 40]);
}

#[tokio::test]
async fn whoever_waits_is_looked_at_again_when_their_turn_comes() {
    let world = World::with_load(LoadBounds {
        changes: Rate {
            per_second: 2,
            burst: 0,
        },
        wait_max: PATIENT,
        ..LoadBounds::default()
    })
    .await;
    let short = world.session(11);
    let change = |token: &str| {
        let path = format!("/k8s/{}{MAPS}", world.id);
        let request = http::Request::post(path).header("authorization", format!("Bearer {token}"));
        let (gateway, request) = (
            world.gateway.clone(),
            request.body(axum::body::Body::empty()).unwrap(),
        );
        tokio::spawn(async move { gateway.handle(request, [127, 0, 0, 1].into()).await })
    };
    let long = world.session(100_000);
    let first = change(&long).await.unwrap();
    assert_eq!(first.status(), StatusCode::OK);
    // A session that ends in the queue.
    let waiting = change(&short);
    tokio::task::yield_now().await;
    world.clock.advance(Duration::from_secs(5));
    let (status, object) = read(waiting.await.unwrap()).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "{object}");
    assert_eq!(object["details"]["causes"][0]["reason"], "SessionExpired");
    // An environment that ends while somebody waits, who is told at once.
    for _ in 0..50 {
        drop(change(&long));
    }
    let waiting = change(&long);
    tokio::task::yield_now().await;
    let sent_before = world.upstream.arrived().len();
    world.release(EndReason::Released);
    let (status, object) = read(waiting.await.unwrap()).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{object}");
    assert_eq!(object["details"]["causes"][0]["reason"], "EnvironmentEnded");
    assert!(world.upstream.arrived().len() <= sent_before + 1);
}
