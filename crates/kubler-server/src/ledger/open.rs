//! Opening a ledger: its lock, its key, everything that was written before, and what a crash left behind.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use kubler_core::configuration::Ledger as LedgerSettings;
use kubler_core::ledger::checkpoint::PrivateKey;
use kubler_core::ledger::layout;
use kubler_core::ledger::record::{Body, Kind, LedgerAction, Outcome};
use kubler_core::ledger::refusals::Refusals;
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use super::replay::{Found, Repairs};
use super::signing::Signer;
use super::sync::Syncer;
use super::witness::{Disagreement, Witness};
use super::writer::{Bounds, Writer};
use super::{Entry, Inner, Ledger, LedgerError, Look};
use crate::clock::Clock;
use crate::entropy;
use crate::files::{self, PRIVATE};

/// How a ledger is opened.
pub(super) struct Opening<'a> {
    /// Its name when it is made.
    pub(super) origin: &'a str,
    pub(super) settings: &'a LedgerSettings,
    pub(super) bounds: Bounds,
    /// Who saw it before.
    pub(super) witnesses: &'a [Witness],
    /// What becomes of those who saw something else.
    pub(super) judge: Judge,
    pub(super) clock: Arc<dyn Clock>,
}

/// What becomes of witnesses that saw another ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judge {
    /// The ledger is not opened.
    Refuse,
    /// An operator decides: they are told, and the caller writes down that they were overruled.
    Tell,
}

/// Opens the ledger whose lock is held; gives what was told of witnesses besides.
pub(super) fn open(
    lock: LedgerLock,
    opening: Opening<'_>,
) -> Result<(Ledger, Vec<Disagreement>), LedgerError> {
    let Opening {
        origin,
        settings,
        bounds,
        witnesses,
        judge,
        clock,
    } = opening;
    let folder = &*lock.folder.clone();
    let unusable = |error: io::Error| LedgerError::unusable(folder, &error);
    let key = key(folder, origin)?;
    check_name(folder, &key, settings)?;
    let public = key.public().clone();
    let mut found = Found::read(folder, &public, witnesses)?;
    let disagreements = found.disagreements();
    if let (Judge::Refuse, [first, ..]) = (judge, disagreements.as_slice()) {
        return Err(LedgerError::NotTheKnown {
            folder: folder.to_owned(),
            message: first.to_string(),
        });
    }
    let left_open = found.read_open()?;
    let repairs = found.repair().map_err(unusable)?;
    let open_count = found.open_count();
    let latest = found
        .signed
        .map(|(checkpoint, note)| kubler_api::ledger::Checkpoint {
            note,
            size: checkpoint.size,
        });

    let writer = Writer::new(
        folder,
        bounds,
        found.frontier,
        found.unsigned,
        found.index,
        open_count,
    )
    .map_err(unusable)?;
    let syncer = Syncer::start(writer.file()).map_err(unusable)?;
    let signer = Signer::new(folder, bounds, key, latest).map_err(unusable)?;
    let refusals = Refusals::new(settings.refusal_bytes_per_hour_max, clock.now());
    let ledger = Ledger(Arc::new(Inner {
        folder: folder.to_owned(),
        clock,
        writer: Mutex::new(writer),
        syncer,
        signer: Mutex::new(signer),
        public,
        refusals: Mutex::new(refusals),
        _lock: lock,
    }));
    ledger.close_after_crash(left_open, repairs)?;
    Ok((ledger, disagreements))
}

/// A name that the configuration states must be the ledger's. One that is made of `url` may change with it.
fn check_name(
    folder: &Path,
    key: &PrivateKey,
    settings: &LedgerSettings,
) -> Result<(), LedgerError> {
    let name = key.public().name();
    match &settings.origin {
        Some(stated) if stated != name => Err(LedgerError::NotTheKnown {
            folder: folder.to_owned(),
            message: format!("it is the ledger `{name}`, and `ledger.origin` is `{stated}`"),
        }),
        _ => Ok(()),
    }
}

