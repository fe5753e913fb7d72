//! Tokens. The input is a token, or two lines: the JSON of a header and the JSON of claims.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::identity::Identity;
use crate::identity::buildkite::{identity_from_claims, listed_organization};
use crate::identity::claims::Claims;
use crate::identity::json::{self, JsonFault};
use crate::identity::token::{Standing, TOKEN_BYTES_MAX, UnverifiedToken, check_audience};

pub(super) fn token(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else {
        return false;
    };
    strict_json(input);
    let Some((header, claims)) = text.split_once('\n') else {
        return compact(text);
    };
    strict_json(header.as_bytes());
    strict_json(claims.as_bytes());
    compact(&encoded(header, claims))
}

fn encoded(header: &str, claims: &str) -> String {
    let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
    format!("{header}.{claims}.c2ln")
}

/// The strict reader takes no more than a usual one, and reads the same.
fn strict_json(text: &[u8]) {
    let usual = serde_json::from_slice::<Value>(text);
    match json::object(text, TOKEN_BYTES_MAX) {
        Ok(object) => assert_eq!(usual.ok(), Some(Value::Object(object))),
        Err(JsonFault::NotJson) => assert!(usual.is_err(), "JSON was called none"),
        Err(JsonFault::NotAnObject) => assert!(usual.is_ok_and(|value| !value.is_object())),
        Err(JsonFault::TooLarge) => assert!(text.len() > TOKEN_BYTES_MAX),
        // Told by a repeated key, whatever follows it: only the sum of the keys shows it from outside.
        Err(JsonFault::DuplicateKey) => {
            if let Ok(usual) = usual {
                assert!(keys(&usual) < text.iter().filter(|byte| **byte == b':').count());
            }
        }
    }
}

fn keys(value: &Value) -> usize {
    match value {
        Value::Array(values) => values.iter().map(keys).sum(),
        Value::Object(members) => members.len() + members.values().map(keys).sum::<usize>(),
        _ => 0,
    }
}

fn has_fraction(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(values) => values.iter().any(has_fraction),
        Value::Object(members) => members.values().any(has_fraction),
        _ => false,
    }
}

fn compact(text: &str) -> bool {
    let Ok(token) = UnverifiedToken::parse(text) else {
        return false;
    };
    assert_eq!(format!("{}.{}", token.message, token.signature), text);
    // What was read, written anew, is read as the same.
    let mut header = Map::from_iter([("alg".to_owned(), Value::from(token.algorithm.clone()))]);
    if let Some(id) = &token.key_id {
        header.insert("kid".to_owned(), id.clone().into());
    }
    let claims = Value::Object(token.claims.clone());
    let again = encoded(&Value::Object(header).to_string(), &claims.to_string());
    if again.len() <= TOKEN_BYTES_MAX {
        let again = UnverifiedToken::parse(&again).expect("what was read can be written");
        assert_eq!(again.algorithm, token.algorithm);
        assert_eq!(again.key_id, token.key_id);
        // A fraction may lose its last digit on the way; no claim that means anything is one.
        if !has_fraction(&claims) {
            assert_eq!(again.claims, token.claims);
        }
    }
    meaning(&token.claims);
    true
}

/// What the claims say, as the server asks after the signature was checked.
fn meaning(claims: &Claims) {
    let configuration = super::usual();
    let issuer = configuration.issuers.first().expect("one issuer");
    if check_audience(claims, issuer).is_ok() {
        let audience = claims.get("aud").expect("an audience that was checked");
        let one = audience.as_array().map_or(audience, |several| {
            assert_eq!(several.len(), 1);
            &several[0]
        });
        assert_eq!(one.as_str(), Some(issuer.audience.as_str()));
    }
    if let Ok(standing) = Standing::read(claims) {
        let now = Timestamp::from_second(1_700_000_000).expect("a moment");
        if standing.check(issuer, now).is_ok() {
            let skew = i64::try_from(issuer.clock_skew_seconds).expect("a small number");
            let life = i64::try_from(issuer.token_seconds_max).expect("a small number");
            let age = now.as_second() - standing.issued_at.as_second();
            // Rule T4: nothing passes that was minted longer ago than one life and one skew.
            assert!((-skew..=life + skew).contains(&age), "{age}");
        }
    }
    if let Ok(identity) = identity_from_claims(claims, issuer) {
        assert!(listed_organization(claims, issuer).is_some());
        assert_eq!(identity.organization.id, super::ORGANIZATION);
        let link = identity.job.url.strip_prefix("https://buildkite.com/acme/");
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/' | '#');
        assert!(
            link.is_some_and(|rest| rest.chars().all(plain)),
            "a token decides where a link leads: {}",
            identity.job.url
        );
        // As it stands in the store and in the ledger.
        let kept = serde_json::to_string(&identity).expect("an identity can be written");
        assert_eq!(serde_json::from_str::<Identity>(&kept).ok(), Some(identity));
    }
}
