//! The state of a verification between two lines.

use std::fmt::Display;

use super::super::checkpoint::{Checkpoint, NoteError, PublicKey};
use super::super::merkle::{Frontier, Hash, leaf_hash};
use super::super::notes::{Notes, Tail};
use super::super::record::Record;
use super::{FAULTS_MAX, Fault, Kept, Report};

pub(super) struct Fold<'a, L> {
    key: &'a PublicKey,
    leaves: Leaves<L>,
    notes: std::vec::IntoIter<&'a str>,
    tail: Tail<'a>,
    next: Option<Checkpoint>,
    kept: Vec<(&'a Kept, Checkpoint)>,
    tree: Frontier,
    /// The first record fault so far.
    suspect: Option<Suspect>,
    /// Size of the last checkpoint whose root was right.
    vouched: u64,
    /// Faults of the records: settled by the checkpoint behind them.
    record_faults: Vec<Fault>,
    report: Report,
}

/// The first record that is not what it should be.
enum Suspect {
    /// Its line is none of ours, or it names another sequence: seen without any hash.
    Certain(Fault),
    /// Its hash is not its leaf's: whether record or leaf was changed is for the next root to say.
    Hash(u64),
    /// Settled.
    Named,
}

struct Leaves<L> {
    hashes: L,
    tree: Frontier,
    /// Whether every leaf so far was there.
    complete: bool,
}

impl<E: Display, L: Iterator<Item = Result<Hash, E>>> Leaves<L> {
    fn next(&mut self) -> Option<Hash> {
        let hash = if self.complete {
            self.hashes.next().and_then(Result::ok)
        } else {
            None
        };
        match hash {
            Some(hash) => self.tree.push(hash),
            None => self.complete = false,
        }
        hash
    }
}

impl<'a, E: Display, L: Iterator<Item = Result<Hash, E>>> Fold<'a, L> {
    pub(super) fn new(key: &'a PublicKey, kept: &'a [Kept], leaves: L, notes: Notes<'a>) -> Self {
        let tree = Frontier::new();
        let report = Report {
            origin: key.name().to_owned(),
            key: key.id(),
            records: 0,
            root: tree.root(),
            checkpoints: 0,
            last_checkpoint: None,
            agrees_with: Vec::new(),
            torn: false,
            torn_checkpoint: matches!(notes.tail, Tail::Torn(_)),
            faults: Vec::new(),
            faults_omitted: 0,
        };
        let mut fold = Self {
            key,
            leaves: Leaves {
                hashes: leaves,
                tree: Frontier::new(),
                complete: true,
            },
            notes: notes.whole.into_iter(),
            tail: notes.tail,
            next: None,
            kept: Vec::new(),
            tree,
            suspect: None,
            vouched: 0,
            record_faults: Vec::new(),
            report,
        };
        fold.open_kept(kept);
        fold.next_checkpoint();
        fold.check_roots();
        fold
    }

    pub(super) const fn size(&self) -> u64 {
        self.tree.size()
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        if self.report.faults.len() < FAULTS_MAX {
            self.report.faults.push(fault);
        } else {
            self.report.faults_omitted += 1;
        }
    }

    fn open_kept(&mut self, kept: &'a [Kept]) {
        for kept in kept {
            match self.key.open(&kept.note) {
                Ok(checkpoint) => self.kept.push((kept, checkpoint)),
                Err(NoteError::OtherKey { id, .. }) => {
                    self.fault(Fault::OtherKey {
                        kept: kept.name.clone(),
                        signer: id,
                        key: self.key.id(),
                    });
                }
                Err(error) => self.fault(Fault::BadKept {
                    kept: kept.name.clone(),
                    message: error.to_string(),
                }),
            }
        }
    }

    fn next_checkpoint(&mut self) {
        self.next = None;
        while let Some(note) = self.notes.next() {
            self.report.checkpoints += 1;
            let number = self.report.checkpoints;
            match self.key.open(note) {
                Ok(checkpoint)
                    if self
                        .report
                        .last_checkpoint
                        .as_ref()
                        .is_some_and(|last| last.size > checkpoint.size) =>
                {
                    self.fault(Fault::CheckpointOutOfOrder {
                        number,
                        size: checkpoint.size,
                    });
                }
                Ok(checkpoint) => {
                    self.report.last_checkpoint = Some(checkpoint.clone());
                    self.next = Some(checkpoint);
                    return;
                }
                Err(NoteError::OtherKey { id, .. }) => {
                    self.fault(Fault::ForeignCheckpoint {
                        number,
                        signer: id,
                        key: self.key.id(),
                    });
                }
                Err(error) => self.fault(Fault::BadCheckpoint {
                    number,
                    message: error.to_string(),
                }),
            }
        }
        if let Tail::Foreign(_) = std::mem::replace(&mut self.tail, Tail::Clean) {
            self.fault(Fault::BadCheckpoint {
                number: self.report.checkpoints + 1,
                message: "it is no text of a note".into(),
            });
        }
    }

    pub(super) fn line(&mut self, line: &[u8]) {
        let Some(line) = line.strip_suffix(b"\n") else {
            self.report.torn = true;
            return;
        };
        let sequence = self.size();
        let hash = leaf_hash(line);
        let leaf = self.leaves.next();
        self.look(line, sequence, leaf.is_some_and(|leaf| leaf != hash));
        self.tree.push(hash);
        self.check_roots();
    }

