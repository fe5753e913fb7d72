//! Signed checkpoints: C2SP `tlog-checkpoint` bodies in C2SP `signed-note` envelopes, Ed25519.
//!
//! ```text
//! kubler.example/ledger              origin, also the key's name
//! 1024                               records
//! CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2…  root, base64
//!
//! — kubler.example/ledger x08go/ZJ…  key id and signature, base64
//! ```

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::merkle::Hash;

/// Longest name of a ledger, in bytes.
pub const ORIGIN_BYTES_MAX: usize = 255;
/// Most signatures that are looked at in one note.
pub const SIGNATURES_MAX: usize = 16;

const ED25519: u8 = 1;
const PRIVATE_PREFIX: &str = "PRIVATE+KEY+";

/// What a checkpoint says: this ledger had this root at this size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checkpoint {
    /// The ledger's name.
    pub origin: String,
    /// Records in the tree.
    pub size: u64,
    /// Root of the tree.
    #[serde(serialize_with = "as_base64")]
    pub root: Hash,
}

/// Writes a hash as the text of a checkpoint does.
pub(super) fn as_base64<S: Serializer>(hash: &Hash, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(hash))
}

impl Checkpoint {
    /// The text that is signed.
    pub fn body(&self) -> String {
        format!(
            "{}\n{}\n{}\n",
            self.origin,
            self.size,
            STANDARD.encode(self.root)
        )
    }

    fn parse(body: &str) -> Result<Self, NoteError> {
        let mut lines = body.lines();
        let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next())
        else {
            return Err(NoteError::NotACheckpoint("it has fewer than three lines"));
        };
        let plain_number = size == "0"
            || (!size.starts_with('0') && size.bytes().all(|byte| byte.is_ascii_digit()));
        let size = size
            .parse()
            .ok()
            .filter(|_| plain_number)
            .ok_or(NoteError::NotACheckpoint("its size is no number"))?;
        let root = STANDARD
            .decode(root)
            .ok()
            .and_then(|root| root.try_into().ok());
        let root = root.ok_or(NoteError::NotACheckpoint(
            "its root is not 32 bytes in base64",
        ))?;
        if origin.is_empty() {
            return Err(NoteError::NotACheckpoint("its origin is empty"));
        }
        Ok(Self {
            origin: origin.to_owned(),
            size,
            root,
        })
    }
}

/// Four bytes that say which key may have signed; shown as eight hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId([u8; 4]);

impl KeyId {
    fn of(name: &str, key: &VerifyingKey) -> Self {
        let digest = Sha256::new()
            .chain_update(name.as_bytes())
            .chain_update([b'\n', ED25519])
            .chain_update(key.as_bytes())
            .finalize();
        let mut id = [0; 4];
        id.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
        Self(id)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why a text is not a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The name could not stand in a note.
    #[error(
        "`{0}` cannot name a ledger: it must be 1 to 255 bytes without spaces, control characters and `+`"
    )]
    Name(String),
    /// Not of the form.
    #[error("it is not of the form `{0}`")]
    Form(&'static str),
    /// The id does not belong to the key.
    #[error("its key id does not fit its name and key")]
    Id,
}

/// A name that can stand in a note and a key.
///
/// # Errors
/// When it is empty or too long, or has a space, a control character or `+`.
pub fn check_origin(name: &str) -> Result<(), KeyError> {
    let fits = !name.is_empty()
        && name.len() <= ORIGIN_BYTES_MAX
        && !name
            .chars()
            .any(|c| c.is_whitespace() || c.is_control() || c == '+');
    if fits {
        Ok(())
    } else {
        Err(KeyError::Name(
            name.chars().take(ORIGIN_BYTES_MAX).collect(),
        ))
    }
}

/// The public key of a ledger. Written as a C2SP verifier key: `name+01234567+base64`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    name: String,
    id: KeyId,
    key: VerifyingKey,
}

impl PublicKey {
    fn new(name: String, key: VerifyingKey) -> Self {
        let id = KeyId::of(&name, &key);
        Self { name, id, key }
    }