impl Ledger {
    fn close_after_crash(
        &self,
        left_open: Vec<(u64, Body)>,
        repairs: Repairs,
    ) -> Result<(), LedgerError> {
        if !repairs.is_empty() {
            let mut body = Body::new(Kind::Event, LedgerAction::LedgerRecover);
            body.details = repairs;
            self.append_now(body)?;
        }
        for (sequence, start) in left_open {
            let outcome = Outcome {
                close_reason: Some("crash".into()),
                ..Outcome::default()
            };
            Entry::prepare(self.clone(), &start)
                .begun(sequence)
                .end_now(outcome);
        }
        Ok(())
    }
}

/// Held as long as the ledger: two writers would break the tree.
#[derive(Debug)]
pub struct LedgerLock {
    pub(super) folder: PathBuf,
    file: File,
}

impl LedgerLock {
    /// Takes the lock of the ledger in `folder`, which is made when it is not there.
    ///
    /// # Errors
    /// `InUse` when another server has it, `Copied` when the folder is a copy of the one that has.
    pub fn take(folder: &Path) -> Result<Self, LedgerError> {
        let lock = Self::take_anywhere(folder)?;
        let home = Home::read(folder).map_err(|error| LedgerError::unusable(folder, &error))?;
        match home {
            Home::Elsewhere => Err(LedgerError::Copied(folder.to_owned())),
            Home::Unknown | Home::Here => Ok(lock),
        }
    }

    /// The same wherever the folder came from.
    ///
    /// # Errors
    /// `InUse` when another server has it.
    pub fn take_anywhere(folder: &Path) -> Result<Self, LedgerError> {
        let unusable = |error: io::Error| LedgerError::unusable(folder, &error);
        files::make_private_folder(folder).map_err(unusable)?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(PRIVATE)
            .open(folder.join(layout::LOCK))
            .map_err(unusable)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| LedgerError::InUse(folder.to_owned()))?;
        Ok(Self {
            folder: folder.to_owned(),
            file,
        })
    }
}

impl Drop for LedgerLock {
    fn drop(&mut self) {
        // A child that is being started shares the file until it is its own program: closing alone would leave it
        // locked for that moment.
        let _ = rustix::fs::flock(&self.file, rustix::fs::FlockOperation::Unlock);
    }
}

/// Where a ledger is at home: the file of its private key is one and the same as long as the folder is only moved, and
/// another one in every copy. No wall against anybody: it names an accident before two servers sign with one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Home {
    /// Nobody wrote it down yet.
    Unknown,
    /// Where it was made, or an operator put it.
    Here,
    /// Somewhere else.
    Elsewhere,
}

impl Home {
    fn read(folder: &Path) -> io::Result<Self> {
        let here = match std::fs::metadata(folder.join(layout::PRIVATE_KEY)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::Unknown),
            found => found?.ino(),
        };
        match std::fs::read_to_string(folder.join(layout::HOME)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::Unknown),
            text => Ok(if text?.trim() == here.to_string() {
                Self::Here
            } else {
                Self::Elsewhere
            }),
        }
    }

    /// Writes down that it is here.
    fn settle(folder: &Path) -> io::Result<()> {
        let here = std::fs::metadata(folder.join(layout::PRIVATE_KEY))?.ino();
        let text = format!("{here}\n");
        files::replace_whole(&folder.join(layout::HOME), PRIVATE, text.as_bytes())
    }
}

