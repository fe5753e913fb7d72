//! A file that always holds the latest checkpoint, or a folder with one for each day.

use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rustix::fs::Access;

use super::NOTE_BYTES_MAX;
use crate::files;

/// What a sink holds is for everybody to read.
const MODE: u32 = 0o644;
/// How the files of a folder end; their names sort as their days do.
const SUFFIX: &str = ".checkpoint";

pub(super) struct FileSink {
    path: PathBuf,
    /// What is there, as far as we know: what else is found was written by somebody else.
    known: Mutex<Option<String>>,
}

impl FileSink {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            known: Mutex::default(),
        }
    }

    /// The latest note that is there.
    pub(super) fn read(&self) -> io::Result<Option<String>> {
        let note = self.latest()?;
        self.know(note.clone());
        Ok(note)
    }

    /// Puts a note there, whole or not at all.
    pub(super) fn write(&self, note: &str, now: Timestamp) -> Result<(), String> {
        let told = |error: io::Error| error.to_string();
        let known = self
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if self.latest().map_err(told)? != known {
            return Err(
                "somebody else writes there: two servers must not sign with one key".into(),
            );
        }
        files::replace_whole(&self.place(now), MODE, note.as_bytes()).map_err(told)?;
        self.know(Some(note.to_owned()));
        Ok(())
    }

    /// Why nothing can be written there, as far as one sees without writing.
    pub(super) fn obstacle(&self) -> Option<String> {
        let folder = if self.path.is_dir() {
            &self.path
        } else {
            files::folder_of(&self.path)
        };
        if !folder.is_dir() {
            return Some(format!("there is no folder `{}`", folder.display()));
        }
        let access = Access::WRITE_OK | Access::EXEC_OK;
        let refused = rustix::fs::access(folder, access).err()?;
        Some(format!(
            "`{}` cannot be written: {refused}",
            folder.display()
        ))
    }

    fn know(&self, note: Option<String>) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = note;
    }

    fn place(&self, now: Timestamp) -> PathBuf {
        if self.path.is_dir() {
            let day = now.to_zoned(TimeZone::UTC).date();
            self.path.join(format!("{day}{SUFFIX}"))
        } else {
            self.path.clone()
        }
    }

    fn latest(&self) -> io::Result<Option<String>> {
        let mut latest = self.path.clone();
        if self.path.is_dir() {
            let mut days = Vec::new();
            for entry in std::fs::read_dir(&self.path)? {
                let name = entry?.file_name().into_string().unwrap_or_default();
                if name.ends_with(SUFFIX) {
                    days.push(name);
                }
            }
            let Some(last) = days.into_iter().max() else {
                return Ok(None);
            };
            latest.push(last);
        }
        match std::fs::File::open(latest) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            file => {
                let mut note = String::new();
                file?.take(NOTE_BYTES_MAX).read_to_string(&mut note)?;
                Ok(Some(note))
            }
        }
    }
}
