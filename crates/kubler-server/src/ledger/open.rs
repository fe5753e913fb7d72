//! Opening a ledger: its lock, its key, everything that was written before, and what a crash left behind.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex};

use kubler_core::configuration::Ledger as LedgerSettings;
use kubler_core::ledger::checkpoint::PrivateKey;
use kubler_core::ledger::layout;
use kubler_core::ledger::record::{Body, Kind, LedgerAction, Outcome};
use kubler_core::ledger::refusals::Refusals;
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use super::extent::sync_folder;
use super::replay::{Found, Repairs};
use super::signing::Signer;
use super::sync::Syncer;
use super::writer::{Bounds, Writer};
use super::{Entry, Inner, Ledger, LedgerError};
use crate::clock::Clock;
use crate::entropy;

pub(super) fn open(
    folder: &Path,
    origin: &str,
    settings: &LedgerSettings,
    bounds: Bounds,
    clock: Arc<dyn Clock>,
) -> Result<Ledger, LedgerError> {
    let unusable = |error: io::Error| LedgerError::unusable(folder, &error);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(unusable)?;
    let lock = Lock::take(folder)?;
    let key = key(folder, origin).map_err(|error| LedgerError::unusable(folder, &error))?;
    let public = key.public().clone();
    let found = Found::read(folder, &public)?;
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
        phases: Mutex::new(found.phases),
        _lock: lock,
    }));
    ledger.close_after_crash(left_open, repairs)?;
    Ok(ledger)
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
pub(super) struct Lock(File);

impl Lock {
    fn take(folder: &Path) -> Result<Self, LedgerError> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(folder.join(layout::LOCK))
            .map_err(|error| LedgerError::unusable(folder, &error))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| LedgerError::InUse(folder.to_owned()))?;
        Ok(Self(file))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A child that is being started shares the file until it is its own program: closing alone would leave it
        // locked for that moment.
        let _ = rustix::fs::flock(&self.0, rustix::fs::FlockOperation::Unlock);
    }
}

type KeyFault = Box<dyn std::error::Error + Send + Sync>;

/// Reads the key, or makes it. A folder that has records but no key has lost it: a new one would be another ledger.
fn key(folder: &Path, origin: &str) -> Result<PrivateKey, KeyFault> {
    let public = folder.join(layout::PUBLIC_KEY);
    let key = match std::fs::read_to_string(folder.join(layout::PRIVATE_KEY)) {
        Ok(text) => PrivateKey::parse(&SecretString::from(text))
            .map_err(|error| format!("its private key `{}`: {error}", layout::PRIVATE_KEY))?,
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        Err(_) if public.exists() => return Err("its private key is lost".into()),
        Err(_) => {
            let key = PrivateKey::from_random(origin, &Zeroizing::new(entropy::random_bytes()?))?;
            write_whole(folder, layout::PRIVATE_KEY, key.to_text().expose_secret())?;
            key
        }
    };
    // Also after a crash between the two.
    if !public.exists() {
        write_whole(folder, layout::PUBLIC_KEY, &format!("{}\n", key.public()))?;
    }
    Ok(key)
}

/// The file is there with all of `text`, or not at all.
fn write_whole(folder: &Path, name: &str, text: &str) -> io::Result<()> {
    let unfinished = folder.join(format!("{name}.new"));
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&unfinished)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(unfinished, folder.join(name))?;
    sync_folder(folder)
}
