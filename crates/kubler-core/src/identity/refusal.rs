//! Why a token was refused, as stable codes: for the ledger, and for the caller only where the shell allows it.

use std::fmt;

use serde::{Serialize, Serializer};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal: $message:literal,)*) => {
        /// Why a token was refused. The codes are stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum RefusalReason {
            $($(#[$doc])* $name,)*
        }

        impl RefusalReason {
            /// All of them; the reference page is generated from this list.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable code.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $code,)*
                }
            }
        }

        impl fmt::Display for RefusalReason {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$name => $message,)*
                })
            }
        }
    };
}

reasons! {
    /// Longer than any token may be; it was not looked at.
    TooLarge = "token_too_large": "the token is longer than a token may be",
    /// Not three parts in base64url: any other kind of secret, an agent's access token among them.
    NotAToken = "token_not_a_jwt": "this is not an OIDC token",
    /// Header or claims are not one JSON object.
    NotJson = "token_not_json": "a part of the token is not a JSON object",
    /// Header or claims say one thing twice.
    DuplicateKey = "token_duplicate_key": "a key stands in the token twice",
    /// The header has a member that is not `alg`, `kid` or `typ`: `crit`, `jku`, `jwk`, `x5u`, `zip` and the like.
    Header = "token_header": "the token's header has a member that is not allowed",
    /// The header's algorithm is not one of those the issuer may use.
    Algorithm = "token_algorithm": "the token's algorithm is not allowed",
    /// `iss` is not the URL of a configured issuer.
    Issuer = "token_issuer": "the token's issuer is not configured",
    /// The issuer publishes no key of that id.
    KeyUnknown = "token_key_unknown": "the issuer publishes no key of this id",
    /// The token names no key, and the issuer publishes several.
    KeyNotNamed = "token_key_not_named": "the token names no key and the issuer has several",
    /// The issuer's keys could not be fetched, and none are known that are young enough.
    KeysUnavailable = "issuer_unavailable": "the issuer's keys cannot be fetched",
    /// Too many callers wait for an issuer's keys already.
    Busy = "issuer_busy": "too many callers wait for the issuer's keys",
    /// The signature is not the issuer's.
    Signature = "token_signature": "the token's signature is not the issuer's",
    /// A claim that must be there is not.
    ClaimMissing = "token_claim_missing": "the token lacks a claim",
    /// A claim has a type, shape or range it cannot have.
    ClaimMalformed = "token_claim_malformed": "a claim of the token is malformed",
    /// The one audience is not ours.
    Audience = "token_audience": "the token is meant for another audience",
    /// The one audience is what the issuer gives to whoever asks for none.
    AudienceDefault = "token_audience_default": "the token has the issuer's default audience",
    /// There are several audiences, so somebody else may hold the token too.
    AudienceSeveral = "token_audience_several": "the token is meant for several audiences",
    /// Validly signed, for an organization that is not listed.
    Organization = "token_organization": "the token is of an organization that is not listed",
    /// `exp` is over.
    Expired = "token_expired": "the token has expired",
    /// `nbf` or `iat` has not come yet.
    NotYetValid = "token_not_yet_valid": "the token is not valid yet",
    /// `exp - iat` is longer than allowed.
    LifeTooLong = "token_life_too_long": "the token was made to live longer than is accepted",
}

impl RefusalReason {
    /// Whether the same token may be accepted a little later, because the fault is not the token's.
    pub const fn is_temporary(self) -> bool {
        matches!(self, Self::KeysUnavailable | Self::Busy)
    }
}

impl Serialize for RefusalReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn t10_every_reason_has_a_code_of_its_own() {
        let codes: BTreeSet<_> = RefusalReason::ALL
            .iter()
            .map(|reason| reason.as_str())
            .collect();
        assert_eq!(codes.len(), RefusalReason::ALL.len());
        assert!(codes.iter().all(|code| {
            code.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        }));
    }
}
