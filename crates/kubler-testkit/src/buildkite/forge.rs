//! Tokens that the service would never sign, beside those that it would.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::keys::{RsaScheme, SigningKey};

/// How a draft is signed, and what its header says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signature {
    /// RS256 with the issuer's current key: as the service does.
    Honest,
    /// RS256 with a key that is not the issuer's, under the issuer's key id.
    WrongKey,
    /// RS256 with a key that is not the issuer's, under its own, unpublished key id.
    UnknownKey,
    /// The issuer's key with `RS512`.
    Rs512,
    /// The issuer's key with `PS256`.
    Ps256,
    /// Header says `RS256`, the signature is a `PS256` one.
    Ps256AsRs256,
    /// `alg: none` and an empty signature.
    None,
    /// `alg: nOnE` and an empty signature.
    NoneOddSpelling,
    /// Header says `RS256`, the signature is empty.
    Missing,
    /// The honest signature with its last byte changed.
    Corrupted,
    /// `HS256` with the published key in PEM as the secret.
    Hs256PublicPem,
    /// The same without the last newline.
    Hs256PublicPemTrimmed,
    /// `HS256` with the published key in DER as the secret.
    Hs256PublicDer,
    /// `HS256` with an empty secret.
    Hs256Empty,
}

impl Signature {
    /// All of them but the honest one: none may ever be accepted.
    pub const HOSTILE: [Self; 13] = [
        Self::WrongKey,
        Self::UnknownKey,
        Self::Rs512,
        Self::Ps256,
        Self::Ps256AsRs256,
        Self::None,
        Self::NoneOddSpelling,
        Self::Missing,
        Self::Corrupted,
        Self::Hs256PublicPem,
        Self::Hs256PublicPemTrimmed,
        Self::Hs256PublicDer,
        Self::Hs256Empty,
    ];
}

/// A token in the making. It starts as the honest token of a job; every change is explicit.
/// Members keep their order and may repeat.
#[derive(Clone)]
pub struct TokenDraft {
    header: Vec<(String, Value)>,
    claims: Vec<(String, Value)>,
    raw_header: Option<Vec<u8>>,
    raw_claims: Option<Vec<u8>>,
    issuer_key: Arc<SigningKey>,
    foreign_key: Arc<SigningKey>,
}

impl fmt::Debug for TokenDraft {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("TokenDraft")
            .field("header", &self.header)
            .field("claims", &self.claims)
            .finish_non_exhaustive()
    }
}

impl TokenDraft {
    pub(crate) fn honest(
        claims: Map<String, Value>,
        issuer_key: Arc<SigningKey>,
        foreign_key: Arc<SigningKey>,
    ) -> Self {
        Self {
            header: vec![
                ("kid".into(), issuer_key.kid.clone().into()),
                ("alg".into(), "RS256".into()),
            ],
            claims: claims.into_iter().collect(),
            raw_header: None,
            raw_claims: None,
            issuer_key,
            foreign_key,
        }
    }

    /// Sets a claim to any JSON, of the right type or not.
    #[must_use]
    pub fn claim(mut self, name: &str, value: impl Into<Value>) -> Self {
        set(&mut self.claims, name, value.into());
        self
    }

    /// Takes a claim out.
    #[must_use]
    pub fn without_claim(mut self, name: &str) -> Self {
        self.claims.retain(|(member, _)| member != name);
        self
    }

    /// Adds the claim once more, after all others: a duplicate key.
    #[must_use]
    pub fn claim_again(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.claims.push((name.into(), value.into()));
        self
    }

