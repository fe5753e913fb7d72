//! What the files of a ledger's folder are called. Server and command line agree here.
//!
//! | file | content |
//! |---|---|
//! | `records-00000000000000000000.jsonl` | records, one a line; the number is the first one's sequence |
//! | `leaves` | 32 bytes for each record up to the last checkpoint: its leaf hash |
//! | `checkpoints` | signed notes in the order in which they were signed, each followed by an empty line |
//! | `key.pub` | the public key as a C2SP verifier key |
//! | `key` | the private key, readable by the server alone |
//! | `home` | which file `key` is: another one in a copy of the folder |
//! | `lock` | held by the one server that writes |

/// Leaf hashes, see the module.
pub const LEAVES: &str = "leaves";
/// Signed notes, see the module.
pub const CHECKPOINTS: &str = "checkpoints";
/// The public key.
pub const PUBLIC_KEY: &str = "key.pub";
/// The private key.
pub const PRIVATE_KEY: &str = "key";
/// Where the private key is at home.
pub const HOME: &str = "home";
/// The lock.
pub const LOCK: &str = "lock";

const SEGMENT_PREFIX: &str = "records-";
const SEGMENT_SUFFIX: &str = ".jsonl";
const SEGMENT_DIGITS: usize = 20;

/// Name of the file whose first record is `first`. Names sort as their records do.
pub fn segment_name(first: u64) -> String {
    format!("{SEGMENT_PREFIX}{first:0SEGMENT_DIGITS$}{SEGMENT_SUFFIX}")
}

/// The first record of the file of this name; `None` when it is not a file of records.
pub fn segment_first(name: &str) -> Option<u64> {
    let digits = name
        .strip_prefix(SEGMENT_PREFIX)?
        .strip_suffix(SEGMENT_SUFFIX)?;
    let written_by_us =
        digits.len() == SEGMENT_DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
    written_by_us.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_named_by_its_first_record() {
        assert_eq!(segment_name(7), "records-00000000000000000007.jsonl");
        for first in [0, 7, u64::MAX] {
            assert_eq!(segment_first(&segment_name(first)), Some(first));
        }
        for name in [
            "records-7.jsonl",
            "records-0000000000000000000x.jsonl",
            "leaves",
            "records-00000000000000000007.jsonl.old",
        ] {
            assert_eq!(segment_first(name), None, "{name}");
        }
    }
}
