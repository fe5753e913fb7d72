use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::configuration::IssuerKind;

const ORGANIZATION: &str = "01945ecf-0000-7000-8000-00000000000a";

fn issuer() -> Issuer {
    Issuer {
        kind: IssuerKind::Buildkite,
        url: Issuer::BUILDKITE_URL.into(),
        audience: "https://kubler.test".into(),
        organizations: vec![Organization {
            id: ORGANIZATION.into(),
            slug: "acme".into(),
            fork_branches_are_prefixed: false,
            webhook_secret: None,
        }],
        ca: None,
        allow_private_addresses: false,
        token_seconds_max: 300,
        clock_skew_seconds: 30,
    }
}

/// What Buildkite puts into a token that was made with `--claim organization_id,pipeline_id,build_id`.
fn claims() -> Claims {
    let Value::Object(claims) = json!({
        "iss": "https://agent.buildkite.com",
        "sub": "organization:acme:pipeline:web:ref:refs/heads/main:commit:b5ffe3ae:step:",
        "aud": "https://kubler.test", "iat": 1_736_757_460, "nbf": 1_736_757_460, "exp": 1_736_757_760,
        "jti": "0194b014-8517-7cef-b232-76a827315f08",
        "organization_slug": "acme", "pipeline_slug": "web", "build_number": 5,
        "build_branch": "main", "build_tag": null, "build_commit": "b5ffe3aeea51cec6c41aef16e45ee6bce47d8810",
        "step_key": null, "job_id": "01945ecf-80f0-41e8-9b83-a2970a9305a1",
        "agent_id": "01945ecf-8bcf-40a6-9d70-a765db9a0928",
        "build_source": "ui", "runner_environment": "buildkite-hosted",
        "organization_id": ORGANIZATION,
        "pipeline_id": "01945ecf-0000-7000-8000-00000000000b",
        "build_id": "01945ecf-0000-7000-8000-00000000000c",
    }) else {
        unreachable!()
    };
    claims
}

fn with(name: &str, value: impl Into<Value>) -> Claims {
    let mut claims = claims();
    claims.insert(name.into(), value.into());
    claims
}

fn without(name: &str) -> Claims {
    let mut claims = claims();
    claims.remove(name);
    claims
}

#[test]
fn a_token_of_a_job_becomes_its_identity() {
    let identity = identity_from_claims(&claims(), &issuer()).unwrap();
    assert_eq!(
        identity.organization,
        Named {
            id: ORGANIZATION.into(),
            slug: "acme".into()
        }
    );
    assert_eq!(identity.run.number, 5);
    assert_eq!(identity.run.url, "https://buildkite.com/acme/web/builds/5");
    assert_eq!(
        identity.job.url,
        "https://buildkite.com/acme/web/builds/5#01945ecf-80f0-41e8-9b83-a2970a9305a1"
    );
    assert_eq!((identity.job.step_key, identity.source.tag), (None, None));
    assert_eq!(identity.source.branch.unwrap().as_str(), "main");
    assert_eq!(identity.runner.cluster_id, None);
}

#[test]
fn a_commit_may_be_a_name() {
    assert_eq!(
        identity_from_claims(&with("build_commit", "HEAD"), &issuer())
            .unwrap()
            .source
            .commit
            .as_str(),
        "HEAD"
    );
}

#[rstest]
fn null_is_absent(
    #[values(
        "build_tag",
        "step_key",
        "build_branch",
        "cluster_id",
        "queue_id",
        "queue_key"
    )]
    name: &str,
) {
    assert_eq!(
        identity_from_claims(&with(name, Value::Null), &issuer()),
        identity_from_claims(&without(name), &issuer()),
    );
}

#[rstest]
fn c1_without_the_ids_there_is_no_identity_but_a_hint(
    #[values("organization_id", "pipeline_id", "build_id")] name: &'static str,
) {
    for claims in [without(name), with(name, Value::Null)] {
        let fault = identity_from_claims(&claims, &issuer()).unwrap_err();
        assert_eq!(
            fault,
            ClaimFault::NotAskedFor {
                names: vec![name],
                required: &CLAIMS_TO_ASK_FOR
            }
        );
        assert!(
            fault
                .hint()
                .contains("`--claim organization_id,pipeline_id,build_id`"),
            "{}",
            fault.hint()
        );
    }
}

#[test]
fn c1_every_missing_id_is_named_at_once() {
    let mut claims = claims();
    claims.retain(|name, _| !CLAIMS_TO_ASK_FOR.contains(&name.as_str()));
    let fault = identity_from_claims(&claims, &issuer()).unwrap_err();
    assert_eq!(
        fault.to_string(),
        "the token has no `organization_id`, `pipeline_id`, `build_id`"
    );
}

#[test]
fn c1_another_customer_of_the_issuer_is_refused_whatever_its_slug() {
    let other = "01945ecf-0000-7000-8000-0000000000ff";
    let fault = identity_from_claims(&with("organization_id", other), &issuer()).unwrap_err();
    assert_eq!(
        fault,
        ClaimFault::OrganizationNotListed { id: other.into() }
    );
    assert_eq!(
        listed_organization(&with("organization_id", other), &issuer()),
        None
    );
}

#[test]
fn c1_an_issuer_without_organizations_accepts_nobody() {
    let issuer = Issuer {
        organizations: Vec::new(),
        ..issuer()
    };
    assert!(matches!(
        identity_from_claims(&claims(), &issuer),
        Err(ClaimFault::OrganizationNotListed { .. })
    ));
}

