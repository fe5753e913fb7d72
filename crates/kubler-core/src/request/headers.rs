//! Which headers travel on, in both directions. Both maps are built anew from lists of what may pass; nothing
//! is ever passed because nobody thought of refusing it (rule H1).
//!
//! A client can neither name who it is to the API server nor make a header of ours disappear: `Connection`
//! and its kind are read for attacks and never forwarded, and what says who asks is set last.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// The API server's name for one request. Ours is the request's id; a client's is never taken (rule H5).
pub const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// Most `Impersonate-Group` headers of one request.
pub const IMPERSONATED_GROUPS_MAX: usize = 64;

/// What a client may say to the API server: how it wants its answer, what its body is, what it is itself,
/// and under which condition to act. Content-Length is missing on purpose: it is counted again from the body,
/// so that two lengths can never disagree.
const TO_UPSTREAM: [&str; 12] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "cache-control",
    "content-encoding",
    "content-type",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-unmodified-since",
    "range",
    "user-agent",
];

/// What kubectl says about itself: command and invocation, for the cluster's own records.
const TO_UPSTREAM_PREFIX: &str = "kubectl-";

/// What the API server may say to a client: what the body is, how long it keeps, warnings, and which flow
/// the request was counted in. No cookies, no challenges, nothing about the connection.
const TO_CLIENT: [&str; 18] = [
    "accept-ranges",
    "allow",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expires",
    "last-modified",
    "retry-after",
    "vary",
    "warning",
    "x-content-type-options",
    "x-kubernetes-pf-flowschema-uid",
    "x-kubernetes-pf-prioritylevel-uid",
];

/// Whether a caller may act as somebody else inside the environment. Only where the environment is a cluster
/// of its own, whose API server decides for itself; never on a cluster that environments share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Impersonation {
    /// Well-formed impersonation headers go on.
    Forwarded,
    /// Any header that looks like impersonation is refused.
    Refused,
}

/// Why a request's headers are not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderFault {
    /// Impersonation where nobody may impersonate.
    #[error("`{name}` is not allowed here: nobody acts as somebody else in this environment")]
    Impersonation {
        /// The header.
        name: String,
    },
    /// A name that is nearly an impersonation header. Some readers would take it for one.
    #[error("`{name}` is not a header of Kubernetes impersonation, although it looks like one")]
    Lookalike {
        /// The header.
        name: String,
    },
    /// A value that could be read as more, or as something else, than one name.
    #[error("the value of `{name}` cannot be the name of one user or group")]
    Value {
        /// The header.
        name: String,
    },
    /// More of them than may be.
    #[error("`{name}` is given too often")]
    TooMany {
        /// The header.
        name: String,
    },
    /// A `Connection` header that asks for a header of identity to be dropped on the way.
    #[error("`Connection` names `{name}`, which it must not take away")]
    Dropped {
        /// The header it names.
        name: String,
    },
}

/// What says who asks: set last, by us, and checked before a byte is sent.
#[derive(Debug, Clone)]
pub struct Seal {
    /// `Bearer …` of the environment's own user. Marked sensitive.
    pub authorization: HeaderValue,
    /// The request's id.
    pub audit_id: HeaderValue,
    /// The API server's name.
    pub host: HeaderValue,
}

/// The headers to be sent are not exactly those that were meant. Nothing may be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` would have been sent against the rules")]
pub struct BrokenSeal {
    /// The header that is missing, doubled, changed or too much.
    pub name: String,
}

/// The headers for the API server: what may pass of the client's, and then the seal.
///
/// # Errors
/// When something in them tries to be somebody else in a way that is not allowed or not clear.
pub fn to_upstream(
    client: &HeaderMap,
    impersonation: Impersonation,
    seal: &Seal,
) -> Result<HeaderMap, HeaderFault> {
    let mut headers = HeaderMap::with_capacity(client.len() + 3);
    for (name, value) in client {
        if looks_like_impersonation(name.as_str()) {
            if impersonation == Impersonation::Refused {
                return Err(HeaderFault::Impersonation {
                    name: name.to_string(),
                });
            }
            check_impersonation(name, value)?;
            headers.append(name.clone(), value.clone());
        } else if *name == header::CONNECTION {
            check_connection(value)?;
        } else if may_reach_upstream(name.as_str()) {
            headers.append(name.clone(), value.clone());
        }
    }
    check_counts(&headers)?;
    headers.insert(header::HOST, seal.host.clone());
    headers.insert(header::AUTHORIZATION, seal.authorization.clone());
    headers.insert(AUDIT_ID, seal.audit_id.clone());
    Ok(headers)
}

