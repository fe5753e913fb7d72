//! What does not pass, and what the caller is told.

use std::sync::atomic::Ordering;

use axum::body::Body;
use http::{Request, Response, StatusCode};
use kubler_core::environment::EndReason;
use kubler_core::ids::EnvironmentId;
use kubler_core::ledger::record::Kind;
use rstest::rstest;

use super::world::{EnvironmentPhase, World, at, job, read, records};

/// Status, Status code, reason, first cause and message of a refusal.
async fn refusal(response: Response<Body>) -> (u16, String, String, String) {
    assert_eq!(response.headers()["content-type"], "application/json");
    let request_id = response.headers()["audit-id"].to_str().unwrap().to_owned();
    let (status, object) = read(response).await;
    assert_eq!(
        (&object["kind"], &object["apiVersion"], &object["status"]),
        (&"Status".into(), &"v1".into(), &"Failure".into())
    );
    assert_eq!(object["code"], status.as_u16());
    assert_eq!(
        object["details"]["causes"][1]["message"],
        request_id.as_str()
    );
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let cause = text(&object["details"]["causes"][0]["reason"]);
    (
        status.as_u16(),
        text(&object["reason"]),
        cause,
        text(&object["message"]),
    )
}

fn nothing_arrived(world: &World) {
    assert!(world.upstream.arrived().is_empty());
    assert_eq!(world.upstream.seen.connections.load(Ordering::SeqCst), 0);
}

#[rstest]
#[case(&[])]
#[case(&["Bearer"])]
#[case(&["Bearer "])]
#[case(&["Bearer nonsense"])]
#[case(&["Basic YTpi"])]
#[case(&["Bearer a", "Bearer b"])]
#[tokio::test]
async fn e3_without_a_session_nobody_passes(#[case] authorization: &[&str]) {
    let world = World::new().await;
    let mut request = Request::get(format!("/k8s/{}/api/v1/pods", world.id));
    for value in authorization {
        request = request.header("authorization", *value);
    }
    let response = world.send(request).await;
    assert_eq!(
        response.headers()["www-authenticate"],
        "Bearer error=\"invalid_token\""
    );
    let (status, reason, ..) = refusal(response).await;
    assert_eq!((status, reason.as_str()), (401, "Unauthorized"));
    nothing_arrived(&world);
}

#[tokio::test]
async fn e3_two_sessions_are_no_session() {
    let world = World::new().await;
    let (one, other) = (world.session(100), world.session(100));
    let request = Request::get(format!("/k8s/{}/api", world.id))
        .header("authorization", format!("Bearer {one}"))
        .header("authorization", format!("Bearer {other}"));
    assert_eq!(world.send(request).await.status(), StatusCode::UNAUTHORIZED);
}

fn with(world: &World, token: &str, below: &str) -> http::request::Builder {
    Request::get(format!("/k8s/{}{below}", world.id))
        .header("authorization", format!("Bearer {token}"))
}

#[tokio::test]
async fn e3_an_expired_session_is_401_and_says_so() {
    let world = World::new().await;
    let token = world.session(9);
    let response = world.send(with(&world, &token, "/api/v1/pods")).await;
    assert_eq!(
        response.headers()["www-authenticate"],
        "Bearer error=\"invalid_token\""
    );
    let (status, reason, cause, _) = refusal(response).await;
    assert_eq!(
        (status, reason.as_str(), cause.as_str()),
        (401, "Unauthorized", "SessionExpired")
    );
    nothing_arrived(&world);
}

#[tokio::test]
async fn e3_a_dead_environment_is_404_with_its_story_also_for_an_expired_session() {
    let world = World::new().await;
    world.release(EndReason::JobFinished);
    for seconds in [9, 100] {
        let token = world.session(seconds);
        let (status, reason, cause, message) =
            refusal(world.send(with(&world, &token, "/api/v1/pods")).await).await;
        assert_eq!(
            (status, reason.as_str(), cause.as_str()),
            (404, "NotFound", "EnvironmentEnded")
        );
        assert_eq!(
            message,
            format!(
                "environment {} ended at 2027-01-15T08:00:10Z: its job finished (run https://buildkite.com/acme/web/builds/5#job-1); \
                 a new job gets a new environment",
                world.id
            )
        );
    }
    nothing_arrived(&world);
}

#[tokio::test]
async fn e3_a_bad_session_is_401_also_for_a_dead_environment() {
    let world = World::new().await;
    world.release(EndReason::Released);
    assert_eq!(
        world.send(with(&world, "nonsense", "/api")).await.status(),
        StatusCode::UNAUTHORIZED
    );
}

