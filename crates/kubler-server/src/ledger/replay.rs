//! Reads everything that was written before, and changes nothing: what does not fit together must stay as it is for
//! whoever looks into it. What a crash explains is noted, and repaired by [`Found::repair`] once all the rest holds.
//!
//! Every line is read once: its hash goes into the tree, and the few fields that later searches and open ends need
//! are picked out of it. Whole records are read only of what a crash left open.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use kubler_core::environment::Phase;
use kubler_core::ids::EnvironmentId;
use kubler_core::ledger::checkpoint::{Checkpoint, PublicKey};
use kubler_core::ledger::layout;
use kubler_core::ledger::merkle::{Frontier, Hash, leaf_hash};
use kubler_core::ledger::notes::{Notes, Tail};
use kubler_core::ledger::record::{Body, Kind, LedgerAction, Record};
use serde::Deserialize;

use super::LedgerError;
use super::lines::{Lines, Piece, Position, length};
use super::read::{Index, Mark};
use super::witness::{Disagreement, Overruled, Witness, Witnesses};

/// Bytes of one leaf hash in its file.
pub(super) const LEAF_BYTES: u64 = 32;
const READ_BYTES: usize = 1024 * 1024;

/// What was found.
pub(super) struct Found {
    folder: PathBuf,
    pub(super) frontier: Frontier,
    /// Leaves after the last checkpoint.
    pub(super) unsigned: Vec<Hash>,
    pub(super) index: Index,
    /// The last checkpoint, and its note.
    pub(super) signed: Option<(Checkpoint, String)>,
    /// Where the starts without an end are.
    open: BTreeMap<u64, Position>,
    leaves: Leaves,
    crash: Crash,
    witnesses: Option<Witnesses>,
    /// What operators overruled before.
    pub(super) overruled: Overruled,
}

/// What a crash left behind.
#[derive(Default)]
struct Crash {
    /// A file that was made and not used yet.
    unused_segment: Option<u64>,
    /// Where the last record is incomplete, and by how many bytes.
    torn_record: Option<(Position, u64)>,
    /// Up to where the notes are whole, and the bytes behind.
    torn_checkpoint: Option<(u64, u64)>,
}

/// The file of leaves, compared with the records as they are read.
#[derive(Default)]
struct Leaves {
    file: Option<BufReader<File>>,
    bytes: u64,
    /// From which record on it is wrong or too short, and what should be there.
    wrong: Option<(u64, Vec<Hash>)>,
}

/// What is read of each record.
#[derive(Deserialize)]
struct Glance<'a> {
    sequence: u64,
    kind: Kind,
    action: LedgerAction,
    #[serde(default)]
    start: Option<u64>,
    #[serde(default)]
    environment_id: Option<EnvironmentId>,
    #[serde(default)]
    phase: Option<GlancePhase>,
    #[serde(default, borrow)]
    identity: Option<GlanceIdentity<'a>>,
    #[serde(default, borrow)]
    job_id: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct GlancePhase {
    to: Phase,
}

#[derive(Deserialize)]
struct GlanceIdentity<'a> {
    #[serde(borrow)]
    job: GlanceJob<'a>,
}

#[derive(Deserialize)]
struct GlanceJob<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
}

/// What opening had to put in order, for the ledger's own record of it.
pub(super) type Repairs = serde_json::Map<String, serde_json::Value>;

impl Found {
    /// Reads the ledger in `folder`, and compares it with what `witnesses` saw.
    pub(super) fn read(
        folder: &Path,
        key: &PublicKey,
        witnesses: &[Witness],
    ) -> Result<Self, LedgerError> {
        let unusable = |error: io::Error| LedgerError::unusable(folder, &error);
        let mut found = Self {
            folder: folder.to_owned(),
            frontier: Frontier::new(),
            unsigned: Vec::new(),
            index: Index::default(),
            signed: None,
            open: BTreeMap::new(),
            leaves: Leaves::open(folder).map_err(unusable)?,
            crash: Crash::default(),
            witnesses: Some(Witnesses::new(key, witnesses)),
            overruled: Overruled::default(),
        };
        found.read_notes(key)?;
        found.read_records()?;
        let size = found.frontier.size();
        match &found.signed {
            Some((signed, _)) if signed.size > size => Err(found.damaged(&format!(
                "its last checkpoint covers {} records, and there are {size}",
                signed.size
            ))),
            _ => Ok(found),
        }
    }

