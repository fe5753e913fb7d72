//! WebSocket (RFC 6455), without extensions: where frames and messages begin and end, and the few frames of ours.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};

/// Longest payload of a control frame, in bytes.
pub const CONTROL_BYTES_MAX: usize = 125;
/// Longest reason of a close, in bytes: two of a control frame say its code.
pub const REASON_BYTES_MAX: usize = CONTROL_BYTES_MAX - 2;
/// The code of a close by somebody's rules.
pub const CLOSED_BY_POLICY: u16 = 1008;

/// What a server adds to a client's key before it hashes it.
const KEY_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Bytes behind the encoding of a client's key.
const KEY_BYTES: usize = 16;
/// Longest head of a frame, in bytes.
const HEAD_BYTES_MAX: usize = 14;

/// Who sends. Clients mask what they send, servers do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// The client.
    Client,
    /// The server.
    Server,
}

/// Kind of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text,
    /// Bytes.
    Binary,
    /// The end of the conversation.
    Close,
    /// A question whether the other side is there.
    Ping,
    /// The answer.
    Pong,
}

/// Bytes that are not WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A bit of an extension that nobody agreed on.
    #[error("a frame uses an extension that was not agreed on")]
    Extension,
    /// An opcode that means nothing.
    #[error("a frame is of no known kind")]
    Opcode,
    /// A client's frame without a mask, or a server's with one.
    #[error("a frame is masked where it must not be, or is not where it must be")]
    Masking,
    /// A control frame in parts, or a long one.
    #[error("a control frame is longer than {CONTROL_BYTES_MAX} bytes or in parts")]
    Control,
    /// A part of a message that nobody began, or a new message in the middle of another.
    #[error("a message begins in the middle of another, or goes on without a beginning")]
    Order,
    /// More bytes than there can be.
    #[error("a frame says that it is longer than any can be")]
    Length,
}

/// Part of a message's payload.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// What it is part of.
    pub kind: Kind,
    /// Whether it is the first part.
    pub is_first: bool,
    /// Whether it is the last one.
    pub is_last: bool,
    bytes: &'a [u8],
    mask: [u8; 4],
    /// Where in its frame the part begins, modulo 4.
    phase: usize,
}

impl<'a> Part<'a> {
    /// The payload.
    pub fn payload(&self) -> Cow<'a, [u8]> {
        if self.mask == [0; 4] {
            return Cow::Borrowed(self.bytes);
        }
        Cow::Owned(masked(self.bytes, self.mask, self.phase))
    }
}

fn masked(bytes: &[u8], mask: [u8; 4], phase: usize) -> Vec<u8> {
    let mask = mask.iter().cycle().skip(phase);
    bytes
        .iter()
        .zip(mask)
        .map(|(byte, mask)| byte ^ mask)
        .collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frame {
    kind: Kind,
    is_final: bool,
    is_first: bool,
    mask: [u8; 4],
    left: u64,
    phase: usize,
}

/// One direction of a connection: how far its frames have come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frames {
    sender: Sender,
    head: [u8; HEAD_BYTES_MAX],
    head_bytes: usize,
    frame: Option<Frame>,
    /// The message that has begun and not ended.
    message: Option<Kind>,
    is_closed: bool,
}

impl Frames {
    /// Before the first byte of `sender`.
    pub fn new(sender: Sender) -> Self {
        Self {
            sender,
            head: [0; HEAD_BYTES_MAX],
            head_bytes: 0,
            frame: None,
            message: None,
            is_closed: false,
        }
    }

    /// Whether a control frame may be put here.
    pub fn is_between_frames(&self) -> bool {
        self.head_bytes == 0 && self.frame.is_none()
    }

    /// Whether a whole message may be put here.
    pub fn is_between_messages(&self) -> bool {
        self.is_between_frames() && self.message.is_none()
    }

    /// Whether the sender has said that it will say nothing more.
    pub fn is_closed(&self) -> bool {
        self.is_closed && self.is_between_frames()
    }

