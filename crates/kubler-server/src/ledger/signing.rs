//! Checkpoints: what the ledger was at a size, signed, so that it cannot be another one later.
//!
//! The order is what makes a crash harmless: the records are on the disk before their leaves are written, and the
//! leaves before the note. Leaves are always written at the place that the last note gives them, so that what an
//! unfinished attempt left is written over and never doubled; opening cuts it.

use std::io;
use std::path::Path;

use kubler_core::ledger::checkpoint::PrivateKey;
use kubler_core::ledger::layout;
use kubler_core::ledger::merkle::Hash;

use super::extent::Extent;
use super::replay::LEAF_BYTES;
use super::sync::{NOT_DURABLE, Syncer};
use super::writer::{Bounds, Unsigned};

/// Signs, one checkpoint at a time.
pub(super) struct Signer {
    key: PrivateKey,
    bounds: Bounds,
    leaves: Extent,
    notes: Extent,
    latest: Option<kubler_api::ledger::Checkpoint>,
    /// Leaves whose checkpoint could not be written: they belong to the next. 32 bytes for each record until then.
    behind: Vec<Hash>,
}

impl Signer {
    /// `latest` is the last note in the folder, and everything behind it was cut.
    pub(super) fn new(
        folder: &Path,
        bounds: Bounds,
        key: PrivateKey,
        latest: Option<kubler_api::ledger::Checkpoint>,
    ) -> io::Result<Self> {
        let mut leaves = Extent::open(&folder.join(layout::LEAVES), bounds.leaf_bytes_kept / 4)?;
        leaves.keep_what_is_there(bounds.leaf_bytes_kept)?;
        let mut notes = Extent::open(
            &folder.join(layout::CHECKPOINTS),
            bounds.note_bytes_kept / 4,
        )?;
        notes.keep_what_is_there(bounds.note_bytes_kept)?;
        Ok(Self {
            key,
            bounds,
            leaves,
            notes,
            latest,
            behind: Vec::new(),
        })
    }

    pub(super) fn sign(
        &mut self,
        unsigned: Unsigned,
        syncer: &Syncer,
    ) -> io::Result<kubler_api::ledger::Checkpoint> {
        self.behind.extend(unsigned.leaves);
        if let Some(latest) = &self.latest
            && latest.size == unsigned.size
        {
            return Ok(latest.clone());
        }
        if syncer.has_failed() {
            return Err(io::Error::other(NOT_DURABLE));
        }
        if let Err(error) = unsigned.file.sync_data() {
            syncer.fail();
            return Err(error);
        }
        let note = self.key.sign(unsigned.size, unsigned.root);
        self.write(&note)?;
        self.behind.clear();
        let checkpoint = kubler_api::ledger::Checkpoint {
            note,
            size: unsigned.size,
        };
        self.latest = Some(checkpoint.clone());
        Ok(checkpoint)
    }

    /// Leaves, then the note. The records are on the disk already.
    fn write(&mut self, note: &str) -> io::Result<()> {
        let signed = self.latest.as_ref().map_or(0, |latest| latest.size);
        let leaves = self.behind.concat();
        self.leaves.go_back(signed.saturating_mul(LEAF_BYTES));
        // Without more room it is the kept room that is used: a full disk must not stop a signature.
        let _ = self
            .leaves
            .keep(leaves.len() as u64 + self.bounds.leaf_bytes_kept);
        self.leaves.write(&leaves)?;
        self.leaves.file().sync_data()?;

        let note = format!("{note}\n");
        let _ = self
            .notes
            .keep(note.len() as u64 + self.bounds.note_bytes_kept);
        self.notes.write(note.as_bytes())?;
        self.notes.file().sync_data()
    }
}
