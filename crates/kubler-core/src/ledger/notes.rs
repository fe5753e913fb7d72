//! The file of checkpoints as it is found: whole notes, and behind them what a crash left of one more.
//!
//! Only an unfinished note may be cut off. Anything else that is no note is damage, and is never taken for a crash.

/// Longest note that the ledger writes, in bytes: two names of at most 255, two numbers, a root and a signature.
pub const NOTE_BYTES_MAX: usize = 1024;

/// How a signature's line begins.
const SIGNATURE_PREFIX: &str = "— ";

/// What stands in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notes<'a> {
    /// Text of whole notes, in order. Whether they are checkpoints is for a key to say.
    pub whole: Vec<&'a str>,
    /// What stands behind the last one.
    pub tail: Tail<'a>,
}

/// What stands behind the last whole note.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail<'a> {
    /// Nothing.
    Clean,
    /// The beginning of a note, as a crash in the middle of writing leaves it.
    Torn(&'a [u8]),
    /// Bytes of which no crash of ours is the reason.
    Foreign(&'a [u8]),
}

impl<'a> Notes<'a> {
    /// Reads a whole file.
    pub fn read(bytes: &'a [u8]) -> Self {
        let (text, broken) = match std::str::from_utf8(bytes) {
            Ok(text) => (text, false),
            Err(error) => {
                let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
                // A character of which the end is missing was torn; one that cannot be was never written.
                let broken = error.error_len().is_some();
                (std::str::from_utf8(valid).unwrap_or_default(), broken)
            }
        };
        let (whole, taken) = split(text);
        let tail = bytes.get(taken..).unwrap_or_default();
        let tail = if tail.is_empty() {
            Tail::Clean
        } else if broken || tail.len() >= NOTE_BYTES_MAX {
            Tail::Foreign(tail)
        } else {
            Tail::Torn(tail)
        };
        Self { whole, tail }
    }
}

/// The notes of `text`, and the bytes that they take with the empty lines behind them.
fn split(text: &str) -> (Vec<&str>, usize) {
    let mut notes = Vec::new();
    let mut rest = text.trim_start_matches('\n');
    while let Some((note, after)) = note_end(rest).and_then(|end| rest.split_at_checked(end)) {
        notes.push(note);
        rest = after.trim_start_matches('\n');
    }
    (notes, text.len() - rest.len())
}

/// Where the first note of `text` ends: after the line feed of its last signature.
fn note_end(text: &str) -> Option<usize> {
    let mut end = text.find("\n— ")? + 1;
    while let Some(line) = text
        .get(end..)
        .filter(|rest| rest.starts_with(SIGNATURE_PREFIX))
    {
        end += line.find('\n')? + 1;
    }
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::super::checkpoint::PrivateKey;
    use super::*;
    use zeroize::Zeroizing;

    fn two() -> (String, String, String) {
        let key = PrivateKey::from_random("k", &Zeroizing::new([1; 32])).unwrap();
        let (first, second) = (key.sign(1, [1; 32]), key.sign(2, [2; 32]));
        let text = format!("{first}\n{second}\n");
        (first, second, text)
    }

    #[test]
    fn a_file_of_notes_is_split() {
        let (first, second, text) = two();
        let notes = Notes::read(text.as_bytes());
        assert_eq!(notes.whole, [first.as_str(), second.as_str()]);
        assert_eq!(notes.tail, Tail::Clean);
        assert_eq!(Notes::read(b"").whole.len(), 0);
        assert_eq!(Notes::read(b"").tail, Tail::Clean);
    }

    #[test]
    fn l5_a_note_torn_at_any_byte_is_told_from_whole_ones() {
        let (first, second, text) = two();
        for torn in 1..second.len() {
            let bytes = &text.as_bytes()[..first.len() + 1 + torn];
            let notes = Notes::read(bytes);
            assert_eq!(notes.whole, [first.as_str()], "{torn}");
            assert_eq!(notes.tail, Tail::Torn(&second.as_bytes()[..torn]), "{torn}");
        }
        // Only the empty line behind it is missing: the note is whole.
        let notes = Notes::read(&text.as_bytes()[..text.len() - 1]);
        assert_eq!((notes.whole.len(), notes.tail), (2, Tail::Clean));
    }

    #[test]
    fn l5_damage_is_not_taken_for_a_torn_note() {
        let (_, second, text) = two();
        let at = text.len() - second.len();
        let mut bytes = text.into_bytes();
        bytes[at] = 0xff;
        assert!(matches!(Notes::read(&bytes).tail, Tail::Foreign(_)));
        let long = "x".repeat(NOTE_BYTES_MAX);
        assert!(matches!(
            Notes::read(long.as_bytes()).tail,
            Tail::Foreign(_)
        ));
    }
}
