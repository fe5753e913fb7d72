use serde_json::json;

use super::*;
use crate::invariants::fixtures::verified_token;

fn at(second: i64) -> Timestamp {
    Timestamp::from_microsecond(1_700_000_000_123_456 + second * 1_000_000).unwrap()
}

fn full() -> Body {
    let mut body = Body::new(Kind::Start, LedgerAction::KubernetesRequest);
    body.request_id = Some(RequestId::from_random([1; 16]));
    body.environment_id = Some(EnvironmentId::from_random([2; 16]));
    body.session_id = Some(SessionId::from_random([3; 16]));
    body.start = Some(3);
    body.token_sha256 = Some("00".repeat(32));
    body.token_id = Some("jti".into());
    body.note_clock_skew(-7);
    body.peer = Some("192.0.2.1".into());
    body.identity = Some(Box::new(verified_token(at(0)).identity));
    body.decision = Some(Decision::Deny {
        grounds: Grounds {
            policies: vec!["p".into()],
            policy_digest: "d".into(),
        },
        closest: vec!["q: build_source".into()],
    });
    body.request = Some(KubernetesRequest {
        verb: "get".into(),
        path: None,
        group: Some(String::new()),
        version: Some("v1".into()),
        resource: Some("configmaps".into()),
        subresource: Some("status".into()),
        namespace: Some("default".into()),
        name: Some("n".into()),
        label_selector: Some("app=web".into()),
        field_selector: Some("status.phase=Running".into()),
        dry_run: true,
        user_agent: Some("kubectl".into()),
    });
    body.phase = Some(PhaseChange {
        from: None,
        to: Phase::Requested,
        reason: None,
        message: None,
    });
    body.outcome = Some(Outcome {
        status: 200,
        code: Some("denied".into()),
        close_reason: Some("client".into()),
        bytes_in: u64::MAX,
        ..Outcome::default()
    });
    body.details = serde_json::Map::from_iter([
        ("z".into(), json!(1)),
        ("a".into(), json!({"x": [1.5, -3]})),
    ]);
    body
}

fn line(body: Body) -> Vec<u8> {
    let mut line = Vec::new();
    body.seal().unwrap().write_line(7, at(1), &mut line);
    line
}

#[test]
fn l5_a_line_is_the_one_canonical_form_of_its_record() {
    let text = line(full());
    let record = Record::from_line(&text).unwrap();
    assert_eq!(serde_json::to_vec(&record).unwrap(), text);
    assert_eq!((record.sequence, record.at), (7, at(1)));
    assert_eq!(
        record.body.details["a"]["x"],
        json!(["1.5", -3]),
        "fractions have no single written form"
    );
    let mut same = full();
    same.details = record.body.details.clone();
    assert_eq!(record.body, same);
}

/// The union of what the audit logs of others record: where each field stands here. What is not in this list does not
/// apply yet or stands elsewhere; the decision record on the ledger says which and why.
#[test]
fn l5_every_field_of_the_audit_union_has_its_place_in_a_record() {
    let record: Value = serde_json::from_slice(&line(full())).unwrap();
    for place in [
        "/sequence",
        "/at",
        "/kind",
        "/action",
        "/start",
        "/request_id",
        "/session_id",
        "/environment_id",
        "/token_sha256",
        "/token_id",
        "/clock_skew_seconds",
        "/peer",
        "/identity/issuer",
        "/identity/organization/id",
        "/identity/organization/slug",
        "/identity/project/id",
        "/identity/project/slug",
        "/identity/run/id",
        "/identity/run/number",
        "/identity/run/url",
        "/identity/job/id",
        "/identity/job/step_key",
        "/identity/source/commit",
        "/identity/source/branch",
        "/identity/source/tag",
        "/identity/source/trigger",
        "/identity/runner/environment",
        "/identity/runner/agent_id",
        "/identity/runner/cluster_id",
        "/identity/runner/queue_id",
        "/decision/effect",
        "/decision/policies",
        "/decision/policy_digest",
        "/decision/closest",
        "/request/verb",
        "/request/group",
        "/request/version",
        "/request/resource",
        "/request/subresource",
        "/request/namespace",
        "/request/name",
        "/request/dry_run",
        "/request/label_selector",
        "/request/field_selector",
        "/request/user_agent",
        "/outcome/status",
        "/outcome/code",
        "/outcome/bytes_in",
        "/outcome/bytes_out",
        "/outcome/duration_us",
        "/outcome/close_reason",
    ] {
        assert!(record.pointer(place).is_some(), "{place}: {record:#}");
    }
}

#[test]
fn t6_a_skew_of_the_clocks_is_recorded_and_its_absence_is_not() {
    let skewed = String::from_utf8(line(full())).unwrap();
    assert!(skewed.contains("\"clock_skew_seconds\":-7"), "{skewed}");
    let mut body = full();
    body.note_clock_skew(0);
    let even = String::from_utf8(line(body)).unwrap();
    assert!(!even.contains("clock_skew"), "{even}");
}

