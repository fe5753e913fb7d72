//! The ledger: an append-only file of records, written before anything is done, signed as a Merkle tree.
//!
//! The file is the truth; what is kept in memory is derived from it at every start. A record is acknowledged only
//! when it was written to the operating system (reads) or to the disk (changes). Ending always wins: room for the
//! records of ends is kept back, so that a full disk refuses new work while credentials still die.

mod entry;
mod extent;
mod lines;
mod open;
mod phase;
mod read;
pub mod recover;
mod replay;
mod signing;
pub mod sinks;
mod survey;
mod sync;
mod witness;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kubler_core::configuration::Ledger as LedgerSettings;
use kubler_core::ids::{EnvironmentId, RequestId};
use kubler_core::ledger::checkpoint::PublicKey;
use kubler_core::ledger::layout;
use kubler_core::ledger::record::{Body, Outcome, TooLong};
use kubler_core::ledger::refusals::{Noted, Refusals};

pub use kubler_core::ledger::refusals::RefusalBeforeVerification;

pub use self::entry::Entry;
pub(crate) use self::lines::{Lines, Piece};
pub use self::open::LedgerLock;
use self::open::{Judge, Opening};
pub use self::read::Query;
use self::signing::Signer;
use self::sync::Syncer;
pub use self::witness::Witness;
use self::writer::{Bounds, Purpose, Writer};
use crate::clock::Clock;

/// The command that puts a ledger in order.
const RECOVER: &str = "kubler-server ledger recover --reason TEXT";

/// How far a record must have got before it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It survives a loss of power: for everything that changes something.
    Disk,
    /// It survives the end of this process: for reads.
    Process,
}

/// Why something could not be recorded, and therefore must not be done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LedgerError {
    /// The folder belongs to another server that runs.
    #[error("the ledger in `{0}` is in use by another server")]
    InUse(PathBuf),
    /// A file cannot be read or written.
    #[error("the ledger in `{folder}` cannot be used: {message}")]
    Unusable {
        /// Where.
        folder: PathBuf,
        /// Why.
        message: String,
    },
    /// It is not what its last checkpoint says.
    #[error("the ledger in `{folder}` is damaged: {message}")]
    Damaged {
        /// Where.
        folder: PathBuf,
        /// What differs.
        message: String,
    },
    /// It is not the one that others know.
    #[error("the ledger in `{folder}` is not the one that is known: {message}")]
    NotTheKnown {
        /// Where.
        folder: PathBuf,
        /// Who knows what.
        message: String,
    },
    /// Somebody knows one, and there is none.
    #[error(
        "the ledger in `{folder}` is missing: {witness} knows one, and here is neither its key nor its public key"
    )]
    Missing {
        /// Where.
        folder: PathBuf,
        /// Who knows it.
        witness: String,
    },
    /// It is a copy of another one.
    #[error("the ledger in `{0}` is a copy: its private key came from another folder")]
    Copied(PathBuf),
    /// Its key cannot be used.
    #[error("the ledger in `{folder}` cannot be signed: {message}")]
    Key {
        /// Where.
        folder: PathBuf,
        /// Why.
        message: String,
    },
    /// There is no room, but for the records of ends.
    #[error("the ledger has no room for new records")]
    Full,
    /// A record cannot be made that short.
    #[error(transparent)]
    TooLong(#[from] TooLong),
}

impl LedgerError {
    fn unusable(folder: &Path, message: &dyn std::fmt::Display) -> Self {
        Self::Unusable {
            folder: folder.to_owned(),
            message: message.to_string(),
        }
    }

    /// What to do next.
    pub fn hint(&self) -> String {
        match self {
            Self::InUse(folder) => format!(
                "stop the other server, or give this one another data folder; `fuser {}` finds who holds it",
                folder.join(kubler_core::ledger::layout::LOCK).display()
            ),
            Self::Unusable { .. } => {
                "check the owner, the free space and the disk of the data folder; its file system must know `fallocate`, as ext4, XFS, Btrfs and tmpfs do".into()
            }
            Self::Damaged { folder, .. } => format!(
                "nothing was changed; `kubler ledger verify {0}` names what differs; put a backup back, or `{RECOVER}` goes on with what is sound: the rest is set aside, and the ledger says so for ever",
                folder.display()
            ),
            Self::NotTheKnown { .. } => format!(
                "nothing was changed; put the newest copy of the ledger back; when there is none, `{RECOVER}` goes on with what is here, and the ledger says for ever what is missing"
            ),
            Self::Missing { .. } => format!(
                "nothing was changed; put the ledger's folder back, with its `key`, from the newest copy; when there is none, `{RECOVER} --begin-anew` begins another, which says so"
            ),
            Self::Copied(folder) => format!(
                "two servers must never sign with one key, nor look after the same environments: start the original; when it will never start again, `{RECOVER}` makes `{}` the ledger's home",
                folder.display()
            ),
            Self::Key { .. } => format!(
                "put the right key back; when it is lost, `{RECOVER} --begin-anew` sets this ledger aside and begins another, which says so"
            ),
            Self::Full => "make room on the disk of the data folder: ends are still recorded, and new work is taken as soon as there is room".into(),
            Self::TooLong(_) => "shorten what the caller wrote: names, selectors and paths go into the record".into(),
        }
    }
}

