//! Bent tokens are what they say they are: otherwise a broker that refuses them proves nothing.

use anyhow::Result;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use kubler_testkit::buildkite::{Buildkite, OidcRequest, Signature};
use serde_json::{Value, json};

use crate::issuer::part;

fn request() -> OidcRequest {
    OidcRequest::for_kubler("https://kubler.test")
}

#[test]
fn a_draft_signed_honestly_is_a_good_token() -> Result<()> {
    let buildkite = Buildkite::start();
    let job = buildkite.build("app").start().job("test").run();
    let jwk = serde_json::from_value(buildkite.jwks()["keys"][0].clone())?;
    let mut validation = Validation::new(Algorithm::RS256);
    validation.set_audience(&["https://kubler.test"]);
    let key = DecodingKey::from_jwk(&jwk)?;
    decode::<Value>(&job.forge(&request()).sign(), &key, &validation)?;
    for signature in Signature::HOSTILE {
        let token = job.forge(&request()).sign_with(signature);
        assert!(
            decode::<Value>(&token, &key, &validation).is_err(),
            "{signature:?} passed"
        );
    }
    Ok(())
}

#[test]
fn hmac_forgeries_verify_with_the_public_key_as_the_secret() -> Result<()> {
    let buildkite = Buildkite::start();
    let job = buildkite.build("app").start().job("test").run();
    let token = job.forge(&request()).sign_with(Signature::Hs256PublicPem);
    let mut validation = Validation::new(Algorithm::HS256);
    validation.set_audience(&["https://kubler.test"]);
    let pem = buildkite.public_key_pem();
    decode::<Value>(
        &token,
        &DecodingKey::from_secret(pem.as_bytes()),
        &validation,
    )?;
    DecodingKey::from_rsa_pem(pem.as_bytes())?;
    Ok(())
}

#[test]
fn drafts_bend_header_and_claims_in_every_way() {
    let buildkite = Buildkite::start();
    let job = buildkite.build("app").start().job("test").run();
    let draft = || job.forge(&request());
    let wrong_type = draft()
        .claim("exp", "tomorrow")
        .without_claim("jti")
        .header("crit", json!(["b64"]))
        .sign();
    assert_eq!(part(&wrong_type, 1)["exp"], "tomorrow");
    assert_eq!(part(&wrong_type, 1).get("jti"), None);
    assert_eq!(part(&wrong_type, 0)["crit"], json!(["b64"]));

    let twice = draft()
        .claim_again("organization_id", "other")
        .sign_with(Signature::None);
    let text = decoded(&twice);
    assert_eq!(text.matches("\"organization_id\":").count(), 2, "{text}");
    assert!(twice.ends_with('.') && part(&twice, 0)["alg"] == "none");

    assert!(draft().padded_to(1 << 20).sign().len() >= 1 << 20);
    let old = jiff::Timestamp::UNIX_EPOCH;
    assert_eq!(part(&draft().minted_at(old, 7200).sign(), 1)["exp"], 7200);
    assert_eq!(decoded(&draft().raw_claims("no json").sign()), "no json");
}

fn decoded(token: &str) -> String {
    use base64::Engine as _;
    let part = token.split('.').nth(1).unwrap();
    String::from_utf8(
        base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(part)
            .unwrap(),
    )
    .unwrap()
}