    /// Sets a member of the header: `kid`, `typ`, `crit`, `jku`, `x5u`, `jwk`, `zip`, `cty` …
    /// The signature does not follow: a changed `alg` is signed as [`Signature`] says.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<Value>) -> Self {
        set(&mut self.header, name, value.into());
        self
    }

    /// Takes a member of the header out.
    #[must_use]
    pub fn without_header(mut self, name: &str) -> Self {
        self.header.retain(|(member, _)| member != name);
        self
    }

    /// Adds the member once more, after all others: a duplicate key.
    #[must_use]
    pub fn header_again(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.header.push((name.into(), value.into()));
        self
    }

    /// Sets `iat` and `nbf` to the instant and `exp` to so many seconds later.
    #[must_use]
    pub fn minted_at(self, instant: Timestamp, lifetime_seconds: i64) -> Self {
        let issued = instant.as_second();
        self.claim("iat", issued)
            .claim("nbf", issued)
            .claim("exp", issued + lifetime_seconds)
    }

    /// Adds a claim `padding` so that the whole token has at least so many bytes.
    #[must_use]
    pub fn padded_to(self, bytes: usize) -> Self {
        self.claim("padding", "x".repeat(bytes * 3 / 4 + 1))
    }

    /// Signs these bytes instead of the claims: no JSON, or JSON that is no object.
    #[must_use]
    pub fn raw_claims(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.raw_claims = Some(bytes.into());
        self
    }

    /// Signs with these bytes instead of the header.
    #[must_use]
    pub fn raw_header(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.raw_header = Some(bytes.into());
        self
    }

    /// The value of a claim as it stands.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.claims
            .iter()
            .find(|(member, _)| member == name)
            .map(|(_, value)| value)
    }

    /// The compact token, signed as the service does.
    #[must_use]
    pub fn sign(self) -> String {
        self.sign_with(Signature::Honest)
    }

    /// The compact token, signed in this way.
    #[must_use]
    pub fn sign_with(mut self, signature: Signature) -> String {
        let algorithm = match signature {
            Signature::Rs512 => Some("RS512"),
            Signature::Ps256 => Some("PS256"),
            Signature::None => Some("none"),
            Signature::NoneOddSpelling => Some("nOnE"),
            Signature::Hs256PublicPem
            | Signature::Hs256PublicPemTrimmed
            | Signature::Hs256PublicDer
            | Signature::Hs256Empty => Some("HS256"),
            _ => None,
        };
        if let Some(algorithm) = algorithm {
            set(&mut self.header, "alg", algorithm.into());
        }
        if signature == Signature::UnknownKey {
            let kid = self.foreign_key.kid.clone();
            set(&mut self.header, "kid", kid.into());
        }
        let header = self
            .raw_header
            .take()
            .unwrap_or_else(|| object(&self.header));
        let claims = self
            .raw_claims
            .take()
            .unwrap_or_else(|| object(&self.claims));
        let message = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(claims)
        );
        let signed = self.signature(signature, message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signed))
    }

    fn signature(&self, signature: Signature, message: &[u8]) -> Vec<u8> {
        let hs256 = |secret: &[u8]| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
            hmac::sign(&key, message).as_ref().to_vec()
        };
        match signature {
            Signature::Honest => self.issuer_key.sign(RsaScheme::Rs256, message),
            Signature::WrongKey | Signature::UnknownKey => {
                self.foreign_key.sign(RsaScheme::Rs256, message)
            }
            Signature::Rs512 => self.issuer_key.sign(RsaScheme::Rs512, message),
            Signature::Ps256 | Signature::Ps256AsRs256 => {
                self.issuer_key.sign(RsaScheme::Ps256, message)
            }
            Signature::None | Signature::NoneOddSpelling | Signature::Missing => Vec::new(),
            Signature::Corrupted => {
                let mut signed = self.issuer_key.sign(RsaScheme::Rs256, message);
                let last = signed.last_mut().expect("a signature has bytes");
                *last ^= 1;
                signed
            }
            Signature::Hs256PublicPem => hs256(self.issuer_key.public_pem().as_bytes()),
            Signature::Hs256PublicPemTrimmed => {
                hs256(self.issuer_key.public_pem().trim_end().as_bytes())
            }
            Signature::Hs256PublicDer => hs256(&self.issuer_key.public_der()),
            Signature::Hs256Empty => hs256(b""),
        }
    }
}

fn set(members: &mut Vec<(String, Value)>, name: &str, value: Value) {
    match members.iter_mut().find(|(member, _)| member == name) {
        Some(member) => member.1 = value,
        None => members.push((name.into(), value)),
    }
}

/// A JSON object with its members in order, repeated ones included.
fn object(members: &[(String, Value)]) -> Vec<u8> {
    let members = members
        .iter()
        .map(|(name, value)| format!("{}:{value}", Value::from(name.as_str())));
    format!("{{{}}}", members.collect::<Vec<_>>().join(",")).into_bytes()
}
