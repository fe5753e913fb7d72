//! Hostile tokens, one by one: each is refused for its own reason, and none is explained to a stranger.

use jiff::SignedDuration;
use kubler_testkit::buildkite::{OidcRequest, Signature};
use rstest::rstest;
use serde_json::{Value, json};

use super::*;

#[tokio::test]
async fn t1_no_hostile_signature_is_accepted() {
    let scene = Scene::new();
    assert!(scene.verify(scene.draft().sign()).await.is_ok());
    for signature in Signature::HOSTILE {
        let expected = match signature {
            Signature::WrongKey
            | Signature::Ps256AsRs256
            | Signature::Missing
            | Signature::Corrupted => RefusalReason::Signature,
            Signature::UnknownKey => RefusalReason::KeyUnknown,
            _ => RefusalReason::Algorithm,
        };
        let refusal = scene.refusal(scene.draft().sign_with(signature)).await;
        assert_eq!(refusal, Refusal::from(expected), "{signature:?}");
    }
}

#[rstest]
#[case("crit", json!(["exp"]))]
#[case("jku", json!("https://evil.test/jwks"))]
#[case("jwk", json!({"kty": "oct", "k": "AAAA"}))]
#[case("x5u", json!("https://evil.test"))]
#[case("x5c", json!(["AAAA"]))]
#[case("zip", json!("DEF"))]
#[case("cty", json!("JWT"))]
#[case("typ", json!("at+jwt"))]
#[case("kid", json!(["a"]))]
#[tokio::test]
async fn t1_a_header_that_says_more_is_refused_though_signed(
    #[case] member: &str,
    #[case] value: Value,
) {
    let scene = Scene::new();
    let token = scene.draft().header(member, value).sign();
    assert_eq!(scene.refusal(token).await, RefusalReason::Header.into());
}

