//! The compact form of a signed token, and everything that can be said about one without a key or a network.
//!
//! Nothing here checks a signature. An [`UnverifiedToken`] is a stranger's word: good for choosing the
//! issuer and the key by which to check it, and for `kubler policy explain`.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde_json::Value;

use super::VerifiedToken;
use super::claims::{self, ClaimFault, Claims};
use super::json::{self, JsonFault};
use super::refusal::RefusalReason;
use crate::configuration::{Issuer, IssuerKind};
use crate::text::UntrustedText;

/// Longest token that is looked at, in bytes. A token with every optional claim has about 1,800.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Longest key id, in bytes.
pub const KEY_ID_BYTES_MAX: usize = 256;
/// What a token's header may say. Everything else either moves the trust (`jku`, `jwk`, `x5u`, `x5c`), changes
/// the meaning (`crit`, `b64`, `zip`, `cty`), or is not used by any issuer we know.
const HEADER_MEMBERS: [&str; 3] = ["alg", "kid", "typ"];
/// The audience Buildkite gives to a job that asks for none begins so.
const BUILDKITE_DEFAULT_AUDIENCE: &str = "https://buildkite.com/";

/// A token whose signature nobody has checked. Has no `Debug` that could show it.
pub struct UnverifiedToken<'a> {
    /// `alg`, as the header spells it.
    pub algorithm: String,
    /// `kid`.
    pub key_id: Option<String>,
    /// The claims.
    pub claims: Claims,
    /// What is signed: header and claims as they were sent.
    pub message: &'a str,
    /// The signature as it was sent, in base64url. May be empty.
    pub signature: &'a str,
}

impl fmt::Debug for UnverifiedToken<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnverifiedToken")
            .field("algorithm", &self.algorithm)
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

impl<'a> UnverifiedToken<'a> {
    /// Reads the compact form: bounded, three parts, base64url without padding, no key twice, a header that
    /// says nothing but `alg`, `kid` and `typ`.
    ///
    /// # Errors
    /// `TooLarge`, `NotAToken`, `NotJson`, `DuplicateKey`, `Header`.
    pub fn parse(token: &'a str) -> Result<Self, RefusalReason> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(RefusalReason::TooLarge);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(RefusalReason::NotAToken)?;
        let (header, payload) = message.split_once('.').ok_or(RefusalReason::NotAToken)?;
        if payload.contains('.') {
            return Err(RefusalReason::NotAToken);
        }
        let (algorithm, key_id) = header_members(&object(header)?)?;
        let claims = object(payload)?;
        Ok(Self {
            algorithm,
            key_id,
            claims,
            message,
            signature,
        })
    }

    /// `iss`, exactly as sent.
    pub fn issuer(&self) -> Option<&str> {
        self.claims.get("iss").and_then(Value::as_str)
    }
}

fn object(part: &str) -> Result<Claims, RefusalReason> {
    let text = URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| RefusalReason::NotAToken)?;
    json::object(&text, TOKEN_BYTES_MAX).map_err(|fault| match fault {
        JsonFault::TooLarge => RefusalReason::TooLarge,
        JsonFault::DuplicateKey => RefusalReason::DuplicateKey,
        JsonFault::NotJson | JsonFault::NotAnObject => RefusalReason::NotJson,
    })
}

fn header_members(header: &Claims) -> Result<(String, Option<String>), RefusalReason> {
    if header
        .keys()
        .any(|member| !HEADER_MEMBERS.contains(&member.as_str()))
    {
        return Err(RefusalReason::Header);
    }
    let typed_well = match header.get("typ") {
        None => true,
        Some(Value::String(kind)) => kind.eq_ignore_ascii_case("JWT"),
        Some(_) => false,
    };
    let Some(Value::String(algorithm)) = header.get("alg") else {
        return Err(RefusalReason::Algorithm);
    };
    let key_id = match header.get("kid") {
        None => None,
        Some(Value::String(id)) if !id.is_empty() && id.len() <= KEY_ID_BYTES_MAX => {
            Some(id.clone())
        }
        Some(_) => return Err(RefusalReason::Header),
    };
    if typed_well {
        Ok((algorithm.clone(), key_id))
    } else {
        Err(RefusalReason::Header)
    }
}

/// The signature algorithms an issuer of this kind may use, spelled as in a header. Never a symmetric one.
pub const fn algorithms(kind: IssuerKind) -> &'static [&'static str] {
    match kind {
        IssuerKind::Buildkite => &["RS256"],
    }
}

