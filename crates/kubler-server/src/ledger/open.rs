//! Opening a ledger: its key, its lock, everything that was written before, and what a crash left behind.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex};

use kubler_core::configuration::Ledger as LedgerSettings;
use kubler_core::ledger::checkpoint::{Checkpoint, PrivateKey, split_notes};
use kubler_core::ledger::layout;
use kubler_core::ledger::merkle::{Frontier, Hash, leaf_hash};
use kubler_core::ledger::record::{Body, Kind, LedgerAction, Outcome, Record};
use kubler_core::ledger::refusals::Refusals;
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use super::read::{Index, Mark};
use super::signing::Signer;
use super::writer::{Syncer, Writer};
use super::{Inner, Ledger, LedgerError};
use crate::clock::Clock;
use crate::entropy;

/// What was found.
#[derive(Default)]
struct Found {
    frontier: Frontier,
    /// Leaves after the last checkpoint.
    unsigned: Vec<Hash>,
    index: Index,
    /// Starts without an end.
    open: BTreeMap<u64, Body>,
    /// Bytes of a half-written record that were cut off.
    torn_bytes: u64,
}

pub(super) fn open(
    folder: &Path,
    origin: &str,
    settings: &LedgerSettings,
    clock: Arc<dyn Clock>,
) -> Result<Ledger, LedgerError> {
    let unusable = |message: &dyn std::fmt::Display| LedgerError::Unusable {
        folder: folder.to_owned(),
        message: message.to_string(),
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| unusable(&error))?;
    let lock = lock(folder)?;
    let key = key(folder, origin).map_err(|error| unusable(&error))?;
    let public = key.public().clone();
    let notes = read_checkpoints(folder).map_err(|error| unusable(&error))?;
    let last = split_notes(&notes).0.last().map(|note| (*note).to_owned());
    let signed = last
        .as_deref()
        .map(|note| public.open(note))
        .transpose()
        .map_err(|error| damaged(folder, &error))?;
    let found = replay(folder, signed.as_ref())?;
    let latest = signed
        .zip(last)
        .map(|(checkpoint, note)| kubler_api::ledger::Checkpoint {
            note,
            size: checkpoint.size,
        });

    let writer = Writer::new(folder, found.frontier, found.unsigned, found.index)
        .map_err(|error| unusable(&error))?;
    let syncer = Syncer::start(writer.file()).map_err(|error| unusable(&error))?;
    let refusals = Refusals::new(settings.refusal_bytes_per_hour_max, clock.now());
    let ledger = Ledger(Arc::new(Inner {
        folder: folder.to_owned(),
        clock,
        writer: Mutex::new(writer),
        syncer,
        signer: Mutex::new(Signer::new(key, latest)),
        public,
        refusals: Mutex::new(refusals),
        _lock: lock,
    }));
    ledger.close_after_crash(found.open, found.torn_bytes)?;
    Ok(ledger)
}

impl Ledger {
    fn close_after_crash(
        &self,
        open: BTreeMap<u64, Body>,
        torn_bytes: u64,
    ) -> Result<(), LedgerError> {
        if torn_bytes > 0 {
            let mut body = Body::new(Kind::Event, LedgerAction::LedgerRecover);
            body.details.insert("torn_bytes".into(), torn_bytes.into());
            self.append_now(body)?;
        }
        for (sequence, start) in open {
            let outcome = Outcome {
                close_reason: Some("crash".into()),
                ..Outcome::default()
            };
            let mut end = Body {
                kind: Kind::End,
                start: Some(sequence),
                outcome: Some(outcome),
                ..start
            };
            end.decision = None;
            self.append_now(end)?;
        }
        Ok(())
    }
}

/// Only a file that is not there is an empty one: what cannot be read must not pass for nothing.
fn read_checkpoints(folder: &Path) -> std::io::Result<String> {
    match std::fs::read_to_string(folder.join(layout::CHECKPOINTS)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    }
}

fn damaged(folder: &Path, message: &dyn std::fmt::Display) -> LedgerError {
    LedgerError::Damaged {
        folder: folder.to_owned(),
        message: message.to_string(),
    }
}

fn lock(folder: &Path) -> Result<File, LedgerError> {
    let unusable = |error: std::io::Error| LedgerError::Unusable {
        folder: folder.to_owned(),
        message: error.to_string(),
    };
    let path = folder.join(layout::LOCK);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(unusable)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| LedgerError::InUse(folder.to_owned()))?;
    Ok(file)
}

