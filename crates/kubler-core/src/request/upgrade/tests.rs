use rstest::rstest;

use super::*;
use crate::request::ApiRequest;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const EXEC: &str = "/api/v1/namespaces/a/pods/b/exec?command=id&stdout=true";

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            value.parse().unwrap(),
        );
    }
    headers
}

fn websocket(more: &[(&str, &str)]) -> HeaderMap {
    let mut all = vec![
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-key", KEY),
        ("sec-websocket-version", "13"),
    ];
    all.extend(more);
    headers(&all)
}

fn read_at(
    target: &str,
    method: Method,
    headers: &HeaderMap,
) -> Result<Option<Upgrade>, UpgradeFault> {
    let understood = ApiRequest::parse(&method, target).unwrap();
    read(&method, Version::HTTP_11, headers, &understood)
}

fn written(upgrade: &Upgrade) -> HeaderMap {
    let mut headers = HeaderMap::new();
    upgrade.write(&mut headers);
    headers
}

#[test]
fn h1_an_upgrade_is_written_anew_and_only_what_it_needs_is_in_it() {
    let asked = websocket(&[
        ("connection", "authorization"),
        ("sec-websocket-extensions", "permessage-deflate"),
        ("sec-websocket-protocol", "v5.channel.k8s.io, other"),
        (
            "sec-websocket-protocol",
            "base64url.bearer.authorization.k8s.io.YWJj",
        ),
        ("sec-websocket-protocol", "v4.channel.k8s.io"),
        ("x-stream-protocol-version", "v4.channel.k8s.io"),
        ("te", "trailers"),
    ]);
    let upgrade = read_at(EXEC, Method::GET, &asked).unwrap().unwrap();
    assert_eq!(
        written(&upgrade),
        headers(&[
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", KEY),
            ("sec-websocket-version", "13"),
            (
                "sec-websocket-protocol",
                "v5.channel.k8s.io, v4.channel.k8s.io"
            ),
        ])
    );
    assert_eq!(bearer(&asked), Ok(Some("abc".to_owned())));
}

#[test]
fn h1_spdy_is_written_with_a_header_for_each_version() {
    let asked = headers(&[
        ("connection", "upgrade"),
        ("upgrade", "spdy/3.1"),
        ("x-stream-protocol-version", "v4.channel.k8s.io"),
        ("x-stream-protocol-version", "channel.k8s.io"),
        ("sec-websocket-protocol", "v5.channel.k8s.io"),
    ]);
    for method in [Method::GET, Method::POST] {
        let upgrade = read_at(EXEC, method, &asked).unwrap().unwrap();
        assert_eq!(
            written(&upgrade),
            headers(&[
                ("connection", "Upgrade"),
                ("upgrade", "SPDY/3.1"),
                ("x-stream-protocol-version", "v4.channel.k8s.io"),
                ("x-stream-protocol-version", "channel.k8s.io"),
            ])
        );
        let agreed = upgrade.agreed(StatusCode::SWITCHING_PROTOCOLS, &written(&upgrade));
        assert_eq!(agreed, Err(NotAgreed("a header is there twice")));
    }
}

#[rstest]
#[case::nothing(EXEC, Method::GET, &[], UpgradeFault::Required)]
#[case::elsewhere("/api/v1/pods", Method::GET, &[("upgrade", "websocket")], UpgradeFault::NotHere)]
#[case::h2c(EXEC, Method::GET, &[("upgrade", "h2c")], UpgradeFault::Unknown)]
#[case::two(EXEC, Method::GET, &[("upgrade", "websocket, SPDY/3.1")], UpgradeFault::Unknown)]
fn what_cannot_be_granted_is_refused(
    #[case] target: &str,
    #[case] method: Method,
    #[case] asked: &[(&str, &str)],
    #[case] fault: UpgradeFault,
) {
    assert_eq!(read_at(target, method, &headers(asked)), Err(fault));
}

