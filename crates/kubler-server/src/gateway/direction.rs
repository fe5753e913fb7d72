//! One direction of a changed connection.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::Instant;

use super::protocol::{Frames, Notes};

/// What one direction holds at first, and again after a rest, in bytes.
const BUFFER_BYTES_MIN: usize = 4 * 1024;
/// Most that it holds, in bytes.
const BUFFER_BYTES_MAX: usize = 32 * 1024;

/// Why a direction stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stopped {
    /// Its source has said all it will, and its sink has it.
    Finished,
    /// The source broke off.
    SourceBroke,
    /// The sink broke off.
    SinkBroke,
    /// What came is not what was agreed on. It was not passed on.
    Garbage,
    /// The sink took nothing for too long.
    Stalled,
}

/// How long a direction may be without a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Patience {
    /// After so long without a byte a ping is sent, so that nobody on the way takes the connection for dead.
    pub(super) ping_every: Duration,
    /// Longest time in which a reader takes not one byte of what waits for it.
    pub(super) stall_max: Duration,
}

/// One direction: from where, to where, and what is on its way. Whoever drops the future of [`Direction::carry`]
/// loses nothing of it.
pub(super) struct Direction<R, W> {
    from: R,
    to: W,
    buffer: Vec<u8>,
    /// What of the buffer was read, and what of that was written.
    filled: usize,
    written: usize,
    /// The rest of a ping of ours that is being written.
    ping: Vec<u8>,
    /// How far reading has come, and how far writing has.
    read: Frames,
    passed: Frames,
    notes: Notes,
    patience: Patience,
    bytes: u64,
    moved_at: Instant,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Direction<R, W> {
    /// One on which nothing has passed.
    pub(super) fn new(from: R, to: W, frames: Frames, notes: Notes, patience: Patience) -> Self {
        Self {
            from,
            to,
            buffer: Vec::new(),
            filled: 0,
            written: 0,
            ping: Vec::new(),
            read: frames.clone(),
            passed: frames,
            notes,
            patience,
            bytes: 0,
            moved_at: Instant::now(),
        }
    }

    /// What came before anybody listened.
    pub(super) fn begin_with(&mut self, early: &[u8]) {
        self.buffer = early.to_vec();
        self.filled = early.len();
    }

    /// Bytes that were passed on; pings of ours are none.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Carries bytes until there are no more.
    pub(super) async fn carry(&mut self) -> Stopped {
        let early = self.buffer.get(..self.filled).unwrap_or_default();
        if self.written == 0 && self.read.read(early, Some(&self.notes)).is_err() {
            self.filled = 0;
            return Stopped::Garbage;
        }
        loop {
            if let Err(stopped) = self.write_all().await {
                return stopped;
            }
            match self.next().await {
                Ok(true) => {}
                Ok(false) => {
                    let _ = self.to.shutdown().await;
                    return Stopped::Finished;
                }
                Err(stopped) => return stopped,
            }
        }
    }

    /// Ends it here and now: only what belongs to a frame that has begun still passes, and then `words`. Says whether
    /// they were said, so that something may follow.
    pub(super) async fn end_with(&mut self, words: &[u8]) -> bool {
        while !self.passed.is_between() {
            // A ping that has begun is the rest of a frame as well.
            if !self.ping.is_empty() {
                if self.write(usize::MAX).await.is_err() {
                    return false;
                }
                continue;
            }
            if self.written == self.filled && !matches!(self.next_bytes().await, Ok(1..)) {
                return false;
            }
            let waiting = self.waiting();
            let rest = self.passed.rest_in(waiting);
            if self.write(rest).await.is_err() {
                return false;
            }
        }
        self.to.write_all(words).await.is_ok() && self.to.flush().await.is_ok()
    }

    /// Where it came from; where it went to is let go.
    pub(super) fn into_source(self) -> R {
        self.from
    }

    /// Where it went to; where it came from is let go.
    pub(super) fn into_sink(self) -> W {
        self.to
    }

    fn waiting(&self) -> &[u8] {
        self.buffer
            .get(self.written..self.filled)
            .unwrap_or_default()
    }

    async fn write_all(&mut self) -> Result<(), Stopped> {
        while !self.ping.is_empty() || self.written < self.filled {
            self.write(usize::MAX).await?;
        }
        let flushed = tokio::time::timeout(self.patience.stall_max, self.to.flush());
        match flushed.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Stopped::SinkBroke),
            Err(_) => Err(Stopped::Stalled),
        }
    }

    /// Writes some of what waits, at most `most` bytes of it. What was written is noted as soon as it was.
    async fn write(&mut self, most: usize) -> Result<(), Stopped> {
        let is_ping = !self.ping.is_empty();
        let waiting = match is_ping {
            true => self.ping.as_slice(),
            false => self
                .buffer
                .get(self.written..self.filled)
                .unwrap_or_default(),
        };
        let part = waiting.get(..most.min(waiting.len())).unwrap_or_default();
        let taken = match tokio::time::timeout(self.patience.stall_max, self.to.write(part)).await {
            Ok(Ok(taken @ 1..)) => taken,
            Ok(Ok(0) | Err(_)) => return Err(Stopped::SinkBroke),
            Err(_) => return Err(Stopped::Stalled),
        };
        let part = part.get(..taken).unwrap_or_default();
        // It was read once already, and is what was agreed on.
        let _ = self.passed.read(part, None);
        self.moved_at = Instant::now();
        match is_ping {
            true => drop(self.ping.drain(..taken)),
            false => {
                self.written += taken;
                self.bytes += taken as u64;
            }
        }
        Ok(())
    }

    /// Waits for the next bytes, and makes a ping when there are none for long; `false` when there are no more.
    async fn next(&mut self) -> Result<bool, Stopped> {
        let due = self.moved_at + self.patience.ping_every;
        tokio::select! {
            read = self.next_bytes() => read.map(|count| count > 0),
            () = tokio::time::sleep_until(due) => {
                self.moved_at = Instant::now();
                self.ping = self.passed.ping().unwrap_or_default();
                // A resting connection holds as little as it can.
                self.buffer = Vec::new();
                self.filled = 0;
                self.written = 0;
                Ok(true)
            }
        }
    }

    async fn next_bytes(&mut self) -> Result<usize, Stopped> {
        let is_full = self.filled == self.buffer.len();
        let size = match self.buffer.len() {
            size if is_full => (size * 2).clamp(BUFFER_BYTES_MIN, BUFFER_BYTES_MAX),
            size => size,
        };
        self.buffer.resize(size, 0);
        (self.filled, self.written) = (0, 0);
        let count = match self.from.read(&mut self.buffer).await {
            Ok(count) => count,
            Err(_) => return Err(Stopped::SourceBroke),
        };
        self.filled = count;
        let bytes = self.buffer.get(..count).unwrap_or_default();
        if self.read.read(bytes, Some(&self.notes)).is_err() {
            self.filled = 0;
            return Err(Stopped::Garbage);
        }
        Ok(count)
    }
}
