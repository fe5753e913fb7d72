//! What we read in a request is what upstream's API server reads in it: both are asked about the same requests.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use http::Method;
use kubler_core::request::{ApiRequest, Effect, RequestFault};
use kubler_core::text::UntrustedText;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde::Deserialize;

/// Requests of each kind, the same in every run.
const REQUESTS: usize = 10_000;

/// What upstream says; see `kube/kubernetes/tests/requestinfo`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Upstream {
    error: Option<String>,
    is_resource: bool,
    path: String,
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
    field_selector: String,
    label_selector: String,
    undecodable: bool,
}

/// Upstream's reading of each request, in order.
fn upstream(requests: &[(String, String)]) -> Vec<Upstream> {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kube/kubernetes");
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("requestinfo");
    // As kube/build builds, so that hardly anything is compiled.
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg("./tests/requestinfo")
        .current_dir(module)
        .envs([("GOWORK", "off"), ("CGO_ENABLED", "0")])
        .env("GOFLAGS", "-mod=readonly -buildvcs=false -trimpath")
        .output()
        .expect("go is installed");
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    let mut asked = Command::new(&program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines: String = requests
        .iter()
        .map(|(method, target)| format!("{method} {target}\n"))
        .collect();
    let mut stdin = asked.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(lines.as_bytes()).unwrap());
    let answers = BufReader::new(asked.stdout.take().unwrap()).lines();
    let answers: Vec<Upstream> = answers
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect();
    writer.join().unwrap();
    assert!(asked.wait().unwrap().success());
    assert_eq!(answers.len(), requests.len());
    answers
}

fn generated(strategy: &impl Strategy<Value = (String, String)>) -> Vec<(String, String)> {
    let mut runner = TestRunner::deterministic();
    (0..REQUESTS)
        .map(|_| strategy.new_tree(&mut runner).unwrap().current())
        .collect()
}

fn method() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => Just("GET"), 1 => Just("HEAD"), 1 => Just("POST"), 1 => Just("PUT"), 1 => Just("PATCH"),
        2 => Just("DELETE"),
    ]
    .prop_map(str::to_owned)
}

/// Words that mean something to one of the readers, and some that do not.
fn segment() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "api",
        "apis",
        "v1",
        "apps",
        "example.com",
        "namespaces",
        "watch",
        "proxy",
        "pods",
        "nodes",
        "services",
        "log",
        "exec",
        "attach",
        "portforward",
        "status",
        "finalize",
        "scale",
        "default",
        "http:web:80",
        "a",
        "%C3%A9",
        "x%20y",
        "a@b",
        "...",
        "~",
        "a,b=c",
    ]);
    prop_oneof![8 => words.prop_map(str::to_owned), 1 => "[a-z0-9][a-z0-9.-]{0,12}"]
}

/// A path below one of the API's prefixes, or any path at all.
fn path() -> impl Strategy<Value = String> {
    let prefix = prop::sample::select(vec![
        "",
        "/api/v1",
        "/apis/apps/v1",
        "/apis/example.com/v2",
        "/api",
    ]);
    let scope = prop::sample::select(vec![
        "",
        "",
        "/namespaces/default",
        "/watch",
        "/proxy",
        "/watch/namespaces/default",
        "/proxy/namespaces/default",
    ]);
    let rest = prop::collection::vec(segment(), 0..5);
    (prefix, scope, rest, prop::bool::weighted(0.1)).prop_map(|(prefix, scope, rest, slash)| {
        let rest: String = rest.iter().map(|part| format!("/{part}")).collect();
        let path = format!("{prefix}{scope}{rest}");
        match (path.is_empty(), slash) {
            (true, _) => "/".to_owned(),
            (false, true) => format!("{path}/"),
            (false, false) => path,
        }
    })
}

