//! The keys that sign sessions: a new one every day, each signing for a day and believed for nine.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use jiff::{SignedDuration, Timestamp};
use kubler_core::profile::SESSION_SECONDS_MAX;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::json;
use zeroize::{Zeroize as _, Zeroizing};

use super::SessionError;
use crate::entropy;
use crate::files::{self, PRIVATE};

/// A key signs new sessions for this many seconds: a day.
const KEY_SIGNS_SECONDS: i64 = 24 * 3600;
/// After that its private half is kept for this many seconds more, to issue a session of its last moments again.
const KEY_REPEATS_SECONDS: i64 = 2 * SESSION_SECONDS_MAX.cast_signed();
/// After that its public half is kept for this many seconds more: longer than any tombstone, so that a dead
/// environment can explain itself to whoever still holds a session for it.
const KEY_VERIFIES_SECONDS: i64 = 8 * 24 * 3600;
/// Longest file of keys that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;
const FILE: &str = "keys.json";

/// One key, and the one header that its sessions have.
#[derive(Clone)]
struct Key {
    id: String,
    made_at: Timestamp,
    public: VerifyingKey,
    /// Only while it may still sign.
    private: Option<SigningKey>,
    header: String,
}

/// All keys, the newest last.
pub(super) struct KeyRing {
    file: PathBuf,
    keys: RwLock<Vec<Key>>,
}

/// A key in the file. Private halves are in here: never `Debug`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredKey {
    id: String,
    made_at: Timestamp,
    public: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    private: Option<String>,
}

impl Drop for StoredKey {
    fn drop(&mut self) {
        self.private.zeroize();
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredKeys {
    keys: Vec<StoredKey>,
}

impl KeyRing {
    /// Reads the keys in `folder`, and makes one when none may sign at `now`.
    pub(super) fn open(folder: &Path, now: Timestamp) -> Result<Self, SessionError> {
        let failed = |source| SessionError::Storage {
            path: folder.to_owned(),
            source,
        };
        files::make_private_folder(folder).map_err(failed)?;
        let file = folder.join(FILE);
        let keys = read(&file)?;
        let ring = Self {
            file,
            keys: RwLock::new(keys),
        };
        if ring.is_due(now) {
            ring.rotate(now)?;
        }
        Ok(ring)
    }

    /// Makes a new key when the newest has signed for its day. When that fails, the old key goes on: an unwritable
    /// disk must not lock jobs out of environments they have.
    pub(super) fn rotate_if_due(&self, now: Timestamp) {
        if self.is_due(now)
            && let Err(error) = self.rotate(now)
        {
            tracing::error!(%error, "no new session key could be made; the old one stays in use");
        }
    }

    /// Signs `claims` with the key that was the newest at `issued_at`. `None` when that one may not sign any more.
    pub(super) fn sign(&self, issued_at: Timestamp, claims: &str) -> Option<SecretString> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        // Before the first key of all there is none that fits better than the first: a clock went back.
        let key = keys
            .iter()
            .rev()
            .find(|key| key.made_at <= issued_at)
            .or_else(|| keys.first())?;
        let private = key.private.as_ref()?;
        let message = format!("{}.{claims}", key.header);
        let signature = URL_SAFE_NO_PAD.encode(private.sign(message.as_bytes()).to_bytes());
        Some(format!("{message}.{signature}").into())
    }

    /// The claims of a token that one of our keys signed, still in base64url.
    pub(super) fn checked_claims<'a>(&self, token: &'a str) -> Option<&'a str> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        let public = {
            let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
            keys.iter().find(|key| key.header == header)?.public
        };
        let mut bytes = [0; Signature::BYTE_SIZE];
        let length = URL_SAFE_NO_PAD.decode_slice(signature, &mut bytes).ok()?;
        let right = length == bytes.len()
            && public
                .verify_strict(message.as_bytes(), &Signature::from_bytes(&bytes))
                .is_ok();
        right.then_some(claims)
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.keys
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    fn is_due(&self, now: Timestamp) -> bool {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.last().is_none_or(|newest| {
            newest.private.is_none() || seconds_since(newest.made_at, now) >= KEY_SIGNS_SECONDS
        })
    }

    fn rotate(&self, now: Timestamp) -> Result<(), SessionError> {
        let new = Key::generate(now)?;
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if keys.last().is_some_and(|newest| {
            newest.private.is_some() && seconds_since(newest.made_at, now) < KEY_SIGNS_SECONDS
        }) {
            return Ok(()); // somebody else was faster
        }
        // On disk before it signs anything: a session must outlive a crash of the server.
        let next: Vec<Key> = keys
            .iter()
            .filter_map(|key| key.at(now))
            .chain([new])
            .collect();
        write(&self.file, &next)?;
        *keys = next;
        Ok(())
    }
}