    /// Reads a verifier key; space around it does not matter.
    ///
    /// # Errors
    /// When it is none, or none for Ed25519.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        const FORM: KeyError = KeyError::Form("name+01234567+base64, with an Ed25519 key");
        let mut parts = text.trim().splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(FORM);
        };
        check_origin(name)?;
        let key = STANDARD.decode(key).map_err(|_| FORM)?;
        let Some((&ED25519, key)) = key.split_first() else {
            return Err(FORM);
        };
        let key = <&[u8; 32]>::try_from(key).map_err(|_| FORM)?;
        let key = VerifyingKey::from_bytes(key).map_err(|_| FORM)?;
        let public = Self::new(name.to_owned(), key);
        if public.id.to_string() == id {
            Ok(public)
        } else {
            Err(KeyError::Id)
        }
    }

    /// The ledger's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The id that signatures name.
    pub const fn id(&self) -> KeyId {
        self.id
    }

    /// Opens a note that must be a checkpoint of this ledger, signed by this key. Other signatures are ignored.
    ///
    /// # Errors
    /// When it is no such note.
    pub fn open(&self, note: &str) -> Result<Checkpoint, NoteError> {
        let note = Note::parse(note)?;
        let checkpoint = Checkpoint::parse(note.body)?;
        let ours = note
            .signatures
            .iter()
            .find(|signature| signature.name == self.name && signature.id == self.id);
        let Some(ours) = ours else {
            let (name, id) = note
                .signatures
                .first()
                .map_or((String::new(), KeyId([0; 4])), |s| {
                    (s.name.to_owned(), s.id)
                });
            return Err(NoteError::OtherKey { name, id });
        };
        self.key
            .verify_strict(note.body.as_bytes(), &ours.signature)
            .map_err(|_| NoteError::BadSignature)?;
        if checkpoint.origin == self.name {
            Ok(checkpoint)
        } else {
            Err(NoteError::OtherLedger(checkpoint.origin))
        }
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key: Vec<u8> = std::iter::once(ED25519)
            .chain(*self.key.as_bytes())
            .collect();
        write!(f, "{}+{}+{}", self.name, self.id, STANDARD.encode(key))
    }
}

/// The private key of a ledger. Has no `Debug`, no `Display` and no `Serialize`; erased when dropped.
pub struct PrivateKey {
    public: PublicKey,
    key: SigningKey,
}

impl PrivateKey {
    /// Makes the key of the ledger `name` from 32 random bytes.
    ///
    /// # Errors
    /// When the name cannot stand in a note.
    pub fn from_random(name: &str, seed: &Zeroizing<[u8; 32]>) -> Result<Self, KeyError> {
        check_origin(name)?;
        let key = SigningKey::from_bytes(seed);
        Ok(Self {
            public: PublicKey::new(name.to_owned(), key.verifying_key()),
            key,
        })
    }

    /// Reads what [`Self::to_text`] wrote.
    ///
    /// # Errors
    /// When it is no such text.
    pub fn parse(text: &SecretString) -> Result<Self, KeyError> {
        const FORM: KeyError =
            KeyError::Form("PRIVATE+KEY+name+01234567+base64, with an Ed25519 key");
        let mut parts = text
            .expose_secret()
            .trim()
            .strip_prefix(PRIVATE_PREFIX)
            .ok_or(FORM)?
            .splitn(3, '+');
        let (Some(name), Some(id), Some(seed)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(FORM);
        };
        let bytes = Zeroizing::new(STANDARD.decode(seed).map_err(|_| FORM)?);
        let Some((&ED25519, seed)) = bytes.split_first() else {
            return Err(FORM);
        };
        let seed = Zeroizing::new(<[u8; 32]>::try_from(seed).map_err(|_| FORM)?);
        let key = Self::from_random(name, &seed)?;
        if key.public.id.to_string() == id {
            Ok(key)
        } else {
            Err(KeyError::Id)
        }
    }

