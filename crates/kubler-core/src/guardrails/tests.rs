use http::Method;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use rstest::rstest;

use super::approvals::{
    APPROVALS_PER_ENVIRONMENT_MAX, Answer, Approvals, Asked, Fingerprint, Unanswerable,
};
use super::*;
use crate::ids::{ApprovalId, EnvironmentId};

fn guardrails(text: &str) -> Guardrails {
    serde_saphyr::from_str(text).unwrap()
}

fn request(method: &str, target: &str) -> ApiRequest {
    ApiRequest::parse(&method.parse::<Method>().unwrap(), target).unwrap()
}

fn code(guardrails: &Guardrails, method: &str, target: &str) -> &'static str {
    match guardrails.check("ci", &request(method, target), 0) {
        Ok(needs) if needs == Needs::default() => "passes",
        Ok(_) => "needs more",
        Err(refusal) => refusal.code(),
    }
}

#[rstest]
#[case("GET", "/api/v1/pods", "passes")]
#[case("GET", "/api/v1/pods?watch=1", "passes")]
#[case("GET", "/version", "passes")]
#[case(
    "POST",
    "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
    "passes"
)]
#[case("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", "passes")]
#[case("POST", "/apis/authentication.k8s.io/v1/tokenreviews", "ReadOnly")]
#[case("POST", "/api/v1/namespaces/a/pods", "ReadOnly")]
#[case("POST", "/api/v1/namespaces/a/pods?dryRun=All", "ReadOnly")]
#[case("DELETE", "/api/v1/namespaces/a/pods/x", "ReadOnly")]
#[case("PATCH", "/api/v1/namespaces/a/pods/x", "ReadOnly")]
#[case("GET", "/api/v1/namespaces/a/pods/x/exec?command=sh", "ReadOnly")]
#[case("GET", "/api/v1/namespaces/a/services/x/proxy/", "ReadOnly")]
#[case("POST", "/version", "ReadOnly")]
fn read_only_lets_reads_through_and_nothing_else(
    #[case] method: &str,
    #[case] target: &str,
    #[case] expected: &str,
) {
    assert_eq!(
        code(&guardrails("read_only: true"), method, target),
        expected
    );
}

const EXEC: &str = "deny: [{groups: [''], resources: [pods/exec, pods/attach], verbs: [connect]}]";

#[rstest]
#[case("GET", "/api/v1/namespaces/a/pods/x/exec?command=sh")]
#[case("POST", "/api/v1/namespaces/a/pods/x/exec?command=sh")]
#[case("GET", "/api/v1/namespaces/a/pods/x/attach")]
fn v1_exec_is_connect_by_whatever_method(#[case] method: &str, #[case] target: &str) {
    assert_eq!(code(&guardrails(EXEC), method, target), "DeniedByProfile");
    assert_eq!(verb(request(method, target).record()), "connect");
}

#[test]
fn v1_what_is_no_exec_is_not_denied_with_it() {
    for target in [
        "/api/v1/namespaces/a/pods/x",
        "/api/v1/namespaces/a/pods/x/log",
        "/api/v1/namespaces/a/pods/x/portforward",
    ] {
        assert_eq!(code(&guardrails(EXEC), "GET", target), "passes", "{target}");
    }
}

#[rstest]
#[case("/api/v1/namespaces/a/services/x/proxy/path")]
#[case("/api/v1/namespaces/a/pods/x/proxy")]
#[case("/api/v1/proxy/namespaces/a/pods/x")]
fn v2_a_proxy_is_a_verb_of_its_own(#[case] target: &str) {
    for method in ["GET", "POST", "DELETE"] {
        assert_eq!(verb(request(method, target).record()), "proxy");
        let denies = guardrails("deny: [{groups: ['*'], resources: ['*'], verbs: [proxy]}]");
        assert_eq!(code(&denies, method, target), "DeniedByProfile");
        let connects = guardrails("deny: [{groups: ['*'], resources: ['*'], verbs: [connect]}]");
        assert_eq!(code(&connects, method, target), "passes");
    }
}

