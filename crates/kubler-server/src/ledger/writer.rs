//! Appends lines, one after the other, and keeps room behind them for the records of ends.
//!
//! Nothing is written into blocks that are not the file's own already, so a disk that fills up is noticed before a
//! record is begun. The room for ends lies in the file that is written, and moves to the next one before that is used.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use kubler_core::ledger::layout;
use kubler_core::ledger::merkle::{Frontier, Hash, leaf_hash};
use kubler_core::ledger::record::{Body, Kind, Sealed};

use super::LedgerError;
use super::extent::Extent;
use super::read::{Index, Mark, Plan, Query};
use super::sync::{NOT_DURABLE, Syncer};
use crate::files::sync_folder;

/// Room that is kept for the end of everything that has begun, in bytes. The end of a request needs some 420.
pub(super) const END_BYTES: u64 = 1024;
/// What a start with its job's identity needs, in bytes: without that much the ledger says that it is full.
const START_BYTES: u64 = 4 * 1024;
/// Besides, room for this many records of `END_BYTES` that help something to end without a start of their own:
/// enough for a thousand environments that are released and gone, each with its identity and what was looked for.
pub(super) const ENDS_KEPT: u64 = 8 * 1024;

/// Free space on the disk below which nothing new begins, in bytes: what ends is done by others as well (the store,
/// etcd), and a disk that is nearly full should find them before the last byte is gone.
const DISK_BYTES_FREE_MIN: u64 = 32 * 1024 * 1024;

/// How large things may be. Smaller in tests.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// A file of records is closed when it is this long, in bytes.
    pub(super) segment_bytes_max: u64,
    /// Records of `END_BYTES` for which room is kept besides the ends of what is open.
    pub(super) ends_kept: u64,
    /// Blocks are taken from the disk so many bytes at a time.
    pub(super) step_bytes: u64,
    /// Room for the leaves of what is signed while the disk is full, in bytes.
    pub(super) leaf_bytes_kept: u64,
    /// Room for the notes of that, in bytes: at the shortest pace of 10 s, for some 50 minutes.
    pub(super) note_bytes_kept: u64,
    /// Free space without which nothing new begins, in bytes.
    pub(super) disk_bytes_free_min: u64,
}

impl Bounds {
    pub(super) const ORDINARY: Self = Self {
        segment_bytes_max: 64 * 1024 * 1024,
        ends_kept: ENDS_KEPT,
        step_bytes: 1024 * 1024,
        leaf_bytes_kept: 1024 * 1024,
        note_bytes_kept: 64 * 1024,
        disk_bytes_free_min: DISK_BYTES_FREE_MIN,
    };
}

/// What a record is for, and so which room it may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Purpose {
    kind: Kind,
    ending: bool,
}

impl Purpose {
    /// A record that only says something.
    pub(super) const ORDINARY: Self = Self {
        kind: Kind::Event,
        ending: false,
    };

    pub(super) const fn of(body: &Body) -> Self {
        Self {
            kind: body.kind,
            ending: body.is_ending(),
        }
    }
}

/// The one place where records are written.
pub(super) struct Writer {
    folder: PathBuf,
    bounds: Bounds,
    records: Extent,
    frontier: Frontier,
    /// Leaves that no checkpoint covers yet.
    unsigned: Vec<Hash>,
    index: Index,
    /// Starts whose end was not written yet.
    open: u64,
    /// No room can be had: for tests.
    filled: bool,
    line: Vec<u8>,
}

/// What the next checkpoint covers.
pub(super) struct Unsigned {
    pub(super) size: u64,
    pub(super) root: Hash,
    pub(super) leaves: Vec<Hash>,
    pub(super) file: Arc<File>,
}

impl Writer {
    /// Goes on behind what was found. `index` has at least one segment.
    pub(super) fn new(
        folder: &Path,
        bounds: Bounds,
        frontier: Frontier,
        unsigned: Vec<Hash>,
        index: Index,
        open: u64,
    ) -> io::Result<Self> {
        let path = folder.join(layout::segment_name(index.last_segment()));
        let records = Extent::open(&path, bounds.step_bytes)?;
        let mut writer = Self {
            folder: folder.to_owned(),
            bounds,
            records,
            frontier,
            unsigned,
            index,
            open,
            filled: false,
            line: Vec::new(),
        };
        let kept = writer.kept();
        writer.records.keep_what_is_there(kept)?;
        sync_folder(folder)?;
        Ok(writer)
    }

