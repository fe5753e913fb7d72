//! Golden cases and explanations.

use super::*;

const CLAIMS: &str = r#"{
  "iss": "https://agent.buildkite.com", "aud": "https://kubler.test:8443", "sub": "whatever",
  "iat": 1736757460, "nbf": 1736757460, "exp": 1736757760,
  "organization_slug": "acme", "organization_id": "01945ecf-0000-4000-8000-000000000001",
  "pipeline_slug": "web", "pipeline_id": "01945ecf-0000-4000-8000-000000000002",
  "build_number": 5, "build_id": "01945ecf-0000-4000-8000-000000000003",
  "build_branch": "main", "build_tag": null, "build_commit": "b5ffe3aeea51cec6c41aef16e45ee6bce47d8810",
  "step_key": null, "job_id": "01945ecf-0000-4000-8000-000000000004",
  "agent_id": "01945ecf-0000-4000-8000-000000000005", "build_source": "webhook",
  "runner_environment": "self-hosted"
}"#;

fn run(text: &str) -> Result<TestReport, TestFault> {
    test(
        &starter_set(&configuration()),
        &configuration(),
        "cases.yaml",
        text,
    )
}

#[test]
fn t9_golden_cases_hold() {
    let claims = CLAIMS.replace('\n', " ");
    let report = run(&format!(
        r#"
job: {{pipeline_id: 01945ecf-0000-4000-8000-000000000002}}
cases:
  - {{name: a person gets the full profile, action: create_environment, profile: ci-small, expect: allow, policy: acme/create}}
  - name: a fork does not
    job: {{build_source: webhook, branch: "someone:main"}}
    action: create_environment
    profile: ci-small
    expect: deny
    policy: acme/create-restricted
  - {{name: a token's claims, claims: {claims}, action: create_environment, profile: untrusted, expect: allow}}
  - {{name: own environment, action: use_kubernetes, expect: allow, policy: acme/use-own}}
  - name: a sibling's environment
    action: use_kubernetes
    environment: {{job: {{job_id: 01945ecf-0000-4000-8000-0000000000bb}}}}
    expect: deny
  - name: a sibling's shared environment
    action: use_kubernetes
    environment: {{scope: build, job: {{job_id: 01945ecf-0000-4000-8000-0000000000bb}}}}
    expect: allow
    policy: acme/use-shared
  - {{name: ledger, operator: alice, action: read_ledger, expect: allow}}
"#
    ))
    .unwrap();
    assert!(report.passed(), "{report}");
    assert_eq!(report.cases.len(), 7);
}

#[test]
fn t9_the_cases_of_init_hold() {
    let report = run(&starter_cases("acme")).unwrap();
    assert!(report.passed(), "{report}");
    assert_eq!(report.cases.len(), 7);
}

#[test]
fn t9_a_golden_case_that_does_not_hold_fails_and_says_why() {
    let report = run(
        "cases:
  - {name: too open, action: read_ledger, expect: allow}
  - {name: too narrow, action: create_environment, profile: ci-small, expect: deny}
  - {name: wrong policy, action: create_environment, profile: ci-small, expect: allow, policy: acme/create-restricted}
",
    )
    .unwrap();
    assert_eq!(report.failures(), 3, "{report}");
    assert!(!report.passed());
    let text = report.to_string();
    assert!(
        text.contains("denied: this job may not read the ledger")
            && text.contains("allowed by acme/create"),
        "{text}"
    );
}

#[rstest::rstest]
#[case("cases: []", "0 cases")]
#[case(
    "cases:\n  - {name: x, action: read_ledger, expect: allow, polcy: y}",
    "polcy"
)]
#[case(
    "cases:\n  - {name: x, job: {branc: y}, action: read_ledger, expect: allow}",
    "branc"
)]
#[case(
    "cases:\n  - {name: x, action: read_everything, expect: allow}",
    "read_everything"
)]
#[case("cases:\n  - {name: x, action: read_ledger, expect: maybe}", "maybe")]
#[case(
    "cases:\n  - {name: x, action: create_environment, expect: deny}",
    "needs `profile`"
)]
#[case(
    "cases:\n  - {name: x, action: read_ledger, profile: ci-small, expect: deny}",
    "neither"
)]
#[case(
    "cases:\n  - {name: x, action: create_environment, profile: nope, expect: deny}",
    "nope"
)]
#[case(
    "cases:\n  - {name: x, operator: a, job: {}, action: read_ledger, expect: deny}",
    "one of"
)]
#[case(
    "cases:\n  - {name: x, claims: {iss: \"https://agent.buildkite.com\"}, action: read_ledger, expect: deny}",
    "organization_id"
)]
fn t9_a_case_that_says_nothing_is_a_fault(#[case] text: &str, #[case] part: &str) {
    let fault = run(text).expect_err(text);
    assert!(fault.to_string().contains(part), "{fault}");
}

