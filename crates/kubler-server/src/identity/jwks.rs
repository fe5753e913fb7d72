//! An issuer's published keys, taken only where everything they say agrees.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use kubler_core::identity::json;
use kubler_core::identity::token::KEY_ID_BYTES_MAX;
use serde_json::{Map, Value};

use super::fetch::{DOCUMENT_BYTES_MAX, FetchError};

/// Keys of one issuer that are looked at; a list with more is refused.
const KEYS_MAX: usize = 64;
/// Shortest RSA modulus, in bits.
const RSA_BITS_MIN: usize = 2048;
/// Longest RSA modulus, in bits: what the cryptography library verifies.
const RSA_BITS_MAX: usize = 8192;
/// Members that only a private key has. Whoever publishes one has lost it.
const PRIVATE_MEMBERS: [&str; 7] = ["d", "p", "q", "dp", "dq", "qi", "k"];

/// One usable key.
#[derive(Clone)]
pub(super) struct Key {
    id: Option<String>,
    decoding: DecodingKey,
}

/// All usable keys of one issuer; at least one.
#[derive(Clone)]
pub(super) struct KeySet(Vec<Key>);

/// What a key set knows of the key that a token names.
pub(super) enum Found<'a> {
    Key(&'a DecodingKey),
    NotNamed,
    Unknown,
}

impl KeySet {
    /// Reads a JWKS. Keys for something else, or that contradict themselves, are left out.
    ///
    /// # Errors
    /// `Malformed` for what is no JWKS or has an id twice, `NoUsableKey` when nothing is left.
    pub(super) fn parse(document: &[u8], algorithms: &[&str]) -> Result<Self, FetchError> {
        let document =
            json::object(document, DOCUMENT_BYTES_MAX).map_err(|_| FetchError::Malformed)?;
        let Some(Value::Array(listed)) = document.get("keys") else {
            return Err(FetchError::Malformed);
        };
        if listed.len() > KEYS_MAX {
            return Err(FetchError::Malformed);
        }
        let keys: Vec<Key> = listed
            .iter()
            .filter_map(Value::as_object)
            .filter_map(|key| usable(key, algorithms))
            .collect();
        let mut ids: Vec<_> = keys.iter().filter_map(|key| key.id.as_deref()).collect();
        ids.sort_unstable();
        if ids
            .windows(2)
            .any(|pair| matches!(pair, [one, other] if one == other))
        {
            return Err(FetchError::Malformed);
        }
        if keys.is_empty() {
            Err(FetchError::NoUsableKey)
        } else {
            Ok(Self(keys))
        }
    }

    pub(super) fn find(&self, id: Option<&str>) -> Found<'_> {
        let named = match (id, self.0.as_slice()) {
            (Some(id), keys) => keys.iter().find(|key| key.id.as_deref() == Some(id)),
            (None, [only]) => Some(only),
            (None, _) => return Found::NotNamed,
        };
        named.map_or(Found::Unknown, |key| Found::Key(&key.decoding))
    }

    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }
}

fn usable(jwk: &Map<String, Value>, algorithms: &[&str]) -> Option<Key> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    let absent_or = |name: &str, fits: &dyn Fn(&Value) -> bool| jwk.get(name).is_none_or(fits);
    let agrees = text("kty") == Some("RSA")
        && absent_or("use", &|value| value == "sig")
        && absent_or("alg", &|value| {
            value
                .as_str()
                .is_some_and(|name| algorithms.contains(&name))
        })
        && absent_or("key_ops", &|value| {
            value
                .as_array()
                .is_some_and(|uses| uses.iter().all(|one| one == "verify") && !uses.is_empty())
        })
        && absent_or("kid", &|value| {
            value
                .as_str()
                .is_some_and(|id| !id.is_empty() && id.len() <= KEY_ID_BYTES_MAX)
        })
        && !PRIVATE_MEMBERS.iter().any(|name| jwk.contains_key(*name));
    if !agrees {
        return None;
    }
    let modulus = URL_SAFE_NO_PAD.decode(text("n")?).ok()?;
    let exponent = URL_SAFE_NO_PAD.decode(text("e")?).ok()?;
    let sound =
        (RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits(&modulus)) && exponent_is_sound(&exponent);
    sound.then(|| Key {
        id: text("kid").map(str::to_owned),
        decoding: DecodingKey::from_rsa_raw_components(&modulus, &exponent),
    })
}