impl Key {
    fn generate(now: Timestamp) -> Result<Self, SessionError> {
        let seed = Zeroizing::new(entropy::random_bytes::<32>()?);
        let id = hex::encode(entropy::random_bytes::<8>()?);
        // Whole seconds, like the sessions: else one of the same second would seem older than its key.
        let made_at = Timestamp::from_second(now.as_second()).unwrap_or(now);
        let private = SigningKey::from_bytes(&seed);
        Ok(Self::new(
            id,
            made_at,
            private.verifying_key(),
            Some(private),
        ))
    }

    fn new(
        id: String,
        made_at: Timestamp,
        public: VerifyingKey,
        private: Option<SigningKey>,
    ) -> Self {
        let header = json!({"alg": "EdDSA", "typ": "kubler-session+jwt", "kid": id}).to_string();
        Self {
            header: URL_SAFE_NO_PAD.encode(header),
            id,
            made_at,
            public,
            private,
        }
    }

    /// What is left of it at `now`.
    fn at(&self, now: Timestamp) -> Option<Self> {
        let idle = seconds_since(self.made_at, now) - KEY_SIGNS_SECONDS;
        let private = self.private.clone().filter(|_| idle < KEY_REPEATS_SECONDS);
        (idle < KEY_REPEATS_SECONDS + KEY_VERIFIES_SECONDS).then(|| Self {
            private,
            ..self.clone()
        })
    }

    fn stored(&self) -> StoredKey {
        StoredKey {
            id: self.id.clone(),
            made_at: self.made_at,
            public: hex::encode(self.public.as_bytes()),
            private: self
                .private
                .as_ref()
                .map(|key| hex::encode(Zeroizing::new(key.to_bytes()))),
        }
    }

    fn restored(stored: &StoredKey) -> Option<Self> {
        let public = VerifyingKey::from_bytes(&bytes(&stored.public)?).ok()?;
        let private = match &stored.private {
            None => None,
            Some(seed) => Some(SigningKey::from_bytes(&Zeroizing::new(bytes(seed)?))),
        };
        let agrees = private
            .as_ref()
            .is_none_or(|private| private.verifying_key() == public);
        let named_well =
            !stored.id.is_empty() && stored.id.bytes().all(|byte| byte.is_ascii_hexdigit());
        (agrees && named_well)
            .then(|| Self::new(stored.id.clone(), stored.made_at, public, private))
    }
}

fn bytes(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

fn seconds_since(moment: Timestamp, now: Timestamp) -> i64 {
    now.duration_since(moment)
        .max(SignedDuration::ZERO)
        .as_secs()
}

fn read(path: &Path) -> Result<Vec<Key>, SessionError> {
    let unusable = |problem| SessionError::Keys {
        path: path.to_owned(),
        problem,
    };
    let failed = |source| SessionError::Storage {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let about = file.metadata().map_err(failed)?;
    if about.mode() & 0o077 != 0 {
        return Err(unusable(
            "others may read or write the file; make a new one, or `chmod 600` it",
        ));
    }
    if about.len() > FILE_BYTES_MAX {
        return Err(unusable("the file is too long"));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(failed)?;
    let stored: StoredKeys =
        serde_json::from_str(&text).map_err(|_| unusable("the file is damaged"))?;
    let mut keys: Vec<Key> = stored
        .keys
        .iter()
        .map(Key::restored)
        .collect::<Option<_>>()
        .ok_or_else(|| unusable("the file is damaged"))?;
    keys.sort_by_key(|key| key.made_at);
    Ok(keys)
}

/// Reads the keys in `folder`, and changes nothing.
pub(super) fn check(folder: &Path) -> Result<(), SessionError> {
    read(&folder.join(FILE)).map(drop)
}

/// Replaces the file whole, and returns when it is on disk.
fn write(path: &Path, keys: &[Key]) -> Result<(), SessionError> {
    let failed = |source| SessionError::Storage {
        path: path.to_owned(),
        source,
    };
    let stored = StoredKeys {
        keys: keys.iter().map(Key::stored).collect(),
    };
    let text =
        Zeroizing::new(serde_json::to_vec_pretty(&stored).map_err(|error| failed(error.into()))?);
    files::replace_whole(path, PRIVATE, &text).map_err(failed)
}