#[tokio::test]
async fn t2_duplicate_keys_are_refused_though_signed() {
    let scene = Scene::new();
    for token in [
        scene.draft().claim_again("aud", AUDIENCE).sign(),
        scene.draft().claim_again("exp", 4_000_000_000_u64).sign(),
        scene.draft().claim_again("organization_id", "x").sign(),
        scene.draft().header_again("alg", "none").sign(),
        scene
            .draft()
            .claim("https://aws.amazon.com/tags", json!({"a": 1}))
            .raw_claims(r#"{"iss":"x","tags":{"a":1,"a":2}}"#)
            .sign(),
    ] {
        assert_eq!(
            scene.refusal(token).await,
            RefusalReason::DuplicateKey.into()
        );
    }
}

#[tokio::test]
async fn t2_what_is_no_json_object_is_refused_though_signed() {
    let scene = Scene::new();
    for claims in ["", "[]", "null", "{", "{}{}", "{\"iss\":\"\u{0}\"}"] {
        assert_eq!(
            scene.refusal(scene.draft().raw_claims(claims).sign()).await,
            RefusalReason::NotJson.into(),
            "{claims}"
        );
    }
    assert_eq!(
        scene
            .refusal(scene.draft().raw_claims(*b"\xff\xfe").sign())
            .await,
        RefusalReason::NotJson.into()
    );
}

#[tokio::test]
async fn t2_a_megabyte_is_refused_unread() {
    let scene = Scene::new();
    let token = scene.draft().padded_to(1024 * 1024).sign();
    assert!(token.len() >= 1024 * 1024);
    assert_eq!(scene.refusal(token).await, RefusalReason::TooLarge.into());
    assert_eq!(scene.buildkite.discovery_requests(), 0);
}

#[tokio::test]
async fn an_agents_access_token_is_no_identity() {
    let scene = Scene::new();
    for token in [
        scene.job.access_token().unwrap(),
        "0123456789abcdef0123456789abcdef01234567".into(),
        String::new(),
    ] {
        assert_eq!(scene.refusal(token).await, RefusalReason::NotAToken.into());
    }
    assert_eq!(scene.buildkite.discovery_requests(), 0);
}

#[rstest]
#[case::text("exp", json!("1800000000"))]
#[case::fraction("iat", json!(1_800_000_000.5))]
#[case::whole_fraction("nbf", json!(1_800_000_000.0))]
#[case::beyond_time("exp", json!(u64::MAX))]
#[case::negative("nbf", json!(-1))]
#[case::number_as_text("build_number", json!("5"))]
#[case::list_as_id("organization_id", json!(["x"]))]
#[case::truth_as_text("build_branch", json!(true))]
#[case::other_subject("sub", json!(7))]
#[case::other_id("jti", json!(7))]
#[tokio::test]
async fn t2_wrong_types_are_refused_and_not_taken_for_absent(
    #[case] name: &str,
    #[case] value: Value,
) {
    let scene = Scene::new();
    let refusal = scene.refusal(scene.draft().claim(name, value).sign()).await;
    assert_eq!(refusal.reason, RefusalReason::ClaimMalformed);
    assert!(refusal.detail.unwrap().contains(name));
}

#[rstest]
#[tokio::test]
async fn t4_required_claims_are_required(
    #[values("exp", "nbf", "iat", "sub", "aud", "job_id", "build_source")] name: &str,
) {
    let scene = Scene::new();
    for token in [
        scene.draft().without_claim(name).sign(),
        scene.draft().claim(name, Value::Null).sign(),
    ] {
        assert_eq!(
            scene.refusal(token).await.reason,
            RefusalReason::ClaimMissing
        );
    }
}

#[tokio::test]
async fn t3_only_our_audience_alone_is_accepted() {
    let scene = Scene::new();
    assert!(
        scene
            .verify(scene.draft().claim("aud", json!([AUDIENCE])).sign())
            .await
            .is_ok()
    );
    for (audience, reason) in [
        (json!("https://other.test"), RefusalReason::Audience),
        (json!("https://kubler.test/"), RefusalReason::Audience),
        (
            json!("https://buildkite.com/acme"),
            RefusalReason::AudienceDefault,
        ),
        (
            json!([AUDIENCE, "https://other.test"]),
            RefusalReason::AudienceSeveral,
        ),
        (json!([AUDIENCE, AUDIENCE]), RefusalReason::AudienceSeveral),
    ] {
        assert_eq!(
            scene
                .refusal(scene.draft().claim("aud", audience).sign())
                .await,
            reason.into()
        );
    }
    let asked_for_none = scene.job.oidc_token(&OidcRequest::default()).unwrap();
    assert_eq!(
        scene.refusal(asked_for_none).await,
        RefusalReason::AudienceDefault.into()
    );
}

#[tokio::test]
async fn t4_a_long_life_buys_nothing() {
    let scene = Scene::new();
    let asked = scene
        .job
        .oidc_token(&OidcRequest::for_kubler(AUDIENCE).lifetime(7200))
        .unwrap();
    let refusal = scene.refusal(asked).await;
    assert_eq!(refusal.reason, RefusalReason::LifeTooLong);
    assert!(refusal.disclosed.unwrap().hint.contains("--lifetime 300"));
    let old = scene
        .draft()
        .minted_at(scene.now() - SignedDuration::from_secs(6000), 7200)
        .sign();
    assert_eq!(scene.refusal(old).await.reason, RefusalReason::LifeTooLong);
}

#[rstest]
#[case::just_accepted(-329, Ok(()))]
#[case::over(-330, Err(RefusalReason::Expired))]
#[case::ahead(30, Ok(()))]
#[case::too_far_ahead(31, Err(RefusalReason::NotYetValid))]
#[tokio::test]
async fn t4_t6_time_has_two_ends_and_one_skew(
    #[case] age: i64,
    #[case] expected: Result<(), RefusalReason>,
) {
    let scene = Scene::new();
    let token = scene
        .draft()
        .minted_at(scene.now() + SignedDuration::from_secs(age), 300)
        .sign();
    assert_eq!(
        scene
            .verify(token)
            .await
            .map(|_| ())
            .map_err(|refusal| refusal.reason),
        expected
    );
}

#[tokio::test]
async fn t6_the_skew_goes_to_the_ledger_and_not_to_the_caller() {
    let scene = Scene::new();
    let ahead = scene
        .draft()
        .minted_at(scene.now() + SignedDuration::from_secs(47), 300)
        .sign();
    let refusal = scene.refusal(ahead).await;
    assert_eq!(
        (refusal.reason, refusal.clock_skew_seconds),
        (RefusalReason::NotYetValid, 47)
    );
    assert!(!format!("{:?}", refusal.disclosed.unwrap()).contains("47"));
    let near = scene
        .verify(
            scene
                .draft()
                .minted_at(scene.now() + SignedDuration::from_secs(7), 300)
                .sign(),
        )
        .await
        .unwrap();
    assert_eq!(near.clock_skew_seconds(scene.now()), 7);
}

#[tokio::test]
async fn t5_a_verified_token_has_its_digest_and_needs_no_id() {
    let scene = Scene::new();
    let with = scene.draft().claim("jti", "some-id").sign();
    let without = scene.draft().without_claim("jti").sign();
    let (one, again) = (
        scene.verify(with.as_str()).await.unwrap(),
        scene.verify(with.as_str()).await.unwrap(),
    );
    let other = scene.verify(without).await.unwrap();
    assert_eq!(
        (one.token_id.as_deref(), other.token_id),
        (Some("some-id"), None)
    );
    assert_eq!(one, again);
    assert_ne!(one.digest, other.digest);
}

#[tokio::test]
async fn t8_an_issuer_that_is_not_configured_is_never_asked() {
    let scene = Scene::new();
    let url = scene.buildkite.issuer_url().to_owned();
    for issuer in [
        json!(format!("{url}/")),
        json!(url.to_uppercase()),
        json!(format!("{url}@evil.test")),
        json!(format!(" {url}")),
        json!("https://agent.buildkite.com"),
        json!("https://127.0.0.1"),
        json!(""),
        json!(null),
        json!([url]),
        json!(7),
    ] {
        assert_eq!(
            scene
                .refusal(scene.draft().claim("iss", issuer).sign())
                .await,
            RefusalReason::Issuer.into()
        );
    }
    assert_eq!(
        scene
            .refusal(scene.draft().without_claim("iss").sign())
            .await,
        RefusalReason::Issuer.into()
    );
    assert_eq!(scene.buildkite.discovery_requests(), 0);
}

#[tokio::test]
async fn c1_another_organization_of_the_same_issuer_is_refused_without_a_word() {
    let buildkite = Buildkite::builder()
        .organization("acme", &["app"])
        .organization("evil", &["app"])
        .start();
    let job = buildkite.build("evil/app").start().job("test").run();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("issuer-ca.pem"), buildkite.ca_pem()).unwrap();
    let verifier = verifier(
        &configuration(settings(&buildkite)),
        folder.path(),
        Arc::new(SystemClock),
    )
    .unwrap();
    let plain = job.oidc_token(&OidcRequest::for_kubler(AUDIENCE)).unwrap();
    let refusal = verifier.verify(&plain.into()).await.unwrap_err();
    assert_eq!(
        (refusal.reason, &refusal.disclosed, &refusal.identity),
        (RefusalReason::Organization, &None, &None)
    );
    assert_eq!(
        refusal.detail.unwrap(),
        buildkite.organization("evil").id.to_string()
    );

    // A name that looks like ours changes nothing, and neither does a wrong time or a missing claim.
    for draft in [
        job.forge(&OidcRequest::for_kubler(AUDIENCE))
            .claim("organization_slug", "acme"),
        job.forge(&OidcRequest::for_kubler(AUDIENCE))
            .minted_at(SystemClock.now() - SignedDuration::from_hours(1), 300),
        job.forge(&OidcRequest::for_audience(AUDIENCE)),
    ] {
        let refusal = verifier.verify(&draft.sign().into()).await.unwrap_err();
        assert_eq!((refusal.disclosed, refusal.listed), (None, None));
    }
}

