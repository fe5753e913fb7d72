//! What a verification found, for people and for programs.

use std::fmt;

use serde::Serialize;

use super::super::checkpoint::{Checkpoint, KeyId, as_base64};
use super::super::merkle::Hash;

/// Something that is not as the ledger left it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Fault {
    /// The records could not be read on.
    Unreadable {
        /// The first one that could not be read.
        sequence: u64,
        /// What the reader said.
        message: String,
    },
    /// A line that the ledger never wrote.
    NotARecord {
        /// The record that should be there.
        sequence: u64,
        /// Why it is none.
        message: String,
    },
    /// This very record was changed.
    Changed {
        /// Which one.
        sequence: u64,
    },
    /// Something was changed, and the leaf hashes do not tell which record.
    ChangedWithin {
        /// The first record that it can be.
        first: u64,
        /// The last record that it can be.
        last: u64,
    },
    /// Records were taken out.
    Removed {
        /// The first of them.
        first: u64,
        /// The last of them.
        last: u64,
    },
    /// A record stands in another's place.
    Reordered {
        /// The record whose place it is.
        sequence: u64,
        /// The record that stands there.
        found: u64,
    },
    /// The ledger ends before its own last checkpoint.
    Cut {
        /// Records that are there.
        size: u64,
        /// Records that the checkpoint vouches for.
        checkpoint: u64,
    },
    /// There are records, but no checkpoint that vouches for any.
    NoCheckpoint,
    /// One of the ledger's own checkpoints is none.
    BadCheckpoint {
        /// Which one, counted from 1.
        number: u64,
        /// Why it is none.
        message: String,
    },
    /// One of the ledger's own checkpoints is signed by another key.
    ForeignCheckpoint {
        /// Which one, counted from 1.
        number: u64,
        /// The key that signed it.
        signer: KeyId,
        /// The key that was asked for.
        key: KeyId,
    },
    /// One of the ledger's own checkpoints is smaller than the one before it.
    CheckpointOutOfOrder {
        /// Which one, counted from 1.
        number: u64,
        /// Its size.
        size: u64,
    },
    /// A leaf hash was changed, the record was not.
    LeafChanged {
        /// Whose.
        sequence: u64,
    },
    /// The ledger is shorter than a checkpoint that was kept elsewhere: an older copy was put back, or its end cut.
    RolledBack {
        /// The kept checkpoint.
        kept: String,
        /// Its size.
        kept_size: u64,
        /// Records that are there.
        size: u64,
    },
    /// The ledger's history is not the one that was kept elsewhere: it was rewritten and signed again.
    Resigned {
        /// The kept checkpoint.
        kept: String,
        /// Its size.
        kept_size: u64,
    },
    /// A checkpoint that was kept elsewhere is signed by another key than the ledger's.
    OtherKey {
        /// The kept checkpoint.
        kept: String,
        /// The key that signed it.
        signer: KeyId,
        /// The ledger's key.
        key: KeyId,
    },
    /// A checkpoint that was kept elsewhere cannot be used.
    BadKept {
        /// The kept checkpoint.
        kept: String,
        /// Why.
        message: String,
    },
}

impl Fault {
    /// What to do next.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => {
                "check the owner of the files and the disk under them, and verify a copy"
            }
            Self::NotARecord { .. }
            | Self::Changed { .. }
            | Self::ChangedWithin { .. }
            | Self::Removed { .. }
            | Self::Reordered { .. }
            | Self::Cut { .. } => {
                "keep the folder as it is, and compare that place with a backup: records before it that a checkpoint vouches for still hold"
            }
            Self::NoCheckpoint => {
                "a running server signs one within seconds; if this one did, `checkpoints` was removed: compare with a backup or a checkpoint kept elsewhere"
            }
            Self::BadCheckpoint { .. } | Self::CheckpointOutOfOrder { .. } => {
                "keep the folder as it is, and compare `checkpoints` with a backup or with checkpoints kept elsewhere"
            }
            Self::ForeignCheckpoint { .. } | Self::OtherKey { .. } => {
                "find out which key is the right one: the one that was kept when the ledger began, given by `--public-key`"
            }
            Self::LeafChanged { .. } => {
                "the records are whole: the next start of the server mends `leaves` from them"
            }
            Self::RolledBack { .. } | Self::Resigned { .. } => {
                "keep the folder as it is, and look for the copy that the kept checkpoint was signed for: what is here is not it"
            }
            Self::BadKept { .. } => {
                "a kept checkpoint is the whole note, from the ledger's name to the end of the line of its signature"
            }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.of_records(f)
            .or_else(|| self.of_checkpoints(f))
            .or_else(|| self.of_kept(f))
            .unwrap_or(Ok(()))
    }
}

impl Fault {
    /// Says what is wrong with records and their leaves.
    fn of_records(&self, f: &mut fmt::Formatter<'_>) -> Option<fmt::Result> {
        Some(match self {
            Self::Unreadable { sequence, message } => {
                write!(f, "record {sequence} cannot be read: {message}")
            }
            Self::NotARecord { sequence, message } => write!(
                f,
                "record {sequence} was changed: its line was never written by a ledger ({message})"
            ),
            Self::Changed { sequence } => write!(f, "record {sequence} was changed"),
            Self::ChangedWithin { first, last } if first == last => {
                write!(f, "record {first} was changed, removed or replaced")
            }
            Self::ChangedWithin { first, last } => write!(
                f,
                "a record from {first} to {last} was changed, removed or replaced; the leaf hashes were changed too, so that they cannot tell which"
            ),
            Self::Removed { first, last } if first == last => {
                write!(f, "record {first} was removed")
            }
            Self::Removed { first, last } => write!(f, "records {first} to {last} were removed"),
            Self::Reordered { sequence, found } => write!(
                f,
                "records were reordered: record {found} stands where record {sequence} should be"
            ),
            Self::LeafChanged { sequence } => write!(
                f,
                "the leaf hash of record {sequence} was changed; the record itself is as it was signed"
            ),
            _ => return None,
        })
    }