/// One ledger in one folder. Cheap to clone.
#[derive(Clone)]
pub struct Ledger(Arc<Inner>);

struct Inner {
    folder: PathBuf,
    clock: Arc<dyn Clock>,
    writer: Mutex<Writer>,
    syncer: Syncer,
    signer: Mutex<Signer>,
    public: PublicKey,
    refusals: Mutex<Refusals>,
    _lock: LedgerLock,
}

impl Ledger {
    /// Opens the ledger in `folder`, or makes it under the name `origin`. Checks it against its last checkpoint,
    /// cuts a record that a crash left half-written, and closes what a crash left open.
    ///
    /// # Errors
    /// When it cannot be used, or is not what its last checkpoint says: nothing may be done then.
    pub fn open(
        folder: &Path,
        origin: &str,
        settings: &LedgerSettings,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, LedgerError> {
        Self::open_before(LedgerLock::take(folder)?, origin, settings, &[], clock)
    }

    /// The same before `witnesses`, who saw it earlier.
    ///
    /// # Errors
    /// Besides, when it is not the ledger that one of them saw.
    pub fn open_before(
        lock: LedgerLock,
        origin: &str,
        settings: &LedgerSettings,
        witnesses: &[Witness],
        clock: Arc<dyn Clock>,
    ) -> Result<Self, LedgerError> {
        let opening = Opening {
            origin,
            settings,
            bounds: Bounds::ORDINARY,
            witnesses,
            judge: Judge::Refuse,
            clock,
        };
        open::open(lock, opening).map(|(ledger, _)| ledger)
    }

    /// Environments of which it does not tell that they are gone.
    pub fn alive(&self) -> Vec<EnvironmentId> {
        self.writer().index().phases().keys().copied().collect()
    }

    /// Whether it tells that this environment is gone.
    ///
    /// # Errors
    /// When files cannot be read.
    pub fn tells_gone(&self, id: EnvironmentId) -> Result<bool, LedgerError> {
        if self.writer().index().phases().contains_key(&id) {
            return Ok(false);
        }
        self.tells(id, read::tells_gone)
    }

    /// Whether it tells that this environment was to be made on a host.
    ///
    /// # Errors
    /// When files cannot be read.
    pub fn tells_host(&self, id: EnvironmentId) -> Result<bool, LedgerError> {
        self.tells(id, read::tells_host)
    }

    /// Whether a record about this environment is such a one.
    fn tells(
        &self,
        id: EnvironmentId,
        what: fn(&serde_json::Value) -> bool,
    ) -> Result<bool, LedgerError> {
        let mut query = Query {
            environment: Some(id),
            limit: Some(read::READ_MAX),
            ..Query::default()
        };
        loop {
            let found = self.read(&query)?;
            if found.records.iter().any(what) {
                return Ok(true);
            }
            match found.next {
                Some(next) => query.from = next,
                None => return Ok(false),
            }
        }
    }

    /// Writes down that something begins. Nothing may be done before this returns. What was begun gets its end also
    /// when the caller goes before that.
    ///
    /// # Errors
    /// When it could not be recorded.
    pub async fn start(&self, body: Body, durability: Durability) -> Result<Entry, LedgerError> {
        let entry = Entry::prepare(self.clone(), &body);
        let sequence = self.append_now(body)?;
        // From here on it is in the file: dropped at the await below, the entry closes itself.
        let entry = entry.begun(sequence);
        match self.made(durability).await {
            Ok(()) => Ok(entry),
            Err(error) => {
                entry.end_now(Outcome {
                    close_reason: Some("not_durable".into()),
                    ..Outcome::default()
                });
                Err(error)
            }
        }
    }

    /// Writes down something that happened; gives its sequence.
    ///
    /// # Errors
    /// When it could not be recorded.
    pub async fn event(&self, body: Body, durability: Durability) -> Result<u64, LedgerError> {
        let sequence = self.append_now(body)?;
        self.made(durability).await?;
        Ok(sequence)
    }

    /// Waits until what was written is as durable as it must be.
    async fn made(&self, durability: Durability) -> Result<(), LedgerError> {
        match durability {
            Durability::Process => Ok(()),
            Durability::Disk => {
                let synced = self.0.syncer.synced().await;
                synced.map_err(|message| LedgerError::unusable(&self.0.folder, &message))
            }
        }
    }

    /// Written to the operating system when this returns.
    fn append_now(&self, body: Body) -> Result<u64, LedgerError> {
        let (purpose, mark) = (Purpose::of(&body), read::Mark::of(&body));
        // Serialised outside of the lock: only the sequence, the hash and the write are in it.
        let sealed = body.seal()?;
        self.writer()
            .append(&sealed, purpose, mark, self.0.clock.now(), &self.0.syncer)
    }

    /// Counts somebody who was refused before they could be told apart. Never blocks on the disk and never fails.
    pub fn refuse(&self, refusal: RefusalBeforeVerification) {
        self.count(refusal);
    }

    /// The same for a request that has a name. The first refusals of each source and reason are named in the log, so
    /// that somebody who asks with the name from an answer is found; in a flood the others are counted only.
    pub fn refuse_request(&self, request_id: RequestId, refusal: RefusalBeforeVerification) {
        let RefusalBeforeVerification { peer, reason } = refusal;
        match self.count(refusal) {
            Noted::First => tracing::info!(%request_id, %peer, reason, "a request was refused"),
            Noted::Counted => {}
        }
    }

    fn count(&self, refusal: RefusalBeforeVerification) -> Noted {
        let now = self.0.clock.now();
        let (noted, due) = {
            let mut refusals = self.refusals();
            (refusals.note(refusal, now), refusals.is_due(now))
        };
        if due {
            self.write_refusals();
        }
        noted
    }

    /// Writes down the refusals that were counted until now.
    pub fn write_refusals(&self) {
        // Counted on until there is room again.
        if !self.is_writable() {
            return;
        }
        let now = self.0.clock.now();
        for sealed in self.refusals().drain(now) {
            let mark = read::Mark::default();
            let written =
                self.writer()
                    .append(&sealed, Purpose::ORDINARY, mark, now, &self.0.syncer);
            if let Err(error) = written {
                tracing::error!(%error, "refusals could not be recorded");
            }
        }
    }

    /// The latest signed checkpoint; signs one when there is something new.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn checkpoint(&self) -> Result<kubler_api::ledger::Checkpoint, LedgerError> {
        if self.refusals().is_due(self.0.clock.now()) {
            self.write_refusals();
        }
        let mut signer = self.0.signer.lock().unwrap_or_else(PoisonError::into_inner);
        let unsigned = self.writer().take_unsigned();
        signer
            .sign(unsigned, &self.0.syncer)
            .map_err(|error| LedgerError::unusable(&self.0.folder, &error))
    }