#[rstest]
#[case::post(Method::POST, &[])]
#[case::twice(Method::GET, &[("upgrade", "websocket")])]
#[case::key_twice(Method::GET, &[("sec-websocket-key", KEY)])]
#[case::version_twice(Method::GET, &[("sec-websocket-version", "13")])]
#[case::nothing_known(Method::GET, &[("sec-websocket-protocol", "chat")])]
#[case::empty(Method::GET, &[("sec-websocket-protocol", "v4.channel.k8s.io,,")])]
#[case::space(Method::GET, &[("sec-websocket-protocol", "v4.channel.k8s.io v5")])]
fn what_is_not_asked_as_websocket_asks_is_refused(
    #[case] method: Method,
    #[case] more: &[(&str, &str)],
) {
    let refused = read_at(EXEC, method, &websocket(more));
    assert!(
        matches!(refused, Err(UpgradeFault::Malformed(_))),
        "{refused:?}"
    );
}

#[test]
fn e6_the_protocol_is_changed_over_http_1_1_only() {
    let understood = ApiRequest::parse(&Method::GET, EXEC).unwrap();
    for version in [Version::HTTP_10, Version::HTTP_2] {
        assert!(read(&Method::GET, version, &websocket(&[]), &understood).is_err());
    }
}

#[test]
fn a_proxied_server_may_speak_its_own_over_websocket() {
    let asked = websocket(&[("sec-websocket-protocol", "chat")]);
    let target = "/api/v1/namespaces/a/services/b/proxy/";
    let upgrade = read_at(target, Method::GET, &asked).unwrap().unwrap();
    assert_eq!(written(&upgrade)["sec-websocket-protocol"], "chat");
    assert_eq!(read_at(target, Method::GET, &HeaderMap::new()), Ok(None));
    let spdy = headers(&[("connection", "upgrade"), ("upgrade", "SPDY/3.1")]);
    assert_eq!(
        read_at(target, Method::GET, &spdy),
        Err(UpgradeFault::Unknown)
    );
}

#[test]
fn an_answer_to_another_wish_is_no_agreement() {
    let asked = websocket(&[(
        "sec-websocket-protocol",
        "v5.channel.k8s.io, v4.channel.k8s.io",
    )]);
    let upgrade = read_at(EXEC, Method::GET, &asked).unwrap().unwrap();
    let right = headers(&[
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-accept", &websocket::accept(KEY.as_bytes())),
        ("sec-websocket-protocol", "v4.channel.k8s.io"),
    ]);
    let agreed = upgrade
        .agreed(StatusCode::SWITCHING_PROTOCOLS, &right)
        .unwrap();
    assert_eq!(agreed.subprotocol.as_deref(), Some("v4.channel.k8s.io"));
    assert_eq!(upgrade.answer(&agreed), right);
    for (name, value) in [
        ("connection", Some("close")),
        ("upgrade", Some("SPDY/3.1")),
        ("upgrade", None),
        ("sec-websocket-accept", Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOp=")),
        ("sec-websocket-accept", None),
        ("sec-websocket-protocol", Some("v3.channel.k8s.io")),
        ("sec-websocket-extensions", Some("permessage-deflate")),
    ] {
        let mut wrong = right.clone();
        match value {
            Some(value) => drop(wrong.insert(name, value.parse().unwrap())),
            None => drop(wrong.remove(name)),
        }
        assert!(
            upgrade
                .agreed(StatusCode::SWITCHING_PROTOCOLS, &wrong)
                .is_err(),
            "{name}: {value:?}"
        );
    }
    assert!(upgrade.agreed(StatusCode::OK, &right).is_err());
}

#[rstest]
#[case::none("v4.channel.k8s.io", Ok(None))]
#[case::alone("base64url.bearer.authorization.k8s.io.YWJj", Err(()))]
#[case::two("v4.channel.k8s.io, base64url.bearer.authorization.k8s.io.YWJj, base64url.bearer.authorization.k8s.io.YWJj", Err(()))]
#[case::padded("v4.channel.k8s.io, base64url.bearer.authorization.k8s.io.YQ==", Err(()))]
#[case::no_text("v4.channel.k8s.io, base64url.bearer.authorization.k8s.io._w", Err(()))]
#[case::one("v4.channel.k8s.io, base64url.bearer.authorization.k8s.io.YWJj", Ok(Some("abc".to_owned())))]
fn a_bearer_token_among_the_subprotocols_is_read_in_one_way(
    #[case] offered: &str,
    #[case] expected: Result<Option<String>, ()>,
) {
    let asked = websocket(&[("sec-websocket-protocol", offered)]);
    assert_eq!(bearer(&asked).map_err(|_| ()), expected);
}