#[rstest]
#[case(
    "groups: [''], resources: [secrets], verbs: ['*']",
    "GET",
    "/api/v1/secrets",
    true
)]
#[case(
    "groups: [''], resources: [secrets], verbs: ['*']",
    "GET",
    "/api/v1/configmaps",
    false
)]
#[case(
    "groups: [apps], resources: ['*'], verbs: [delete]",
    "DELETE",
    "/apis/apps/v1/namespaces/a/deployments/x",
    true
)]
#[case(
    "groups: [apps], resources: ['*'], verbs: [delete]",
    "DELETE",
    "/apis/apps/v1/namespaces/a/deployments",
    false
)]
#[case(
    "groups: [''], resources: [pods], verbs: ['*']",
    "GET",
    "/api/v1/namespaces/a/pods/x/log",
    false
)]
#[case(
    "groups: [''], resources: ['pods/*'], verbs: ['*']",
    "GET",
    "/api/v1/namespaces/a/pods/x/log",
    true
)]
#[case(
    "groups: ['*'], resources: ['*/scale'], verbs: [update]",
    "PUT",
    "/apis/apps/v1/namespaces/a/deployments/x/scale",
    true
)]
#[case(
    "groups: [''], resources: [pods], verbs: [list], namespaces: [a]",
    "GET",
    "/api/v1/namespaces/a/pods",
    true
)]
#[case(
    "groups: [''], resources: [pods], verbs: [list], namespaces: [a]",
    "GET",
    "/api/v1/namespaces/b/pods",
    false
)]
#[case(
    "groups: [''], resources: [pods], verbs: [list], namespaces: [a]",
    "GET",
    "/api/v1/pods",
    true
)]
#[case(
    "groups: [''], resources: [nodes], verbs: [get], namespaces: [a]",
    "GET",
    "/api/v1/nodes/x",
    false
)]
#[case(
    "groups: [''], resources: [pods], verbs: [get], names: [x]",
    "GET",
    "/api/v1/namespaces/a/pods/x",
    true
)]
#[case(
    "groups: [''], resources: [pods], verbs: [get], names: [x]",
    "GET",
    "/api/v1/namespaces/a/pods/y",
    false
)]
#[case(
    "groups: ['*'], resources: ['*'], verbs: ['*']",
    "GET",
    "/version",
    false
)]
fn v4_a_matcher_looks_at_what_was_understood(
    #[case] matcher: &str,
    #[case] method: &str,
    #[case] target: &str,
    #[case] matches: bool,
) {
    let guardrails = guardrails(&format!("deny: [{{{matcher}}}]"));
    let expected = if matches { "DeniedByProfile" } else { "passes" };
    assert_eq!(code(&guardrails, method, target), expected);
}

