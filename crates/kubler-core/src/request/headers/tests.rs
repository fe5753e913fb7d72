use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use rstest::rstest;

use super::*;

fn seal() -> Seal {
    Seal {
        authorization: HeaderValue::from_static("Bearer ours"),
        audit_id: HeaderValue::from_static("req_ours"),
        host: HeaderValue::from_static("kubernetes"),
    }
}

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_bytes(value.as_bytes()).unwrap(),
        );
    }
    headers
}

fn sent(pairs: &[(&str, &str)]) -> HeaderMap {
    to_upstream(&headers(pairs), Impersonation::Forwarded, &seal()).unwrap()
}

#[test]
fn h1_only_what_is_listed_reaches_the_api_server() {
    let sent = sent(&[
        ("accept", "application/json"),
        ("kubectl-command", "kubectl apply"),
        ("user-agent", "kubectl/v1.34"),
        ("te", "trailers"),
        ("trailer", "authorization"),
        ("upgrade", "websocket"),
        ("keep-alive", "timeout=5"),
        ("transfer-encoding", "chunked"),
        ("content-length", "3"),
        ("proxy-authorization", "Basic x"),
        ("proxy-connection", "keep-alive"),
        ("expect", "100-continue"),
        ("cookie", "a=b"),
        ("x-anything", "else"),
        ("host", "elsewhere"),
    ]);
    let mut names: Vec<_> = sent.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "accept",
            "audit-id",
            "authorization",
            "host",
            "kubectl-command",
            "user-agent"
        ]
    );
}

#[rstest]
fn h1_connection_cannot_take_identity_away(
    #[values("authorization, audit-id, host", "close, Authorization", "keep-alive")]
    connection: &str,
) {
    let sent = sent(&[("connection", connection), ("accept", "*/*")]);
    assert_eq!(sent.get(AUTHORIZATION).unwrap(), "Bearer ours");
    assert_eq!(sent.get(AUDIT_ID).unwrap(), "req_ours");
    assert_eq!(check_seal(&sent, Impersonation::Forwarded, &seal()), Ok(()));
}

#[rstest]
fn h1_connection_cannot_take_impersonation_away(
    #[values(
        "Impersonate-User",
        "close, impersonate-group",
        "IMPERSONATE_UID,close"
    )]
    connection: &str,
) {
    let client = headers(&[("connection", connection), ("impersonate-user", "jane")]);
    let fault = to_upstream(&client, Impersonation::Forwarded, &seal());
    assert!(
        matches!(fault, Err(HeaderFault::Dropped { .. })),
        "{fault:?}"
    );
}

#[rstest]
#[case(|headers: &mut HeaderMap| { headers.remove(AUTHORIZATION); }, "authorization")]
#[case(|headers: &mut HeaderMap| { headers.append(AUTHORIZATION, HeaderValue::from_static("Bearer theirs")); }, "authorization")]
#[case(|headers: &mut HeaderMap| { headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer theirs")); }, "authorization")]
#[case(|headers: &mut HeaderMap| { headers.append(AUDIT_ID, HeaderValue::from_static("req_ours")); }, "audit-id")]
#[case(|headers: &mut HeaderMap| { headers.insert("host", HeaderValue::from_static("elsewhere")); }, "host")]
#[case(|headers: &mut HeaderMap| { headers.insert("x-remote-user", HeaderValue::from_static("system:admin")); }, "x-remote-user")]
#[case(|headers: &mut HeaderMap| { headers.insert("connection", HeaderValue::from_static("authorization")); }, "connection")]
#[case(|headers: &mut HeaderMap| { headers.insert("impersonate-user", HeaderValue::from_static("jane")); }, "impersonate-user")]
fn h1_what_is_not_exactly_meant_is_not_sent(
    #[case] breaks: fn(&mut HeaderMap),
    #[case] name: &str,
) {
    let mut sent = to_upstream(
        &headers(&[("accept", "*/*")]),
        Impersonation::Refused,
        &seal(),
    )
    .unwrap();
    assert_eq!(check_seal(&sent, Impersonation::Refused, &seal()), Ok(()));
    breaks(&mut sent);
    assert_eq!(
        check_seal(&sent, Impersonation::Refused, &seal()),
        Err(BrokenSeal { name: name.into() })
    );
}

