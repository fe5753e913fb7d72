//! The issuer's RSA keys: which one signs, which ones are published, and keys that never are.

use std::sync::{Arc, OnceLock};

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{self, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// A key of the issuer, or of somebody who would like to be it.
#[derive(Debug)]
pub(crate) struct SigningKey {
    /// 64 hexadecimal digits.
    pub(crate) kid: String,
    pair: KeyPair,
}

/// RSA padding and digest of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RsaScheme {
    Rs256,
    Rs512,
    Ps256,
}

impl SigningKey {
    pub(crate) fn generate() -> Arc<Self> {
        let pair = KeyPair::generate(KeySize::Rsa2048).expect("an RSA key");
        let der = pair.public_key().as_der().expect("a public key");
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der.as_ref());
        Arc::new(Self {
            kid: hex::encode(digest.as_ref()),
            pair,
        })
    }

    pub(crate) fn sign(&self, scheme: RsaScheme, message: &[u8]) -> Vec<u8> {
        let encoding: &'static dyn signature::RsaEncoding = match scheme {
            RsaScheme::Rs256 => &signature::RSA_PKCS1_SHA256,
            RsaScheme::Rs512 => &signature::RSA_PKCS1_SHA512,
            RsaScheme::Ps256 => &signature::RSA_PSS_SHA256,
        };
        let mut signed = vec![0; self.pair.public_modulus_len()];
        self.pair
            .sign(encoding, &SystemRandom::new(), message, &mut signed)
            .expect("a signature");
        signed
    }

    /// `SubjectPublicKeyInfo`, as in a certificate.
    pub(crate) fn public_der(&self) -> Vec<u8> {
        let der = self.pair.public_key().as_der().expect("a public key");
        der.as_ref().to_vec()
    }

    /// The same in PEM with lines of 64, ending in a newline: what `openssl` writes.
    pub(crate) fn public_pem(&self) -> String {
        let text = STANDARD.encode(self.public_der());
        let mut pem = String::from("-----BEGIN PUBLIC KEY-----\n");
        for line in text.as_bytes().chunks(64) {
            pem.push_str(&String::from_utf8_lossy(line));
            pem.push('\n');
        }
        pem.push_str("-----END PUBLIC KEY-----\n");
        pem
    }

    pub(crate) fn jwk(&self) -> Value {
        let public = self.pair.public_key();
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({
            "kty": "RSA", "use": "sig", "alg": "RS256", "kid": self.kid,
            "n": encode(public.modulus().big_endian_without_leading_zero()),
            "e": encode(public.exponent().big_endian_without_leading_zero()),
        })
    }
}

/// The published keys, the newest first; that one signs.
pub(crate) struct KeyRing {
    published: Vec<Arc<SigningKey>>,
    foreign: OnceLock<Arc<SigningKey>>,
}

impl KeyRing {
    pub(crate) fn new() -> Self {
        Self {
            published: vec![SigningKey::generate()],
            foreign: OnceLock::new(),
        }
    }

    pub(crate) fn current(&self) -> Arc<SigningKey> {
        Arc::clone(&self.published[0])
    }

    /// A key that is never published.
    pub(crate) fn foreign(&self) -> Arc<SigningKey> {
        Arc::clone(self.foreign.get_or_init(SigningKey::generate))
    }

    pub(crate) fn rotate(&mut self, next: Arc<SigningKey>) {
        self.published.insert(0, next);
    }

    pub(crate) fn retire_previous(&mut self) {
        self.published.truncate(1);
    }

    pub(crate) fn jwks(&self) -> Value {
        json!({ "keys": self.published.iter().map(|key| key.jwk()).collect::<Vec<_>>() })
    }
}