/// Checks that the token is meant for us and for nobody else.
///
/// # Errors
/// `ClaimMissing`, `ClaimMalformed`, `AudienceSeveral`, `AudienceDefault`, `Audience`.
pub fn check_audience(claims: &Claims, issuer: &Issuer) -> Result<(), RefusalReason> {
    let audience = match claims.get("aud") {
        None | Some(Value::Null) => return Err(RefusalReason::ClaimMissing),
        Some(Value::String(audience)) => audience,
        Some(Value::Array(audiences)) => match audiences.as_slice() {
            [Value::String(audience)] => audience,
            several if several.len() > 1 => return Err(RefusalReason::AudienceSeveral),
            _ => return Err(RefusalReason::ClaimMalformed),
        },
        Some(_) => return Err(RefusalReason::ClaimMalformed),
    };
    match issuer.kind {
        IssuerKind::Buildkite if audience.starts_with(BUILDKITE_DEFAULT_AUDIENCE) => {
            Err(RefusalReason::AudienceDefault)
        }
        _ if audience.is_empty() || *audience != issuer.audience => Err(RefusalReason::Audience),
        _ => Ok(()),
    }
}

/// What every token must say beside who it speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// `iat`.
    pub issued_at: Timestamp,
    /// `nbf`.
    pub not_before: Timestamp,
    /// `exp`.
    pub expires_at: Timestamp,
    /// `jti`, bounded.
    pub token_id: Option<String>,
}

impl Standing {
    /// Reads the claims with strict types. `sub` must be there because the standard says so; what it says is not read.
    ///
    /// # Errors
    /// The first claim that is absent or malformed.
    pub fn read(claims: &Claims) -> Result<Self, ClaimFault> {
        claims::required_text(claims, "sub")?;
        let standing = Self {
            issued_at: moment(claims, "iat")?,
            not_before: moment(claims, "nbf")?,
            expires_at: moment(claims, "exp")?,
            token_id: claims::untrusted(claims, "jti")?
                .as_ref()
                .map(ToString::to_string),
        };
        if standing.expires_at <= standing.issued_at || standing.expires_at <= standing.not_before {
            return Err(ClaimFault::Malformed {
                name: "exp",
                expected: "later than `iat` and `nbf`",
            });
        }
        Ok(standing)
    }

    /// Checks the times at `now`, with the issuer's allowed skew in both directions. What passes was minted at
    /// most `token_seconds_max` and one skew ago.
    ///
    /// # Errors
    /// `LifeTooLong`, `NotYetValid`, `Expired`.
    pub fn check(&self, issuer: &Issuer, now: Timestamp) -> Result<(), RefusalReason> {
        let [now, issued, begins, ends] =
            [now, self.issued_at, self.not_before, self.expires_at].map(Timestamp::as_second);
        let skew = i64::try_from(issuer.clock_skew_seconds).unwrap_or(0);
        let life_max = i64::try_from(issuer.token_seconds_max).unwrap_or(0);
        if ends - issued > life_max {
            Err(RefusalReason::LifeTooLong)
        } else if issued.max(begins) > now + skew {
            Err(RefusalReason::NotYetValid)
        } else if ends + skew <= now {
            Err(RefusalReason::Expired)
        } else {
            Ok(())
        }
    }

    /// See [`clock_skew_seconds`].
    pub fn clock_skew_seconds(&self, now: Timestamp) -> i64 {
        clock_skew_seconds(self.issued_at, self.expires_at, now)
    }
}

impl VerifiedToken {
    /// See [`clock_skew_seconds`].
    pub fn clock_skew_seconds(&self, now: Timestamp) -> i64 {
        clock_skew_seconds(self.issued_at, self.expires_at, now)
    }
}

/// By how many seconds the issuer's clock and ours are seen to differ, for the ledger and never for the caller:
/// positive when the token comes from our future, negative when it is over already, 0 when both clocks can be right.
pub fn clock_skew_seconds(issued_at: Timestamp, expires_at: Timestamp, now: Timestamp) -> i64 {
    let ahead = issued_at.as_second() - now.as_second();
    let behind = expires_at.as_second() - now.as_second();
    if ahead > 0 { ahead } else { behind.min(0) }
}

fn moment(claims: &Claims, name: &'static str) -> Result<Timestamp, ClaimFault> {
    let seconds = claims::required_number(claims, name)?;
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .ok_or(ClaimFault::Malformed {
            name,
            expected: "a moment in seconds since 1970",
        })
}

/// A text of a token, for the ledger: bounded and without control characters.
pub fn shown(text: &str) -> String {
    UntrustedText::new(text).to_string()
}

#[cfg(test)]
mod tests;