fn bits(number: &[u8]) -> usize {
    let significant = number
        .iter()
        .position(|byte| *byte != 0)
        .map_or(&[][..], |first| number.get(first..).unwrap_or_default());
    significant.first().map_or(0, |top| {
        significant.len() * 8 - top.leading_zeros() as usize
    })
}

/// Odd, more than 2 and at most 33 bits. With an exponent of 1 every signature would be right.
fn exponent_is_sound(exponent: &[u8]) -> bool {
    (2..=33).contains(&bits(exponent)) && exponent.last().is_some_and(|last| last % 2 == 1)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn modulus(bits: usize) -> String {
        let mut bytes = vec![0xff; bits / 8];
        bytes[0] = 0x80;
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn jwk() -> Value {
        json!({"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "a", "n": modulus(2048), "e": "AQAB"})
    }

    fn parse(keys: &Value) -> Result<KeySet, FetchError> {
        KeySet::parse(json!({ "keys": keys }).to_string().as_bytes(), &["RS256"])
    }

    #[test]
    fn t1_a_key_that_says_little_is_taken() {
        assert_eq!(parse(&json!([jwk()])).map(|keys| keys.len()).unwrap(), 1);
        assert!(parse(&json!([{"kty": "RSA", "n": modulus(4096), "e": "AQAB"}])).is_ok());
    }

    #[rstest]
    #[case::another_type("kty", json!("oct"))]
    #[case::encryption("use", json!("enc"))]
    #[case::another_algorithm("alg", json!("RS512"))]
    #[case::symmetric("alg", json!("HS256"))]
    #[case::no_verification("key_ops", json!(["encrypt"]))]
    #[case::signing_as_well("key_ops", json!(["verify", "sign"]))]
    #[case::no_operation("key_ops", json!([]))]
    #[case::null_use("use", Value::Null)]
    #[case::short("n", json!(modulus(1024)))]
    #[case::almost("n", json!(modulus(2040)))]
    #[case::huge("n", json!(modulus(16384)))]
    #[case::exponent_of_one("e", json!("AQ"))]
    #[case::exponent_of_zero("e", json!("AA"))]
    #[case::even_exponent("e", json!("AQAA"))]
    #[case::huge_exponent("e", json!(modulus(2048)))]
    #[case::private("d", json!("AQAB"))]
    #[case::id_of_another_type("kid", json!(7))]
    fn t1_a_key_that_contradicts_itself_is_left_out(#[case] member: &str, #[case] value: Value) {
        let mut jwk = jwk();
        jwk[member] = value;
        assert!(matches!(parse(&json!([jwk])), Err(FetchError::NoUsableKey)));
    }

    #[test]
    fn t1_leading_zeros_do_not_make_a_key_longer() {
        let mut bytes = vec![0; 128];
        bytes.extend([0xff; 128]);
        let mut jwk = jwk();
        jwk["n"] = json!(URL_SAFE_NO_PAD.encode(bytes));
        assert!(parse(&json!([jwk])).is_err());
    }

    #[test]
    fn t7_a_list_that_cannot_be_right_is_no_list() {
        assert!(matches!(
            parse(&json!([jwk(), jwk()])),
            Err(FetchError::Malformed)
        ));
        assert!(matches!(parse(&json!({})), Err(FetchError::Malformed)));
        assert!(matches!(parse(&json!([])), Err(FetchError::NoUsableKey)));
        assert!(matches!(
            KeySet::parse(br#"{"keys":[],"keys":[]}"#, &["RS256"]),
            Err(FetchError::Malformed)
        ));
        assert!(matches!(
            parse(&Value::Array(vec![json!({}); 65])),
            Err(FetchError::Malformed)
        ));
    }

    #[test]
    fn t7_a_token_that_names_no_key_needs_there_to_be_one() {
        let mut other = jwk();
        other["kid"] = json!("b");
        assert!(matches!(
            parse(&json!([jwk()])).unwrap().find(None),
            Found::Key(_)
        ));
        let both = parse(&json!([jwk(), other])).unwrap();
        assert!(matches!(both.find(None), Found::NotNamed));
        assert!(matches!(both.find(Some("b")), Found::Key(_)));
        assert!(matches!(both.find(Some("c")), Found::Unknown));
    }
}