#[rstest]
fn h2_impersonation_in_any_spelling_is_refused(
    #[values(
        "Impersonate-User",
        "impersonate-user",
        "IMPERSONATE-GROUP",
        "impersonate_user",
        "Impersonate_Group",
        "impersonate-uid",
        "impersonate-extra-scopes",
        "impersonate_extra-scopes",
        "impersonate-anything",
        "impersonate-",
        "impersonate",
        "impersonate_"
    )]
    name: &str,
) {
    let fault = to_upstream(&headers(&[(name, "jane")]), Impersonation::Refused, &seal());
    assert!(
        matches!(fault, Err(HeaderFault::Impersonation { .. })),
        "{fault:?}"
    );
}

#[test]
fn h2_in_a_cluster_of_its_own_well_formed_impersonation_goes_on() {
    let sent = sent(&[
        ("Impersonate-User", "jane"),
        ("impersonate-group", "developers"),
        ("impersonate-group", "system:authenticated"),
        ("impersonate-uid", "06f6ce97"),
        ("impersonate-extra-scopes", "view, edit"),
    ]);
    assert_eq!(sent.get("impersonate-user").unwrap(), "jane");
    assert_eq!(sent.get_all("impersonate-group").iter().count(), 2);
    assert_eq!(sent.get("impersonate-extra-scopes").unwrap(), "view, edit");
    assert_eq!(sent.get(AUTHORIZATION).unwrap(), "Bearer ours");
    assert_eq!(check_seal(&sent, Impersonation::Forwarded, &seal()), Ok(()));
}

#[rstest]
#[case(&[("impersonate_user", "jane")])]
#[case(&[("impersonate-users", "jane")])]
#[case(&[("impersonate-extra-", "x")])]
#[case(&[("impersonate-extra_scopes", "x")])]
#[case(&[("impersonate", "x")])]
#[case(&[("impersonate-user", "jane"), ("impersonate-user", "root")])]
#[case(&[("impersonate-uid", "1"), ("impersonate-uid", "2")])]
#[case(&[("impersonate-user", "")])]
#[case(&[("impersonate-user", " ")])]
#[case(&[("impersonate-user", "a\tb")])]
#[case(&[("impersonate-user", "\u{fffd}\u{85}")])]
fn h2_even_there_nothing_unclear_goes_on(#[case] pairs: &[(&str, &str)]) {
    let fault = to_upstream(&headers(pairs), Impersonation::Forwarded, &seal());
    assert!(fault.is_err(), "{fault:?}");
}

#[test]
fn h2_even_there_groups_are_bounded() {
    let of = |groups: usize| {
        let pairs = vec![("impersonate-group", "developers"); groups];
        to_upstream(&headers(&pairs), Impersonation::Forwarded, &seal())
    };
    assert!(of(IMPERSONATED_GROUPS_MAX).is_ok());
    let fault = of(IMPERSONATED_GROUPS_MAX + 1);
    assert!(matches!(fault, Err(HeaderFault::TooMany { .. })));
}

#[rstest]
fn h3_a_group_is_one_group(#[values("a,b", "a, system:masters", "a\tb", "")] group: &str) {
    let fault = to_upstream(
        &headers(&[("impersonate-group", group)]),
        Impersonation::Forwarded,
        &seal(),
    );
    assert!(matches!(fault, Err(HeaderFault::Value { .. })), "{fault:?}");
}

#[rstest]
fn h5_nobody_brings_an_identity_of_the_road(
    #[values(
        "Audit-ID",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "Forwarded",
        "X-Remote-User",
        "X-Remote-Group",
        "X-Remote-Extra-Scopes",
        "X-Real-IP",
        "Authorization",
        "Via"
    )]
    name: &str,
) {
    let sent = sent(&[(name, "theirs"), ("accept", "*/*")]);
    assert!(!sent.values().any(|value| value == "theirs"), "{sent:?}");
    assert_eq!(sent.get(AUDIT_ID).unwrap(), "req_ours");
}

#[test]
fn h1_only_what_is_listed_reaches_the_client() {
    let answered = to_client(&headers(&[
        ("content-type", "application/json"),
        ("warning", "299 - \"a\""),
        ("warning", "299 - \"b\""),
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        ("content-length", "4"),
        ("upgrade", "h2c"),
        ("set-cookie", "a=b"),
        ("www-authenticate", "Basic"),
        ("audit-id", "theirs"),
        ("proxy-authenticate", "Basic"),
        ("x-kubernetes-pf-flowschema-uid", "1"),
    ]));
    assert_eq!(answered.get_all("warning").iter().count(), 2);
    let mut names: Vec<_> = answered.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["content-type", "warning", "x-kubernetes-pf-flowschema-uid"]
    );
}
