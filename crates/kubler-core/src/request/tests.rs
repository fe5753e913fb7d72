use http::Method;
use proptest::prelude::*;

use super::*;

/// What was read, as `verb group/version resource/subresource namespace name`.
fn read(method: &str, target: &str) -> String {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let request = match ApiRequest::parse(&method, target) {
        Ok(request) => request,
        Err(fault) => return format!("{fault}"),
    };
    assert_eq!(request.target().as_str(), target);
    let record = request.into_record();
    if let Some(path) = record.path {
        return format!("{} {path}", record.verb);
    }
    let text = |part: Option<String>| part.unwrap_or_else(|| "-".into());
    format!(
        "{} {}/{} {}/{} {} {}",
        record.verb,
        text(record.group),
        text(record.version),
        text(record.resource),
        text(record.subresource),
        text(record.namespace),
        text(record.name)
    )
}

#[test]
fn selectors_are_recorded_and_bounded() {
    let target = format!(
        "/api/v1/pods?labelSelector=app%3Dweb%0A&fieldSelector={}",
        "x".repeat(1000)
    );
    let record = ApiRequest::parse(&Method::DELETE, &target)
        .unwrap()
        .into_record();
    assert_eq!(record.label_selector.as_deref(), Some("app=web\u{FFFD}"));
    assert_eq!(record.field_selector.map(|text| text.len()), Some(256));
    let plain = ApiRequest::parse(&Method::GET, "/api/v1/pods?labelSelector=").unwrap();
    assert_eq!(plain.record().label_selector, None);
}

#[test]
fn h7_a_query_that_the_api_server_may_read_otherwise_is_refused() {
    let parse = |query: &str| ApiRequest::parse(&Method::GET, &format!("/api/v1/pods?{query}"));
    assert!(parse(&"&".repeat(999)).is_ok());
    assert!(parse(&format!("watch=1{}", "&".repeat(1000))).is_err());
    assert!(parse("watch=fal%C5%BFe").is_err());
    assert!(parse("labelSelector=%C5%BF").is_ok());
}

#[rstest::rstest]
#[case("GET", "/", "get /")]
#[case("GET", "/healthz", "get /healthz")]
#[case("GET", "/api", "get /api")]
#[case("GET", "/api/v1", "get /api/v1")]
#[case("GET", "/apis", "get /apis")]
#[case("GET", "/apis/apps", "get /apis/apps")]
#[case("GET", "/apis/apps/v1", "get /apis/apps/v1")]
#[case("POST", "/version", "post /version")]
#[case(
    "GET",
    "/openapi/v3/apis/apps/v1?hash=A%2FB",
    "get /openapi/v3/apis/apps/v1"
)]
#[case("GET", "/api/v1/namespaces", "list /v1 namespaces/- - -")]
#[case("GET", "/api/v1/namespaces?watch=true", "watch /v1 namespaces/- - -")]
#[case("GET", "/api/v1/namespaces?watch", "watch /v1 namespaces/- - -")]
#[case(
    "GET",
    "/api/v1/namespaces?watch=0&watch=1",
    "list /v1 namespaces/- - -"
)]
#[case("GET", "/api/v1/namespaces?watch=False", "list /v1 namespaces/- - -")]
#[case(
    "GET",
    "/api/v1/namespaces/default",
    "get /v1 namespaces/- default default"
)]
#[case(
    "PUT",
    "/api/v1/namespaces/default/finalize",
    "update /v1 namespaces/finalize default default"
)]
#[case(
    "PATCH",
    "/api/v1/namespaces/default/status",
    "patch /v1 namespaces/status default default"
)]
#[case("GET", "/api/v1/namespaces/default/pods", "list /v1 pods/- default -")]
#[case(
    "HEAD",
    "/api/v1/namespaces/default/pods/a",
    "get /v1 pods/- default a"
)]
#[case(
    "GET",
    "/api/v1/namespaces/default/pods/a?watch=1",
    "get /v1 pods/- default a"
)]
#[case(
    "GET",
    "/api/v1/namespaces/default/pods/a/log?follow=true",
    "get /v1 pods/log default a"
)]
#[case(
    "DELETE",
    "/api/v1/namespaces/default/pods/a",
    "delete /v1 pods/- default a"
)]
#[case(
    "DELETE",
    "/api/v1/namespaces/default/pods",
    "deletecollection /v1 pods/- default -"
)]
#[case(
    "GET",
    "/api/v1/pods?fieldSelector=metadata.name%3Da",
    "list /v1 pods/- - a"
)]
#[case(
    "GET",
    "/api/v1/pods?fieldSelector=metadata.name%3Da%5C%2Cb",
    "list /v1 pods/- - a,b"
)]
#[case(
    "GET",
    "/api/v1/pods?fieldSelector=metadata.name%3Da,b",
    "list /v1 pods/- - -"
)]
#[case(
    "GET",
    "/api/v1/pods?fieldSelector=metadata.name!%3Da,metadata.name%3Db",
    "list /v1 pods/- - b"
)]
#[case(
    "GET",
    "/api/v1/watch/pods?fieldSelector=metadata.name%3Da",
    "watch /v1 pods/- - -"
)]
#[case(
    "GET",
    "/api/v1/pods?watch=1&fieldSelector=metadata.name%3D..",
    "watch /v1 pods/- - -"
)]
#[case(
    "POST",
    "/apis/apps/v1/namespaces/web/deployments",
    "create apps/v1 deployments/- web -"
)]
#[case(
    "PATCH",
    "/apis/apps/v1/namespaces/web/deployments/a/scale",
    "patch apps/v1 deployments/scale web a"
)]
#[case(
    "GET",
    "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
    "get rbac.authorization.k8s.io/v1 clusterroles/- - system:node"
)]
#[case(
    "GET",
    "/apis/example.com/v1/widgets/",
    "list example.com/v1 widgets/- - -"
)]
#[case(
    "GET",
    "/api/v1/watch/namespaces/default/pods/a",
    "watch /v1 pods/- default a"
)]
#[case(
    "GET",
    "/api/v1/watch",
    "the path is not in its normal form: `watch` or `proxy` is not followed by a resource"
)]
#[case(
    "TRACE",
    "/api/v1/pods",
    "`TRACE` is not a method of the Kubernetes API"
)]
#[case(
    "OPTIONS",
    "/api/v1/pods",
    "`OPTIONS` is not a method of the Kubernetes API"
)]
fn v4_a_request_means_what_the_api_server_takes_it_for(
    #[case] method: &str,
    #[case] target: &str,
    #[case] expected: &str,
) {
    assert_eq!(read(method, target), expected);
}

