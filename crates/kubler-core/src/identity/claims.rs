//! Claims by name and type. `null` is the same as absent, and a wrong type is a fault, never an absence.

use serde_json::{Map, Value};
use uuid::Uuid;

use crate::text::UntrustedText;

/// The claims of one token.
pub type Claims = Map<String, Value>;

/// What is wrong with the claims of a token that was otherwise sound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimFault {
    /// Claims that the job must ask for are not there.
    #[error("the token has no {}", list(names))]
    NotAskedFor {
        /// Their names.
        names: Vec<&'static str>,
        /// All that a job must ask for.
        required: &'static [&'static str],
    },
    /// A claim that every token of this issuer has is not there.
    #[error("the token has no `{name}`")]
    Missing {
        /// Its name.
        name: &'static str,
    },
    /// A claim has another type, shape or size than it can have.
    #[error("`{name}` is not {expected}")]
    Malformed {
        /// Its name.
        name: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// The issuer signs for many organizations, and this one is not listed.
    #[error("the organization is not listed")]
    OrganizationNotListed {
        /// The id the token gives, a UUID.
        id: String,
    },
}

impl ClaimFault {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::NotAskedFor { required, .. } => {
                format!(
                    "ask for them when you request the token: `--claim {}`",
                    required.join(",")
                )
            }
            Self::Missing { name } => {
                format!("the issuer puts `{name}` into every token: look at how this one was made")
            }
            Self::Malformed { .. } => {
                "the issuer has changed its tokens, or this one is not from it: tell the operator"
                    .into()
            }
            Self::OrganizationNotListed { .. } => {
                "the operator lists organizations by id under `issuers`".into()
            }
        }
    }
}

fn list(names: &[&str]) -> String {
    names
        .iter()
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// A claim that is text, if it is there.
///
/// # Errors
/// When it is there and not text.
pub fn text<'a>(claims: &'a Claims, name: &'static str) -> Result<Option<&'a str>, ClaimFault> {
    match claims.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(ClaimFault::Malformed {
            name,
            expected: "text",
        }),
    }
}

/// A claim that must be text and not empty.
///
/// # Errors
/// When it is absent, empty or not text.
pub fn required_text<'a>(claims: &'a Claims, name: &'static str) -> Result<&'a str, ClaimFault> {
    match text(claims, name)? {
        Some("") => Err(ClaimFault::Malformed {
            name,
            expected: "text that is not empty",
        }),
        Some(text) => Ok(text),
        None => Err(ClaimFault::Missing { name }),
    }
}

/// A claim that somebody outside wrote: bounded, and empty is the same as absent.
///
/// # Errors
/// When it is there and not text.
pub fn untrusted(claims: &Claims, name: &'static str) -> Result<Option<UntrustedText>, ClaimFault> {
    Ok(text(claims, name)?
        .filter(|text| !text.is_empty())
        .map(UntrustedText::new))
}

/// A claim that is a UUID in its one canonical spelling (lower case, hyphens), if it is there.
///
/// # Errors
/// When it is there and anything else.
pub fn uuid(claims: &Claims, name: &'static str) -> Result<Option<String>, ClaimFault> {
    let Some(text) = text(claims, name)? else {
        return Ok(None);
    };
    let canonical =
        Uuid::try_parse(text).is_ok_and(|uuid| uuid.as_hyphenated().to_string() == text);
    if canonical {
        Ok(Some(text.to_owned()))
    } else {
        Err(ClaimFault::Malformed {
            name,
            expected: "a lower-case UUID",
        })
    }
}

/// A claim that must be a UUID; see [`uuid()`].
///
/// # Errors
/// When it is absent or not one.
pub fn required_uuid(claims: &Claims, name: &'static str) -> Result<String, ClaimFault> {
    uuid(claims, name)?.ok_or(ClaimFault::Missing { name })
}

/// A claim that must be a whole number of at least 0, written without fraction or exponent.
///
/// # Errors
/// When it is absent or not one.
pub fn required_number(claims: &Claims, name: &'static str) -> Result<u64, ClaimFault> {
    match claims.get(name) {
        None | Some(Value::Null) => Err(ClaimFault::Missing { name }),
        Some(Value::Number(number)) => number.as_u64().ok_or(ClaimFault::Malformed {
            name,
            expected: "a whole number of at least 0",
        }),
        Some(_) => Err(ClaimFault::Malformed {
            name,
            expected: "a whole number of at least 0",
        }),
    }
}