/// Reads what opening reads, and changes nothing.
pub(super) fn look(
    folder: &Path,
    settings: &LedgerSettings,
    witnesses: &[Witness],
) -> Result<Look, LedgerError> {
    let unusable = |error: io::Error| LedgerError::unusable(folder, &error);
    if is_in_use(folder).map_err(unusable)? {
        return Ok(Look::InUse);
    }
    let Some(key) = key_of(folder)? else {
        return match witnesses.first() {
            None => Ok(Look::Absent),
            Some(witness) => Err(LedgerError::Missing {
                folder: folder.to_owned(),
                witness: witness.name.clone(),
            }),
        };
    };
    if folder.join(layout::PUBLIC_KEY).exists() {
        check_pair(folder, &key)?;
    }
    if Home::read(folder).map_err(unusable)? == Home::Elsewhere {
        return Err(LedgerError::Copied(folder.to_owned()));
    }
    check_name(folder, &key, settings)?;
    let mut found = Found::read(folder, key.public(), witnesses)?;
    match found.disagreements().first() {
        None => Ok(Look::Sound),
        Some(first) => Err(LedgerError::NotTheKnown {
            folder: folder.to_owned(),
            message: first.to_string(),
        }),
    }
}

/// Whether somebody holds the lock. It is given back at once.
fn is_in_use(folder: &Path) -> io::Result<bool> {
    let file = match File::open(folder.join(layout::LOCK)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    let taken = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared);
    Ok(taken.is_err())
}

/// Reads the key, or makes it. A folder that has records but no key has lost it: a new one would be another ledger.
fn key(folder: &Path, origin: &str) -> Result<PrivateKey, LedgerError> {
    let unusable = |error: &dyn std::fmt::Display| LedgerError::unusable(folder, error);
    let failed = |error: io::Error| unusable(&error);
    let public = folder.join(layout::PUBLIC_KEY);
    let key = match key_of(folder)? {
        Some(key) => key,
        None => {
            let seed = entropy::random_bytes().map_err(|error| unusable(&error))?;
            let key = PrivateKey::from_random(origin, &Zeroizing::new(seed))
                .map_err(|error| unusable(&error))?;
            let text = key.to_text();
            let path = folder.join(layout::PRIVATE_KEY);
            files::replace_whole(&path, PRIVATE, text.expose_secret().as_bytes())
                .map_err(failed)?;
            key
        }
    };
    // Also after a crash between the two.
    if !public.exists() {
        let text = format!("{}\n", key.public());
        files::replace_whole(&public, PRIVATE, text.as_bytes()).map_err(failed)?;
    }
    check_pair(folder, &key)?;
    if Home::read(folder).map_err(failed)? != Home::Here {
        Home::settle(folder).map_err(failed)?;
    }
    Ok(key)
}

/// Reads the key. `None` when there is neither it nor its public half.
fn key_of(folder: &Path) -> Result<Option<PrivateKey>, LedgerError> {
    match std::fs::read_to_string(folder.join(layout::PRIVATE_KEY)) {
        Ok(text) => {
            let key = PrivateKey::parse(&SecretString::from(text)).map_err(|error| {
                wrong_key(
                    folder,
                    format!("its private key `{}`: {error}", layout::PRIVATE_KEY),
                )
            })?;
            Ok(Some(key))
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(LedgerError::unusable(folder, &error))
        }
        Err(_) if folder.join(layout::PUBLIC_KEY).exists() => {
            Err(wrong_key(folder, "its private key is lost".into()))
        }
        Err(_) => Ok(None),
    }
}

/// Whether the public half is that of the key.
fn check_pair(folder: &Path, key: &PrivateKey) -> Result<(), LedgerError> {
    let stated = std::fs::read_to_string(folder.join(layout::PUBLIC_KEY))
        .map_err(|error| LedgerError::unusable(folder, &error))?;
    if stated.trim() == key.public().to_string() {
        return Ok(());
    }
    Err(wrong_key(
        folder,
        format!(
            "its private key is that of `{}`, and `{}` says `{}`: one of them was copied from elsewhere",
            key.public(),
            layout::PUBLIC_KEY,
            stated.trim()
        ),
    ))
}

fn wrong_key(folder: &Path, message: String) -> LedgerError {
    LedgerError::Key {
        folder: folder.to_owned(),
        message,
    }
}