#[rstest::rstest]
fn v1_a_way_into_a_pod_is_a_connection_whatever_the_method(
    #[values("exec", "attach", "portforward")] subresource: &str,
    #[values("GET", "POST")] method: &str,
) {
    let target = format!("/api/v1/namespaces/default/pods/a/{subresource}?command=sh&stdin=true");
    assert_eq!(
        read(method, &target),
        format!("connect /v1 pods/{subresource} default a")
    );
}

#[rstest::rstest]
#[case(
    "/api/v1/nodes/n:10250/proxy/run/default/a/c",
    "proxy /v1 nodes/proxy - n:10250"
)]
#[case(
    "/api/v1/namespaces/default/services/https:s:443/proxy/",
    "proxy /v1 services/proxy default https:s:443"
)]
#[case("/api/v1/proxy/nodes/n/run", "proxy /v1 nodes/- - n")]
#[case(
    "/api/v1/proxy/namespaces/default/pods/a/exec",
    "proxy /v1 pods/- default a"
)]
fn v2_a_proxy_is_a_connection_whatever_the_method(
    #[case] target: &str,
    #[case] expected: &str,
    #[values("GET", "POST", "DELETE", "OPTIONS")] method: &str,
) {
    assert_eq!(read(method, target), expected);
}

#[test]
fn what_changes_and_what_only_reads_are_told_apart() {
    let effect =
        |method: Method, target: &str| ApiRequest::parse(&method, target).unwrap().effect();
    assert_eq!(effect(Method::GET, "/api/v1/pods"), Effect::Read);
    assert_eq!(effect(Method::HEAD, "/api/v1/pods?watch=1"), Effect::Read);
    assert_eq!(effect(Method::POST, "/api/v1/namespaces"), Effect::Change);
    assert_eq!(
        effect(Method::DELETE, "/api/v1/watch/namespaces/a"),
        Effect::Change
    );
    assert_eq!(effect(Method::POST, "/anything"), Effect::Change);
    assert_eq!(
        effect(Method::GET, "/api/v1/namespaces/a/pods/b/exec"),
        Effect::Connect
    );
}

#[test]
fn what_goes_on_is_told_from_what_is_answered() {
    let span = |target: &str| ApiRequest::parse(&Method::GET, target).unwrap().span();
    assert_eq!(span("/api/v1/pods"), Span::Short);
    assert_eq!(span("/api/v1/pods?watch=1"), Span::Watch);
    assert_eq!(span("/api/v1/namespaces/a/pods/b/log"), Span::Short);
    assert_eq!(span("/api/v1/namespaces/a/pods/b/log?follow=1"), Span::Long);
    assert_eq!(span("/api/v1/namespaces/a/pods/b/exec"), Span::Long);
}

#[test]
fn a_dry_run_is_noticed() {
    let dry_run = |target: &str| {
        ApiRequest::parse(&Method::POST, target)
            .unwrap()
            .record()
            .dry_run
    };
    assert!(dry_run("/api/v1/namespaces?dryRun=All"));
    assert!(dry_run("/api/v1/namespaces?fieldManager=x&dryRun=%41ll"));
    assert!(!dry_run("/api/v1/namespaces?dryRun="));
    assert!(!dry_run("/api/v1/namespaces"));
}

