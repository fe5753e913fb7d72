//! A back-up of the data folder, taken while the server runs: the store as it is at one moment, and the ledger up to a
//! signed checkpoint that is no older than that. What environments consist of is not in it: they do not outlive their
//! machine.

use std::fs::File;
use std::io::{self, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use kubler_core::ledger::checkpoint::{Checkpoint, PublicKey};
use kubler_core::ledger::layout;
use kubler_core::ledger::merkle::{Frontier, leaf_hash};
use kubler_core::ledger::notes::Notes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::data_folder::DataFolder;
use crate::files;
use crate::ledger::{Lines, Piece};
use crate::store;

/// The file that lists all others.
pub const MANIFEST: &str = "manifest.json";
/// The only form of a back-up that is known.
pub(super) const FORM: u32 = 1;

/// Whether private keys are in a back-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// They are kept elsewhere.
    Left,
    /// They are: whoever reads it can sign for the ledger and make sessions.
    Included,
}

/// What a back-up consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The form of the back-up.
    pub form: u32,
    /// When it was taken.
    pub made_at: Timestamp,
    /// By which version.
    pub version: String,
    /// The checkpoint up to which it holds the ledger, as a signed note.
    pub checkpoint: String,
    /// The ledger's public key.
    pub key: String,
    /// Whether the ledger's private key is in it.
    pub with_keys: bool,
    /// Every other file.
    pub files: Vec<ManifestFile>,
}

/// One file of a back-up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// Below the back-up's folder, with `/`.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 in hex.
    pub sha256: String,
}

/// Why there is no back-up.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A file.
    #[error("`{path}`: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The place is taken.
    #[error("`{0}` is not empty")]
    NotEmpty(PathBuf),
    /// The store.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// The ledger.
    #[error("the ledger in `{folder}`: {message}")]
    Ledger {
        /// Where.
        folder: PathBuf,
        /// Why.
        message: String,
    },
    /// The back-up is not what its manifest says.
    #[error("the back-up in `{folder}`: {message}")]
    Unsound {
        /// Where.
        folder: PathBuf,
        /// Why.
        message: String,
    },
}

impl BackupError {
    /// What to do next.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::File { .. } => "check the path, its owner and the free space",
            Self::NotEmpty(_) => "name a folder that does not exist yet",
            Self::Store(_) => {
                "is it the data folder of a kubler-server? `kubler-server check` reads the configuration"
            }
            Self::Ledger { .. } => {
                "a running server signs within seconds: try again; if it stays so, `kubler ledger verify` says what is wrong"
            }
            Self::Unsound { .. } => {
                "nothing was changed: take another back-up, or get this one again from where it is kept"
            }
        }
    }

    pub(super) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }
}

/// Takes a back-up of `data` into `folder`, which must be empty or not exist.
///
/// # Errors
/// When something cannot be read or written; an unfinished back-up has no manifest.
pub async fn backup(
    data: &DataFolder,
    folder: &Path,
    keys: Keys,
    now: Timestamp,
) -> Result<Manifest, BackupError> {
    make_empty(folder)?;
    let copy = DataFolder::at(folder);
    // The store first: what it saw of the ledger must be in the ledger's copy.
    store::copy(&data.store(), &copy.store()).await?;
    let (from, to) = (data.ledger(), copy.ledger());
    make_folder(&to)?;
    let (key, note) = copy_ledger(&from, &to)?;
    if keys == Keys::Included {
        copy_private(
            &from.join(layout::PRIVATE_KEY),
            &to.join(layout::PRIVATE_KEY),
        )?;
        copy_folder(&data.sessions(), &copy.sessions())?;
        // Only a server with hosts has one.
        if data.mark_key().exists() {
            copy_private(&data.mark_key(), &copy.mark_key())?;
        }
    }
    let manifest = Manifest {
        form: FORM,
        made_at: now,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        checkpoint: note,
        key: key.to_string(),
        with_keys: keys == Keys::Included,
        files: list(folder)?,
    };
    let text = serde_json::to_string_pretty(&manifest).unwrap_or_default();
    let path = folder.join(MANIFEST);
    write(&path, text.as_bytes())?;
    Ok(manifest)
}

/// Copies records, leaves and checkpoints up to the last signed checkpoint, and checks them against it on the way.
fn copy_ledger(from: &Path, to: &Path) -> Result<(PublicKey, String), BackupError> {
    let wrong = |message: String| BackupError::Ledger {
        folder: from.to_owned(),
        message,
    };
    let public = from.join(layout::PUBLIC_KEY);
    let text = std::fs::read_to_string(&public).map_err(BackupError::file(&public))?;
    let key = PublicKey::parse(&text).map_err(|error| wrong(error.to_string()))?;
    let path = from.join(layout::CHECKPOINTS);
    let notes = std::fs::read(&path).map_err(BackupError::file(&path))?;
    let notes = Notes::read(&notes).whole;
    let Some(last) = notes.last() else {
        return Err(wrong("nothing of it is signed yet".into()));
    };
    let checkpoint = key.open(last).map_err(|error| wrong(error.to_string()))?;
    write(&to.join(layout::PUBLIC_KEY), text.as_bytes())?;
    let kept: String = notes.iter().map(|note| format!("{note}\n")).collect();
    write(&to.join(layout::CHECKPOINTS), kept.as_bytes())?;
    copy_records(from, to, &checkpoint)?;
    Ok((key, (*last).to_owned()))
}