    /// Looks for the first record fault. Later ones follow from it, except that a record which turns up late was
    /// not removed but moved.
    fn look(&mut self, line: &[u8], sequence: u64, differs: bool) {
        match &self.suspect {
            None => {}
            Some(Suspect::Certain(Fault::Removed { first, last })) => {
                let (first, found) = (*first, last + 1);
                if Record::from_line(line).is_ok_and(|record| record.sequence == first) {
                    self.suspect = Some(Suspect::Certain(Fault::Reordered {
                        sequence: first,
                        found,
                    }));
                }
                return;
            }
            Some(_) => return,
        }
        self.suspect = match Record::from_line(line) {
            Err(error) => Some(Suspect::Certain(Fault::NotARecord {
                sequence,
                message: error.to_string(),
            })),
            Ok(record) if record.sequence > sequence => Some(Suspect::Certain(Fault::Removed {
                first: sequence,
                last: record.sequence - 1,
            })),
            Ok(record) if record.sequence < sequence => Some(Suspect::Certain(Fault::Reordered {
                sequence,
                found: record.sequence,
            })),
            Ok(_) => differs.then_some(Suspect::Hash(sequence)),
        };
    }

    /// Compares the root with every checkpoint of the present size.
    fn check_roots(&mut self) {
        let size = self.size();
        while self.next.as_ref().is_some_and(|next| next.size <= size) {
            if let Some(next) = self.next.take() {
                self.check_root(&next);
            }
            self.next_checkpoint();
        }
        let mut kept = std::mem::take(&mut self.kept);
        kept.retain(|(kept, checkpoint)| {
            if checkpoint.size != size {
                return true;
            }
            if checkpoint.root == self.tree.root() {
                self.report.agrees_with.push(kept.name.clone());
            } else {
                self.fault(Fault::Resigned {
                    kept: kept.name.clone(),
                    kept_size: size,
                });
            }
            false
        });
        self.kept = kept;
    }

    fn check_root(&mut self, checkpoint: &Checkpoint) {
        let size = checkpoint.size;
        if checkpoint.root == self.tree.root() {
            if let Some(Suspect::Hash(sequence)) = self.suspect {
                self.record_faults.push(Fault::LeafChanged { sequence });
                // The leaves are of no more use; the records are.
                self.leaves.complete = false;
                self.suspect = None;
            }
            self.vouched = size;
            return;
        }
        let leaves_hold = self.leaves.complete
            && self.leaves.tree.size() == size
            && self.leaves.tree.root() == checkpoint.root;
        match self.suspect.take() {
            Some(Suspect::Named) => {}
            Some(Suspect::Hash(sequence)) if leaves_hold => {
                self.record_faults.push(Fault::Changed { sequence })
            }
            Some(certain @ Suspect::Certain(_)) => {
                // Not settled yet: a removed record may still turn up.
                self.suspect = Some(certain);
                return;
            }
            Some(Suspect::Hash(_)) | None => {
                self.record_faults.push(Fault::ChangedWithin {
                    first: self.vouched,
                    last: size.saturating_sub(1),
                });
            }
        }
        self.suspect = Some(Suspect::Named);
    }

    pub(super) fn finish(mut self) -> Report {
        let size = self.size();
        let mut record_faults = std::mem::take(&mut self.record_faults);
        match self.suspect.take() {
            Some(Suspect::Certain(fault)) => record_faults.push(fault),
            // No checkpoint followed: nothing vouches for record or leaf, but one of them is not what was written.
            Some(Suspect::Hash(sequence)) => record_faults.push(Fault::ChangedWithin {
                first: sequence,
                last: sequence,
            }),
            Some(Suspect::Named) | None => {}
        }
        while self.next.is_some() {
            self.next_checkpoint();
        }
        let last = self
            .report
            .last_checkpoint
            .as_ref()
            .map(|checkpoint| checkpoint.size);
        let is_removal =
            |fault: &Fault| matches!(fault, Fault::Removed { .. } | Fault::Unreadable { .. });
        match last {
            Some(last)
                if last > size
                    && !record_faults
                        .iter()
                        .chain(&self.report.faults)
                        .any(is_removal) =>
            {
                record_faults.push(Fault::Cut {
                    size,
                    checkpoint: last,
                });
            }
            // One that is there and does not hold is a fault by itself, and says more.
            None if size > 0 && self.report.checkpoints == 0 => {
                record_faults.push(Fault::NoCheckpoint);
            }
            _ => {}
        }
        // A torn line inside of what was signed is part of the cut that is already named.
        for (kept, checkpoint) in std::mem::take(&mut self.kept) {
            self.fault(Fault::RolledBack {
                kept: kept.name.clone(),
                kept_size: checkpoint.size,
                size,
            });
        }
        record_faults.append(&mut self.report.faults);
        let omitted = record_faults.len().saturating_sub(FAULTS_MAX);
        record_faults.truncate(FAULTS_MAX);
        self.report.faults = record_faults;
        self.report.faults_omitted += u64::try_from(omitted).unwrap_or(u64::MAX);
        self.report.records = size;
        self.report.root = self.tree.root();
        self.report
    }
}
