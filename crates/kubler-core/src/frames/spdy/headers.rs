//! SPDY's blocks of headers: one zlib stream for a whole direction, begun with a dictionary that everybody has.

use std::fmt;

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
use miniz_oxide::inflate::core::{DecompressorOxide, TINFL_LZ_DICT_SIZE, decompress};

/// The dictionary of SPDY/3, from its specification.
const DICTIONARY: &[u8] = include_bytes!("dictionary");
/// What the stream begins with: how it is compressed, and a sum over its dictionary.
const ZLIB_HEAD_BYTES: usize = 6;
/// The flag of a stream with a dictionary, in the second byte.
const HAS_DICTIONARY: u8 = 0x20;
/// Longest block, in bytes, when it is decompressed.
const HEADERS_BYTES_MAX: usize = 16 * 1024;

/// Reads the blocks of one direction, in their order.
#[derive(Default)]
pub(super) struct HeaderReader {
    state: State,
}

#[derive(Default)]
enum State {
    #[default]
    Begins,
    Reads(Box<Inflate>),
    /// Something could not be read, and what follows depends on it.
    GaveUp,
}

struct Inflate {
    decompressor: DecompressorOxide,
    /// The last 32 KiB that came out, where the next bytes may point to.
    window: [u8; TINFL_LZ_DICT_SIZE],
    at: usize,
}

impl fmt::Debug for HeaderReader {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Begins => "begins",
            State::Reads(_) => "reads",
            State::GaveUp => "gave up",
        };
        formatter.debug_tuple("HeaderReader").field(&state).finish()
    }
}

impl HeaderReader {
    /// The next block cannot be read: none can, from here on.
    pub(super) fn give_up(&mut self) {
        self.state = State::GaveUp;
    }

    /// The headers of the next block; none when it cannot be read.
    pub(super) fn read(&mut self, block: &[u8]) -> Vec<(String, String)> {
        let headers = self.inflated(block).and_then(|bytes| parse(&bytes));
        if headers.is_none() {
            self.give_up();
        }
        headers.unwrap_or_default()
    }

    fn inflated(&mut self, block: &[u8]) -> Option<Vec<u8>> {
        match &mut self.state {
            State::GaveUp => None,
            State::Reads(inflate) => inflate.next(block),
            State::Begins => {
                let (head, rest) = block.split_at_checked(ZLIB_HEAD_BYTES)?;
                let [method, flags, ..] = head else {
                    return None;
                };
                if method & 0x0f != 8 || flags & HAS_DICTIONARY == 0 {
                    return None;
                }
                let mut inflate = Box::new(Inflate {
                    decompressor: DecompressorOxide::new(),
                    window: [0; TINFL_LZ_DICT_SIZE],
                    at: DICTIONARY.len(),
                });
                inflate
                    .window
                    .get_mut(..DICTIONARY.len())?
                    .copy_from_slice(DICTIONARY);
                let bytes = inflate.next(rest);
                self.state = State::Reads(inflate);
                bytes
            }
        }
    }
}

impl Inflate {
    fn next(&mut self, mut block: &[u8]) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        loop {
            let flags = TINFL_FLAG_HAS_MORE_INPUT;
            let (status, read, written) = decompress(
                &mut self.decompressor,
                block,
                &mut self.window,
                self.at,
                flags,
            );
            block = block.get(read..)?;
            bytes.extend_from_slice(self.window.get(self.at..self.at + written)?);
            self.at = (self.at + written) % TINFL_LZ_DICT_SIZE;
            if bytes.len() > HEADERS_BYTES_MAX {
                return None;
            }
            match status {
                TINFLStatus::NeedsMoreInput if block.is_empty() => return Some(bytes),
                TINFLStatus::HasMoreOutput => {}
                _ => return None,
            }
        }
    }
}

/// Names and values, each behind its length in four bytes, and all behind their number.
fn parse(bytes: &[u8]) -> Option<Vec<(String, String)>> {
    let mut rest = bytes;
    let pairs = number(&mut rest)?;
    let mut headers = Vec::new();
    for _ in 0..pairs {
        let (name, value) = (text(&mut rest)?, text(&mut rest)?);
        headers.push((name, value));
    }
    rest.is_empty().then_some(headers)
}

fn number(rest: &mut &[u8]) -> Option<usize> {
    let (number, behind) = rest.split_first_chunk()?;
    *rest = behind;
    usize::try_from(u32::from_be_bytes(*number)).ok()
}

fn text(rest: &mut &[u8]) -> Option<String> {
    let length = number(rest)?;
    let (text, behind) = rest.split_at_checked(length)?;
    *rest = behind;
    Some(String::from_utf8_lossy(text).into_owned())
}
