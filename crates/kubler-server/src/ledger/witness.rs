//! What others saw of this ledger: the store beside it, and the sinks outside. A ledger that does not hold what they
//! saw is an older copy, a rewritten one, or another server's, and nothing may be written behind it unless an operator
//! decides so.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use kubler_core::ledger::checkpoint::{KeyId, NoteError, PublicKey};
use kubler_core::ledger::merkle::{Frontier, Hash};
use sha2::{Digest as _, Sha256};

/// A checkpoint that somebody outside of the ledger kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// Who, for people: `the store`, or a sink's name.
    pub name: String,
    /// The signed note.
    pub note: String,
}

/// In what a ledger and a witness differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Disagreement {
    witness: String,
    /// SHA-256 of the note, in hex: what the ledger remembers of a witness that was overruled.
    pub(super) note_sha256: String,
    how: How,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum How {
    Behind { seen: u64, size: u64 },
    Rewritten { seen: u64 },
    OtherKey { name: String, id: KeyId },
    Unusable(NoteError),
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let witness = &self.witness;
        match &self.how {
            How::Behind { seen, size } => write!(
                f,
                "it is older than what {witness} knows: {seen} records were seen there, and {size} are here"
            ),
            How::Rewritten { seen } => write!(
                f,
                "its first {seen} records are not those that {witness} saw: they were rewritten, or two servers sign with this key"
            ),
            How::OtherKey { name, id } => write!(
                f,
                "{witness} knows the ledger `{name}` with the key `{id}`: this is the ledger of another server, or its key was replaced"
            ),
            How::Unusable(error) => write!(f, "what {witness} kept cannot be used: {error}"),
        }
    }
}

/// Those that were asked, compared while the ledger is read.
pub(super) struct Witnesses {
    awaited: BTreeMap<u64, Vec<(Witness, Hash)>>,
    disagree: Vec<Disagreement>,
}

impl Witnesses {
    pub(super) fn new(key: &PublicKey, given: &[Witness]) -> Self {
        let mut all = Self {
            awaited: BTreeMap::new(),
            disagree: Vec::new(),
        };
        for witness in given {
            match key.open(&witness.note) {
                Ok(seen) => {
                    let of_size = all.awaited.entry(seen.size).or_default();
                    of_size.push((witness.clone(), seen.root));
                }
                Err(NoteError::OtherKey { name, id }) => {
                    all.disagrees(witness, How::OtherKey { name, id });
                }
                Err(error) => all.disagrees(witness, How::Unusable(error)),
            }
        }
        all
    }

    /// The ledger was read up to here.
    pub(super) fn compare(&mut self, frontier: &Frontier) {
        let size = frontier.size();
        if self.awaited.first_key_value().map(|(first, _)| *first) != Some(size) {
            return;
        }
        let root = frontier.root();
        for (witness, seen) in self.awaited.remove(&size).unwrap_or_default() {
            if seen != root {
                self.disagrees(&witness, How::Rewritten { seen: size });
            }
        }
    }

    /// The ledger ends here.
    pub(super) fn finish(mut self, size: u64) -> Vec<Disagreement> {
        for (seen, witnesses) in std::mem::take(&mut self.awaited) {
            for (witness, _) in witnesses {
                self.disagrees(&witness, How::Behind { seen, size });
            }
        }
        self.disagree
    }

    fn disagrees(&mut self, witness: &Witness, how: How) {
        self.disagree.push(Disagreement {
            witness: witness.name.clone(),
            note_sha256: hex::encode(Sha256::digest(&witness.note)),
            how,
        });
    }
}

/// What operators overruled, as records of the ledger itself tell: the digests of notes.
#[derive(Debug, Default)]
pub(super) struct Overruled(BTreeSet<String>);

/// The name of the list in the details of a `ledger.recover` record.
pub(super) const OVERRULED: &str = "overruled";

impl Overruled {
    /// Takes what one `ledger.recover` record says.
    pub(super) fn note(&mut self, details: &serde_json::Map<String, serde_json::Value>) {
        let listed = details.get(OVERRULED).and_then(serde_json::Value::as_array);
        let digests = listed.into_iter().flatten();
        self.0
            .extend(digests.filter_map(|digest| digest.as_str().map(str::to_owned)));
    }

    pub(super) fn holds(&self, disagreement: &Disagreement) -> bool {
        self.0.contains(&disagreement.note_sha256)
    }
}