#[test]
fn what_may_only_be_tried_says_so() {
    let dry = guardrails("dry_run: [{groups: [''], resources: [pods], verbs: [create, delete]}]");
    assert_eq!(
        code(&dry, "POST", "/api/v1/namespaces/a/pods"),
        "DryRunOnly"
    );
    assert_eq!(
        code(&dry, "POST", "/api/v1/namespaces/a/pods?dryRun=All"),
        "passes"
    );
    assert_eq!(code(&dry, "PATCH", "/api/v1/namespaces/a/pods/x"), "passes");
    // The body says it: with one, the API server looks at no parameter.
    let target = "/api/v1/namespaces/a/pods/x?dryRun=All";
    assert_eq!(code(&dry, "DELETE", target), "needs more");
    let deletion = request("DELETE", target);
    for (body, is_dry) in [
        ("", true),
        (r#"{"dryRun":["All"]}"#, true),
        ("{}", false),
        (r#"{"dryRun":[]}"#, false),
        (r#"{"dryRun":["All","Some"]}"#, false),
        (r#"{"dryRun":["All"],"dryRun":[]}"#, false),
        ("k8s\0", false),
    ] {
        assert_eq!(
            is_dry_deletion(&deletion, body.as_bytes()),
            is_dry,
            "{body}"
        );
    }
    assert!(!is_dry_deletion(
        &request("DELETE", "/api/v1/namespaces/a/pods/x"),
        b""
    ));
}

#[test]
fn an_object_is_bounded_and_a_read_is_not() {
    let bounded = guardrails("object_bytes_max: 1000");
    let refused = |method: &str, bytes| {
        bounded
            .check("ci", &request(method, "/api/v1/namespaces/a/pods"), bytes)
            .is_err()
    };
    assert!(!refused("POST", 1000) && refused("POST", 1001) && !refused("GET", 1001));
    let told = bounded
        .too_large(&request("POST", "/api/v1/namespaces/a/pods"), 1001)
        .unwrap();
    assert!(told.to_string().contains("more than 1000 bytes"), "{told}");
}

#[test]
fn a_refusal_names_the_guardrail_and_the_next_step() {
    let all = guardrails(
        "deny: [{groups: [x], resources: [x], verbs: [get]}, {groups: [''], resources: [pods], verbs: [delete]}]",
    );
    let refusal = all
        .check("ci", &request("DELETE", "/api/v1/namespaces/a/pods/web"), 0)
        .unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "guardrail `deny[1]` of profile `ci` refuses `delete pods web in namespace a`; it stands in the server's configuration, which operators can change"
    );
}

#[rstest]
#[case(
    "deny: [{groups: [], resources: [pods], verbs: [get]}]",
    "deny[0].groups"
)]
#[case(
    "deny: [{groups: [''], resources: [], verbs: [get]}]",
    "deny[0].resources"
)]
#[case(
    "deny: [{groups: [''], resources: [pods], verbs: []}]",
    "deny[0].verbs"
)]
#[case(
    "deny: [{groups: [''], resources: [pods], verbs: [exec]}]",
    "deny[0].verbs"
)]
#[case(
    "deny: [{groups: [''], resources: [Pods], verbs: [get]}]",
    "deny[0].resources"
)]
#[case(
    "deny: [{groups: [apps/v1], resources: [pods], verbs: [get]}]",
    "deny[0].groups"
)]
#[case(
    "deny: [{groups: [''], resources: [pods], verbs: [get], namespaces: ['a*']}]",
    "deny[0].namespaces"
)]
#[case(
    "deny: [{groups: [''], resources: [pods], verbs: [create], names: [x]}]",
    "deny[0].names"
)]
#[case(
    "deny: [{groups: [''], resources: [pods], verbs: ['*'], names: [x]}]",
    "deny[0].names"
)]
#[case(
    "dry_run: [{groups: [''], resources: [pods], verbs: [get]}]",
    "dry_run[0].verbs"
)]
#[case(
    "dry_run: [{groups: [''], resources: [pods/exec], verbs: [connect]}]",
    "dry_run[0].verbs"
)]
#[case("object_bytes_max: 1", "object_bytes_max")]
#[case("object_bytes_max: 1001", "object_bytes_max")]
#[case("approval_seconds: 60", "approval_seconds")]
#[case(
    "{approval_seconds: 1, approval: [{groups: [''], resources: [pods], verbs: [delete]}]}",
    "approval_seconds"
)]
#[case(
    "{read_only: true, deny: [{groups: [''], resources: [pods], verbs: [delete]}]}",
    "deny[0]"
)]
#[case("{read_only: true, object_bytes_max: 999}", "object_bytes_max")]
#[case(
    "{deny: [{groups: [''], resources: ['*'], verbs: ['*']}], approval: [{groups: [''], resources: [pods], verbs: [delete]}]}",
    "approval[0]"
)]
#[case(
    "{deny: [{groups: [''], resources: [pods], verbs: [delete]}], dry_run: [{groups: [''], resources: [pods], verbs: [delete], names: [x]}]}",
    "dry_run[0]"
)]
fn t9_a_guardrail_that_keeps_nobody_from_anything_is_a_fault(
    #[case] text: &str,
    #[case] key: &str,
) {
    let faults = guardrails(text).faults(1000);
    assert_eq!(
        faults
            .iter()
            .map(|fault| fault.key.as_str())
            .collect::<Vec<_>>(),
        [key],
        "{faults:?}"
    );
}