    /// Appends one record; it is written to the operating system when this returns.
    pub(super) fn append(
        &mut self,
        sealed: &Sealed,
        purpose: Purpose,
        mark: Mark,
        now: Timestamp,
        syncer: &Syncer,
    ) -> Result<u64, LedgerError> {
        if purpose.kind == Kind::End {
            self.open = self.open.saturating_sub(1);
        }
        // Ends go on: what they say is true, and the next start sees what the disk has of it.
        if syncer.has_failed() && !purpose.ending {
            return Err(self.unusable(&NOT_DURABLE));
        }
        if (purpose.kind == Kind::Start && self.disk_is_full())
            || !self.make_room(sealed.line_bytes_max(), purpose, syncer)
        {
            return Err(LedgerError::Full);
        }
        let sequence = self.frontier.size();
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        sealed.write_line(sequence, now, &mut line);
        let leaf = leaf_hash(&line);
        line.push(b'\n');
        let offset = self.records.bytes();
        let written = self.records.write(&line);
        self.line = line;
        written.map_err(|error| self.unusable(&error))?;
        self.index.note(sequence, offset, mark);
        self.frontier.push(leaf);
        self.unsigned.push(leaf);
        if purpose.kind == Kind::Start {
            self.open += 1;
        }
        Ok(sequence)
    }

    /// Room that only ends may use.
    const fn kept(&self) -> u64 {
        self.bounds
            .ends_kept
            .saturating_add(self.open)
            .saturating_mul(END_BYTES)
    }

    /// Makes sure that a line finds room, and that after it all that is kept for ends is still whole: only an end may
    /// use that, and only when nothing else can be had.
    fn make_room(&mut self, line_bytes: u64, purpose: Purpose, syncer: &Syncer) -> bool {
        let own_end = if purpose.kind == Kind::Start {
            END_BYTES
        } else {
            0
        };
        let whole = line_bytes + own_end + self.kept();
        if self.filled {
            return purpose.ending && self.records.room() >= line_bytes;
        }
        if self.records.room() >= whole {
            return true;
        }
        // Where no next file can be had the present one goes on: it has the room for ends, the next would not.
        let full_length = self.records.bytes() >= self.bounds.segment_bytes_max;
        if (full_length && self.next_segment(whole, syncer).is_ok())
            || self.records.keep(whole).is_ok()
        {
            return true;
        }
        // The disk is full, which is what the room is kept for.
        purpose.ending && self.records.keep(line_bytes).is_ok()
    }

    /// Goes on in a new file that has `room` and the room for ends; changes nothing when that cannot be had.
    fn next_segment(&mut self, room: u64, syncer: &Syncer) -> io::Result<()> {
        let first = self.frontier.size();
        let path = self.folder.join(layout::segment_name(first));
        let mut next = Extent::open(&path, self.bounds.step_bytes)?;
        let ready = next.keep(room).and_then(|()| sync_folder(&self.folder));
        if ready.is_err() {
            // Left behind by a crash, it is taken away by the next start.
            let _ = std::fs::remove_file(path);
            return ready;
        }
        // Whoever waits for records of the old file must not be told by a sync of the new one.
        if let Err(error) = self.records.file().sync_data() {
            syncer.fail();
            let _ = std::fs::remove_file(path);
            return Err(error);
        }
        syncer.switch(next.file());
        std::mem::replace(&mut self.records, next).give_back();
        self.index.segment(first);
        Ok(())
    }

    /// Whether the disk has less than it should for anything new. What cannot be asked is not taken for full: the
    /// room that is kept is known without asking.
    fn disk_is_full(&self) -> bool {
        rustix::fs::fstatvfs(self.records.file()).is_ok_and(|disk| {
            disk.f_bavail.saturating_mul(disk.f_frsize) < self.bounds.disk_bytes_free_min
        })
    }

    /// As if the disk were full.
    #[cfg(test)]
    pub(super) fn fill(&mut self) {
        self.filled = true;
    }

    /// As if the disk were not full any more.
    #[cfg(test)]
    pub(super) fn empty(&mut self) {
        self.filled = false;
    }

    pub(super) fn has_room(&mut self, syncer: &Syncer) -> bool {
        const START: Purpose = Purpose {
            kind: Kind::Start,
            ending: false,
        };
        !self.disk_is_full() && self.make_room(START_BYTES, START, syncer)
    }

    pub(super) fn take_unsigned(&mut self) -> Unsigned {
        Unsigned {
            size: self.frontier.size(),
            root: self.frontier.root(),
            leaves: std::mem::take(&mut self.unsigned),
            file: Arc::clone(self.records.file()),
        }
    }

    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(self.records.file())
    }

    pub(super) const fn index(&self) -> &Index {
        &self.index
    }

    pub(super) fn plan(&self, query: &Query) -> Plan {
        self.index.plan(query, self.frontier.size())
    }

    fn unusable(&self, message: &dyn std::fmt::Display) -> LedgerError {
        LedgerError::unusable(&self.folder, message)
    }
}
