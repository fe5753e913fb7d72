//! A file that grows only at its end, with blocks behind the end that are its own already: whoever else fills the
//! disk cannot take them. They are taken by `fallocate` without changing the file's size, so readers never see them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

use crate::files::{self, PRIVATE};

/// Smallest piece of a disk that is asked for, in bytes.
const BLOCK_BYTES: u64 = 4096;

/// One such file. It must have one writer.
pub(super) struct Extent {
    file: Arc<File>,
    /// Where the next bytes go: the size of the file.
    bytes: u64,
    /// Up to where blocks are its own.
    own: u64,
    /// Blocks are taken so many bytes at a time, so that few writes have to ask.
    step_bytes: u64,
}

impl Extent {
    pub(super) fn open(path: &Path, step_bytes: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(PRIVATE)
            .open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self {
            file: Arc::new(file),
            bytes,
            own: bytes,
            step_bytes,
        })
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) const fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Bytes that can be written whatever happens on the disk.
    pub(super) const fn room(&self) -> u64 {
        self.own - self.bytes
    }

    /// Makes sure that there is `room`.
    pub(super) fn keep(&mut self, room: u64) -> io::Result<()> {
        if self.room() >= room {
            return Ok(());
        }
        self.take(room.saturating_add(self.step_bytes))
            .or_else(|_| self.take(room))
    }

    /// Makes as much of `room` its own as there is. On a disk that was full before, that is what it had.
    ///
    /// # Errors
    /// Only when the file system cannot keep blocks for a file at all.
    pub(super) fn keep_what_is_there(&mut self, room: u64) -> io::Result<()> {
        let mut part = room;
        while self.room() < room && part >= BLOCK_BYTES {
            let wanted = self.room().saturating_add(part).min(room);
            match self.take(wanted) {
                Ok(()) => {}
                Err(error) if Errno::from_io_error(&error) == Some(Errno::OPNOTSUPP) => {
                    return Err(io::Error::new(
                        io::ErrorKind::Unsupported,
                        "its file system cannot keep blocks for a file (`fallocate`)",
                    ));
                }
                Err(_) => part /= 2,
            }
        }
        Ok(())
    }

    fn take(&mut self, room: u64) -> io::Result<()> {
        files::keep_blocks(&self.file, self.bytes, room)?;
        self.own = self.own.max(self.bytes.saturating_add(room));
        Ok(())
    }

    /// Writes at the end, all of it or nothing.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = self.file.write_all_at(bytes, self.bytes);
        match written {
            Ok(()) => {
                self.bytes = self.bytes.saturating_add(bytes.len() as u64);
                self.own = self.own.max(self.bytes);
            }
            // Half of it must not stay: the next write would leave its end behind.
            Err(_) => {
                let _ = self.cut(self.bytes);
            }
        }
        written
    }

    /// Cuts everything from `bytes` on. The room behind the end goes with it, and is taken again at once.
    pub(super) fn cut(&mut self, bytes: u64) -> io::Result<()> {
        let room = self.own.saturating_sub(bytes);
        self.file.set_len(bytes)?;
        self.bytes = bytes;
        self.own = bytes;
        let _ = self.keep_what_is_there(room);
        Ok(())
    }

    /// The next write goes to `bytes`, over what is there.
    pub(super) fn go_back(&mut self, bytes: u64) {
        self.bytes = self.bytes.min(bytes);
    }

    /// Gives back what is behind the end: nothing will be written here any more.
    pub(super) fn give_back(&self) {
        let _ = self.file.set_len(self.bytes);
    }
}