#[test]
fn c2_the_subject_is_never_read() {
    let honest = identity_from_claims(&claims(), &issuer()).unwrap();
    for subject in [
        "organization:evil:pipeline:web:ref:refs/heads/main:commit:x:step:",
        ORGANIZATION,
        "",
        "\u{0}:::",
    ] {
        assert_eq!(
            identity_from_claims(&with("sub", subject), &issuer()).unwrap(),
            honest
        );
    }
    assert_eq!(
        identity_from_claims(&with("sub", json!({"a": [1]})), &issuer()).unwrap(),
        honest
    );
}

#[test]
fn c2_a_renamed_or_recycled_slug_changes_no_owner() {
    let renamed = with("pipeline_slug", "other");
    let owner = |claims: &Claims| identity_from_claims(claims, &issuer()).unwrap().owner();
    assert_eq!(owner(&renamed), owner(&claims()));
    let recycled = with("pipeline_id", "01945ecf-0000-7000-8000-0000000000ee");
    assert!(!owner(&recycled).same_project(&owner(&claims())));
}

#[test]
fn c2_a_listed_slug_gives_a_hint_and_no_identity() {
    let mut claims = without("organization_id");
    assert!(listed_organization(&claims, &issuer()).is_some());
    assert!(identity_from_claims(&claims, &issuer()).is_err());
    claims.insert("organization_slug".into(), "evil".into());
    assert_eq!(listed_organization(&claims, &issuer()), None);
}

#[rstest]
#[case::number_as_text("build_number", json!("5"))]
#[case::fraction("build_number", json!(5.0))]
#[case::exponent("build_number", serde_json::from_str("5e0").unwrap())]
#[case::negative("build_number", json!(-5))]
#[case::past_64_bits("build_number", serde_json::from_str("18446744073709551616").unwrap())]
#[case::text_as_number("organization_slug", json!(5))]
#[case::text_as_list("pipeline_id", json!(["01945ecf-0000-7000-8000-00000000000b"]))]
#[case::text_as_object("build_branch", json!({"name": "main"}))]
#[case::text_as_truth("step_key", json!(false))]
#[case::empty_id("organization_id", json!(""))]
#[case::upper_case("job_id", json!("01945ECF-80F0-41E8-9B83-A2970A9305A1"))]
#[case::braces("job_id", json!("{01945ecf-80f0-41e8-9b83-a2970a9305a1}"))]
#[case::urn("job_id", json!("urn:uuid:01945ecf-80f0-41e8-9b83-a2970a9305a1"))]
#[case::without_hyphens("job_id", json!("01945ecf80f041e89b83a2970a9305a1"))]
#[case::path_in_id("build_id", json!("../../01945ecf-0000-7000-8000-00000000000c"))]
#[case::space_in_id("organization_id", json!("01945ecf-0000-7000-8000-00000000000a "))]
#[case::optional_id("cluster_id", json!("default"))]
#[case::spaces_in_a_word("pipeline_slug", json!("a b"))]
#[case::long_word("build_source", json!("x".repeat(257)))]
fn t2_a_wrong_type_or_shape_is_a_fault(#[case] name: &str, #[case] value: Value) {
    let fault = identity_from_claims(&with(name, value), &issuer()).unwrap_err();
    assert!(
        matches!(&fault, ClaimFault::Malformed { name: found, .. } if *found == name),
        "{fault}"
    );
}

#[rstest]
fn t2_what_every_token_has_must_be_there(
    #[values(
        "organization_slug",
        "pipeline_slug",
        "build_number",
        "build_commit",
        "job_id",
        "agent_id",
        "build_source",
        "runner_environment"
    )]
    name: &str,
) {
    let fault = identity_from_claims(&without(name), &issuer()).unwrap_err();
    assert!(
        matches!(&fault, ClaimFault::Missing { name: found } if *found == name),
        "{fault}"
    );
}

#[test]
fn c6_text_of_people_is_bounded() {
    let wild = "a\u{1b}[2J\n\u{202e}".repeat(1000);
    for name in [
        "build_branch",
        "build_tag",
        "build_commit",
        "step_key",
        "queue_key",
    ] {
        let identity = identity_from_claims(&with(name, wild.as_str()), &issuer()).unwrap();
        let text = serde_json::to_string(&identity).unwrap();
        assert!(
            text.len() < 4000 && !text.contains("\\u001b") && !text.contains("\\n"),
            "{name}: {text}"
        );
    }
}

#[test]
fn c6_a_link_leads_only_to_the_listed_organization() {
    let url = |slug: &str| {
        identity_from_claims(&with("pipeline_slug", slug), &issuer())
            .unwrap()
            .run
            .url
    };
    assert_eq!(
        url("../../evil/x?y#z"),
        "https://buildkite.com/acme/------evil-x-y-z/builds/5"
    );
    assert_eq!(url(".."), "https://buildkite.com/acme/--/builds/5");
    let claims = with("organization_slug", "evil");
    assert_eq!(
        identity_from_claims(&claims, &issuer()).unwrap().run.url,
        "https://buildkite.com/acme/web/builds/5"
    );
}

proptest! {
    #[test]
    fn c6_no_claim_of_any_text_gets_out_unbounded(name in prop::sample::select(vec!["build_branch", "step_key", "pipeline_slug", "build_commit", "build_source"]), text in any::<String>()) {
        if let Ok(identity) = identity_from_claims(&with(name, text), &issuer()) {
            let text = serde_json::to_string(&identity).unwrap();
            prop_assert!(text.len() < 4000);
            prop_assert!(identity.run.url.starts_with("https://buildkite.com/acme/"));
            prop_assert!(identity.run.url.bytes().all(|byte| byte.is_ascii_graphic()));
        }
    }
}