#[rstest]
#[case(299, 200, "")]
#[case(300, 404, "its job gave no sign of life for one lease")]
#[case(7200, 404, "its deadline was reached")]
#[tokio::test]
async fn e3_a_lapse_counts_before_anybody_wrote_it_down(
    #[case] now: i64,
    #[case] expected: u16,
    #[case] why: &str,
) {
    let world = World::new().await;
    world.clock.advance(std::time::Duration::from_secs(
        u64::try_from(now - 10).unwrap(),
    ));
    let (status, object) = read(world.get("/api/v1/pods").await).await;
    assert_eq!(status.as_u16(), expected);
    assert!(object.to_string().contains(why), "{object}");
}

#[tokio::test]
async fn e3_a_forgotten_environment_is_404() {
    let world = World::new().await;
    let token = world.session(100);
    world.directory.remove(world.id);
    assert_eq!(
        refusal(world.send(with(&world, &token, "/api")).await)
            .await
            .0,
        404
    );
}

#[tokio::test]
async fn e3_what_is_not_ready_yet_is_asked_again() {
    let world = World::with(|environment| {
        environment.phase = EnvironmentPhase::Provisioning;
        environment.ready_at = None;
    })
    .await;
    let response = world.get("/api/v1/pods").await;
    assert_eq!(response.headers()["retry-after"], "1");
    assert_eq!(refusal(response).await.0, 503);
}

#[tokio::test]
async fn what_discovery_hides_is_told_as_a_warning() {
    let world = World::new().await;
    world.release(EndReason::Failed {
        message: "the \"disk\" is full\u{e9}".into(),
    });
    for (below, warns) in [
        ("/api", true),
        ("/apis/apps/v1", true),
        ("/api/v1/pods", false),
    ] {
        let response = world.get(below).await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        let warning = response
            .headers()
            .get("warning")
            .map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(warning.is_some(), warns, "{below}");
        if let Some(warning) = warning {
            assert!(
                warning.starts_with("299 - \"environment env_")
                    && warning.contains("the ?disk? is full?"),
                "{warning}"
            );
        }
    }
}

#[tokio::test]
async fn h6_the_path_must_name_the_sessions_environment() {
    let world = World::new().await;
    let other = EnvironmentId::from_random([8; 16]);
    let token = world.session(100);
    let shouted = world.id.to_string().to_uppercase();
    for path in [
        format!("/k8s/{other}/api"),
        "/k8s/nonsense/api".into(),
        "/k8s/".into(),
        format!("/k8s/{shouted}/api"),
    ] {
        let request = Request::get(&path).header("authorization", format!("Bearer {token}"));
        let (status, _, cause, _) = refusal(world.send(request).await).await;
        assert_eq!(
            (status, cause.as_str()),
            (403, "WrongEnvironment"),
            "{path}"
        );
    }
    nothing_arrived(&world);
}

#[tokio::test]
async fn c8_another_job_does_not_pass_although_it_has_a_session() {
    let world = World::new().await;
    let token = world.session_of(job(2), 100);
    let (status, _, cause, _) = refusal(world.send(with(&world, &token, "/api")).await).await;
    assert_eq!((status, cause.as_str()), (403, "NotYours"));
    nothing_arrived(&world);
    let record = records(&world.ledger).remove(0);
    assert_eq!(
        (record.body.kind, record.body.outcome.unwrap().status),
        (Kind::Event, 403)
    );
}

#[tokio::test]
async fn policy_is_asked_and_its_reason_told() {
    let world = World::new().await;
    assert_eq!(world.get("/api").await.status(), StatusCode::OK);
    std::fs::remove_file(world.folder.path().join("policies/acme.cedar")).unwrap();
    world.read_policies_anew();
    let (status, _, cause, _) = refusal(world.get("/api/v1/pods").await).await;
    assert_eq!((status, cause.as_str()), (403, "Denied"));
    assert!(
        records(&world.ledger)
            .last()
            .unwrap()
            .body
            .decision
            .is_some()
    );
}

#[rstest]
#[tokio::test]
async fn h2_unclear_impersonation_is_403_and_recorded(
    #[values(
        ("impersonate_user", "jane"),
        ("impersonate-group", "a,system:masters"),
        ("impersonate-everybody", "1"),
        ("connection", "close, Impersonate-User")
    )]
    header: (&'static str, &'static str),
) {
    let world = World::new().await;
    let (status, _, cause, _) = refusal(
        world
            .send(world.request("GET", "/api").header(header.0, header.1))
            .await,
    )
    .await;
    assert_eq!((status, cause.as_str()), (403, "HeaderRefused"));
    assert_eq!(
        records(&world.ledger)
            .remove(0)
            .body
            .outcome
            .unwrap()
            .status,
        403
    );
    nothing_arrived(&world);
}