fn parameter() -> impl Strategy<Value = String> {
    let flag = prop::sample::select(vec![
        "",
        "=",
        "=0",
        "=1",
        "=true",
        "=false",
        "=FALSE",
        "=fal%C5%BFe",
        "=no",
    ]);
    let name = prop_oneof![
        3 => "[a-z0-9.-]{1,8}".boxed(),
        1 => prop::sample::select(vec!["..", ".", "a%2Fb", "a%25", "a%5C%2Cb", "a%5C", "a%5Cx", "a%3Db", ""])
            .prop_map(str::to_owned).boxed(),
    ];
    let operator =
        prop::sample::select(vec!["%3D", "=", "%3D%3D", "!%3D", "%3D%3D%3D", "+", "%3D!"]);
    let field = prop::sample::select(vec![
        "metadata.name",
        "status.phase",
        "metadata.namespace",
        "",
        "metadata%2Ename",
    ]);
    let term = (field, operator, name)
        .prop_map(|(field, operator, name)| format!("{field}{operator}{name}"));
    let selector = prop::collection::vec(term, 0..3).prop_map(|terms| terms.join(","));
    prop_oneof![
        2 => flag.clone().prop_map(|flag| format!("watch{flag}")),
        1 => flag.prop_map(|flag| format!("follow{flag}")),
        4 => selector.prop_map(|selector| format!("fieldSelector={selector}")),
        1 => prop::sample::select(vec![
            "labelSelector=app%3Dweb", "labelSelector=a+in+(b,c)", "labelSelector=!%3D", "limit=500", "limit=x",
            "limit=", "timeoutSeconds=5", "resourceVersion=0", "dryRun=All", "%77atch=1", "Watch=1", "a=b", "",
            "allowWatchBookmarks=true", "sendInitialEvents=x", "watch=%E2%82%AC",
        ]).prop_map(str::to_owned),
    ]
}

fn query() -> impl Strategy<Value = String> {
    prop::collection::vec(parameter(), 0..4).prop_map(|parameters| match parameters.len() {
        0 => String::new(),
        _ => format!("?{}", parameters.join("&")),
    })
}

/// What a client sends.
fn usual() -> impl Strategy<Value = (String, String)> {
    (method(), path(), query()).prop_map(|(method, path, query)| (method, format!("{path}{query}")))
}

/// The same, with something put in that readers are known to disagree about.
fn hostile() -> impl Strategy<Value = (String, String)> {
    let trick = prop::sample::select(vec![
        "//",
        "/./",
        "/../",
        "%2f",
        "%2F..%2F",
        "%2e%2e/",
        ";",
        ";a=b",
        "%3B",
        "%25",
        "%252f",
        "\\",
        "%5c",
        "%00",
        "%",
        "%4",
        "%zz",
        "%41",
        "%7e",
        "%ff",
        "%C2%85",
        "?",
        "#",
        "%23",
        "%3F",
        "&",
        "&&",
        "=",
        "+",
        "%0a",
        "*",
        ":",
        "@",
        "\u{e9}",
        "%E2%80%AE",
        "|",
        "\"",
        "{",
        "[",
        "/watch",
        "watch",
        "proxy",
        "&watch",
        "%26watch=1",
    ]);
    let other = prop_oneof![8 => method(), 1 => prop::sample::select(vec!["OPTIONS", "CONNECT", "TRACE", "get", "LIST"]).prop_map(str::to_owned)];
    (other, usual(), trick, any::<prop::sample::Index>()).prop_map(
        |(method, (_, target), trick, at)| {
            let mut target = target;
            let at = 1 + at.index(target.len());
            target.insert_str(at.min(target.len()), trick);
            (method, target)
        },
    )
}