    /// Reads the next bytes; `see` is shown every part of a payload, empty ones of empty messages included.
    ///
    /// # Errors
    /// When they are not WebSocket. What follows is of no use then.
    pub fn read<'a>(
        &mut self,
        mut bytes: &'a [u8],
        mut see: impl FnMut(Part<'a>),
    ) -> Result<(), Fault> {
        loop {
            if let Some(frame) = &mut self.frame {
                let (part, rest) = frame.take(bytes);
                bytes = rest;
                let is_over = frame.left == 0;
                if is_over {
                    self.frame = None;
                }
                see(part);
                if !is_over {
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
            self.begin_frame()?;
        }
    }

    /// Begins a frame when its head is whole.
    fn begin_frame(&mut self) -> Result<(), Fault> {
        let [first, second, ..] = self.head;
        if self.head_bytes == 1 {
            return self.check_first(first);
        }
        let is_masked = second & 0x80 != 0;
        let short = usize::from(second & 0x7f);
        if self.head_bytes == 2 {
            if is_masked != (self.sender == Sender::Client) {
                return Err(Fault::Masking);
            }
            if first & 0x08 != 0 && short > CONTROL_BYTES_MAX {
                return Err(Fault::Control);
            }
        }
        let length_bytes = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask_bytes = if is_masked { 4 } else { 0 };
        if self.head_bytes < 2 + length_bytes + mask_bytes {
            return Ok(());
        }
        let behind = self.head.get(2..).unwrap_or_default();
        let (length, behind) = behind.split_at_checked(length_bytes).unwrap_or_default();
        let number = |bytes: &[u8]| {
            bytes
                .iter()
                .fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
        };
        let left = if length_bytes == 0 {
            short as u64
        } else {
            number(length)
        };
        if left > u64::MAX >> 1 {
            return Err(Fault::Length);
        }
        let mask = match behind.first_chunk() {
            Some(mask) if is_masked => *mask,
            Some(_) | None => [0; 4],
        };
        self.head_bytes = 0;
        self.frame = Some(self.frame(first, mask, left));
        Ok(())
    }

    fn check_first(&self, first: u8) -> Result<(), Fault> {
        if first & 0x70 != 0 {
            return Err(Fault::Extension);
        }
        let is_final = first & 0x80 != 0;
        match (first & 0x0f, self.message) {
            (0, None) | (1 | 2, Some(_)) => Err(Fault::Order),
            (0, Some(_)) | (1 | 2, None) => Ok(()),
            (8..=10, _) if is_final => Ok(()),
            (8..=10, _) => Err(Fault::Control),
            _ => Err(Fault::Opcode),
        }
    }

    /// The frame whose checked head begins with `first`.
    fn frame(&mut self, first: u8, mask: [u8; 4], left: u64) -> Frame {
        let is_final = first & 0x80 != 0;
        let (kind, is_first) = match first & 0x0f {
            1 => (Kind::Text, true),
            2 => (Kind::Binary, true),
            8 => (Kind::Close, true),
            9 => (Kind::Ping, true),
            10 => (Kind::Pong, true),
            _ => (self.message.unwrap_or(Kind::Binary), false),
        };
        match kind {
            Kind::Text | Kind::Binary => self.message = (!is_final).then_some(kind),
            Kind::Close => self.is_closed = true,
            Kind::Ping | Kind::Pong => {}
        }
        Frame {
            kind,
            is_final,
            is_first,
            mask,
            left,
            phase: 0,
        }
    }
}

impl Frame {
    /// Takes what belongs to it from the beginning of `bytes`.
    fn take<'a>(&mut self, bytes: &'a [u8]) -> (Part<'a>, &'a [u8]) {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let (taken, rest) = bytes.split_at(most.min(bytes.len()));
        self.left -= taken.len() as u64;
        let part = Part {
            kind: self.kind,
            is_first: std::mem::take(&mut self.is_first),
            is_last: self.is_final && self.left == 0,
            bytes: taken,
            mask: self.mask,
            phase: self.phase,
        };
        self.phase = (self.phase + taken.len()) % 4;
        (part, rest)
    }
}

/// A whole message of `sender` in one frame. A client's mask is all zeros: what we send as a client is nothing that
/// anybody on the way could have chosen, which is all that a mask is good for.
pub fn message(sender: Sender, kind: Kind, payload: &[u8]) -> Vec<u8> {
    let opcode = match kind {
        Kind::Text => 1,
        Kind::Binary => 2,
        Kind::Close => 8,
        Kind::Ping => 9,
        Kind::Pong => 10,
    };
    let mask_bit = match sender {
        Sender::Client => 0x80,
        Sender::Server => 0,
    };
    let mut frame = vec![0x80 | opcode];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(short @ 0..126), _) => frame.push(mask_bit | short),
        (_, Ok(length)) => {
            frame.push(mask_bit | 126);
            frame.extend(length.to_be_bytes());
        }
        (_, Err(_)) => {
            frame.push(mask_bit | 127);
            frame.extend((payload.len() as u64).to_be_bytes());
        }
    }
    if sender == Sender::Client {
        frame.extend([0; 4]);
    }
    frame.extend_from_slice(payload);
    frame
}

/// A close by somebody's rules. The reason is cut to what has room.
pub fn close(sender: Sender, code: u16, reason: &str) -> Vec<u8> {
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend(shortened(reason).as_bytes());
    message(sender, Kind::Close, &payload)
}

/// So much of a sentence as has room in a close.
fn shortened(reason: &str) -> Cow<'_, str> {
    const MARK: &str = "...";
    if reason.len() <= REASON_BYTES_MAX {
        return Cow::Borrowed(reason);
    }
    let end = reason.floor_char_boundary(REASON_BYTES_MAX - MARK.len());
    Cow::Owned(format!("{}{MARK}", reason.get(..end).unwrap_or_default()))
}

/// Whether `key` is what a client may send as its key.
pub fn is_key(key: &[u8]) -> bool {
    STANDARD
        .decode(key)
        .is_ok_and(|bytes| bytes.len() == KEY_BYTES)
}

/// What a server must answer to a client's `key`.
pub fn accept(key: &[u8]) -> String {
    STANDARD.encode(
        Sha1::new()
            .chain_update(key)
            .chain_update(KEY_SUFFIX)
            .finalize(),
    )
}

#[cfg(test)]
mod tests;
