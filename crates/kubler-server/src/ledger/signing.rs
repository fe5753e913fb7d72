//! Checkpoints: what the ledger was at a size, signed, so that it cannot be another one later.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use kubler_core::ledger::checkpoint::PrivateKey;
use kubler_core::ledger::layout;
use kubler_core::ledger::merkle::Hash;

use super::LedgerError;
use super::writer::Unsigned;

/// Signs, one checkpoint at a time.
pub(super) struct Signer {
    key: PrivateKey,
    latest: Option<kubler_api::ledger::Checkpoint>,
    /// Leaves whose checkpoint could not be written: they belong to the next.
    behind: Vec<Hash>,
}

impl Signer {
    pub(super) const fn new(
        key: PrivateKey,
        latest: Option<kubler_api::ledger::Checkpoint>,
    ) -> Self {
        Self {
            key,
            latest,
            behind: Vec::new(),
        }
    }

    pub(super) fn sign(
        &mut self,
        folder: &Path,
        unsigned: Unsigned,
    ) -> Result<kubler_api::ledger::Checkpoint, LedgerError> {
        self.behind.extend(unsigned.leaves);
        if let Some(latest) = self
            .latest
            .as_ref()
            .filter(|latest| latest.size == unsigned.size)
        {
            return Ok(latest.clone());
        }
        let note = self.key.sign(unsigned.size, unsigned.root);
        let write = || -> std::io::Result<()> {
            // What is signed must be on the disk before its signature is.
            unsigned.file.sync_data()?;
            let mut leaves = append(folder, layout::LEAVES)?;
            leaves.write_all(&self.behind.concat())?;
            let mut notes = append(folder, layout::CHECKPOINTS)?;
            notes.write_all(format!("{note}\n").as_bytes())?;
            notes.sync_data()
        };
        write().map_err(|error| LedgerError::Unusable {
            folder: folder.to_owned(),
            message: error.to_string(),
        })?;
        self.behind.clear();
        let checkpoint = kubler_api::ledger::Checkpoint {
            note,
            size: unsigned.size,
        };
        self.latest = Some(checkpoint.clone());
        Ok(checkpoint)
    }
}

fn append(folder: &Path, name: &str) -> std::io::Result<std::fs::File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(folder.join(name))
}
