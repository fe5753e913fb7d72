//! Appends lines, one after the other, and makes many of them durable at once.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use jiff::Timestamp;
use kubler_core::ledger::layout;
use kubler_core::ledger::merkle::{Frontier, Hash, leaf_hash};
use kubler_core::ledger::record::Sealed;
use tokio::sync::oneshot;

use super::LedgerError;
use super::read::{Index, Mark, Plan, Query};

/// A file of records is closed when it is this long, in bytes.
const SEGMENT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Room that is kept back for the records of ends, in bytes: some ten thousand of them.
pub(super) const RESERVE_BYTES: u64 = 8 * 1024 * 1024;
/// The file that keeps it.
const RESERVE: &str = "reserve";

/// Which room a record may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    Ordinary,
    /// Also what is kept back for ends.
    KeptBack,
}

/// The one place where records are written.
pub(super) struct Writer {
    folder: PathBuf,
    file: Arc<File>,
    bytes: u64,
    frontier: Frontier,
    /// Leaves that no checkpoint covers yet.
    unsigned: Vec<Hash>,
    index: Index,
    /// The room that is kept back is there.
    reserve: bool,
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
    pub(super) fn new(
        folder: &Path,
        frontier: Frontier,
        unsigned: Vec<Hash>,
        index: Index,
    ) -> std::io::Result<Self> {
        let first = index.last_segment().unwrap_or(0);
        let file = open_segment(folder, first)?;
        let bytes = file.metadata()?.len();
        let mut writer = Self {
            folder: folder.to_owned(),
            file: Arc::new(file),
            bytes,
            frontier,
            unsigned,
            index,
            reserve: false,
            filled: false,
            line: Vec::new(),
        };
        if writer.index.last_segment().is_none() {
            writer.index.segment(0);
        }
        writer.keep_room();
        Ok(writer)
    }

    /// Appends one record; it is written to the operating system when this returns.
    pub(super) fn append(
        &mut self,
        sealed: &Sealed,
        room: Room,
        mark: Mark,
        now: Timestamp,
        syncer: &Syncer,
    ) -> Result<u64, LedgerError> {
        if syncer.has_failed() || (!self.reserve && room == Room::Ordinary && !self.keep_room()) {
            return Err(LedgerError::Full);
        }
        let sequence = self.frontier.size();
        if self.bytes >= SEGMENT_BYTES_MAX {
            self.next_segment(sequence, syncer)?;
        }
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        sealed.write_line(sequence, now, &mut line);
        let leaf = leaf_hash(&line);
        line.push(b'\n');
        let written = self.write(&line, room);
        self.line = line;
        let length = written?;
        self.index.note(sequence, self.bytes, mark);
        self.bytes += length;
        self.frontier.push(leaf);
        self.unsigned.push(leaf);
        Ok(sequence)
    }

    fn write(&mut self, line: &[u8], room: Room) -> Result<u64, LedgerError> {
        if (&*self.file).write_all(line).is_ok() {
            return Ok(line.len() as u64);
        }
        // Half a line must not stay: the next one would be glued to it.
        let _ = self.file.set_len(self.bytes);
        self.release_room();
        if room == Room::KeptBack && (&*self.file).write_all(line).is_ok() {
            return Ok(line.len() as u64);
        }
        let _ = self.file.set_len(self.bytes);
        Err(LedgerError::Full)
    }

    fn next_segment(&mut self, first: u64, syncer: &Syncer) -> Result<(), LedgerError> {
        let unusable = |error: std::io::Error| LedgerError::Unusable {
            folder: self.folder.clone(),
            message: error.to_string(),
        };
        // Whoever waits for records of the old file must not be told by a sync of the new one.
        self.file.sync_data().map_err(unusable)?;
        let file = Arc::new(open_segment(&self.folder, first).map_err(unusable)?);
        syncer.switch(&file);
        self.file = file;
        self.bytes = 0;
        self.index.segment(first);
        Ok(())
    }

    /// Makes sure that the room for ends is there.
    fn keep_room(&mut self) -> bool {
        if self.filled {
            return false;
        }
        let path = self.folder.join(RESERVE);
        let kept = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .and_then(|file| {
                rustix::fs::fallocate(
                    &file,
                    rustix::fs::FallocateFlags::empty(),
                    0,
                    RESERVE_BYTES,
                )?;
                Ok(())
            });
        self.reserve = kept.is_ok();
        if !self.reserve {
            let _ = std::fs::remove_file(path);
        }
        self.reserve
    }

    #[cfg(test)]
    pub(super) fn fill(&mut self) {
        self.filled = true;
        self.release_room();
    }

    fn release_room(&mut self) {
        let _ = std::fs::remove_file(self.folder.join(RESERVE));
        self.reserve = false;
    }

    pub(super) const fn has_room(&self) -> bool {
        self.reserve
    }

    pub(super) fn take_unsigned(&mut self) -> Unsigned {
        Unsigned {
            size: self.frontier.size(),
            root: self.frontier.root(),
            leaves: std::mem::take(&mut self.unsigned),
            file: Arc::clone(&self.file),
        }
    }

    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    pub(super) fn plan(&self, query: &Query) -> Plan {
        self.index.plan(query, self.frontier.size())
    }
}

fn open_segment(folder: &Path, first: u64) -> std::io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(folder.join(layout::segment_name(first)))
}

type Waiter = oneshot::Sender<Result<(), &'static str>>;

/// Group commit: one thread syncs the file for everybody who waits.
pub(super) struct Syncer {
    waiters: mpsc::Sender<Waiter>,
    shared: Arc<Shared>,
}

struct Shared {
    file: Mutex<Arc<File>>,
    /// After a failed sync nobody knows what is on the disk: nothing is acknowledged until a restart has looked.
    failed: AtomicBool,
}

impl Syncer {
    pub(super) fn start(file: Arc<File>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            file: Mutex::new(file),
            failed: AtomicBool::new(false),
        });
        let (waiters, waiting) = mpsc::channel::<Waiter>();
        let of_thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("ledger-sync".into())
            .spawn(move || sync_for_ever(&waiting, &of_thread))?;
        Ok(Self { waiters, shared })
    }

    fn switch(&self, file: &Arc<File>) {
        *self
            .shared
            .file
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Arc::clone(file);
    }

    pub(super) fn has_failed(&self) -> bool {
        self.shared.failed.load(Ordering::Acquire)
    }

    /// Waits until everything that was written before this call is on the disk.
    pub(super) async fn synced(&self) -> Result<(), &'static str> {
        const GONE: &str = "the thread that writes to the disk is gone";
        let (done, wait) = oneshot::channel();
        self.waiters.send(done).map_err(|_| GONE)?;
        wait.await.unwrap_or(Err(GONE))
    }
}

fn sync_for_ever(waiting: &mpsc::Receiver<Waiter>, shared: &Shared) {
    while let Ok(first) = waiting.recv() {
        let waiters: Vec<_> = std::iter::once(first).chain(waiting.try_iter()).collect();
        let file = Arc::clone(&shared.file.lock().unwrap_or_else(PoisonError::into_inner));
        let result = if shared.failed.load(Ordering::Acquire) || file.sync_data().is_err() {
            shared.failed.store(true, Ordering::Release);
            Err("a record could not be brought to the disk")
        } else {
            Ok(())
        };
        for waiter in waiters {
            // Whoever does not wait any more has been refused already.
            let _ = waiter.send(result);
        }
    }
}
