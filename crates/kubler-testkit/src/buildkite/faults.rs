//! Ways in which the stand-in can be told to fail.

use std::collections::{BTreeMap, VecDeque};

/// How the OIDC issuer behaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum IssuerFault {
    /// Works.
    #[default]
    None,
    /// Closes every connection before TLS.
    Down,
    /// Takes the request and does not answer until the fault is changed.
    Hold,
    /// Answers both documents with this status and no JSON.
    Status(u16),
    /// The key list is this text instead, with status 200.
    Jwks(String),
    /// The discovery document is this text instead, with status 200.
    Discovery(String),
    /// Both documents are a redirect to this URL.
    Redirect(String),
    /// The key list is followed by this many bytes of white space.
    Padded(usize),
}

/// How the Agent API behaves, for every route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ApiFault {
    /// Works.
    #[default]
    None,
    /// Answers every call with this status.
    Status(u16),
    /// Takes the request and does not answer until the fault is changed.
    Hold,
}

/// One answer to a request for an OIDC token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OidcAnswer {
    /// As the rules say.
    Honest,
    /// This status with a message.
    Status(u16),
    /// 200 without a token.
    Empty,
    /// 200 with something that is not JSON.
    Garbage,
    /// No answer until the API fault is changed or the client goes away.
    Hold,
}

#[derive(Default)]
pub(crate) struct Faults {
    pub(crate) issuer: IssuerFault,
    pub(crate) api: ApiFault,
    pub(crate) oidc_answers: BTreeMap<String, VecDeque<OidcAnswer>>,
}