#[rstest]
#[case("deny: [{groups: [''], resources: [pods], verbs: [get], name: x}]")]
#[case("deny: [{resources: [pods], verbs: [get]}]")]
#[case("readonly: true")]
fn t9_a_key_that_is_not_known_or_missing_is_an_error(#[case] text: &str) {
    assert!(serde_saphyr::from_str::<Guardrails>(text).is_err());
}

#[test]
fn t9_what_guards_something_has_no_fault() {
    let text = "
deny: [{groups: [''], resources: [secrets], verbs: ['*']}, {groups: ['*'], resources: ['*/proxy'], verbs: [proxy]}]
dry_run: [{groups: [apps], resources: [deployments], verbs: [delete], namespaces: [shop], names: [web]}]
object_bytes_max: 1000
approval: [{groups: [''], resources: [namespaces], verbs: [delete]}, {groups: [''], resources: [secrets, pods], verbs: [get]}]
approval_seconds: 60";
    assert_eq!(guardrails(text).faults(1000), []);
}

const OWN: &str = "env-a";

fn shared(method: &str, target: &str) -> Result<(), shared::SharedFault> {
    shared::check(OWN, request(method, target).record(), &HeaderMap::new())
}

#[rstest]
#[case("GET", "/version")]
#[case("GET", "/api")]
#[case("GET", "/api/v1")]
#[case("GET", "/apis/apps/v1")]
#[case("GET", "/openapi/v3/apis/apps/v1")]
#[case("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")]
#[case("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews")]
#[case("GET", "/api/v1/namespaces/env-a")]
#[case("GET", "/api/v1/namespaces/env-a/pods")]
#[case("DELETE", "/apis/apps/v1/namespaces/env-a/deployments/web")]
#[case("GET", "/api/v1/namespaces/env-a/pods/x/exec?command=sh")]
#[case("GET", "/apis/rbac.authorization.k8s.io/v1/namespaces/env-a/roles")]
fn v4_its_own_namespace_and_what_every_client_reads_is_allowed(
    #[case] method: &str,
    #[case] target: &str,
) {
    assert_eq!(shared(method, target), Ok(()));
}

#[rstest]
#[case("GET", "/api/v1/pods")]
#[case("GET", "/api/v1/namespaces/env-b/pods")]
#[case("GET", "/api/v1/watch/namespaces/env-b/pods")]
#[case("GET", "/api/v1/namespaces")]
#[case("GET", "/api/v1/namespaces/env-b")]
#[case("DELETE", "/api/v1/namespaces/env-a")]
#[case("PUT", "/api/v1/namespaces/env-a/finalize")]
#[case("POST", "/api/v1/namespaces")]
#[case("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles")]
#[case("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions")]
#[case("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews")]
#[case("GET", "/metrics")]
#[case("GET", "/logs/x")]
#[case("POST", "/version")]
fn v4_elsewhere_on_a_shared_cluster_is_refused(#[case] method: &str, #[case] target: &str) {
    assert_eq!(
        shared(method, target).unwrap_err().code(),
        "OutsideNamespace"
    );
}