#[test]
fn the_clients_name_for_itself_is_bounded() {
    let request = ApiRequest::parse(&Method::GET, "/api")
        .unwrap()
        .by(Some(&"\u{1b}x".repeat(1000)));
    let agent = request.record().user_agent.clone().unwrap();
    assert!(agent.chars().count() <= 256 && !agent.contains('\u{1b}'));
}

#[rstest::rstest]
fn h7_a_path_with_two_readings_is_refused(
    #[values(
        "",
        "api",
        "//",
        "/api//v1",
        "//api/v1",
        "/api/v1//",
        "/.",
        "/..",
        "/api/./v1",
        "/api/../etc",
        "/api/v1/..",
        "/%2e",
        "/%2E%2e/x",
        "/.%2e/x",
        "/api%2fv1",
        "/api%2Fv1",
        "/api%5cv1",
        "/api%5Cv1",
        "/a\\b",
        "/a;b",
        "/a%3bb",
        "/a%3Bb",
        "/%00",
        "/a%0ab",
        "/a%7fb",
        "/%",
        "/%4",
        "/%zz",
        "/%c3%28",
        "/%ff",
        "/%c2%85",
        "/api/v1/namespaces/etc%e2%80%aenimda",
        "/a%d8%9cb",
        "/a%e2%80%8bb",
        "/a%e2%80%8db",
        "/a%e2%81%a0b",
        "/a%ef%bb%bf",
        "/%25",
        "/%252e%252e",
        "/%61pi/v1",
        "/a b",
        "/a\tb",
        "/a\u{7f}",
        "/a\u{0}",
        "/ä",
        "/a\"b",
        "/a<b>",
        "/a{b}",
        "/a|b",
        "/a^b",
        "/a`b",
        "/a#b",
        "/a[b]",
        "/api/v1/pods?watch=1;watch=0",
        "/api?a=%",
        "/api?a=%zz",
        "/api?%ff=1",
        "/api?a=%ff",
        "/api?a b",
        "/api?a\\b",
        "/api?a#b",
        "/api?\u{e4}"
    )]
    target: &str,
) {
    let fault = ApiRequest::parse(&Method::GET, target);
    assert!(
        matches!(fault, Err(RequestFault::Path(_) | RequestFault::Query(_))),
        "{target:?}: {fault:?}"
    );
}

#[test]
fn h7_a_path_without_end_is_refused() {
    let target = format!("/{}", "a".repeat(TARGET_BYTES_MAX));
    assert!(matches!(
        ApiRequest::parse(&Method::GET, &target),
        Err(RequestFault::TooLong { .. })
    ));
}

/// Decodes everything that is encoded, until nothing is: what the most eager reader on the way would see.
fn decoded_fully(path: &str) -> Vec<u8> {
    let mut bytes = path.as_bytes().to_vec();
    loop {
        let mut next = Vec::new();
        let mut rest = bytes.as_slice();
        while let [first, tail @ ..] = rest {
            let hex = tail
                .get(..2)
                .and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
            match (first, hex) {
                (b'%', Some(byte)) => {
                    next.push(byte);
                    rest = &tail[2..];
                }
                _ => {
                    next.push(*first);
                    rest = tail;
                }
            }
        }
        if next == bytes {
            return bytes;
        }
        bytes = next;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn h7_nothing_but_normal_paths_pass_and_they_pass_byte_for_byte(
        target in "(/|api|apis|v1|%2e|%2E|%2f|%5C|%3b|%3a|%41|%00|%25|%e4|%c3%a4|\\.|\\.\\.|;|\\\\|a|ä|\u{0}|\\?|&|=|watch|proxy|namespaces|-|_|~|:){0,12}"
    ) {
        if let Ok(request) = ApiRequest::parse(&Method::GET, &target) {
            prop_assert_eq!(request.target().as_str(), target.as_str());
            let path = target.split('?').next().unwrap_or_default();
            let seen = decoded_fully(path);
            let text = std::str::from_utf8(&seen);
            prop_assert!(text.is_ok());
            let text = text.unwrap_or_default();
            prop_assert!(text.starts_with('/') && !text.contains("//") && !text.contains(['\\', ';', '%']));
            prop_assert!(text.split('/').all(|segment| segment != "." && segment != ".."));
            prop_assert!(!text.chars().any(char::is_control));
            prop_assert_eq!(text.matches('/').count(), path.matches('/').count());
        }
    }

    #[test]
    fn h7_no_text_breaks_the_reader(target in any::<String>()) {
        if let Ok(request) = ApiRequest::parse(&Method::GET, &target) {
            prop_assert_eq!(request.target().as_str(), target.as_str());
        }
    }
}
