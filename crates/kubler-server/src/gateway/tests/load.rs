//! How much one environment may ask for: who asks for more waits or is told to come back, and nobody else notices.

use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use kubler_core::environment::EndReason;
use kubler_core::ledger::record::LedgerAction;

use super::world::{World, eventually, read, records};
use crate::gateway::Bounds;

/// Longer than any test.
const PATIENT: Duration = Duration::from_secs(600);
const MAPS: &str = "/api/v1/namespaces/a/configmaps";

fn nobody_waits() -> Bounds {
    Bounds {
        wait_max: Duration::ZERO,
        ..Bounds::default()
    }
}

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
    let bounds = Bounds {
        in_flight_max: 4,
        wait_max: Duration::from_millis(100),
        ..Bounds::default()
    };
    let world = World::bounded(bounds, |_| {}).await;
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
    let world = World::bounded(nobody_waits(), |profile| profile.changes_per_second_max = 1).await;
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
    let world = World::bounded(nobody_waits(), |profile| profile.bytes_per_second_max = 1).await;
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
        assert!(taken < 100, "nothing is refused");
    };
    is_told_to_come_back(refused, "TooManyBytes").await;
    assert!(taken >= 1, "nothing passes");
}

#[tokio::test]
async fn a_burst_that_is_too_large_waits_for_its_turn_and_loses_nothing() {
    let bounds = Bounds {
        in_flight_max: 2,
        wait_max: PATIENT,
        ..Bounds::default()
    };
    let world = World::bounded(bounds, |profile| profile.changes_per_second_max = 10).await;
    let changes = (0..120).map(|_| async {
        let answer = world.send_with(world.request("POST", MAPS), "{}").await;
        read(answer).await.0
    });
    let answered = join_all(changes).await;
    assert_eq!(answered, vec![StatusCode::OK; 120]);
}

#[tokio::test]
async fn whoever_waits_is_looked_at_again_when_their_turn_comes() {
    let bounds = Bounds {
        wait_max: PATIENT,
        ..Bounds::default()
    };
    let world = World::bounded(bounds, |profile| profile.changes_per_second_max = 1).await;
    let change = |token: &str| {
        let path = format!("/k8s/{}{MAPS}", world.id);
        let request = http::Request::post(path).header("authorization", format!("Bearer {token}"));
        let gateway = world.gateway.clone();
        let request = request.body(axum::body::Body::empty()).unwrap();
        tokio::spawn(async move { gateway.handle(request, [127, 0, 0, 1].into()).await })
    };
    let (long, short) = (world.session(100_000), world.session(11));
    let first = change(&long).await.unwrap();
    assert_eq!(first.status(), StatusCode::OK);
    let owed = || {
        let gates = world.gateway.shared.gates.read().unwrap();
        gates[&world.id].load().owed()
    };
    let mut waiting = Vec::new();
    let mut fill = async |until: Duration| {
        while owed() < until {
            waiting.push(change(&long));
            tokio::task::yield_now().await;
        }
    };
    // A session that ends while it waits.
    fill(Duration::from_secs(2)).await;
    let late = change(&short);
    tokio::task::yield_now().await;
    world.clock.advance(Duration::from_secs(5));
    let (status, object) = read(late.await.unwrap()).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "{object}");
    assert_eq!(object["details"]["causes"][0]["reason"], "SessionExpired");
    // An environment that ends while somebody waits, who is told at once.
    fill(Duration::from_secs(300)).await;
    let late = change(&long);
    tokio::task::yield_now().await;
    let sent = world.upstream.arrived().len();
    world.release(EndReason::Released);
    let (status, object) = read(late.await.unwrap()).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{object}");
    assert_eq!(object["details"]["causes"][0]["reason"], "EnvironmentEnded");
    for waiting in waiting {
        let _ = waiting.await.unwrap();
    }
    assert!(
        world.upstream.arrived().len() <= sent + 1,
        "somebody went on"
    );
}
