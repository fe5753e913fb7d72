//! SPDY/3.1, as far as it is carried: where frames begin and end, which streams tell errors, and the few frames of
//! ours.

mod headers;

use std::collections::BTreeSet;

use headers::HeaderReader;

/// Length of every frame's head, in bytes.
const HEAD_BYTES: usize = 8;
/// What a control frame says of its version.
const VERSION: u16 = 3;
/// Longest block of headers that is looked into, in bytes.
const BLOCK_BYTES_MAX: usize = 8 * 1024;
/// Most streams of either kind that are known at once. A port-forward has one for each connection.
const STREAMS_MAX: usize = 1024;
/// What the stream for errors is called among a stream's headers.
const ERROR_STREAM: (&str, &str) = ("streamtype", "error");

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
/// The highest kind of control frame.
const KIND_MAX: u16 = 9;
/// The flag of a stream's last frame.
const FIN: u8 = 1;

/// The number of our pings to a client and to a server. Whoever begins a conversation numbers its own from 1 on by odd
/// numbers, and the other by even ones: nobody comes as far as these, so that no answer to one of ours is taken for
/// the answer to one of theirs.
const PING_TO_CLIENT: u32 = 0x7fff_fff0;
const PING_TO_SERVER: u32 = 0x7fff_fff1;

/// Bytes that are not SPDY/3.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A control frame of another version, or of no known kind.
    #[error("a control frame is of another version or of no known kind")]
    Control,
    /// A data frame with flags that mean nothing, or of no stream.
    #[error("a data frame belongs to no stream or has unknown flags")]
    Data,
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// A control frame of this kind.
    Control(u16),
    /// Data of a stream.
    Data {
        /// Which one.
        stream: u32,
        /// Whether nothing follows on it.
        is_final: bool,
    },
}

/// Part of a frame.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// What it is part of.
    pub frame: Frame,
    /// Whether it is the first part.
    pub is_first: bool,
    /// Whether it is the last one.
    pub is_last: bool,
    /// What stands behind the head.
    pub payload: &'a [u8],
}

/// One direction of a connection: how far its frames have come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frames {
    head: [u8; HEAD_BYTES],
    head_bytes: usize,
    frame: Option<(Frame, bool, usize)>,
    went_away: bool,
}

impl Frames {
    /// Whether a frame may be put here.
    pub fn is_between(&self) -> bool {
        self.head_bytes == 0 && self.frame.is_none()
    }

    /// Whether the sender has said that it takes nothing new.
    pub fn went_away(&self) -> bool {
        self.went_away
    }

    /// Reads the next bytes; `see` is shown every part of what stands behind a head, empty ones included.
    ///
    /// # Errors
    /// When they are not SPDY. What follows is of no use then.
    pub fn read<'a>(
        &mut self,
        mut bytes: &'a [u8],
        mut see: impl FnMut(Part<'a>),
    ) -> Result<(), Fault> {
        loop {
            if let Some((frame, is_first, left)) = self.frame.take() {
                let (payload, rest) = bytes.split_at(left.min(bytes.len()));
                bytes = rest;
                let left = left - payload.len();
                let is_last = left == 0;
                if !is_last {
                    self.frame = Some((frame, false, left));
                }
                see(Part {
                    frame,
                    is_first,
                    is_last,
                    payload,
                });
                if !is_last {
                    return Ok(());
                }
                continue;
            }
            let Some((first, rest)) = bytes.split_first() else {
                return Ok(());
            };
            bytes = rest;
            if let Some(byte) = self.head.get_mut(self.head_bytes) {
                *byte = *first;
            }
            self.head_bytes += 1;
            if self.head_bytes == HEAD_BYTES {
                self.head_bytes = 0;
                let (frame, length) = read_head(self.head)?;
                self.went_away |= frame == Frame::Control(GOAWAY);
                self.frame = Some((frame, true, length));
            }
        }
    }
}

fn read_head(head: [u8; HEAD_BYTES]) -> Result<(Frame, usize), Fault> {
    let [a, b, c, d, flags, x, y, z] = head;
    let length = u32::from_be_bytes([0, x, y, z]);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if a & 0x80 != 0 {
        let (version, kind) = (
            u16::from_be_bytes([a & 0x7f, b]),
            u16::from_be_bytes([c, d]),
        );
        if version != VERSION || !(1..=KIND_MAX).contains(&kind) || kind == 5 {
            return Err(Fault::Control);
        }
        return Ok((Frame::Control(kind), length));
    }
    let stream = u32::from_be_bytes([a, b, c, d]);
    if stream == 0 || flags & !FIN != 0 {
        return Err(Fault::Data);
    }
    let is_final = flags & FIN != 0;
    Ok((Frame::Data { stream, is_final }, length))
}

