//! Requests on their way to an API server. The input of `path` is two lines, a method and a target; the input of
//! `headers` is lines of `name: value`.

use http::Method;
use http::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue};

use crate::ledger::record::KubernetesRequest;
use crate::request::headers::{
    AUDIT_ID, HeaderFault, Impersonation, Seal, check_seal, to_client, to_upstream,
};
use crate::request::{ApiRequest, Effect, Span, TARGET_BYTES_MAX};

pub(super) fn path(input: &[u8]) -> bool {
    let Some((method, target)) = std::str::from_utf8(input)
        .ok()
        .and_then(|text| text.split_once('\n'))
    else {
        return false;
    };
    let Ok(method) = Method::from_bytes(method.as_bytes()) else {
        return false;
    };
    let Ok(request) = ApiRequest::parse(&method, target) else {
        return false;
    };
    assert_eq!(request.target().as_str(), target, "other bytes are sent");
    assert!(target.len() <= TARGET_BYTES_MAX);
    has_one_reading(target);
    makes_sense(&request, &method);
    assert_eq!(
        ApiRequest::parse(&method, target).ok(),
        Some(request.clone())
    );
    if let Some(plain) = written(request.record()) {
        let again = ApiRequest::parse(&method, &plain).expect("its own meaning is a path");
        assert_eq!(place(again.record()), place(request.record()), "{plain}");
    }
    true
}

/// Whatever decodes once more, or cleans, or cuts, finds nothing to do (rule H7).
fn has_one_reading(target: &str) {
    let path = target.split('?').next().unwrap_or_default();
    assert!(path.starts_with('/') && !target.contains(['#', ' ', '\\', ';']));
    let decoded = percent_decoded(path);
    assert!(!decoded.contains(['\\', ';', '%', '?']) || path.to_ascii_uppercase().contains("%3F"));
    assert!(!decoded.contains("//"), "{decoded}");
    assert!(!decoded.split('/').any(|part| part == "." || part == ".."));
    assert!(!decoded.chars().any(char::is_control));
    let slashes = |text: &str| text.matches('/').count();
    assert_eq!(slashes(&decoded), slashes(path), "a `/` was hidden");
}

/// By another way than the reader's own: bytes between `%`.
fn percent_decoded(path: &str) -> String {
    let mut pieces = path.split('%');
    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        let (digits, rest) = piece.split_at_checked(2).expect("two digits after `%`");
        bytes.push(u8::from_str_radix(digits, 16).expect("two hex digits"));
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).expect("text")
}

fn makes_sense(request: &ApiRequest, method: &Method) {
    let record = request.record();
    assert_eq!(record.path.is_some(), record.resource.is_none());
    assert_eq!(record.version.is_some(), record.resource.is_some());
    assert!(!record.verb.is_empty());
    let reads = matches!(*method, Method::GET | Method::HEAD);
    match request.effect() {
        // What a method may change is never called a read, whatever the path says.
        Effect::Read => assert!(reads),
        Effect::Change => assert!(!reads),
        Effect::Connect => assert!(matches!(record.verb.as_str(), "connect" | "proxy")),
    }
    assert_eq!(request.span() == Span::Watch, record.verb == "watch");
    assert!(!record.dry_run || request.effect() == Effect::Change);
}

/// The path that says the same in the shortest way; none for what a path of its own cannot say.
fn written(record: &KubernetesRequest) -> Option<String> {
    let resource = record.resource.as_ref()?;
    let version = record.version.as_ref()?;
    // A name that a selector gave stands in no path, and neither does what another path's verb was.
    if matches!(
        record.verb.as_str(),
        "list" | "watch" | "connect" | "proxy" | "deletecollection"
    ) {
        return None;
    }
    let group = record.group.as_deref().unwrap_or_default();
    let mut path = match group {
        "" => format!("/api/{version}"),
        group => format!("/apis/{group}/{version}"),
    };
    // A namespace is in itself, and said once; below another name `namespaces` is a resource like any other.
    let is_itself = resource == "namespaces"
        && record.namespace == record.name
        && matches!(
            record.subresource.as_deref(),
            None | Some("status" | "finalize")
        );
    if let Some(namespace) = record.namespace.as_ref().filter(|_| !is_itself) {
        path.push_str(&format!("/namespaces/{namespace}"));
    }
    for part in [
        Some(resource),
        record.name.as_ref(),
        record.subresource.as_ref(),
    ] {
        path.extend(part.map(|part| format!("/{part}")));
    }
    // Characters that must be encoded in a path were so.
    path.is_ascii().then_some(path).filter(|path| {
        !path
            .bytes()
            .any(|byte| byte <= b' ' || br#""<>[]^`{|}?#"#.contains(&byte))
    })
}

type Place<'a> = [Option<&'a str>; 6];

fn place(record: &KubernetesRequest) -> Place<'_> {
    [
        &record.group,
        &record.version,
        &record.resource,
        &record.subresource,
        &record.namespace,
        &record.name,
    ]
    .map(|part| part.as_deref())
}

pub(super) fn headers(input: &[u8]) -> bool {
    let mut client = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii_start());
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            client.append(name, value);
        }
    }
    let seal = Seal {
        authorization: HeaderValue::from_static("Bearer sealed"),
        audit_id: HeaderValue::from_static("req_sealed"),
        host: HeaderValue::from_static("sealed.invalid"),
    };
    let refused = passes(&client, Impersonation::Refused, &seal);
    let forwarded = passes(&client, Impersonation::Forwarded, &seal);
    if let (Ok(refused), Ok(forwarded)) = (&refused, &forwarded) {
        assert_eq!(refused, forwarded, "without impersonation both are one");
    }
    for name in to_client(&client).keys() {
        let name = name.as_str();
        assert!(
            !matches!(name, "set-cookie" | "www-authenticate" | "connection"),
            "{name}"
        );
    }
    refused.is_ok() || forwarded.is_ok()
}

fn passes(
    client: &HeaderMap,
    impersonation: Impersonation,
    seal: &Seal,
) -> Result<HeaderMap, HeaderFault> {
    let sent = to_upstream(client, impersonation, seal)?;
    check_seal(&sent, impersonation, seal).expect("what was built holds the seal");
    let only = |name: &HeaderName| sent.get_all(name).iter().cloned().collect::<Vec<_>>();
    assert_eq!(
        only(&AUTHORIZATION),
        std::slice::from_ref(&seal.authorization)
    );
    assert_eq!(only(&HOST), std::slice::from_ref(&seal.host));
    assert_eq!(only(&AUDIT_ID), std::slice::from_ref(&seal.audit_id));
    for (name, value) in &sent {
        let folded = name.as_str().replace('_', "-").to_ascii_lowercase();
        let impersonates = folded.starts_with("impersonate");
        assert!(
            !impersonates || impersonation == Impersonation::Forwarded,
            "{folded}"
        );
        assert!(!impersonates || !value.is_empty());
        let never = [
            "connection",
            "upgrade",
            "te",
            "trailer",
            "transfer-encoding",
            "content-length",
        ];
        assert!(!never.contains(&folded.as_str()), "{folded}");
        for family in [
            "proxy-",
            "x-forwarded",
            "forwarded",
            "x-remote-",
            "x-real-",
            "cookie",
            "sec-",
        ] {
            assert!(!folded.starts_with(family), "{folded}");
        }
    }
    // A second gateway in front would send the same.
    let again = to_upstream(&sent, impersonation, seal).expect("what passed once passes again");
    assert_eq!(again, sent);
    Ok(sent)
}
