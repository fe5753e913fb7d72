//! Checks a ledger from its files and public key alone, as a fold over its lines.
//!
//! What the files prove by themselves ends at the last checkpoint they hold: whoever can write them can put an older
//! copy back, and whoever has the private key can sign another history. Only a checkpoint that was kept elsewhere
//! shows either, so the report always says which of the two cases it is.

mod fold;
mod report;

use std::fmt::Display;

use super::checkpoint::PublicKey;
use super::merkle::Hash;
use super::notes::Notes;
use fold::Fold;
pub use report::{Fault, Report};

/// Most faults in a report; the rest is counted.
pub const FAULTS_MAX: usize = 50;

/// A checkpoint that was kept outside of the ledger's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// What to call it, such as the file's name.
    pub name: String,
    /// The signed note.
    pub note: String,
}

/// Checks a ledger.
///
/// - `lines`: every line of the records, in order, with its line feed. A last line without one counts as torn.
/// - `leaves`: the leaf hashes from the file of that name. They are not trusted; where a signed root vouches for them
///   they tell exactly which record was changed. May be empty.
/// - `checkpoints`: the ledger's own file of them. Read it before the records if a server is writing.
/// - `kept`: checkpoints from elsewhere.
///
/// Memory does not grow with the ledger. Reading stops at the first line that cannot be read.
pub fn verify<'a, E: Display>(
    lines: impl IntoIterator<Item = Result<Vec<u8>, E>>,
    leaves: impl IntoIterator<Item = Result<Hash, E>>,
    checkpoints: &'a [u8],
    key: &'a PublicKey,
    kept: &'a [Kept],
) -> Report {
    let notes = Notes::read(checkpoints);
    let mut fold = Fold::new(key, kept, leaves.into_iter(), notes);
    for line in lines {
        match line {
            Ok(line) => fold.line(&line),
            Err(error) => {
                fold.fault(Fault::Unreadable {
                    sequence: fold.size(),
                    message: error.to_string(),
                });
                break;
            }
        }
    }
    fold.finish()
}

#[cfg(test)]
mod tests;