    /// The text that is kept in the key's file.
    pub fn to_text(&self) -> SecretString {
        let bytes: Zeroizing<Vec<u8>> = Zeroizing::new(
            std::iter::once(ED25519)
                .chain(*self.key.as_bytes())
                .collect(),
        );
        let encoded = Zeroizing::new(STANDARD.encode(&*bytes));
        SecretString::from(format!(
            "{PRIVATE_PREFIX}{}+{}+{}\n",
            self.public.name, self.public.id, *encoded
        ))
    }

    /// The key that others may have.
    pub const fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs that this ledger has `root` at `size`; the whole note.
    pub fn sign(&self, size: u64, root: Hash) -> String {
        let body = Checkpoint {
            origin: self.public.name.clone(),
            size,
            root,
        }
        .body();
        let signature = self.key.sign(body.as_bytes());
        let signed: Vec<u8> = self
            .public
            .id
            .0
            .into_iter()
            .chain(signature.to_bytes())
            .collect();
        format!(
            "{body}\n— {} {}\n",
            self.public.name,
            STANDARD.encode(signed)
        )
    }
}

/// Why a text is not a checkpoint of a ledger.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// Not a signed note.
    #[error("it is not a signed note: {0}")]
    NotANote(&'static str),
    /// A signed note that says something else.
    #[error("it is a signed note but not a checkpoint: {0}")]
    NotACheckpoint(&'static str),
    /// No signature of the key that was asked for.
    #[error("it is signed by the key `{id}` of `{name}`, not by this one")]
    OtherKey {
        /// The signer's name.
        name: String,
        /// The signer's key.
        id: KeyId,
    },
    /// The signature does not fit the text.
    #[error("its signature does not fit its text")]
    BadSignature,
    /// Signed by this key, about another ledger.
    #[error("it is about the ledger `{0}`")]
    OtherLedger(String),
}

struct Note<'a> {
    /// With its last line feed, without the empty line.
    body: &'a str,
    signatures: Vec<NoteSignature<'a>>,
}

struct NoteSignature<'a> {
    name: &'a str,
    id: KeyId,
    signature: Signature,
}

impl<'a> Note<'a> {
    fn parse(text: &'a str) -> Result<Self, NoteError> {
        const SHAPE: NoteError =
            NoteError::NotANote("it is not text, an empty line and signatures");
        let split = text.rfind("\n\n").ok_or(SHAPE)?;
        let (body, signatures) = text.split_at_checked(split + 1).ok_or(SHAPE)?;
        let signatures = signatures
            .strip_prefix('\n')
            .and_then(|lines| lines.strip_suffix('\n'))
            .ok_or(SHAPE)?;
        let signatures: Vec<_> = signatures
            .split('\n')
            .take(SIGNATURES_MAX)
            .map(|line| NoteSignature::parse(line).transpose())
            .collect();
        // A signature of an unknown kind has another length and is none of ours: skipped, not refused.
        let signatures = signatures.into_iter().flatten().collect::<Result<_, _>>()?;
        Ok(Self { body, signatures })
    }
}

impl<'a> NoteSignature<'a> {
    fn parse(line: &'a str) -> Result<Option<Self>, NoteError> {
        const SHAPE: NoteError = NoteError::NotANote("a signature is not `— name base64`");
        let (name, encoded) = line
            .strip_prefix("— ")
            .and_then(|rest| rest.split_once(' '))
            .ok_or(SHAPE)?;
        check_origin(name).map_err(|_| SHAPE)?;
        let bytes = STANDARD.decode(encoded).map_err(|_| SHAPE)?;
        let (id, signature) = bytes.split_first_chunk::<4>().ok_or(SHAPE)?;
        let signature = <&[u8; 64]>::try_from(signature)
            .ok()
            .map(Signature::from_bytes);
        Ok(signature.map(|signature| Self {
            name,
            id: KeyId(*id),
            signature,
        }))
    }
}

#[cfg(test)]
mod tests;
