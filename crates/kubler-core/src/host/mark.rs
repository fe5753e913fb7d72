//! The mark of an environment's namespace: signed, so that whoever ends environments from the cluster alone can tell
//! ours from what only looks like ours.
//!
//! It binds environment, namespace and deadline. Copied to another namespace it names another UID; a label or a name
//! that somebody wrote proves nothing.

use std::fmt;
use std::str::FromStr as _;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use jiff::Timestamp;

use crate::ids::EnvironmentId;

/// Carries the mark on a namespace.
pub const MARK_ANNOTATION: &str = "kubler.dev/mark";
/// The first word of a mark.
const VERSION: &str = "v1";
/// What the signature covers begins so, and nothing else that is signed does.
const DOMAIN: &str = "kubler mark of a namespace, version 1";
/// Longest mark that is read, in bytes.
const MARK_BYTES_MAX: usize = 512;

/// What a mark says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Whose namespace it is.
    pub environment: EnvironmentId,
    /// The namespace's own UID, which nobody can choose.
    pub namespace_uid: String,
    /// When the environment ends whatever happens.
    pub deadline: Timestamp,
}

/// Why a text is no mark of this namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MarkFault {
    /// It is not written as marks are.
    #[error("it is not written as a mark is")]
    Form,
    /// It was signed by another key, or was changed.
    #[error("its signature is of another key, or it was changed")]
    Signature,
    /// It is a mark, of another namespace.
    #[error("it is the mark of another namespace")]
    Copied,
}

impl Mark {
    fn signed_text(&self) -> String {
        let Self {
            environment,
            namespace_uid,
            deadline,
        } = self;
        format!(
            "{DOMAIN}\n{environment}\n{namespace_uid}\n{}\n",
            deadline.as_second()
        )
    }

    /// The annotation's value.
    pub fn sign(&self, key: &SigningKey) -> String {
        let signature = key.sign(self.signed_text().as_bytes());
        format!(
            "{VERSION} {self} {}",
            URL_SAFE_NO_PAD.encode(signature.to_bytes())
        )
    }

    /// Reads the annotation of the namespace with this UID.
    ///
    /// # Errors
    /// When it is not a mark that `key` signed for this namespace.
    pub fn verify(
        annotation: &str,
        namespace_uid: &str,
        key: &VerifyingKey,
    ) -> Result<Self, MarkFault> {
        if annotation.len() > MARK_BYTES_MAX {
            return Err(MarkFault::Form);
        }
        let words: Vec<&str> = annotation.split(' ').collect();
        let [VERSION, environment, uid, deadline, signature] = words[..] else {
            return Err(MarkFault::Form);
        };
        let mark = Self {
            environment: EnvironmentId::from_str(environment).map_err(|_| MarkFault::Form)?,
            namespace_uid: uid.to_owned(),
            deadline: deadline
                .parse()
                .ok()
                .and_then(|seconds| Timestamp::from_second(seconds).ok())
                .ok_or(MarkFault::Form)?,
        };
        let signature = URL_SAFE_NO_PAD.decode(signature).ok();
        let signature = signature.and_then(|bytes| Signature::from_slice(&bytes).ok());
        let signature = signature.ok_or(MarkFault::Form)?;
        // What was signed is what is written here, and not what was read: two texts of one value are one mark.
        key.verify_strict(mark.signed_text().as_bytes(), &signature)
            .map_err(|_| MarkFault::Signature)?;
        if mark.namespace_uid == namespace_uid {
            Ok(mark)
        } else {
            Err(MarkFault::Copied)
        }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            environment,
            namespace_uid,
            deadline,
        } = self;
        write!(f, "{environment} {namespace_uid} {}", deadline.as_second())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::fixtures::{environment_id, timestamp};

    const UID: &str = "8a7f2f54-0000-4000-8000-000000000001";

    fn mark() -> Mark {
        Mark {
            environment: environment_id(1),
            namespace_uid: UID.into(),
            deadline: timestamp(7200),
        }
    }

    #[test]
    fn a_mark_is_read_back_and_nothing_else_is() {
        let (key, other) = (
            SigningKey::from_bytes(&[1; 32]),
            SigningKey::from_bytes(&[2; 32]),
        );
        let public = key.verifying_key();
        let text = mark().sign(&key);
        assert_eq!(Mark::verify(&text, UID, &public), Ok(mark()));
        assert_eq!(
            Mark::verify(&text, "another", &public),
            Err(MarkFault::Copied)
        );
        assert_eq!(
            Mark::verify(&mark().sign(&other), UID, &public),
            Err(MarkFault::Signature)
        );
        for (from, to) in [
            (environment_id(1).to_string(), environment_id(2).to_string()),
            (
                timestamp(7200).as_second().to_string(),
                timestamp(1).as_second().to_string(),
            ),
            (UID.to_owned(), UID.replace('8', "9")),
        ] {
            let changed = text.replace(&from, &to);
            assert_ne!(changed, text);
            assert_eq!(
                Mark::verify(&changed, UID, &public),
                Err(MarkFault::Signature)
            );
        }
        for broken in [
            "",
            "v1",
            "v2 a b c d",
            &text[..text.len() - 1],
            &format!("{text} "),
        ] {
            let read = Mark::verify(broken, UID, &public);
            assert!(read.is_err(), "`{broken}` was read as {read:?}");
        }
    }
}