fn ask(subject: &str, action: Action) -> Result<Explanation, ExplainFault> {
    let question = Question {
        action,
        profile: Some("ci-small".into()),
        environment: None,
    };
    explain(
        &starter_set(&configuration()),
        &configuration(),
        &Subject::Claims(subject.into()),
        &question,
    )
}

#[test]
fn claims_are_explained() {
    let denied = ask(CLAIMS, Action::CreateEnvironment).unwrap();
    assert!(!denied.allowed);
    insta::assert_snapshot!(denied.to_string().rsplit_once("\npolicies ").unwrap().0, @r#"
    denied: create_environment on profile `ci-small`
      this job may not create an environment of profile `ci-small`: no policy allows it; `acme/create-restricted` failed on: resource.restricted
      also `acme/create` failed on: ["ui", "api", "schedule"].contains(principal.build_source) || (principal.fork_branches_are_prefixed && (principal has branch))
    hint: nearest is `acme/create-restricted`: ask for a profile with `restricted: true`; builds that anybody may have triggered get no other until the configuration states `fork_branches_are_prefixed: true` and the branch is not a fork's
    caller, as policies see it:
      issuer = https://agent.buildkite.com
      organization_id = 01945ecf-0000-4000-8000-000000000001
      organization_slug = acme
      pipeline_id = 01945ecf-0000-4000-8000-000000000002
      pipeline_slug = web
      build_id = 01945ecf-0000-4000-8000-000000000003
      build_number = 5
      build_source = webhook
      job_id = 01945ecf-0000-4000-8000-000000000004
      commit = b5ffe3aeea51cec6c41aef16e45ee6bce47d8810
      branch_is_of_a_fork = false
      fork_branches_are_prefixed = false
      runner_environment = self-hosted
      branch = main
    target, as policies see it:
      name = ci-small
      engine = local
      restricted = false
      kubernetes = 1.34
      lease_seconds = 300
      deadline_seconds = 7200
    note: signature and times were not verified: the server does that first
    "#);
    let allowed = ask(CLAIMS, Action::UseKubernetes).unwrap();
    assert!(allowed.allowed);
    assert_eq!(allowed.policies, ["acme/use-own"]);
}

#[test]
fn a_token_is_read_and_said_to_be_unverified() {
    use base64::Engine as _;
    let part = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
    let token = format!(
        "{}.{}.{}",
        part(r#"{"alg":"RS256","kid":"k"}"#),
        part(CLAIMS),
        part("no signature")
    );
    let explained = ask(&token, Action::CreateEnvironment).unwrap();
    assert_eq!(explained, ask(CLAIMS, Action::CreateEnvironment).unwrap());
    assert!(explained.caveats[0].contains("not verified"));
    assert!(!explained.to_string().contains(&token));
}

#[test]
fn what_the_server_refuses_before_policy_is_told_as_that() {
    let other_audience = CLAIMS.replace("https://kubler.test:8443", "https://other");
    assert!(
        ask(&other_audience, Action::CreateEnvironment)
            .unwrap()
            .caveats[1]
            .contains("audience")
    );
    let without = CLAIMS.replace("\"pipeline_id\"", "\"x\"");
    let fault = ask(&without, Action::CreateEnvironment).unwrap_err();
    assert!(
        fault.message.contains("pipeline_id") && fault.hint.contains("--claim"),
        "{fault:?}"
    );
    let stranger = CLAIMS.replace(
        "https://agent.buildkite.com",
        "https://agent.buildkite.com.evil",
    );
    assert!(
        ask(&stranger, Action::CreateEnvironment)
            .unwrap_err()
            .message
            .contains("not a configured issuer")
    );
    for text in ["", "x", "{", "[]", "a.b.c", "{\"iss\": 1, \"iss\": 2}"] {
        assert!(ask(text, Action::CreateEnvironment).is_err(), "{text}");
    }
}

#[test]
fn a_check_lists_what_is_there() {
    let checked = check(&starter(ORGANIZATION, "acme"), &configuration()).unwrap();
    let text = checked.to_string();
    assert!(
        text.contains("permit `acme/create`") && text.contains("operators.cedar:"),
        "{text}"
    );
    assert!(text.ends_with(checked.set.digest()));
    assert!(
        check(&BTreeMap::new(), &configuration())
            .unwrap()
            .to_string()
            .contains("everything is denied")
    );
}