    /// Says what is wrong with the ledger's own checkpoints.
    fn of_checkpoints(&self, f: &mut fmt::Formatter<'_>) -> Option<fmt::Result> {
        Some(match self {
            Self::Cut { size, checkpoint } => write!(
                f,
                "the end was cut off: {size} records are there, and the last checkpoint vouches for {checkpoint}"
            ),
            Self::NoCheckpoint => f.write_str("no checkpoint vouches for these records"),
            Self::BadCheckpoint { number, message } => write!(
                f,
                "checkpoint {number} of the ledger was changed: {message}"
            ),
            Self::ForeignCheckpoint {
                number,
                signer,
                key,
            } => write!(
                f,
                "checkpoint {number} of the ledger is signed by the key `{signer}`, not by `{key}`"
            ),
            Self::CheckpointOutOfOrder { number, size } => write!(
                f,
                "checkpoint {number} of the ledger, of size {size}, is smaller than the one before it: checkpoints were reordered, or two histories were joined"
            ),
            _ => return None,
        })
    }

    /// Says how the ledger differs from what was kept elsewhere.
    fn of_kept(&self, f: &mut fmt::Formatter<'_>) -> Option<fmt::Result> {
        Some(match self {
            Self::RolledBack {
                kept,
                kept_size,
                size,
            } => write!(
                f,
                "the ledger was rolled back: `{kept}` was signed when it had {kept_size} records, and {size} are there"
            ),
            Self::Resigned { kept, kept_size } => write!(
                f,
                "the history was rewritten and signed again: the first {kept_size} records are not those of `{kept}`"
            ),
            Self::OtherKey { kept, signer, key } => write!(
                f,
                "the ledger was signed again with another key, or is another ledger: `{kept}` is signed by the key `{signer}`, this ledger by `{key}`"
            ),
            Self::BadKept { kept, message } => write!(f, "`{kept}` cannot be used: {message}"),
            _ => return None,
        })
    }
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The ledger's name.
    pub origin: String,
    /// The key it was checked with.
    pub key: KeyId,
    /// Lines that were read.
    pub records: u64,
    /// Root over all of them.
    #[serde(serialize_with = "as_base64")]
    pub root: Hash,
    /// Notes in the ledger's own file of checkpoints.
    pub checkpoints: u64,
    /// The last of the ledger's own checkpoints that is properly signed.
    pub last_checkpoint: Option<Checkpoint>,
    /// Names of the checkpoints kept elsewhere with which this ledger agrees.
    pub agrees_with: Vec<String>,
    /// Whether the last line is incomplete, as a crash or a copy taken while it was written leaves it.
    pub torn: bool,
    /// Whether the last checkpoint is incomplete, likewise. The next start of the server cuts it off.
    pub torn_checkpoint: bool,
    /// What is not as it was; the first is the one to look at.
    pub faults: Vec<Fault>,
    /// Faults beyond the bound of the list.
    pub faults_omitted: u64,
}

impl Report {
    /// Whether nothing was found.
    pub fn is_intact(&self) -> bool {
        self.faults.is_empty()
    }

    /// Records after the last checkpoint: nothing vouches for them yet.
    pub fn unsigned(&self) -> u64 {
        self.records.saturating_sub(
            self.last_checkpoint
                .as_ref()
                .map_or(0, |checkpoint| checkpoint.size),
        )
    }

    /// What these files cannot show.
    pub fn limits(&self) -> &'static str {
        if self.agrees_with.is_empty() {
            "rollback and re-signing cannot be excluded: no checkpoint kept elsewhere was compared"
        } else {
            "up to the largest checkpoint kept elsewhere, rollback and re-signing are excluded; after it they are not"
        }
    }
}

impl fmt::Display for Report {
    /// One statement a line: the faults first, then what holds, then what cannot be known.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in &self.faults {
            writeln!(f, "{fault}")?;
        }
        if self.faults_omitted > 0 {
            writeln!(f, "and {} more faults", self.faults_omitted)?;
        }
        if self.is_intact() {
            let size = self
                .last_checkpoint
                .as_ref()
                .map_or(0, |checkpoint| checkpoint.size);
            writeln!(
                f,
                "`{}`: {} records, the first {size} signed by the key `{}`",
                self.origin, self.records, self.key
            )?;
            if self.unsigned() > 0 {
                writeln!(f, "nothing vouches yet for the last {}", self.unsigned())?;
            }
        }
        if self.torn {
            writeln!(
                f,
                "the last line is incomplete, as a crash or a copy taken while it was written leaves it"
            )?;
        }
        if self.torn_checkpoint {
            writeln!(
                f,
                "the last checkpoint is incomplete, as a crash or a copy taken while it was signed leaves it: it vouches for nothing, and the next start of the server cuts it off"
            )?;
        }
        for kept in &self.agrees_with {
            writeln!(f, "agrees with `{kept}`")?;
        }
        write!(f, "{}", self.limits())
    }
}