    /// Records that match, oldest first.
    ///
    /// # Errors
    /// When files cannot be read.
    pub fn read(&self, query: &Query) -> Result<kubler_api::ledger::Records, LedgerError> {
        let plan = self.writer().plan(query);
        read::read(&self.0.folder, query, &plan)
            .map_err(|error| LedgerError::unusable(&self.0.folder, &error))
    }

    /// The key that checkpoints are signed with, for those who verify.
    pub fn verifying_key(&self) -> &PublicKey {
        &self.0.public
    }

    /// Whether new work can be recorded.
    pub fn is_writable(&self) -> bool {
        !self.0.syncer.has_failed() && self.writer().has_room(&self.0.syncer)
    }

    /// As if the disk were full.
    #[cfg(test)]
    pub(crate) fn fill(&self) {
        self.writer().fill();
    }

    /// As if the disk took its time: nothing becomes durable while this is kept.
    #[cfg(test)]
    pub(crate) fn hold(&self) -> MutexGuard<'_, Arc<std::fs::File>> {
        self.0.syncer.hold()
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.0.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refusals(&self) -> MutexGuard<'_, Refusals> {
        self.0
            .refusals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether there is a ledger in `folder`, or the keys of one.
pub fn is_there(folder: &Path) -> bool {
    let keys = [layout::PRIVATE_KEY, layout::PUBLIC_KEY];
    keys.iter().any(|key| folder.join(key).exists())
}

/// What a look at a ledger found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// There is none.
    Absent,
    /// A server runs on it: nothing was read.
    InUse,
    /// It can be opened.
    Sound,
}

/// Reads the ledger in `folder` as [`Ledger::open_before`] does, and changes nothing.
///
/// # Errors
/// Those of opening it.
pub fn look(
    folder: &Path,
    settings: &LedgerSettings,
    witnesses: &[Witness],
) -> Result<Look, LedgerError> {
    open::look(folder, settings, witnesses)
}

/// Reads the ledger in `folder`, which nobody writes, and compares it with its own checkpoints and `note`. Changes nothing.
///
/// # Errors
/// When it is not what they say.
pub fn check(folder: &Path, key: &PublicKey, note: &str) -> Result<(), LedgerError> {
    let witness = Witness {
        name: "its checkpoint".into(),
        note: note.to_owned(),
    };
    let mut found = replay::Found::read(folder, key, &[witness])?;
    match found.disagreements().first() {
        None => Ok(()),
        Some(first) => Err(LedgerError::NotTheKnown {
            folder: folder.to_owned(),
            message: first.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests;