#[test]
fn l5_other_ways_to_write_a_record_are_not_accepted() {
    let text = String::from_utf8(line(full())).unwrap();
    for changed in [
        text.replacen(':', ": ", 1),
        format!(" {text}"),
        text.replacen("\"sequence\":7", "\"sequence\":7,\"more\":1", 1),
        text.replacen("\"sequence\":7", "\"sequence\":7,\"sequence\":7", 1),
        text.replacen("kubectl", "k\\u0075bectl", 1),
    ] {
        assert!(Record::from_line(changed.as_bytes()).is_err(), "{changed}");
    }
}

#[test]
fn l7_no_text_of_a_caller_makes_a_second_line() {
    let evil = "main\n{\"sequence\":8}\r\n\u{2028}\u{0}\u{1b}[2J";
    let mut body = full();
    if let Some(identity) = &mut body.identity {
        identity.source.branch = Some(crate::text::UntrustedText::new(evil));
        identity.job.url = evil.into();
    }
    if let Some(request) = &mut body.request {
        request.user_agent = Some(evil.into());
    }
    body.details.insert(evil.into(), json!(evil));
    let text = line(body);
    assert!(
        !text.iter().any(|byte| byte.is_ascii_control()),
        "{}",
        String::from_utf8_lossy(&text)
    );
    let record = Record::from_line(&text).unwrap();
    let told = evil.replace('\u{2028}', "\\u{2028}");
    assert_eq!(
        record.body.details[&told],
        json!(told),
        "and nothing is lost"
    );
}

#[test]
fn c6_a_line_shows_all_that_is_in_it() {
    let evil = "etc\u{202e}nimda\u{2066}\u{200b}\u{200d}\u{61c}\u{2060}\u{feff}\u{7f}\u{9b}é";
    let shown =
        "etc\\u{202e}nimda\\u{2066}\\u{200b}\\u{200d}\\u{61c}\\u{2060}\\u{feff}\\u{7f}\\u{9b}é";
    let mut body = full();
    if let Some(request) = &mut body.request {
        request.name = Some(evil.into());
        request.path = Some(format!("/{evil}"));
    }
    if let Some(outcome) = &mut body.outcome {
        outcome.message = Some(format!("there is no profile `{evil}`"));
    }
    if let Some(identity) = &mut body.identity {
        identity.project.slug = evil.into();
    }
    body.details.insert(evil.into(), json!(evil));
    let line = line(body);
    let text = std::str::from_utf8(&line).unwrap();
    assert!(!text.chars().any(crate::text::is_unsafe), "{text}");
    let body = Record::from_line(&line).unwrap().body;
    assert_eq!(body.request.unwrap().name.unwrap(), shown);
    assert_eq!(body.details[shown], json!(shown));
}

#[test]
fn l1_a_token_in_any_text_does_not_get_into_a_line() {
    const CANARY: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.Y2FuYXJ5";
    let mut body = full();
    body.token_id = Some(CANARY.into());
    body.peer = Some(CANARY.into());
    body.operator = Some(CANARY.into());
    if let Some(identity) = &mut body.identity {
        identity.source.branch = Some(crate::text::UntrustedText::new(CANARY));
        identity.run.url = format!("https://ci.example/?token={CANARY}");
    }
    if let Some(request) = &mut body.request {
        request.path = Some(format!("/api/{CANARY}/x"));
        request.user_agent = Some(format!("curl Bearer {CANARY}"));
        request.name = Some(CANARY.into());
    }
    if let Some(outcome) = &mut body.outcome {
        outcome.message = Some(format!("authorization: bearer {CANARY}"));
    }
    body.details.insert(CANARY.into(), json!([{ "x": CANARY }]));
    let text = String::from_utf8(line(body)).unwrap();
    assert!(!text.contains("Y2FuYXJ5"), "{text}");
    assert!(Record::from_line(text.as_bytes()).is_ok(), "{text}");
}

#[test]
fn a_body_that_is_too_long_is_shortened() {
    let mut body = full();
    body.details
        .insert("much".into(), json!("x".repeat(RECORD_BYTES_MAX)));
    if let Some(request) = &mut body.request {
        request.path = Some("y".repeat(RECORD_BYTES_MAX));
    }
    let text = line(body);
    assert!(text.len() < RECORD_BYTES_MAX);
    assert_eq!(
        Record::from_line(&text).unwrap().body.details["shortened"],
        json!(true)
    );

    let mut hopeless = full();
    hopeless.operator = Some("x".repeat(RECORD_BYTES_MAX));
    assert!(hopeless.seal().is_err());
}

#[test]
fn what_ends_something_may_use_the_room_that_is_kept() {
    assert!(Body::new(Kind::End, LedgerAction::KubernetesRequest).is_ending());
    assert!(!Body::new(Kind::Start, LedgerAction::EnvironmentRelease).is_ending());
    assert!(Body::new(Kind::Event, LedgerAction::EnvironmentPhase).is_ending());
    assert!(!Body::new(Kind::Start, LedgerAction::EnvironmentCreate).is_ending());
    assert!(!Body::new(Kind::Start, LedgerAction::KubernetesRequest).is_ending());
}