#[tokio::test]
async fn c1_a_job_that_did_not_ask_for_its_ids_is_told_how() {
    let scene = Scene::new();
    let token = scene
        .job
        .oidc_token(&OidcRequest::for_audience(AUDIENCE))
        .unwrap();
    let refusal = scene.refusal(token).await;
    assert_eq!(refusal.reason, RefusalReason::ClaimMissing);
    let disclosed = refusal.disclosed.unwrap();
    assert!(
        disclosed
            .detail
            .contains("`organization_id`, `pipeline_id`, `build_id`"),
        "{}",
        disclosed.detail
    );
    assert!(
        disclosed
            .hint
            .contains("`--claim organization_id,pipeline_id,build_id`"),
        "{}",
        disclosed.hint
    );
}

#[tokio::test]
async fn c2_whatever_the_job_makes_its_subject_it_is_the_same_job() {
    let scene = Scene::new();
    let identity = async |request: OidcRequest| {
        let token = scene.job.oidc_token(&request).unwrap();
        scene.verify(token).await.unwrap().identity
    };
    let plain = identity(OidcRequest::for_kubler(AUDIENCE)).await;
    for claim in [
        "organization_id",
        "pipeline_id",
        "cluster_id",
        "queue_id",
        "build_id",
        "job_id",
        "agent_id",
    ] {
        assert_eq!(
            identity(OidcRequest::for_kubler(AUDIENCE).subject_claim(claim)).await,
            plain
        );
    }
}

#[tokio::test]
async fn c6_a_wild_branch_arrives_bounded_and_tame() {
    let scene = Scene::new();
    let wild = "x\u{1b}]0;\n\u{202e}".repeat(300);
    let identity = scene
        .verify(scene.draft().claim("build_branch", wild).sign())
        .await
        .unwrap()
        .identity;
    let branch = identity.source.branch.unwrap();
    assert_eq!(branch.as_str().chars().count(), 256);
    assert!(!branch.as_str().contains(['\u{1b}', '\n', '\u{202e}']));
}

#[tokio::test]
async fn t10_only_a_validly_signed_token_for_us_of_our_organization_is_explained() {
    let scene = Scene::new();
    let old = scene.now() - SignedDuration::from_secs(4000);
    let expired = scene.draft().minted_at(old, 300);
    let explained = scene.refusal(expired.clone().sign()).await;
    assert_eq!(explained.reason, RefusalReason::Expired);
    assert!(explained.disclosed.is_some());
    let listed = explained.listed.unwrap().id;
    assert_eq!(explained.identity.as_ref().unwrap().organization.id, listed);
    assert_eq!(
        explained.identity.unwrap().job.id,
        scene.job.id().to_string()
    );

    for token in [
        expired.clone().sign_with(Signature::Corrupted),
        expired.clone().claim("aud", "https://other.test").sign(),
        expired
            .clone()
            .claim("organization_id", "01945ecf-0000-7000-8000-0000000000ff")
            .sign(),
        expired
            .without_claim("organization_id")
            .claim("organization_slug", "evil")
            .sign(),
    ] {
        let refusal = scene.refusal(token).await;
        assert_eq!((refusal.disclosed, refusal.identity), (None, None));
    }
}