#[rstest]
#[case("GET", "/api/v1/namespaces/env-a/services/x/proxy/")]
#[case("GET", "/api/v1/namespaces/env-a/pods/x/proxy")]
#[case("GET", "/api/v1/nodes/x/proxy/run")]
#[case("GET", "/api/v1/nodes")]
#[case("GET", "/api/v1/nodes/x")]
#[case("GET", "/api/v1/nodes/x/metrics")]
fn v2_proxies_and_nodes_are_refused_on_a_shared_cluster(
    #[case] method: &str,
    #[case] target: &str,
) {
    assert_eq!(
        shared(method, target).unwrap_err().code(),
        "NeverOnSharedCluster"
    );
}

#[rstest]
#[case("POST", "/api/v1/namespaces/env-a/serviceaccounts/default/token")]
#[case("PATCH", "/api/v1/namespaces/env-a/pods/x/ephemeralcontainers")]
#[case("POST", "/apis/certificates.k8s.io/v1/certificatesigningrequests")]
#[case(
    "POST",
    "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
)]
#[case(
    "GET",
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
)]
#[case(
    "POST",
    "/apis/rbac.authorization.k8s.io/v1/namespaces/env-a/rolebindings"
)]
#[case("PATCH", "/apis/rbac.authorization.k8s.io/v1/namespaces/env-a/roles/x")]
#[case("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings")]
fn v3_what_no_profile_can_grant_is_refused_on_a_shared_cluster(
    #[case] method: &str,
    #[case] target: &str,
) {
    assert_eq!(
        shared(method, target).unwrap_err().code(),
        "NeverOnSharedCluster"
    );
}

