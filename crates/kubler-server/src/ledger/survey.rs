//! How far a ledger is sound: what a signed checkpoint vouches for, and what follows it without a gap. Changes nothing.

use std::io;
use std::path::Path;

use kubler_core::ledger::checkpoint::{Checkpoint, PublicKey};
use kubler_core::ledger::layout;
use kubler_core::ledger::merkle::{Frontier, leaf_hash};
use kubler_core::ledger::notes::{Notes, Tail};
use kubler_core::ledger::record::Record;

use super::lines::{Line, Lines, Piece, Position};

/// How far a ledger is sound, and why no further.
pub(super) struct Survey {
    pub(super) found: Vec<String>,
    /// Checkpoints that hold.
    pub(super) notes: Vec<String>,
    /// Records that stay.
    pub(super) kept: u64,
    /// Where they end.
    pub(super) end: Position,
}

impl Survey {
    pub(super) fn of(folder: &Path, key: &PublicKey) -> io::Result<Self> {
        let mut survey = Self {
            found: Vec::new(),
            notes: Vec::new(),
            kept: 0,
            end: Position::default(),
        };
        let checkpoints = survey.read_notes(folder, key)?;
        survey.read_records(folder, &checkpoints)?;
        Ok(survey)
    }

    /// Checkpoints up to the first that is none.
    fn read_notes(
        &mut self,
        folder: &Path,
        key: &PublicKey,
    ) -> io::Result<Vec<(Checkpoint, String)>> {
        let bytes = match std::fs::read(folder.join(layout::CHECKPOINTS)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.found
                    .push(format!("its file `{}` is missing", layout::CHECKPOINTS));
                Vec::new()
            }
            read => read?,
        };
        let notes = Notes::read(&bytes);
        if let Tail::Foreign(tail) = notes.tail {
            self.found.push(format!(
                "behind its last checkpoint stand {} bytes that are no checkpoint",
                tail.len()
            ));
        }
        let mut checkpoints: Vec<(Checkpoint, String)> = Vec::new();
        for (nth, note) in notes.whole.iter().enumerate() {
            let number = nth + 1;
            match key.open(note) {
                Ok(next)
                    if checkpoints
                        .last()
                        .is_none_or(|(last, _)| last.size <= next.size) =>
                {
                    checkpoints.push((next, (*note).to_owned()));
                }
                Ok(next) => {
                    self.found.push(format!(
                        "its checkpoint {number}, of size {}, is smaller than the one before it",
                        next.size
                    ));
                    break;
                }
                Err(error) => {
                    self.found.push(format!("its checkpoint {number}: {error}"));
                    break;
                }
            }
        }
        Ok(checkpoints)
    }

    /// Records up to the first that is none, or to the last checkpoint that holds.
    fn read_records(
        &mut self,
        folder: &Path,
        checkpoints: &[(Checkpoint, String)],
    ) -> io::Result<()> {
        let mut frontier = Frontier::new();
        let mut next = checkpoints.iter().peekable();
        let (mut signed, mut signed_end) = (0, Position::default());
        let mut records = Lines::of(folder)?;
        while let Some(piece) = records.read()? {
            let line = match piece {
                Piece::File { first, awaited } if first != awaited => {
                    self.found.push(format!(
                        "records {awaited} to {} are missing",
                        first.saturating_sub(1)
                    ));
                    break;
                }
                Piece::File { first, .. } => {
                    self.end = Position {
                        segment: first,
                        offset: 0,
                    };
                    continue;
                }
                Piece::Line(line) => line,
            };
            if let Some(why) = not_next(line, frontier.size()) {
                self.found.extend(why);
                break;
            }
            frontier.push(leaf_hash(line.text));
            self.end = line.end();
            while let Some((checkpoint, note)) =
                next.next_if(|(next, _)| next.size == frontier.size())
            {
                if checkpoint.root != frontier.root() {
                    self.found.push(format!(
                        "one of its first {} records is not what a checkpoint says",
                        checkpoint.size
                    ));
                    (self.kept, self.end) = (signed, signed_end);
                    return Ok(());
                }
                self.notes.push(note.clone());
                (signed, signed_end) = (checkpoint.size, self.end);
            }
        }
        self.keep(next.peek().map(|(next, _)| next.size), frontier.size());
        Ok(())
    }

    /// All of them stay; says what is missing when a checkpoint that is next covers more than is there.
    fn keep(&mut self, awaited: Option<u64>, size: u64) {
        self.kept = size;
        if let Some(awaited) = awaited {
            self.found.push(format!(
                "a checkpoint covers {awaited} records, and {size} of them are sound"
            ));
        }
    }
}

/// Why a line is not the record `sequence`. A last line that was torn ends the records, and nothing is wrong with that:
/// every crash leaves one.
fn not_next(line: Line<'_>, sequence: u64) -> Option<Option<String>> {
    if line.is_torn {
        return Some((!line.in_last_file).then(|| format!("record {sequence} is incomplete")));
    }
    match Record::from_line(line.text) {
        Ok(record) if record.sequence == sequence => None,
        Ok(record) => Some(Some(format!(
            "record {} stands where record {sequence} should be",
            record.sequence
        ))),
        Err(error) => Some(Some(format!("record {sequence}: {error}"))),
    }
}
