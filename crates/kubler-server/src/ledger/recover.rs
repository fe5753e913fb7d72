//! Puts a ledger in order after an operator's decision. What a signed checkpoint vouches for, and what follows it
//! without a gap, stays; the rest is set aside, never deleted; and the ledger itself tells for ever what was found,
//! what was done about it, and why.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use kubler_core::configuration::Ledger as LedgerSettings;
use kubler_core::ledger::checkpoint::PublicKey;
use kubler_core::ledger::layout;
use kubler_core::ledger::notes::Notes;
use kubler_core::ledger::record::{Body, Kind, LedgerAction};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::lines::{Position, segments};
use super::open::{self, Judge, LedgerLock, Opening};
use super::survey::Survey;
use super::witness::OVERRULED;
use super::writer::Bounds;
use super::{Durability, LedgerError, Witness};
use crate::clock::Clock;
use crate::files::{self, PRIVATE, sync_folder};

/// Findings that the record names; the rest is counted.
const FOUND_MAX: usize = 16;
/// How a folder of what was set aside begins, before the moment.
const SET_ASIDE: &str = "set-aside-";

/// How to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoOn {
    /// With what is sound.
    WithWhatIsSound,
    /// With another ledger and another key; all of this one is set aside.
    Anew,
}

/// What an operator decided.
pub struct Recovery<'a> {
    /// The name when another ledger begins.
    pub origin: &'a str,
    /// Its settings.
    pub settings: &'a LedgerSettings,
    /// Who saw it before; those who saw something else are overruled.
    pub witnesses: &'a [Witness],
    /// Why.
    pub reason: &'a str,
    /// How to go on.
    pub go_on: GoOn,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// What was wrong, for people; nothing when all was well.
    pub found: Vec<String>,
    /// Records that stay.
    pub kept: u64,
    /// Where the rest is.
    pub set_aside: Option<PathBuf>,
    /// The record that tells it.
    pub sequence: u64,
    /// The checkpoint over all of it, and the key that signed it.
    pub checkpoint: kubler_api::ledger::Checkpoint,
    /// The ledger's public key.
    pub key: PublicKey,
}

/// Puts the ledger in `folder` in order.
///
/// # Errors
/// When a server runs on it, or files cannot be written: what was set aside is set aside then, and it may be tried again.
pub async fn recover(folder: &Path, recovery: Recovery<'_>) -> Result<Recovered, LedgerError> {
    let unusable = |error: io::Error| LedgerError::unusable(folder, &error);
    let mut found = Vec::new();
    let lock = match LedgerLock::take(folder) {
        Err(error @ LedgerError::Copied(_)) => {
            found.push(error.to_string());
            LedgerLock::take_anywhere(folder)?
        }
        taken => taken?,
    };
    let now = recovery.clock.now();
    let mut details = Map::new();
    details.insert("reason".into(), recovery.reason.into());
    let aside = Aside::new(folder, now);
    let done = match recovery.go_on {
        GoOn::Anew => anew(folder, &aside, &mut details),
        GoOn::WithWhatIsSound => sound(folder, &aside, &mut found, &mut details),
    };
    let (kept, is_set_aside) = done.map_err(unusable)?;
    let set_aside = is_set_aside.then(|| aside.folder.clone());
    let opening = Opening {
        origin: recovery.origin,
        settings: recovery.settings,
        bounds: Bounds::ORDINARY,
        witnesses: recovery.witnesses,
        judge: Judge::Tell,
        clock: recovery.clock,
    };
    let (ledger, disagreements) = open::open(lock, opening)?;
    found.extend(disagreements.iter().map(ToString::to_string));
    let overruled = disagreements.iter().map(|one| one.note_sha256.clone());
    details.insert(OVERRULED.into(), overruled.map(Value::from).collect());
    tell(&mut details, &found, kept);
    let mut body = Body::new(Kind::Event, LedgerAction::LedgerRecover);
    body.details = details;
    let sequence = ledger.event(body, Durability::Disk).await?;
    Ok(Recovered {
        found,
        kept,
        set_aside,
        sequence,
        checkpoint: ledger.checkpoint()?,
        key: ledger.verifying_key().clone(),
    })
}

fn tell(details: &mut Map<String, Value>, found: &[String], kept: u64) {
    let named = found.iter().take(FOUND_MAX).cloned();
    details.insert("found".into(), named.map(Value::from).collect());
    details.insert("found_count".into(), found.len().into());
    details.insert("kept_records".into(), kept.into());
}

/// A folder for what does not stay.
struct Aside {
    folder: PathBuf,
}

impl Aside {
    fn new(ledger: &Path, now: Timestamp) -> Self {
        let moment = now.strftime("%Y%m%dT%H%M%S.%3fZ");
        Self {
            folder: ledger.join(format!("{SET_ASIDE}{moment}")),
        }
    }

