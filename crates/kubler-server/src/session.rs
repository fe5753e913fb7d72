//! Sessions: short-lived credentials of our own, for one identity and one environment.
//!
//! A session is an Ed25519-signed JWT that only the gateway takes. Its header is compared, not read: it has to be,
//! byte for byte, the header that one of our keys writes. So there is no algorithm to choose and no type to
//! confuse, and an identity token can never pass for a session nor a session for an identity token.
//!
//! A session token is never stored. The same id, environment, identity and times give the same token, because
//! Ed25519 is deterministic and the key is chosen by `issued_at`: so a repeated exchange issues it anew.

mod keys;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use kubler_core::identity::Identity;
use kubler_core::identity::json;
use kubler_core::ids::{EnvironmentId, SessionId, TokenDigest};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use keys::KeyRing;

/// Longest session token that is looked at, in bytes: room for every untrusted text at its bound.
pub const SESSION_TOKEN_BYTES_MAX: usize = 16 * 1024;
/// Verified sessions that are remembered, about 1.5 KiB each. The least recently used one goes first.
const VERIFIED_MAX: u64 = 4096;
/// The one audience of a session.
const AUDIENCE: &str = "kubler-gateway";

/// Sessions cannot be issued or this one is not ours.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Not a session of ours: tampered with, foreign, or of a key long gone. Says no more, on purpose.
    #[error("this is not a session of this server")]
    Invalid,
    /// No key signs for that moment any more: what is asked for is too old to be issued again.
    #[error("the session is too old to be issued again")]
    TooOld,
    /// The file with the signing keys cannot be used.
    #[error("the session keys in `{}` cannot be used: {problem}", path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The file with the signing keys cannot be read or written.
    #[error("the session keys in `{}` cannot be read or written", path.display())]
    Storage {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No randomness for a key.
    #[error(transparent)]
    NoEntropy(#[from] crate::entropy::NoEntropy),
}

/// What a new session says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSession {
    /// Its id.
    pub id: SessionId,
    /// The one environment it opens.
    pub environment: EnvironmentId,
    /// Who it speaks for.
    pub identity: Identity,
    /// When it was bought. Chooses the key, so a repetition has to give the same moment. Cut to whole seconds.
    pub issued_at: Timestamp,
    /// When it ends. Cut to whole seconds.
    pub expires_at: Timestamp,
}

/// A session whose signature was checked. May be over: see [`Session::has_expired`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// The one environment it opens.
    pub environment: EnvironmentId,
    /// Who it speaks for.
    pub identity: Identity,
    /// When it was bought, in whole seconds.
    pub issued_at: Timestamp,
    /// When it ends, in whole seconds.
    pub expires_at: Timestamp,
}

impl Session {
    /// Whether it is over at `now`. Requests may not start any more; see promise 6 of the design for the answer.
    pub fn has_expired(&self, now: Timestamp) -> bool {
        now >= self.expires_at
    }
}

/// What a session token says, after its header.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    aud: String,
    sid: SessionId,
    env: EnvironmentId,
    iat: i64,
    exp: i64,
    identity: Identity,
}

/// Issues and verifies sessions.
pub struct Sessions {
    keys: KeyRing,
    verified: Cache<TokenDigest, Arc<Session>>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions")
            .field("verified", &self.verified.entry_count())
            .finish_non_exhaustive()
    }
}

/// Whether the keys in `folder` can be used, if there are any. Changes nothing.
///
/// # Errors
/// Those of [`Sessions::open`].
pub fn check(folder: &Path) -> Result<(), SessionError> {
    keys::check(folder)
}

impl Sessions {
    /// Opens the keys kept in `folder` (made with mode 0700 when absent; the file has 0600), or makes the first.
    ///
    /// # Errors
    /// `Storage`, `NoEntropy`; `Keys` when others may read the file or it is not one of ours.
    pub fn open(folder: &Path, clock: Arc<dyn Clock>) -> Result<Self, SessionError> {
        let keys = KeyRing::open(folder, clock.now())?;
        let verified = Cache::builder()
            .max_capacity(VERIFIED_MAX)
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Ok(Self {
            keys,
            verified,
            clock,
        })
    }

    /// Signs a session. The same session gives the same token for as long as a session can live.
    ///
    /// # Errors
    /// `TooOld` when no key signs for `issued_at` any more.
    pub fn issue(&self, new: NewSession) -> Result<SecretString, SessionError> {
        self.keys.rotate_if_due(self.clock.now());
        let said = Said {
            aud: AUDIENCE.into(),
            sid: new.id,
            env: new.environment,
            iat: new.issued_at.as_second(),
            exp: new.expires_at.as_second(),
            identity: new.identity,
        };
        let claims = serde_json::to_vec(&said).map_err(|_| SessionError::Invalid)?;
        self.keys
            .sign(new.issued_at, &URL_SAFE_NO_PAD.encode(claims))
            .ok_or(SessionError::TooOld)
    }

    /// The session a token stands for. Only the signature decides: one that is over is given as well, because a
    /// dead environment explains itself to its last session. A token seen before costs its digest and a look-up.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn verify(&self, token: &str) -> Result<Arc<Session>, SessionError> {
        if token.len() > SESSION_TOKEN_BYTES_MAX {
            return Err(SessionError::Invalid);
        }
        // Looked up by digest: how long that takes says nothing about any other token.
        let digest = TokenDigest::of(token);
        if let Some(session) = self.verified.get(&digest) {
            return Ok(session);
        }
        let session = Arc::new(self.check(token).ok_or(SessionError::Invalid)?);
        self.verified.insert(digest, Arc::clone(&session));
        Ok(session)
    }

    fn check(&self, token: &str) -> Option<Session> {
        let claims = self.keys.checked_claims(token)?;
        let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
        let claims = json::object(&claims, SESSION_TOKEN_BYTES_MAX).ok()?;
        let said: Said = serde_json::from_value(claims.into()).ok()?;
        if said.aud != AUDIENCE {
            return None;
        }
        Some(Session {
            id: said.sid,
            environment: said.env,
            identity: said.identity,
            issued_at: Timestamp::from_second(said.iat).ok()?,
            expires_at: Timestamp::from_second(said.exp).ok()?,
        })
    }
}

#[cfg(test)]
mod tests;
