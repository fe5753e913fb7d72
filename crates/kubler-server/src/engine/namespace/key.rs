//! The key that signs the marks of namespaces. Made once, and part of every back-up: without it nobody can tell ours.

use std::io;
use std::path::Path;

use ed25519_dalek::SigningKey;
use zeroize::Zeroizing;

use crate::entropy;
use crate::files;

/// Bytes of the key.
const KEY_BYTES: usize = 32;

/// Reads the key at `path`, or makes it.
///
/// # Errors
/// When it cannot be read, made, or is no key.
pub(crate) fn open(path: &Path) -> io::Result<SigningKey> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let text = Zeroizing::new(text);
            let mut bytes = Zeroizing::new([0; KEY_BYTES]);
            hex::decode_to_slice(text.trim(), bytes.as_mut_slice())
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it holds no key"))?;
            Ok(SigningKey::from_bytes(&bytes))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let bytes =
                Zeroizing::new(entropy::random_bytes::<KEY_BYTES>().map_err(io::Error::other)?);
            let text = Zeroizing::new(hex::encode(bytes.as_slice()));
            files::replace_whole(path, files::PRIVATE, text.as_bytes())?;
            Ok(SigningKey::from_bytes(&bytes))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_stays_the_same_and_a_bad_file_is_no_reason_for_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mark.key");
        let made = open(&path).unwrap();
        assert_eq!(open(&path).unwrap().verifying_key(), made.verifying_key());
        std::fs::write(&path, "no key").unwrap();
        assert!(open(&path).is_err());
    }
}