    fn make(&self) -> io::Result<()> {
        files::create_private_folder(&self.folder)
    }

    /// A copy of the file, on the disk.
    fn copy(&self, ledger: &Path, name: &str) -> io::Result<()> {
        let to = self.folder.join(name);
        match std::fs::copy(ledger.join(name), &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            copied => copied.and_then(|_| File::open(to)?.sync_all()),
        }
    }

    fn take(&self, ledger: &Path, name: &str) -> io::Result<()> {
        std::fs::rename(ledger.join(name), self.folder.join(name))
    }

    fn name(&self) -> String {
        let name = self.folder.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }
}

/// Sets everything aside. Gives how many records stay, none, and whether there was anything.
fn anew(folder: &Path, aside: &Aside, details: &mut Map<String, Value>) -> io::Result<(u64, bool)> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != layout::LOCK && !name.starts_with(SET_ASIDE) {
            names.push(name);
        }
    }
    if names.is_empty() {
        return Ok((0, false));
    }
    for (told, name) in [("previous_key", layout::PUBLIC_KEY)] {
        if let Ok(text) = std::fs::read_to_string(folder.join(name)) {
            details.insert(told.into(), text.trim().into());
        }
    }
    let notes = std::fs::read(folder.join(layout::CHECKPOINTS)).unwrap_or_default();
    if let Some(last) = Notes::read(&notes).whole.last() {
        details.insert("previous_checkpoint".into(), (*last).into());
    }
    if let Some(last) = segments(folder)?.last() {
        let tail = Position {
            segment: *last,
            offset: 0,
        };
        let (bytes, digest) = tail_digest(folder, &[*last], tail)?;
        details.insert("tail_bytes".into(), bytes.into());
        details.insert("tail_sha256".into(), digest.into());
    }
    details.insert("set_aside".into(), aside.name().into());
    aside.make()?;
    for name in names {
        aside.take(folder, &name)?;
    }
    sync_folder(&aside.folder)?;
    sync_folder(folder)?;
    Ok((0, true))
}

/// Sets aside what does not fit together with what comes before it. Gives how many records stay, and whether there was
/// anything.
fn sound(
    folder: &Path,
    aside: &Aside,
    found: &mut Vec<String>,
    details: &mut Map<String, Value>,
) -> io::Result<(u64, bool)> {
    let key = std::fs::read_to_string(folder.join(layout::PUBLIC_KEY)).ok();
    // Without one, opening says what is wrong with the key.
    let Some(key) = key.and_then(|key| PublicKey::parse(&key).ok()) else {
        return Ok((0, false));
    };
    let survey = Survey::of(folder, &key)?;
    if survey.found.is_empty() {
        return Ok((survey.kept, false));
    }
    let segments = segments(folder)?;
    let behind: Vec<_> = segments
        .iter()
        .copied()
        .filter(|segment| *segment >= survey.end.segment)
        .collect();
    let (bytes, digest) = tail_digest(folder, &behind, survey.end)?;
    details.insert("tail_bytes".into(), bytes.into());
    details.insert("tail_sha256".into(), digest.into());
    details.insert("set_aside".into(), aside.name().into());
    aside.make()?;
    for name in [layout::CHECKPOINTS, layout::LEAVES] {
        aside.copy(folder, name)?;
    }
    for segment in &behind {
        aside.copy(folder, &layout::segment_name(*segment))?;
    }
    sync_folder(&aside.folder)?;
    sync_folder(folder)?;
    // From here on a copy of everything is there.
    let notes: String = survey
        .notes
        .iter()
        .map(|note| format!("{note}\n"))
        .collect();
    files::replace_whole(&folder.join(layout::CHECKPOINTS), PRIVATE, notes.as_bytes())?;
    for segment in behind {
        let path = folder.join(layout::segment_name(segment));
        if segment == survey.end.segment {
            let file = File::options().write(true).open(path)?;
            file.set_len(survey.end.offset)?;
            file.sync_all()?;
        } else {
            std::fs::remove_file(path)?;
        }
    }
    sync_folder(folder)?;
    found.extend(survey.found);
    Ok((survey.kept, true))
}

/// Bytes from `from` on, and their SHA-256 in hex.
fn tail_digest(folder: &Path, segments: &[u64], from: Position) -> io::Result<(u64, String)> {
    let (mut digest, mut bytes) = (Sha256::new(), 0);
    let mut piece = vec![0; 1024 * 1024];
    for segment in segments {
        let mut file = File::open(folder.join(layout::segment_name(*segment)))?;
        if *segment == from.segment {
            file.seek(SeekFrom::Start(from.offset))?;
        }
        loop {
            let read = file.read(&mut piece)?;
            let Some(part) = piece.get(..read).filter(|part| !part.is_empty()) else {
                break;
            };
            digest.update(part);
            bytes += read as u64;
        }
    }
    Ok((bytes, hex::encode(digest.finalize())))
}