    fn read_notes(&mut self, key: &PublicKey) -> Result<(), LedgerError> {
        let bytes = match std::fs::read(self.folder.join(layout::CHECKPOINTS)) {
            // Made before the first record is written: with records beside it, somebody took it away.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let first = length(&self.folder, 0).unwrap_or(0);
                if first > 0 {
                    return Err(self.damaged(&format!(
                        "its file `{}` is missing, and nothing else vouches for its records",
                        layout::CHECKPOINTS
                    )));
                }
                Vec::new()
            }
            read => read.map_err(|error| LedgerError::unusable(&self.folder, &error))?,
        };
        let notes = Notes::read(&bytes);
        match notes.tail {
            Tail::Clean => {}
            Tail::Torn(torn) => {
                let whole = (bytes.len() - torn.len()) as u64;
                self.crash.torn_checkpoint = Some((whole, torn.len() as u64));
            }
            Tail::Foreign(_) => {
                return Err(
                    self.damaged(&"behind its last checkpoint stands what is no checkpoint")
                );
            }
        }
        if let Some(note) = notes.whole.last() {
            let checkpoint = key.open(note).map_err(|error| {
                let number = notes.whole.len();
                self.damaged(&format!("its checkpoint {number}, the last one: {error}"))
            })?;
            self.signed = Some((checkpoint, (*note).to_owned()));
        }
        Ok(())
    }

    fn path(&self, segment: u64) -> PathBuf {
        self.folder.join(layout::segment_name(segment))
    }

    fn read_records(&mut self) -> Result<(), LedgerError> {
        let folder = self.folder.clone();
        let unusable = |error: io::Error| LedgerError::unusable(&folder, &error);
        let mut records = Lines::of(&folder).map_err(unusable)?;
        self.crash.unused_segment = records.unused();
        while let Some(piece) = records.read().map_err(unusable)? {
            match piece {
                Piece::File { first, awaited } if first != awaited => {
                    return Err(self.damaged(&format!(
                        "its file `{}` should begin with record {awaited}",
                        layout::segment_name(first)
                    )));
                }
                Piece::File { first, .. } => self.index.segment(first),
                // A crash in the middle of a write: nobody was told that this record exists. Anywhere else than at
                // the very end it was another hand, and the next file says so.
                Piece::Line(line) if line.is_torn => {
                    if line.in_last_file {
                        self.crash.torn_record = Some((line.at, line.bytes()));
                    }
                }
                Piece::Line(line) => self.read_line(line.text, line.at)?,
            }
        }
        if self.index.is_empty() {
            self.index.segment(0);
        }
        Ok(())
    }

    fn read_line(&mut self, text: &[u8], here: Position) -> Result<(), LedgerError> {
        let sequence = self.frontier.size();
        let glance: Glance<'_> = serde_json::from_slice(text).map_err(|error| {
            self.damaged(&format!(
                "record {sequence} in `{}` does not read as one: {error}",
                layout::segment_name(here.segment)
            ))
        })?;
        if glance.sequence != sequence {
            let found = glance.sequence;
            return Err(self.damaged(&format!(
                "record {found} stands where record {sequence} should be"
            )));
        }
        match glance.kind {
            Kind::Start => {
                self.open.insert(sequence, here);
            }
            Kind::End => {
                self.open.remove(&glance.start.unwrap_or(u64::MAX));
            }
            Kind::Event => {}
        }
        if glance.action == LedgerAction::LedgerRecover {
            let record = Record::from_line(text)
                .map_err(|error| self.damaged(&format!("record {sequence}: {error}")))?;
            self.overruled.note(&record.body.details);
        }
        let phase = glance.phase.map(|phase| phase.to);
        let job = glance.identity.map(|identity| identity.job.id);
        let job = job.or(glance.job_id).map(Cow::into_owned);
        let mark = Mark::new(glance.environment_id, job).telling(glance.action, phase);
        self.index.note(sequence, here.offset, mark);
        self.push(sequence, leaf_hash(text))
    }

    fn push(&mut self, sequence: u64, leaf: Hash) -> Result<(), LedgerError> {
        self.frontier.push(leaf);
        if let Some(witnesses) = &mut self.witnesses {
            witnesses.compare(&self.frontier);
        }
        let signed = self.signed.as_ref().map(|(checkpoint, _)| checkpoint);
        if signed.is_none_or(|signed| sequence >= signed.size) {
            self.unsigned.push(leaf);
            return Ok(());
        }
        self.leaves.compare(sequence, leaf);
        match signed {
            Some(signed)
                if signed.size == self.frontier.size() && signed.root != self.frontier.root() =>
            {
                Err(self.damaged(&format!(
                    "one of its first {} records is not what its last checkpoint says",
                    signed.size
                )))
            }
            _ => Ok(()),
        }
    }

    /// In what the ledger and the witnesses differ, and nobody has overruled yet.
    pub(super) fn disagreements(&mut self) -> Vec<Disagreement> {
        let size = self.frontier.size();
        let witnesses = self.witnesses.take();
        let mut all = witnesses.map_or_else(Vec::new, |all| all.finish(size));
        all.retain(|one| !self.overruled.holds(one));
        all
    }

    /// How many starts have no end.
    pub(super) fn open_count(&self) -> u64 {
        self.open.len() as u64
    }

    /// The starts without an end.
    pub(super) fn read_open(&self) -> Result<Vec<(u64, Body)>, LedgerError> {
        let read = |here: Position| -> io::Result<Vec<u8>> {
            let mut file = File::open(self.path(here.segment))?;
            file.seek(SeekFrom::Start(here.offset))?;
            let mut text = Vec::new();
            BufReader::new(file).read_until(b'\n', &mut text)?;
            text.pop();
            Ok(text)
        };
        let mut bodies = Vec::new();
        for (sequence, here) in &self.open {
            let text = read(*here).map_err(|e| LedgerError::unusable(&self.folder, &e))?;
            let record = Record::from_line(&text)
                .map_err(|error| self.damaged(&format!("record {sequence}: {error}")))?;
            bodies.push((*sequence, record.body));
        }
        Ok(bodies)
    }

    /// Puts in order what a crash left, and says what that was. Everything else holds already.
    pub(super) fn repair(&self) -> io::Result<Repairs> {
        let mut repairs = Repairs::new();
        if let Some(segment) = self.crash.unused_segment {
            std::fs::remove_file(self.path(segment))?;
        }
        if let Some((here, torn)) = self.crash.torn_record {
            cut(&self.path(here.segment), here.offset)?;
            repairs.insert("torn_bytes".into(), torn.into());
        }
        if let Some((whole, torn)) = self.crash.torn_checkpoint {
            cut(&self.folder.join(layout::CHECKPOINTS), whole)?;
            repairs.insert("torn_checkpoint_bytes".into(), torn.into());
        }
        let signed = self.signed.as_ref().map_or(0, |(signed, _)| signed.size);
        self.leaves.repair(&self.folder, signed, &mut repairs)?;
        Ok(repairs)
    }

    fn damaged(&self, message: &dyn std::fmt::Display) -> LedgerError {
        LedgerError::Damaged {
            folder: self.folder.clone(),
            message: message.to_string(),
        }
    }
}