#[rstest]
#[case("impersonate-user")]
#[case("impersonate_group")]
#[case("impersonate-extra-scopes")]
fn v3_nobody_acts_as_somebody_else_on_a_shared_cluster(#[case] name: &'static str) {
    let mut headers = HeaderMap::new();
    headers.insert(
        HeaderName::from_static(name),
        HeaderValue::from_static("admin"),
    );
    let pods = request("GET", "/api/v1/namespaces/env-a/pods");
    let refused = shared::check(OWN, pods.record(), &headers).unwrap_err();
    assert_eq!(refused.code(), "NeverOnSharedCluster");
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn asked(environment: u8) -> Asked {
    Asked {
        environment: EnvironmentId::from_random([environment; 16]),
        job_id: "job".into(),
        job_url: "https://buildkite.com/acme/web/builds/5".into(),
        request: request("DELETE", "/api/v1/namespaces/shop").into_record(),
        body_sha256: None,
    }
}

fn id(nth: u8) -> ApprovalId {
    ApprovalId::from_random([nth; 16])
}

fn print(nth: u8) -> Fingerprint {
    let environment = EnvironmentId::from_random([1; 16]);
    Fingerprint::of(
        environment,
        "job",
        &request("DELETE", "/api/v1/namespaces/shop"),
        &HeaderMap::new(),
        &[nth],
    )
}

#[test]
fn an_approval_is_good_for_one_request_once() {
    let mut all = Approvals::default();
    let ask = |all: &mut Approvals, nth, now| {
        all.ask(print(nth), asked(1), id(nth), 60, at(now)).unwrap()
    };
    assert!(matches!(
        ask(&mut all, 1, 0),
        Answer::Waits { is_new: true, .. }
    ));
    assert!(matches!(
        ask(&mut all, 1, 1),
        Answer::Waits { is_new: false, .. }
    ));
    all.answer(id(1), true, "anna", at(30)).unwrap();
    assert!(
        matches!(ask(&mut all, 2, 31), Answer::Waits { is_new: true, .. }),
        "another body"
    );
    let Answer::Granted(granted) = ask(&mut all, 1, 89) else {
        panic!("it was approved a minute ago, less a second")
    };
    assert_eq!(granted.id, id(1));
    assert!(
        matches!(ask(&mut all, 1, 89), Answer::Waits { is_new: true, .. }),
        "once"
    );
}

#[test]
fn an_approval_that_nobody_gives_or_uses_in_time_is_over() {
    let mut all = Approvals::default();
    let ask =
        |all: &mut Approvals, nth, now| all.ask(print(1), asked(1), id(nth), 60, at(now)).unwrap();
    ask(&mut all, 1, 0);
    assert_eq!(
        all.answer(id(1), true, "anna", at(60)),
        Err(Unanswerable::Unknown(id(1)))
    );
    assert!(matches!(
        ask(&mut all, 2, 60),
        Answer::Waits { is_new: true, .. }
    ));
    all.answer(id(2), true, "anna", at(61)).unwrap();
    assert!(matches!(
        ask(&mut all, 3, 121),
        Answer::Waits { is_new: true, .. }
    ));
    let again = all
        .answer(id(3), false, "anna", at(122))
        .and_then(|_| all.answer(id(3), true, "bert", at(123)));
    assert!(matches!(
        again,
        Err(Unanswerable::Answered {
            state: "refused",
            ..
        })
    ));
    assert!(matches!(ask(&mut all, 4, 124), Answer::Refused(_)));
    assert_eq!(all.list(at(124)).len(), 1);
    assert!(
        matches!(ask(&mut all, 5, 182), Answer::Waits { is_new: true, .. }),
        "asked anew"
    );
}

#[test]
fn approvals_that_wait_are_bounded_for_each_environment() {
    let mut all = Approvals::default();
    for nth in 0..u8::try_from(APPROVALS_PER_ENVIRONMENT_MAX).unwrap() {
        all.ask(print(nth), asked(1), id(nth), 60, at(0)).unwrap();
    }
    assert!(all.ask(print(200), asked(1), id(200), 60, at(1)).is_err());
    assert!(all.ask(print(200), asked(2), id(200), 60, at(1)).is_ok());
    assert!(
        all.ask(print(201), asked(1), id(201), 60, at(61)).is_ok(),
        "the others are over"
    );
}

#[test]
fn whatever_makes_it_another_request_needs_another_approval() {
    let environment = EnvironmentId::from_random([1; 16]);
    let header = |name: &'static str, value: &'static str| {
        HeaderMap::from_iter([(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )])
    };
    let target = "/api/v1/namespaces/a/pods/x/exec?command=ls";
    let none = HeaderMap::new;
    let of = |environment, job, method, target, headers: HeaderMap, body: &str| {
        Fingerprint::of(
            environment,
            job,
            &request(method, target),
            &headers,
            body.as_bytes(),
        )
    };
    let prints = [
        of(environment, "job", "GET", target, none(), ""),
        of(
            EnvironmentId::from_random([2; 16]),
            "job",
            "GET",
            target,
            none(),
            "",
        ),
        of(environment, "other", "GET", target, none(), ""),
        of(
            environment,
            "job",
            "GET",
            "/api/v1/namespaces/a/pods/x/exec?command=rm",
            none(),
            "",
        ),
        of(environment, "job", "GET", target, none(), "x"),
        of(
            environment,
            "job",
            "GET",
            target,
            header(CONTENT_TYPE.as_str().to_owned().leak(), "application/json"),
            "",
        ),
        of(
            environment,
            "job",
            "GET",
            target,
            header("impersonate-user", "admin"),
            "",
        ),
        of(
            environment,
            "job",
            "GET",
            "/api/v1/namespaces/a/pods/x",
            none(),
            "",
        ),
        of(
            environment,
            "job",
            "DELETE",
            "/api/v1/namespaces/a/pods/x",
            none(),
            "",
        ),
    ];
    for (nth, one) in prints.iter().enumerate() {
        assert!(!prints[..nth].contains(one), "{nth}");
    }
    // kubectl tries exec by GET, and then by POST.
    assert_eq!(
        prints[0],
        of(
            environment,
            "job",
            "POST",
            target,
            header("user-agent", "kubectl"),
            ""
        )
    );
}