fn copy_records(from: &Path, to: &Path, checkpoint: &Checkpoint) -> Result<(), BackupError> {
    let wrong = |message: &str| BackupError::Ledger {
        folder: from.to_owned(),
        message: message.to_owned(),
    };
    let mut frontier = Frontier::new();
    let path = to.join(layout::LEAVES);
    let mut leaves = BufWriter::new(private(&path)?);
    let mut records = Lines::of(from).map_err(BackupError::file(from))?;
    let mut copy: Option<(PathBuf, BufWriter<File>)> = None;
    while frontier.size() < checkpoint.size {
        let line = match records.read() {
            Err(error) => return Err(BackupError::file(&records.path())(error)),
            Ok(Some(Piece::File { first, .. })) => {
                let target = to.join(layout::segment_name(first));
                let next = BufWriter::new(private(&target)?);
                if let Some((target, file)) = copy.replace((target, next)) {
                    finish(file, &target)?;
                }
                continue;
            }
            Ok(Some(Piece::Line(line))) if !line.is_torn => line,
            Ok(_) => break,
        };
        if let Some((target, file)) = &mut copy {
            let written = file
                .write_all(line.text)
                .and_then(|()| file.write_all(b"\n"));
            written.map_err(BackupError::file(target))?;
        }
        let leaf = leaf_hash(line.text);
        leaves.write_all(&leaf).map_err(BackupError::file(&path))?;
        frontier.push(leaf);
    }
    if let Some((target, file)) = copy {
        finish(file, &target)?;
    }
    finish(leaves, &path)?;
    if frontier.size() == checkpoint.size && frontier.root() == checkpoint.root {
        Ok(())
    } else {
        Err(wrong("its records are not what its last checkpoint says"))
    }
}

fn finish(file: BufWriter<File>, path: &Path) -> Result<(), BackupError> {
    let file = file.into_inner().map_err(io::IntoInnerError::into_error);
    file.and_then(|file| file.sync_all())
        .map_err(BackupError::file(path))
}

/// Makes the folder, which may be there when nothing is in it.
pub(super) fn make_empty(folder: &Path) -> Result<(), BackupError> {
    make_folder(folder)?;
    let mut entries = std::fs::read_dir(folder).map_err(BackupError::file(folder))?;
    match entries.next() {
        Some(_) => Err(BackupError::NotEmpty(folder.to_owned())),
        None => Ok(()),
    }
}

pub(super) fn make_folder(folder: &Path) -> Result<(), BackupError> {
    files::make_private_folder(folder).map_err(BackupError::file(folder))
}

fn private(path: &Path) -> Result<File, BackupError> {
    files::create_private(path).map_err(BackupError::file(path))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), BackupError> {
    let mut file = private(path)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(BackupError::file(path))
}

/// Copies a file so that only its owner may read it.
pub(super) fn copy_private(from: &Path, to: &Path) -> Result<(), BackupError> {
    let mut source = File::open(from).map_err(BackupError::file(from))?;
    let mut file = private(to)?;
    io::copy(&mut source, &mut file)
        .and_then(|_| file.sync_all())
        .map_err(BackupError::file(to))
}

fn copy_folder(from: &Path, to: &Path) -> Result<(), BackupError> {
    make_folder(to)?;
    for entry in std::fs::read_dir(from).map_err(BackupError::file(from))? {
        let entry = entry.map_err(BackupError::file(from))?;
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            copy_private(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Every file below `folder` but the manifest, by name.
pub(super) fn list(folder: &Path) -> Result<Vec<ManifestFile>, BackupError> {
    let mut files = Vec::new();
    for below in ["", DataFolder::LEDGER, DataFolder::SESSIONS] {
        let place = folder.join(below);
        let entries = match std::fs::read_dir(&place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(BackupError::file(&place))?,
        };
        for entry in entries {
            let entry = entry.map_err(BackupError::file(&place))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.path().is_dir() || (below.is_empty() && name == MANIFEST) {
                continue;
            }
            let path = if below.is_empty() {
                name
            } else {
                format!("{below}/{name}")
            };
            let (bytes, sha256) = digest(&entry.path())?;
            files.push(ManifestFile {
                path,
                bytes,
                sha256,
            });
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn digest(path: &Path) -> Result<(u64, String), BackupError> {
    let mut file = File::open(path).map_err(BackupError::file(path))?;
    let (mut digest, mut bytes) = (Sha256::new(), 0);
    let mut piece = vec![0; 1024 * 1024];
    loop {
        let read = file.read(&mut piece).map_err(BackupError::file(path))?;
        let Some(part) = piece.get(..read).filter(|part| !part.is_empty()) else {
            return Ok((bytes, hex::encode(digest.finalize())));
        };
        digest.update(part);
        bytes += read as u64;
    }
}
