//! What a profile keeps its jobs from, and what nobody does on a shared cluster.

use axum::body::Body;
use bytes::Bytes;
use http::{Response, StatusCode};
use kubler_core::environment::Placement;
use kubler_core::guardrails::Guardrails;
use kubler_core::ids::ApprovalId;
use kubler_core::ledger::record::{Kind, LedgerAction, Record};
use kubler_core::profile::EngineKind;
use rstest::rstest;

use super::world::{World, read, records};
use crate::gateway::Bounds;

const POD: &str = "/api/v1/namespaces/shop/pods/web";
const PODS: &str = "/api/v1/namespaces/shop/pods";

async fn guarded(guardrails: &str) -> World {
    let guardrails: Guardrails = serde_saphyr::from_str(guardrails).unwrap();
    World::bounded(Bounds::default(), |profile| profile.guardrails = guardrails).await
}

/// A world whose environment has one namespace of a cluster.
async fn shared() -> World {
    World::with(|environment| {
        environment.resolved.profile.engine = EngineKind::Namespace;
        environment.placement = Some(Placement {
            host: "east".into(),
            namespace: "env-a".into(),
            accounts_namespace: "kubler-accounts".into(),
            kubernetes_version: "v1.34.4".into(),
        });
    })
    .await
}

/// Status, first cause and message of an answer; both empty when it passed.
async fn told(response: Response<Body>) -> (u16, String, String) {
    let (status, object) = read(response).await;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let cause = text(&object["details"]["causes"][0]["reason"]);
    (status.as_u16(), cause, text(&object["message"]))
}

/// The refusals that the ledger has, by their code.
fn refused(world: &World) -> Vec<Record> {
    let mut records = records(&world.ledger);
    records.retain(|record| {
        record.body.action == LedgerAction::KubernetesRequest && record.body.kind == Kind::Event
    });
    records
}

#[tokio::test]
async fn a_read_only_profile_lets_reads_through_and_writes_down_what_it_refuses() {
    let world = guarded("read_only: true").await;
    assert_eq!(world.get(PODS).await.status(), StatusCode::OK);
    let (status, cause, message) =
        told(world.send_with(world.request("POST", PODS), "{}").await).await;
    assert_eq!((status, cause.as_str()), (403, "ReadOnly"));
    assert!(
        message.contains("`read_only` of profile `ci-small`"),
        "{message}"
    );
    assert_eq!(world.upstream.arrived().len(), 1);
    let refused = refused(&world);
    let outcome = refused[0].body.outcome.as_ref().unwrap();
    assert_eq!(
        (outcome.status, outcome.code.as_deref()),
        (403, Some("ReadOnly"))
    );
    assert_eq!(refused[0].body.request.as_ref().unwrap().verb, "create");
}

