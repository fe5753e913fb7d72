//! Identifiers. Random ones are made from bytes the caller brings, so that this crate needs no randomness.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Random bytes in an identifier: 128 bits, so that one cannot be guessed.
pub const ID_BYTES: usize = 16;

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an identifier of the form `{prefix}_` and 32 lower-case hex digits")]
pub struct InvalidId {
    /// What was given, cut to 64 characters.
    pub text: String,
    /// What it should begin with.
    pub prefix: &'static str,
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; ID_BYTES]);

        impl $name {
            /// The prefix of the written form.
            pub const PREFIX: &'static str = $prefix;

            /// Makes an identifier of random bytes.
            pub const fn from_random(bytes: [u8; ID_BYTES]) -> Self {
                Self(bytes)
            }

            /// The 32 hex digits without the prefix.
            pub fn digits(&self) -> String {
                hex::encode(self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "_{}"), hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let invalid = || InvalidId {
                    text: text.chars().take(64).collect(),
                    prefix: $prefix,
                };
                let digits = text
                    .strip_prefix(concat!($prefix, "_"))
                    .filter(|digits| !digits.bytes().any(|byte| byte.is_ascii_uppercase()))
                    .ok_or_else(invalid)?;
                let mut bytes = [0; ID_BYTES];
                hex::decode_to_slice(digits, &mut bytes).map_err(|_| invalid())?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

identifier!(
    /// An environment: `env_` and 32 hex digits. Not secret, but not guessable either.
    EnvironmentId,
    "env"
);
identifier!(
    /// A session: `ses_` and 32 hex digits. Names a credential in the ledger without being one.
    SessionId,
    "ses"
);
identifier!(
    /// One request to the server or through the gateway: `req_` and 32 hex digits.
    RequestId,
    "req"
);
identifier!(
    /// An approval of one request: `apr_` and 32 hex digits.
    ApprovalId,
    "apr"
);

/// SHA-256 of a token, the only form in which a token is ever kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenDigest(pub [u8; 32]);

impl TokenDigest {
    /// Digest of the token exactly as it was sent.
    pub fn of(token: &str) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(token.as_bytes()).into())
    }
}

impl fmt::Display for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for TokenDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_reads_back_what_it_writes() {
        let id = EnvironmentId::from_random([0xab; 16]);
        assert_eq!(id.to_string(), format!("env_{}", "ab".repeat(16)));
        assert_eq!(id.to_string().parse::<EnvironmentId>().unwrap(), id);
    }

    #[test]
    fn other_texts_are_no_identifiers() {
        let upper = format!("env_{}", "AB".repeat(16));
        let long = format!("env_{}", "ab".repeat(17));
        let other = format!("ses_{}", "ab".repeat(16));
        for text in [
            "",
            "env_",
            "env_../..",
            upper.as_str(),
            long.as_str(),
            other.as_str(),
        ] {
            assert!(text.parse::<EnvironmentId>().is_err(), "{text}");
        }
    }
}
