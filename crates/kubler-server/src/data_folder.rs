//! The folder for everything the server keeps, and where each part of it is.

use std::path::{Path, PathBuf};

use crate::config::Loaded;
use crate::files;
use crate::start_error::StartError;

/// A folder that is laid out as the server's own is. A back-up is one too.
#[derive(Debug, Clone)]
pub struct DataFolder(PathBuf);

impl DataFolder {
    /// The ledger's name in it.
    pub(crate) const LEDGER: &str = "ledger";
    /// The name of the folder with the keys that sign sessions.
    pub(crate) const SESSIONS: &str = "sessions";
    /// The name of the key that signs the marks of namespaces.
    pub(crate) const MARK_KEY: &str = "mark.key";

    /// The configured one, made when it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make(loaded: &Loaded) -> Result<Self, StartError> {
        let folder = Self::of(loaded);
        files::make_private_folder(&folder.0).map_err(|source| StartError::Folder {
            path: folder.0.clone(),
            source,
        })?;
        Ok(folder)
    }

    /// The configured one, whether it is there or not.
    pub fn of(loaded: &Loaded) -> Self {
        Self(loaded.path(&loaded.configuration.data))
    }

    /// The one at `path`, whether it is there or not.
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The ledger's folder.
    pub fn ledger(&self) -> PathBuf {
        self.0.join(Self::LEDGER)
    }

    /// The store's file.
    pub fn store(&self) -> PathBuf {
        self.0.join("store.sqlite")
    }

    /// The folder of the keys that sign sessions.
    pub fn sessions(&self) -> PathBuf {
        self.0.join(Self::SESSIONS)
    }

    /// The key that signs the marks of namespaces on hosts.
    pub fn mark_key(&self) -> PathBuf {
        self.0.join(Self::MARK_KEY)
    }

    /// The folder of the engine `local`.
    pub fn local(&self) -> PathBuf {
        self.0.join("local")
    }
}