#[rstest]
#[case("GET")]
#[case("POST")]
#[tokio::test]
async fn v1_exec_is_denied_as_connect_by_whatever_method(#[case] method: &str) {
    let world = guarded("deny: [{groups: [''], resources: [pods/exec], verbs: [connect]}]").await;
    let exec = format!("{POD}/exec?command=sh");
    let (status, cause, _) = told(world.send(world.request(method, &exec)).await).await;
    assert_eq!((status, cause.as_str()), (403, "DeniedByProfile"));
    assert_eq!(world.get(POD).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn v4_a_guardrail_holds_whatever_the_clients_text_says() {
    let world = guarded("deny: [{groups: [''], resources: [pods], verbs: [delete]}]").await;
    let request = world
        .request("DELETE", POD)
        .header("user-agent", "kubectl get");
    let (status, cause, message) = told(world.send(request).await).await;
    assert_eq!((status, cause.as_str()), (403, "DeniedByProfile"));
    assert!(
        message.contains("`delete pods web in namespace shop`"),
        "{message}"
    );
    assert!(world.upstream.arrived().is_empty());
}

#[tokio::test]
async fn an_object_that_is_too_large_is_refused_whether_its_length_is_told_or_not() {
    let world = guarded("object_bytes_max: 256").await;
    let long = "x".repeat(257);
    let pieces = || {
        vec![
            Bytes::from(long[..200].to_owned()),
            Bytes::from(long[200..].to_owned()),
        ]
    };
    let told_length = world.request("PUT", "/api/v1/namespaces/a/configmaps/x");
    let body: &'static str = Box::leak(long.clone().into_boxed_str());
    let answers = [
        world.send_with(told_length, body).await,
        world
            .send_pieces(
                world.request("PUT", "/api/v1/namespaces/a/configmaps/x"),
                pieces(),
            )
            .await,
        world.send_pieces(world.request("PUT", POD), pieces()).await,
    ];
    for answer in answers {
        let (status, cause, _) = told(answer).await;
        assert_eq!((status, cause.as_str()), (403, "ObjectTooLarge"));
    }
    let short = world.send_with(world.request("PUT", POD), "{}").await;
    assert_eq!(short.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_deletion_is_a_dry_run_when_its_body_says_so_and_by_nothing_else() {
    let world =
        guarded("dry_run: [{groups: [''], resources: [pods], verbs: [create, delete]}]").await;
    let dry = format!("{POD}?dryRun=All");
    for (target, body, expected) in [
        (POD, "", 403),
        (POD, "{}", 403),
        (POD, r#"{"dryRun":["All"]}"#, 200),
        (&dry, "", 200),
        (&dry, r#"{"propagationPolicy":"Foreground"}"#, 403),
    ] {
        let (status, ..) = told(world.send_with(world.request("DELETE", target), body).await).await;
        assert_eq!(status, expected, "{target} {body}");
    }
    let created = world.send_with(world.request("POST", PODS), "{}").await;
    assert_eq!(told(created).await.1, "DryRunOnly");
    let tried = world
        .send_with(world.request("POST", &format!("{PODS}?dryRun=All")), "{}")
        .await;
    assert_eq!(tried.status(), StatusCode::OK);
    assert_eq!(world.upstream.arrived().len(), 3);
}

#[tokio::test]
async fn v4_no_deletion_looks_tried_in_the_ledger_that_is_none() {
    let world = World::new().await;
    let dry = format!("{POD}?dryRun=All");
    for (body, expected) in [("", true), ("{}", false)] {
        let answer = world.send_with(world.request("DELETE", &dry), body).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let records = records(&world.ledger);
        let start = records
            .iter()
            .rfind(|record| record.body.kind == Kind::Start);
        let noted = start.unwrap().body.request.as_ref().unwrap();
        assert_eq!(noted.dry_run, expected, "`{body}`");
    }
}

const APPROVAL: &str =
    "{approval: [{groups: [''], resources: [pods], verbs: [delete]}], approval_seconds: 60}";

/// The approval that a refusal names.
fn named(message: &str) -> ApprovalId {
    let at = message.find("apr_").unwrap_or_else(|| panic!("{message}"));
    message[at..at + 36].parse().unwrap()
}

#[tokio::test]
async fn what_needs_an_approval_passes_once_when_it_was_approved() {
    let world = guarded(APPROVAL).await;
    let token = world.session(100_000);
    let delete = async |body: &'static str| {
        let request = http::Request::delete(format!("/k8s/{}{POD}", world.id));
        let request = request.header("authorization", format!("Bearer {token}"));
        told(world.send_with(request, body).await).await
    };
    let (status, cause, message) = delete("{}").await;
    assert_eq!((status, cause.as_str()), (403, "ApprovalRequired"));
    assert!(
        message.contains("kubler approval approve apr_"),
        "{message}"
    );
    let id = named(&message);
    assert_eq!(named(&delete("{}").await.2), id, "asked for once");
    let other = named(&delete(r#"{"gracePeriodSeconds":0}"#).await.2);
    assert_ne!(id, other, "another body is another request");
    assert!(world.upstream.arrived().is_empty());

    let now = world.clock_now();
    world
        .approvals
        .with(|all| all.answer(id, true, "anna", now))
        .unwrap();
    world
        .approvals
        .with(|all| all.answer(other, false, "anna", now))
        .unwrap();
    assert_eq!(delete("{}").await.0, 200);
    assert_eq!(world.upstream.arrived()[0].body, "{}");
    assert_eq!(
        delete("{}").await.1,
        "ApprovalRequired",
        "an approval is for once"
    );
    let (_, cause, message) = delete(r#"{"gracePeriodSeconds":0}"#).await;
    assert_eq!(cause, "ApprovalRefused", "{message}");
    assert!(
        !message.contains("anna"),
        "who operates is not the job's business"
    );

    let records = records(&world.ledger);
    let asked: Vec<_> = records
        .iter()
        .filter(|record| record.body.action == LedgerAction::ApprovalAsk)
        .collect();
    assert_eq!(asked.len(), 3);
    assert_eq!(asked[0].body.details["approval"], id.to_string());
    let is_start = |record: &&Record| record.body.kind == Kind::Start;
    let used = records.iter().find(is_start).unwrap();
    assert_eq!(used.body.details["approval"], id.to_string());
}

#[tokio::test]
async fn an_approval_that_cannot_be_written_down_cannot_be_given() {
    let world = guarded(APPROVAL).await;
    world.fill_the_ledger();
    let (status, cause, message) = told(world.send(world.request("DELETE", POD)).await).await;
    assert_eq!((status, cause.as_str()), (503, "NotRecorded"), "{message}");
    let now = world.clock_now();
    assert!(world.approvals.with(|all| all.list(now)).is_empty());
}

#[tokio::test]
async fn nothing_that_its_content_could_be_guessed_from_is_said_of_a_secret() {
    let world =
        guarded("approval: [{groups: [''], resources: [secrets, configmaps], verbs: [update]}]")
            .await;
    for resource in ["secrets", "configmaps"] {
        let target = format!("/api/v1/namespaces/a/{resource}/x");
        let (_, cause, _) = told(world.send_with(world.request("PUT", &target), "{}").await).await;
        assert_eq!(cause, "ApprovalRequired");
    }
    let now = world.clock_now();
    for approval in world.approvals.with(|all| all.list(now)) {
        let is_secret = approval.asked.request.resource.as_deref() == Some("secrets");
        assert_eq!(approval.asked.body_sha256.is_none(), is_secret);
    }
}

#[rstest]
#[case("GET", "/version")]
#[case("GET", "/api/v1/namespaces/env-a/pods")]
#[case("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")]
#[tokio::test]
async fn v4_an_environment_of_a_shared_cluster_has_its_namespace(
    #[case] method: &str,
    #[case] target: &str,
) {
    let world = shared().await;
    let answer = world.send_with(world.request(method, target), "{}").await;
    assert_eq!(answer.status(), StatusCode::OK);
}

#[rstest]
#[case::v4_elsewhere("GET", "/api/v1/namespaces/kube-system/secrets", "OutsideNamespace")]
#[case::v4_everywhere("GET", "/api/v1/secrets", "OutsideNamespace")]
#[case::v4_the_cluster("GET", "/metrics", "OutsideNamespace")]
#[case::v2_a_proxy(
    "GET",
    "/api/v1/namespaces/env-a/services/x/proxy/",
    "NeverOnSharedCluster"
)]
#[case::v2_nodes("GET", "/api/v1/nodes/x/proxy/run", "NeverOnSharedCluster")]
#[case::v3_a_token(
    "POST",
    "/api/v1/namespaces/env-a/serviceaccounts/default/token",
    "NeverOnSharedCluster"
)]
#[case::v3_a_binding(
    "POST",
    "/apis/rbac.authorization.k8s.io/v1/namespaces/env-a/rolebindings",
    "NeverOnSharedCluster"
)]
#[case::v3_a_debugger(
    "PATCH",
    "/api/v1/namespaces/env-a/pods/x/ephemeralcontainers",
    "NeverOnSharedCluster"
)]
#[tokio::test]
async fn v2_v3_v4_a_shared_cluster_sees_nothing_of_what_no_profile_can_grant(
    #[case] method: &str,
    #[case] target: &str,
    #[case] expected: &str,
) {
    let world = shared().await;
    let (status, cause, _) = told(world.send_with(world.request(method, target), "{}").await).await;
    assert_eq!((status, cause.as_str()), (403, expected));
    assert!(world.upstream.arrived().is_empty());
    assert_eq!(refused(&world).len(), 1);
    // On a cluster of its own, the job may do all of it.
    let own = World::new().await;
    let answer = own.send_with(own.request(method, target), "{}").await;
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test]
async fn v3_nobody_acts_as_somebody_else_on_a_shared_cluster() {
    let world = shared().await;
    let request = world
        .request("GET", "/api/v1/namespaces/env-a/pods")
        .header("impersonate-user", "admin");
    let (status, cause, _) = told(world.send(request).await).await;
    assert_eq!((status, cause.as_str()), (403, "NeverOnSharedCluster"));
    assert!(world.upstream.arrived().is_empty());
}