impl Leaves {
    fn open(folder: &Path) -> io::Result<Self> {
        let file = match File::open(folder.join(layout::LEAVES)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            file => file?,
        };
        Ok(Self {
            bytes: file.metadata()?.len(),
            file: Some(BufReader::with_capacity(READ_BYTES, file)),
            wrong: None,
        })
    }

    fn compare(&mut self, sequence: u64, leaf: Hash) {
        if let Some((_, should)) = &mut self.wrong {
            should.push(leaf);
            return;
        }
        let mut there = [0; LEAF_BYTES as usize];
        let read = self.file.as_mut().map(|file| file.read_exact(&mut there));
        if !matches!(read, Some(Ok(()))) || there != leaf {
            self.wrong = Some((sequence, vec![leaf]));
        }
    }

    /// Makes the file what the signed records say: they were checked against their root, so they are right.
    fn repair(&self, folder: &Path, signed: u64, repairs: &mut Repairs) -> io::Result<()> {
        let path = folder.join(layout::LEAVES);
        if let Some((from, should)) = &self.wrong {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)?;
            file.write_all_at(&should.concat(), from.saturating_mul(LEAF_BYTES))?;
            file.sync_all()?;
            repairs.insert("leaves_mended_from".into(), (*from).into());
        }
        let right = signed.saturating_mul(LEAF_BYTES);
        if self.bytes > right {
            cut(&path, right)?;
            repairs.insert("unsigned_leaf_bytes".into(), (self.bytes - right).into());
        }
        Ok(())
    }
}

fn cut(path: &Path, bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(bytes)?;
    file.sync_all()
}
