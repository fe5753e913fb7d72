//! The policies in force: read from a folder, replaced as a whole, and never by a worse set.
//!
//! A change that does not pass every check keeps the old set. Whoever holds something open that policy allowed
//! waits on [`Policies::watch`] and asks again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kubler_core::configuration::Configuration;
use kubler_core::policy::{POLICY_FILE_BYTES_MAX, POLICY_FILES_MAX, PolicyFault, PolicySet};
use tokio::sync::watch;

/// How the name of a policy file ends.
const EXTENSION: &str = "cedar";
/// Most entries of the folder that are looked at, files of all kinds counted.
const FOLDER_ENTRIES_MAX: usize = 10_000;

/// Why no set could be made of the folder.
#[derive(Debug, thiserror::Error)]
pub enum PolicyLoadError {
    /// The folder or a file in it cannot be read.
    #[error("`{path}` cannot be read: {source}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something that is named like a policy file may not be one.
    #[error("`{path}` {reason}")]
    Refused {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The policies do not pass.
    #[error("the policies have {} faults:\n{}", .faults.len(), listed(.faults))]
    Faulty {
        /// All of them, by file and line.
        faults: Vec<PolicyFault>,
    },
}

impl PolicyLoadError {
    /// What to do next.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => {
                "`policies` in the configuration names the folder; an empty one denies everything"
            }
            Self::Refused { .. } => "keep policies as plain `*.cedar` files inside the folder",
            Self::Faulty { .. } => "`kubler policy check` reads the folder without a server",
        }
    }
}

fn listed(faults: &[PolicyFault]) -> String {
    let lines: Vec<_> = faults
        .iter()
        .map(|fault| format!("  {fault}\n    hint: {}", fault.hint))
        .collect();
    lines.join("\n")
}

/// What came of putting a set in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reloaded {
    /// Nothing changed.
    Unchanged {
        /// The digest in force.
        digest: String,
    },
    /// Another set is in force.
    Changed {
        /// The digest until now.
        before: String,
        /// The digest from now on.
        after: String,
    },
}

/// The policies in force.
#[derive(Debug)]
pub struct Policies {
    current: watch::Sender<Arc<PolicySet>>,
}

impl Policies {
    /// This set is in force from the start.
    pub fn new(set: PolicySet) -> Self {
        Self {
            current: watch::Sender::new(Arc::new(set)),
        }
    }

    /// The set in force now. The same until it changes, so that `Arc::ptr_eq` tells whether it did.
    pub fn current(&self) -> Arc<PolicySet> {
        Arc::clone(&self.current.borrow())
    }

    /// Tells of every change, for whoever must ask again.
    pub fn watch(&self) -> watch::Receiver<Arc<PolicySet>> {
        self.current.subscribe()
    }

    /// Puts another set in force.
    pub fn replace(&self, set: PolicySet) -> Reloaded {
        let current = self.current();
        let (before, after) = (current.digest().to_owned(), set.digest().to_owned());
        if current.is_same_as(&set) {
            return Reloaded::Unchanged { digest: after };
        }
        self.current.send_replace(Arc::new(set));
        Reloaded::Changed { before, after }
    }
}

/// The set that the folder's files make under this configuration. Changes nothing. Takes milliseconds of file reading and
/// checking; call it where that may block.
///
/// # Errors
/// When the folder's policies do not pass or cannot be read.
pub fn read_set(
    folder: &Path,
    configuration: &Configuration,
) -> Result<PolicySet, PolicyLoadError> {
    let files = read_folder(folder)?;
    PolicySet::parse(&files, configuration).map_err(|faults| PolicyLoadError::Faulty { faults })
}

/// The texts of all `*.cedar` files of the folder itself, by name. Hidden files and other names are passed over.
///
/// # Errors
/// When something cannot be read, is no text, is too large, or leads out of the folder.
pub fn read_folder(folder: &Path) -> Result<BTreeMap<String, String>, PolicyLoadError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| PolicyLoadError::Unreadable { path, source }
    };
    let root = folder.canonicalize().map_err(unreadable(folder))?;
    let mut files = BTreeMap::new();
    for (seen, entry) in root.read_dir().map_err(unreadable(folder))?.enumerate() {
        if seen >= FOLDER_ENTRIES_MAX {
            return Err(refused(
                folder,
                format!("has more than {FOLDER_ENTRIES_MAX} entries"),
            ));
        }
        let entry = entry.map_err(unreadable(folder))?;
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path
            .extension()
            .is_none_or(|extension| extension != EXTENSION)
            || name.starts_with('.')
        {
            continue;
        }
        if files.len() >= POLICY_FILES_MAX {
            return Err(refused(
                folder,
                format!("has more than {POLICY_FILES_MAX} policy files"),
            ));
        }
        let text = read_file(&root, &path)?;
        files.insert(name, text);
    }
    Ok(files)
}

fn refused(path: &Path, reason: impl Into<String>) -> PolicyLoadError {
    PolicyLoadError::Refused {
        path: path.to_owned(),
        reason: reason.into(),
    }
}

fn read_file(root: &Path, path: &Path) -> Result<String, PolicyLoadError> {
    let unreadable = |source| PolicyLoadError::Unreadable {
        path: path.to_owned(),
        source,
    };
    // A link is fine as long as it stays inside (a mounted ConfigMap is made of such): what it leads to is read.
    let real = path.canonicalize().map_err(unreadable)?;
    if !real.starts_with(root) {
        return Err(refused(path, "leads out of the folder"));
    }
    // Asked before opening, because opening a pipe waits for its other end.
    if !real.metadata().map_err(unreadable)?.is_file() {
        return Err(refused(path, "is not a file"));
    }
    let mut bytes = Vec::new();
    let bound = POLICY_FILE_BYTES_MAX as u64 + 1;
    File::open(&real)
        .and_then(|file| file.take(bound).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if bytes.len() > POLICY_FILE_BYTES_MAX {
        return Err(refused(
            path,
            format!("is longer than {POLICY_FILE_BYTES_MAX} bytes"),
        ));
    }
    String::from_utf8(bytes).map_err(|_| refused(path, "is not UTF-8 text"))
}

#[cfg(test)]
mod tests;