/// Reads the key, or makes it. A folder that has records but no key has lost it: a new one would be another ledger.
fn key(
    folder: &Path,
    origin: &str,
) -> Result<PrivateKey, Box<dyn std::error::Error + Send + Sync>> {
    let path = folder.join(layout::PRIVATE_KEY);
    match std::fs::read_to_string(&path) {
        Ok(text) => return Ok(PrivateKey::parse(&SecretString::from(text))?),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        Err(_) if folder.join(layout::PUBLIC_KEY).exists() => {
            return Err("its private key is lost".into());
        }
        Err(_) => {}
    }
    let key = PrivateKey::from_random(origin, &Zeroizing::new(entropy::random_bytes()?))?;
    let write = |name: &str, text: &str| -> std::io::Result<()> {
        let mut file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(folder.join(name))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write(layout::PRIVATE_KEY, key.to_text().expose_secret())?;
    write(layout::PUBLIC_KEY, &format!("{}\n", key.public()))?;
    Ok(key)
}

fn replay(folder: &Path, signed: Option<&Checkpoint>) -> Result<Found, LedgerError> {
    let unusable = |error: std::io::Error| LedgerError::Unusable {
        folder: folder.to_owned(),
        message: error.to_string(),
    };
    let mut segments: Vec<u64> = std::fs::read_dir(folder)
        .map_err(unusable)?
        .filter_map(|entry| layout::segment_first(entry.ok()?.file_name().to_str()?))
        .collect();
    segments.sort_unstable();
    let mut found = Found::default();
    for segment in segments {
        if segment != found.frontier.size() {
            return Err(damaged(
                folder,
                &format!(
                    "records from {} to {segment} are missing",
                    found.frontier.size()
                ),
            ));
        }
        found.index.segment(segment);
        found.read_segment(folder, segment, signed)?;
    }
    let size = found.frontier.size();
    match signed {
        Some(signed) if signed.size > size => Err(damaged(
            folder,
            &format!(
                "its last checkpoint covers {} records, and there are {size}",
                signed.size
            ),
        )),
        _ => Ok(found),
    }
}

impl Found {
    fn read_segment(
        &mut self,
        folder: &Path,
        segment: u64,
        signed: Option<&Checkpoint>,
    ) -> Result<(), LedgerError> {
        let unusable = |error: std::io::Error| LedgerError::Unusable {
            folder: folder.to_owned(),
            message: error.to_string(),
        };
        let path = folder.join(layout::segment_name(segment));
        let mut reader = BufReader::new(File::open(&path).map_err(unusable)?);
        let (mut offset, mut line) = (0, Vec::new());
        loop {
            line.clear();
            let length = reader.read_until(b'\n', &mut line).map_err(unusable)? as u64;
            if length == 0 {
                return Ok(());
            }
            if line.pop() != Some(b'\n') {
                // A crash in the middle of a write: nobody was told that this record exists.
                self.torn_bytes += length;
                let file = OpenOptions::new()
                    .write(true)
                    .open(&path)
                    .map_err(unusable)?;
                return file
                    .set_len(offset)
                    .and_then(|()| file.sync_all())
                    .map_err(unusable);
            }
            self.read_line(folder, &line, offset, signed)?;
            offset += length;
        }
    }

    fn read_line(
        &mut self,
        folder: &Path,
        line: &[u8],
        offset: u64,
        signed: Option<&Checkpoint>,
    ) -> Result<(), LedgerError> {
        let sequence = self.frontier.size();
        let record: Record = serde_json::from_slice(line)
            .map_err(|error| damaged(folder, &format!("record {sequence}: {error}")))?;
        self.index.note(sequence, offset, Mark::of(&record.body));
        match record.body.kind {
            Kind::Start => {
                self.open.insert(sequence, record.body);
            }
            Kind::End => {
                self.open.remove(&record.body.start.unwrap_or(u64::MAX));
            }
            Kind::Event => {}
        }
        let leaf = leaf_hash(line);
        self.frontier.push(leaf);
        if signed.is_none_or(|signed| sequence >= signed.size) {
            self.unsigned.push(leaf);
        }
        match signed {
            Some(signed) if signed.size == sequence + 1 && signed.root != self.frontier.root() => {
                Err(damaged(
                    folder,
                    &"a record before its last checkpoint was changed",
                ))
            }
            _ => Ok(()),
        }
    }
}