/// Looks at what is about to be sent as if nobody had built it by the rules (rule H1).
///
/// # Errors
/// When anything is there that was not meant to be, or is missing, or is there twice.
pub fn check_seal(
    headers: &HeaderMap,
    impersonation: Impersonation,
    seal: &Seal,
) -> Result<(), BrokenSeal> {
    let sealed = [
        (header::HOST, &seal.host),
        (header::AUTHORIZATION, &seal.authorization),
        (AUDIT_ID, &seal.audit_id),
    ];
    for (name, expected) in &sealed {
        let mut found = headers.get_all(name).iter();
        if found.next() != Some(*expected) || found.next().is_some() {
            return Err(BrokenSeal {
                name: name.to_string(),
            });
        }
    }
    for name in headers.keys() {
        let text = name.as_str();
        let is_ours = sealed.iter().any(|(ours, _)| ours == name);
        let impersonates = impersonation == Impersonation::Forwarded && is_impersonation(text);
        if !is_ours && !impersonates && !may_reach_upstream(text) {
            return Err(BrokenSeal {
                name: text.to_owned(),
            });
        }
    }
    Ok(())
}

/// The headers for the client. Length and connection are the server's own business, and so is the request's id.
pub fn to_client(upstream: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(upstream.len() + 1);
    for (name, value) in upstream {
        if TO_CLIENT.contains(&name.as_str()) {
            headers.append(name.clone(), value.clone());
        }
    }
    headers
}

fn may_reach_upstream(name: &str) -> bool {
    TO_UPSTREAM.contains(&name) || name.starts_with(TO_UPSTREAM_PREFIX)
}

/// Any spelling that some server on the way could take for impersonation: `_` counts as `-` (rule H2).
/// Header names are already in lower case here.
pub(crate) fn looks_like_impersonation(name: &str) -> bool {
    let folded = |byte: u8| {
        if byte == b'_' {
            b'-'
        } else {
            byte.to_ascii_lowercase()
        }
    };
    let mut bytes = name.bytes().map(folded);
    b"impersonate"
        .iter()
        .all(|expected| bytes.next() == Some(*expected))
        && matches!(bytes.next(), None | Some(b'-'))
}

fn is_impersonation(name: &str) -> bool {
    let extra = name
        .strip_prefix("impersonate-extra-")
        .is_some_and(|key| !key.is_empty() && !key.contains('_'));
    extra
        || matches!(
            name,
            "impersonate-user" | "impersonate-group" | "impersonate-uid"
        )
}

fn check_impersonation(name: &HeaderName, value: &HeaderValue) -> Result<(), HeaderFault> {
    if !is_impersonation(name.as_str()) {
        return Err(HeaderFault::Lookalike {
            name: name.to_string(),
        });
    }
    let text = std::str::from_utf8(value.as_bytes()).unwrap_or_default();
    let is_one_name = !text.is_empty()
        && text.trim() == text
        && !text.chars().any(char::is_control)
        // Somebody on the way may join several groups with commas, and somebody else split them (rule H3).
        && !(name.as_str() == "impersonate-group" && text.contains(','));
    if is_one_name {
        Ok(())
    } else {
        Err(HeaderFault::Value {
            name: name.to_string(),
        })
    }
}

fn check_connection(value: &HeaderValue) -> Result<(), HeaderFault> {
    let text = String::from_utf8_lossy(value.as_bytes());
    let mut named = text.split(',').map(str::trim);
    match named.find(|name| looks_like_impersonation(name)) {
        Some(name) => Err(HeaderFault::Dropped {
            name: name.chars().take(64).collect(),
        }),
        None => Ok(()),
    }
}

fn check_counts(headers: &HeaderMap) -> Result<(), HeaderFault> {
    for (name, most) in [
        ("impersonate-user", 1),
        ("impersonate-uid", 1),
        ("impersonate-group", IMPERSONATED_GROUPS_MAX),
    ] {
        if headers.get_all(name).iter().nth(most).is_some() {
            return Err(HeaderFault::TooMany {
                name: name.to_owned(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