/// Which streams of a connection tell errors, read from what both sides send. Where it cannot be read, none is known
/// any more: the connection itself does not suffer.
#[derive(Debug, Default)]
pub struct ErrorStreams {
    reader: HeaderReader,
    block: Vec<u8>,
    open: BTreeSet<u32>,
    others: BTreeSet<u32>,
}

impl ErrorStreams {
    /// Those on which the server may still speak.
    pub fn open(&self) -> impl Iterator<Item = u32> {
        self.open.iter().copied()
    }

    /// All others on which the server may still speak.
    pub fn others(&self) -> impl Iterator<Item = u32> {
        self.others.iter().copied()
    }

    fn ended(&mut self, stream: u32) {
        self.open.remove(&stream);
        self.others.remove(&stream);
    }

    /// Notes part of what the client sends: it begins streams.
    pub fn client_sent(&mut self, part: &Part<'_>) {
        let Frame::Control(kind) = part.frame else {
            return;
        };
        if !matches!(kind, SYN_STREAM | SYN_REPLY | RST_STREAM | HEADERS) {
            return;
        }
        if part.is_first {
            self.block.clear();
        }
        if self.block.len() + part.payload.len() > BLOCK_BYTES_MAX {
            self.reader.give_up();
        } else {
            self.block.extend_from_slice(part.payload);
        }
        if part.is_last {
            self.read_control(kind);
        }
    }

    fn read_control(&mut self, kind: u16) {
        let block = std::mem::take(&mut self.block);
        let Some((stream, behind)) = block.split_first_chunk::<4>() else {
            return;
        };
        let stream = u32::from_be_bytes(*stream) & 0x7fff_ffff;
        match kind {
            SYN_STREAM => {
                // Behind the number: the stream it belongs to, and its priority.
                let headers = self.reader.read(behind.get(6..).unwrap_or_default());
                let (name, value) = ERROR_STREAM;
                let tells_errors = headers
                    .iter()
                    .any(|(key, said)| key == name && said == value);
                let kind = match tells_errors {
                    true => &mut self.open,
                    false => &mut self.others,
                };
                if kind.len() < STREAMS_MAX {
                    kind.insert(stream);
                }
            }
            // One dictionary for all blocks: those that say nothing here are read all the same.
            SYN_REPLY | HEADERS => drop(self.reader.read(behind)),
            _ => self.ended(stream),
        }
    }

    /// Notes part of what the server sends: it ends streams. Says whether it is data of a stream that tells errors.
    pub fn server_sent(&mut self, part: &Part<'_>) -> bool {
        match part.frame {
            Frame::Data { stream, is_final } => {
                let tells_errors = self.open.contains(&stream);
                if is_final && part.is_last {
                    self.ended(stream);
                }
                tells_errors
            }
            Frame::Control(RST_STREAM) => {
                if let Some(stream) = part.payload.first_chunk() {
                    self.ended(u32::from_be_bytes(*stream) & 0x7fff_ffff);
                }
                false
            }
            Frame::Control(_) => false,
        }
    }
}

fn control(kind: u16, payload: &[u8]) -> Vec<u8> {
    let [version_high, version_low] = VERSION.to_be_bytes();
    let [kind_high, kind_low] = kind.to_be_bytes();
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut frame = vec![0x80 | version_high, version_low, kind_high, kind_low];
    frame.extend(length.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// A ping of ours to a client.
pub fn ping_to_client() -> Vec<u8> {
    control(PING, &PING_TO_CLIENT.to_be_bytes())
}

/// A ping of ours to a server.
pub fn ping_to_server() -> Vec<u8> {
    control(PING, &PING_TO_SERVER.to_be_bytes())
}

/// A server's word that it takes nothing new, and that all is well otherwise.
pub fn goaway() -> Vec<u8> {
    control(GOAWAY, &[0; 8])
}

/// The last data of a stream. `None` when it is more than one frame can hold.
pub fn last_data(stream: u32, payload: &[u8]) -> Option<Vec<u8>> {
    let length = u32::try_from(payload.len())
        .ok()
        .filter(|length| *length < 1 << 24)?;
    let mut frame = (stream & 0x7fff_ffff).to_be_bytes().to_vec();
    let [_, length @ ..] = length.to_be_bytes();
    frame.push(FIN);
    frame.extend(length);
    frame.extend_from_slice(payload);
    Some(frame)
}

#[cfg(test)]
mod tests;