/// Where ours differs by intent, and nowhere else.
fn differences(ours: &ApiRequest, theirs: &Upstream) -> Vec<String> {
    let record = ours.record();
    let mut found = Vec::new();
    let mut same = |what: &str, ours: Option<&str>, theirs: &str| {
        if ours.unwrap_or_default() != theirs {
            found.push(format!("{what}: ours {ours:?}, upstream's {theirs:?}"));
        }
    };
    let path_verb = ["watch", "proxy"].contains(&theirs.verb.as_str())
        && theirs.path.split('/').any(|part| part == theirs.verb);
    // Rule V1: what leads behind the API server is one verb of ours, whatever method it comes by.
    if ours.effect() == Effect::Connect {
        let leads = ["exec", "attach", "portforward", "proxy"];
        let by_path = theirs.verb == "proxy" && path_verb;
        assert!(
            by_path || leads.contains(&theirs.subresource.as_str()),
            "{ours:?}"
        );
    } else {
        same("verb", Some(&record.verb), &theirs.verb);
    }
    if !theirs.is_resource {
        same("path", record.path.as_deref(), &theirs.path);
        return found;
    }
    same("path", record.path.as_deref(), "");
    same("group", record.group.as_deref(), &theirs.group);
    same("version", record.version.as_deref(), &theirs.version);
    same("resource", record.resource.as_deref(), &theirs.resource);
    same(
        "subresource",
        record.subresource.as_deref(),
        &theirs.subresource,
    );
    same("namespace", record.namespace.as_deref(), &theirs.namespace);
    // A list whose parameters cannot be read is refused by the API server (400); then it names nothing, and we may.
    if !(theirs.undecodable && theirs.name.is_empty()) {
        same("name", record.name.as_deref(), &theirs.name);
    }
    // Upstream keeps selectors where they count, we wherever they stand; and ours are bounded.
    if ["list", "watch", "deletecollection"].contains(&theirs.verb.as_str()) && !path_verb {
        for (what, ours, theirs) in [
            (
                "field selector",
                &record.field_selector,
                &theirs.field_selector,
            ),
            (
                "label selector",
                &record.label_selector,
                &theirs.label_selector,
            ),
        ] {
            same(what, ours.as_deref(), UntrustedText::new(theirs).as_str());
        }
    }
    found
}

/// Compares both readings. Returns the targets that we refused and whether upstream cannot read them either.
fn compare(requests: &[(String, String)]) -> Vec<(&str, bool)> {
    let mut refused = Vec::new();
    let mut found = Vec::new();
    for ((method, target), theirs) in requests.iter().zip(upstream(requests)) {
        let parsed = ApiRequest::parse(&Method::from_bytes(method.as_bytes()).unwrap(), target);
        match (parsed, theirs.error.as_ref()) {
            // What upstream cannot read, we do not send.
            (Ok(_), Some(error)) => found.push(format!("{method} {target}: upstream: {error}")),
            (Ok(ours), None) => {
                let differences = differences(&ours, &theirs);
                found.extend(
                    differences
                        .iter()
                        .map(|line| format!("{method} {target}: {line}")),
                );
            }
            // Rule H7: a path or query with two readings, and a method that means nothing, are refused.
            (
                Err(RequestFault::Path(_) | RequestFault::Query(_) | RequestFault::Method { .. }),
                error,
            ) => refused.push((target.as_str(), error.is_some())),
            (Err(fault @ RequestFault::TooLong { .. }), _) => panic!("{method} {target}: {fault}"),
        }
    }
    assert!(
        found.is_empty(),
        "{} differences:\n{}",
        found.len(),
        found
            .iter()
            .take(30)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n")
    );
    refused
}

#[test]
fn v4_we_read_in_a_request_what_upstream_reads() {
    let requests = generated(&usual());
    // A `watch` or `proxy` in a path with nothing behind it, which upstream refuses too; and a parameter `watch` that
    // is neither true nor false: upstream takes it now for one, now for the other.
    let odd =
        |target: &str| target.contains("watch=fal%C5%BFe") || target.contains("watch=%E2%82%AC");
    for (target, upstream_too) in compare(&requests) {
        assert!(upstream_too || odd(target), "`{target}` was refused");
    }
}

#[test]
fn h7_what_readers_disagree_about_is_refused_or_read_as_upstream_reads_it() {
    let requests = generated(&hostile());
    let refused = compare(&requests).len();
    assert!(
        refused > REQUESTS / 4,
        "only {refused} of {REQUESTS} tricks were refused"
    );
}