#[rstest]
#[tokio::test]
async fn h7_a_path_with_two_readings_does_not_pass(
    #[values(
        "/api//v1",
        "/api/../v1",
        "/api/%2e%2e/v1",
        "/api%2fv1",
        "/a;b",
        "//",
        "/%00"
    )]
    below: &str,
) {
    let world = World::new().await;
    assert_eq!(refusal(world.get(below).await).await.0, 400);
    nothing_arrived(&world);
}

#[rstest]
#[tokio::test]
async fn v1_a_way_into_a_pod_is_a_connect_whatever_the_method_and_needs_another_protocol(
    #[values("exec", "attach", "portforward")] subresource: &str,
    #[values("GET", "POST")] method: &str,
) {
    let world = World::new().await;
    let below = format!("/api/v1/namespaces/default/pods/a/{subresource}?command=sh");
    let answer = world.send(world.request(method, &below)).await;
    let (status, reason, code, message) = refusal(answer).await;
    assert_eq!((status, reason.as_str()), (400, "BadRequest"));
    assert_eq!(code, "UpgradeRequired");
    assert!(message.contains("WebSocket or SPDY/3.1"), "{message}");
    assert_eq!(
        records(&world.ledger).remove(0).body.request.unwrap().verb,
        "connect"
    );
    nothing_arrived(&world);
}

#[tokio::test]
async fn a_body_past_its_bound_is_413() {
    let world = World::new().await;
    let long: &'static str = "x".repeat(1001).leak();
    let response = world
        .send_with(world.request("POST", "/api/v1/namespaces"), long)
        .await;
    assert_eq!(refusal(response).await.0, 413);
    nothing_arrived(&world);
    assert_eq!(
        world
            .send_with(world.request("POST", "/api/v1/namespaces"), &long[..1000])
            .await
            .status(),
        StatusCode::OK
    );
}

#[tokio::test]
async fn a_body_of_unknown_length_past_its_bound_is_413_too() {
    let world = World::new().await;
    let parts = vec![
        Ok::<_, std::io::Error>("x".repeat(600)),
        Ok("x".repeat(600)),
    ];
    let request = world
        .request("POST", "/api/v1/namespaces")
        .body(Body::from_stream(tokio_stream::iter(parts)))
        .unwrap();
    let response = world.gateway.handle(request, [127, 0, 0, 1].into()).await;
    assert_eq!(refusal(response).await.0, 413);
    assert!(
        world
            .upstream
            .arrived()
            .iter()
            .all(|arrived| arrived.body.len() <= 1000)
    );
    assert_eq!(world.outcome().await.status, 413);
}

#[tokio::test]
async fn l4_what_cannot_be_recorded_is_not_sent_on() {
    let world = World::new().await;
    world.fill_the_ledger();
    let response = world.get("/api/v1/pods").await;
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(refusal(response).await.0, 503);
    nothing_arrived(&world);
}

#[tokio::test]
async fn an_api_server_that_does_not_know_us_never_sends_the_client_for_a_session() {
    let world = World::new().await;
    let (status, _, cause, _) = refusal(world.get("/unauthorized").await).await;
    assert_eq!((status, cause.as_str()), (502, "UpstreamUnauthorized"));
    assert_eq!(world.outcome().await.status, 502);
}

#[tokio::test]
async fn an_api_server_that_is_not_there_is_503() {
    let world = World::new().await;
    std::fs::remove_file(world.folder.path().join("api.sock")).unwrap();
    let response = world.get("/api/v1/pods").await;
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(refusal(response).await.0, 503);
    assert_eq!(
        world.outcome().await.code.as_deref(),
        Some("UpstreamUnreachable")
    );
}

#[tokio::test]
async fn a_session_is_good_for_as_long_as_it_says() {
    let world = World::new().await;
    let token = world.session(20);
    assert_eq!(
        world.send(with(&world, &token, "/api")).await.status(),
        StatusCode::OK
    );
    world.clock.advance(std::time::Duration::from_secs(10));
    assert_eq!(world.clock_now(), at(20));
    assert_eq!(
        world.send(with(&world, &token, "/api")).await.status(),
        StatusCode::UNAUTHORIZED
    );
}
