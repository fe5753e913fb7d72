use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;

use super::*;

fn issuer() -> Issuer {
    Issuer {
        kind: IssuerKind::Buildkite,
        url: Issuer::BUILDKITE_URL.into(),
        audience: "https://kubler.test".into(),
        organizations: Vec::new(),
        ca: None,
        allow_private_addresses: false,
        token_seconds_max: 300,
        clock_skew_seconds: 30,
    }
}

fn compact(header: &str, claims: &str) -> String {
    format!(
        "{}.{}.c2ln",
        URL_SAFE_NO_PAD.encode(header),
        URL_SAFE_NO_PAD.encode(claims)
    )
}

fn refused(token: &str) -> RefusalReason {
    UnverifiedToken::parse(token).unwrap_err()
}

#[test]
fn a_token_is_read_as_it_was_sent() {
    let text = compact(r#"{"kid":"k","alg":"RS256"}"#, r#"{"iss":"i","n":1}"#);
    let token = UnverifiedToken::parse(&text).unwrap();
    assert_eq!(
        (
            token.algorithm.as_str(),
            token.key_id.as_deref(),
            token.issuer()
        ),
        ("RS256", Some("k"), Some("i"))
    );
    assert_eq!(format!("{}.{}", token.message, token.signature), text);
    assert!(!format!("{token:?}").contains("c2ln"));
}

#[rstest]
#[case::an_agents_access_token("bkaj_0123456789abcdef")]
#[case::nothing("")]
#[case::one_part("eyJhbGciOiJSUzI1NiJ9")]
#[case::two_parts("eyJhbGciOiJSUzI1NiJ9.e30")]
#[case::four_parts("eyJhbGciOiJSUzI1NiJ9.e30.c2ln.c2ln")]
#[case::five_parts_of_an_encrypted_token("eyJhbGciOiJSUzI1NiJ9.e30.c2ln.c2ln.c2ln")]
#[case::padded("eyJhbGciOiJSUzI1NiJ9==.e30.c2ln")]
#[case::standard_alphabet("eyJhbGciOiJSUzI1NiJ9.+/+/.c2ln")]
#[case::trailing_bits("eyJhbGciOiJSUzI1NiJ9.e31.c2ln")]
#[case::white_space(" eyJhbGciOiJSUzI1NiJ9.e30.c2ln")]
fn t1_what_is_not_three_parts_of_base64url_is_no_token(#[case] text: &str) {
    assert_eq!(refused(text), RefusalReason::NotAToken);
}

#[test]
fn t2_a_token_of_a_megabyte_is_refused_unread() {
    assert_eq!(refused(&"x".repeat(1024 * 1024)), RefusalReason::TooLarge);
    assert_eq!(
        refused(&"x".repeat(TOKEN_BYTES_MAX + 1)),
        RefusalReason::TooLarge
    );
    assert_eq!(
        refused(&"x".repeat(TOKEN_BYTES_MAX)),
        RefusalReason::NotAToken
    );
}

#[rstest]
#[case("crit", json!(["exp"]))]
#[case("crit", json!([]))]
#[case("jku", json!("https://evil.test/jwks"))]
#[case("jwk", json!({"kty": "RSA"}))]
#[case("x5u", json!("https://evil.test/chain"))]
#[case("x5c", json!(["MIIB"]))]
#[case("x5t", json!("abc"))]
#[case("x5t#S256", json!("abc"))]
#[case("zip", json!("DEF"))]
#[case("cty", json!("JWT"))]
#[case("enc", json!("A128GCM"))]
#[case("b64", json!(false))]
#[case("Alg", json!("none"))]
#[case("crit", Value::Null)]
fn t1_a_header_says_nothing_but_algorithm_key_and_type(#[case] member: &str, #[case] value: Value) {
    let mut header = json!({"alg": "RS256", "kid": "k"});
    header[member] = value;
    assert_eq!(
        refused(&compact(&header.to_string(), "{}")),
        RefusalReason::Header
    );
}

#[rstest]
#[case(json!({"alg": "RS256", "typ": "at+jwt"}), RefusalReason::Header)]
#[case(json!({"alg": "RS256", "typ": "kubler-session+jwt"}), RefusalReason::Header)]
#[case(json!({"alg": "RS256", "typ": null}), RefusalReason::Header)]
#[case(json!({"alg": "RS256", "kid": 5}), RefusalReason::Header)]
#[case(json!({"alg": "RS256", "kid": ""}), RefusalReason::Header)]
#[case(json!({"alg": "RS256", "kid": null}), RefusalReason::Header)]
#[case(json!({"alg": "RS256", "kid": "k".repeat(257)}), RefusalReason::Header)]
#[case(json!({"alg": ["RS256"]}), RefusalReason::Algorithm)]
#[case(json!({"kid": "k"}), RefusalReason::Algorithm)]
fn t1_header_members_have_strict_types(#[case] header: Value, #[case] reason: RefusalReason) {
    assert_eq!(refused(&compact(&header.to_string(), "{}")), reason);
}

#[test]
fn t1_a_type_of_jwt_in_any_case_is_fine() {
    for kind in ["JWT", "jwt"] {
        assert!(
            UnverifiedToken::parse(&compact(
                &json!({"alg": "RS256", "typ": kind}).to_string(),
                "{}"
            ))
            .is_ok()
        );
    }
}

#[test]
fn t2_no_key_stands_twice_in_header_or_claims() {
    assert_eq!(
        refused(&compact(r#"{"alg":"RS256","alg":"none"}"#, "{}")),
        RefusalReason::DuplicateKey
    );
    assert_eq!(
        refused(&compact(r#"{"alg":"RS256"}"#, r#"{"iss":"a","iss":"b"}"#)),
        RefusalReason::DuplicateKey
    );
    assert_eq!(
        refused(&compact(r#"{"alg":"RS256"}"#, "[]")),
        RefusalReason::NotJson
    );
    assert_eq!(refused(&compact("alg", "{}")), RefusalReason::NotJson);
}

#[test]
fn t1_no_issuer_may_use_a_symmetric_algorithm_or_none() {
    for algorithm in algorithms(IssuerKind::Buildkite) {
        assert!(!algorithm.starts_with("HS") && !algorithm.eq_ignore_ascii_case("none"));
    }
}

#[rstest]
#[case(json!("https://kubler.test"), Ok(()))]
#[case(json!(["https://kubler.test"]), Ok(()))]
#[case(json!("https://kubler.test/"), Err(RefusalReason::Audience))]
#[case(json!("https://KUBLER.test"), Err(RefusalReason::Audience))]
#[case(json!("https://kubler.test.evil.test"), Err(RefusalReason::Audience))]
#[case(json!(""), Err(RefusalReason::Audience))]
#[case(json!("https://buildkite.com/acme"), Err(RefusalReason::AudienceDefault))]
#[case(json!(["https://kubler.test", "https://other.test"]), Err(RefusalReason::AudienceSeveral))]
#[case(json!(["https://kubler.test", "https://kubler.test"]), Err(RefusalReason::AudienceSeveral))]
#[case(json!([]), Err(RefusalReason::ClaimMalformed))]
#[case(json!([["https://kubler.test"]]), Err(RefusalReason::ClaimMalformed))]
#[case(json!({"0": "https://kubler.test"}), Err(RefusalReason::ClaimMalformed))]
#[case(json!(null), Err(RefusalReason::ClaimMissing))]
fn t3_the_audience_is_ours_alone(
    #[case] audience: Value,
    #[case] expected: Result<(), RefusalReason>,
) {
    let claims = Claims::from_iter([("aud".to_owned(), audience)]);
    assert_eq!(check_audience(&claims, &issuer()), expected);
}

#[test]
fn t3_no_audience_is_not_every_audience() {
    assert_eq!(
        check_audience(&Claims::new(), &issuer()),
        Err(RefusalReason::ClaimMissing)
    );
    let unset = Issuer {
        audience: String::new(),
        ..issuer()
    };
    let claims = Claims::from_iter([("aud".to_owned(), json!(""))]);
    assert_eq!(
        check_audience(&claims, &unset),
        Err(RefusalReason::Audience)
    );
}

const NOW: i64 = 1_800_000_000;

fn timed(iat: impl Into<Value>, nbf: impl Into<Value>, exp: impl Into<Value>) -> Claims {
    [
        ("sub", "s".into()),
        ("iat", iat.into()),
        ("nbf", nbf.into()),
        ("exp", exp.into()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into_iter()
    .collect()
}

fn check(claims: &Claims) -> Result<(), RefusalReason> {
    Standing::read(claims)
        .unwrap()
        .check(&issuer(), Timestamp::from_second(NOW).unwrap())
}

#[rstest]
#[case::fresh(0, 300, Ok(()))]
#[case::last_accepted_second(-329, 300, Ok(()))]
#[case::over(-330, 300, Err(RefusalReason::Expired))]
#[case::from_the_future_within_skew(30, 300, Ok(()))]
#[case::from_the_future(31, 300, Err(RefusalReason::NotYetValid))]
#[case::two_hours_and_fresh(0, 7200, Err(RefusalReason::LifeTooLong))]
#[case::two_hours_minted_long_ago(-7000, 7200, Err(RefusalReason::LifeTooLong))]
#[case::one_second_too_long(0, 301, Err(RefusalReason::LifeTooLong))]
fn t4_t6_life_and_skew_are_bounded(
    #[case] age: i64,
    #[case] life: i64,
    #[case] expected: Result<(), RefusalReason>,
) {
    let issued = NOW + age;
    assert_eq!(check(&timed(issued, issued, issued + life)), expected);
}

#[test]
fn t4_not_before_counts_by_itself() {
    assert_eq!(
        check(&timed(NOW, NOW + 31, NOW + 300)),
        Err(RefusalReason::NotYetValid)
    );
    assert_eq!(check(&timed(NOW, NOW + 30, NOW + 300)), Ok(()));
}

#[rstest]
#[case::text(json!("1800000000"))]
#[case::fraction(json!(1_800_000_000.5))]
#[case::whole_fraction(json!(1_800_000_000.0))]
#[case::negative(json!(-1))]
#[case::past_all_time(json!(u64::MAX))]
#[case::past_the_calendar(json!(999_999_999_999_u64))]
#[case::truth(json!(true))]
#[case::list(json!([1_800_000_000]))]
fn t2_times_of_a_wrong_type_are_not_absent_but_wrong(#[case] value: Value) {
    for name in ["iat", "nbf", "exp"] {
        let mut claims = timed(NOW, NOW, NOW + 300);
        claims.insert(name.into(), value.clone());
        assert!(
            matches!(Standing::read(&claims), Err(ClaimFault::Malformed { .. })),
            "{name}: {value}"
        );
    }
}

#[test]
fn t4_every_time_is_required() {
    for name in ["iat", "nbf", "exp", "sub"] {
        let mut claims = timed(NOW, NOW, NOW + 300);
        claims.remove(name);
        assert_eq!(Standing::read(&claims), Err(ClaimFault::Missing { name }));
    }
}

#[test]
fn t4_times_that_contradict_each_other_are_malformed() {
    assert!(Standing::read(&timed(NOW, NOW, NOW)).is_err());
    assert!(Standing::read(&timed(NOW + 10, NOW, NOW + 5)).is_err());
    assert!(Standing::read(&timed(NOW, NOW + 10, NOW + 5)).is_err());
}

#[test]
fn t6_the_seen_skew_is_told() {
    let at = |seconds| Timestamp::from_second(NOW + seconds).unwrap();
    let standing = Standing::read(&timed(NOW, NOW, NOW + 300)).unwrap();
    assert_eq!(standing.clock_skew_seconds(at(-12)), 12);
    assert_eq!(standing.clock_skew_seconds(at(100)), 0);
    assert_eq!(standing.clock_skew_seconds(at(307)), -7);
}

proptest! {
    #[test]
    fn t4_what_passes_was_minted_at_most_one_life_and_one_skew_ago(age in -1000i64..1000, begin in -400i64..400, life in 1i64..1000) {
        let issued = NOW + age;
        if let Ok(standing) = Standing::read(&timed(issued, issued + begin, issued + life))
            && standing.check(&issuer(), Timestamp::from_second(NOW).unwrap()).is_ok()
        {
            prop_assert!(life <= 300);
            prop_assert!((-330..=30).contains(&age));
        }
    }

    #[test]
    fn t2_no_text_makes_the_reader_fall_over(text in any::<String>(), parts in prop::collection::vec("[A-Za-z0-9_.=-]{0,40}", 0..5)) {
        let _ = UnverifiedToken::parse(&text);
        let _ = UnverifiedToken::parse(&parts.join("."));
    }
}
