//! The one reader of a ledger's records: its files in order, one line after the other. It only says what is there; what
//! that means is for whoever opens, surveys or copies the ledger.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use kubler_core::ledger::layout;

const READ_BYTES: usize = 1024 * 1024;

/// Where a line begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// The file, by its first record.
    pub(crate) segment: u64,
    /// Bytes from its beginning.
    pub(crate) offset: u64,
}

/// One line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// Where it begins.
    pub(crate) at: Position,
    /// Without its line feed.
    pub(crate) text: &'a [u8],
    /// Whether it has none: the file ends within it.
    pub(crate) is_torn: bool,
    /// Whether no file follows that is in use.
    pub(crate) in_last_file: bool,
}

impl Line<'_> {
    /// How many bytes it takes.
    pub(crate) fn bytes(&self) -> u64 {
        self.text.len() as u64 + u64::from(!self.is_torn)
    }

    /// Where the next one begins.
    pub(crate) fn end(&self) -> Position {
        Position {
            offset: self.at.offset + self.bytes(),
            ..self.at
        }
    }
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// A file, which begins with record `first` as its name says. It is in the wrong place unless that is `awaited`, as
    /// many as there were whole lines before it; records are missing when it is more.
    File { first: u64, awaited: u64 },
    /// A line of that file.
    Line(Line<'a>),
}

/// The files of a folder as they are read.
pub(crate) struct Lines {
    folder: PathBuf,
    /// Files that come, the next one last.
    coming: Vec<u64>,
    unused: Option<u64>,
    file: Option<BufReader<File>>,
    here: Position,
    /// Whole lines until here.
    whole: u64,
    text: Vec<u8>,
}

impl Lines {
    /// Looks which files there are.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(crate) fn of(folder: &Path) -> io::Result<Self> {
        let mut coming = segments(folder)?;
        // Without records in it the one before has not been left yet.
        let unused = match *coming {
            [_, .., last] => match length(folder, last) {
                Ok(0) => coming.pop(),
                Ok(_) => None,
                // A server that runs on it made a next one on a full disk, and took it away again.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    coming.pop();
                    None
                }
                Err(error) => return Err(error),
            },
            _ => None,
        };
        coming.reverse();
        Ok(Self {
            folder: folder.to_owned(),
            coming,
            unused,
            file: None,
            here: Position::default(),
            whole: 0,
            text: Vec::new(),
        })
    }

    /// A last file that was made and not used yet: it is not read.
    pub(crate) const fn unused(&self) -> Option<u64> {
        self.unused
    }

    /// The file that is read, or cannot be.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.join(layout::segment_name(self.here.segment))
    }

    /// The next piece; nothing at the end.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(crate) fn read(&mut self) -> io::Result<Option<Piece<'_>>> {
        loop {
            let Some(file) = &mut self.file else {
                return self.next_file();
            };
            self.text.clear();
            let length = file.read_until(b'\n', &mut self.text)? as u64;
            if length == 0 {
                self.file = None;
                continue;
            }
            let at = self.here;
            self.here.offset += length;
            let is_torn = self.text.pop_if(|last| *last == b'\n').is_none();
            self.whole += u64::from(!is_torn);
            return Ok(Some(Piece::Line(Line {
                at,
                text: &self.text,
                is_torn,
                in_last_file: self.coming.is_empty(),
            })));
        }
    }

    fn next_file(&mut self) -> io::Result<Option<Piece<'_>>> {
        let Some(first) = self.coming.pop() else {
            return Ok(None);
        };
        self.here = Position {
            segment: first,
            offset: 0,
        };
        let file = File::open(self.path())?;
        self.file = Some(BufReader::with_capacity(READ_BYTES, file));
        Ok(Some(Piece::File {
            first,
            awaited: self.whole,
        }))
    }
}

/// The first records of the files of records in `folder`, in order.
///
/// # Errors
/// When the folder cannot be read.
pub(super) fn segments(folder: &Path) -> io::Result<Vec<u64>> {
    let mut segments = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        segments.extend(entry?.file_name().to_str().and_then(layout::segment_first));
    }
    segments.sort_unstable();
    Ok(segments)
}

/// How long a file of records is, in bytes.
pub(super) fn length(folder: &Path, segment: u64) -> io::Result<u64> {
    Ok(std::fs::metadata(folder.join(layout::segment_name(segment)))?.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read of these files.
    fn read(files: &[(u64, &str)]) -> (Vec<String>, Option<u64>) {
        let place = tempfile::tempdir().unwrap();
        for (first, text) in files {
            std::fs::write(place.path().join(layout::segment_name(*first)), text).unwrap();
        }
        let mut lines = Lines::of(place.path()).unwrap();
        let mut told = Vec::new();
        while let Some(piece) = lines.read().unwrap() {
            told.push(match piece {
                Piece::File { first, awaited } => format!("file {first} for {awaited}"),
                Piece::Line(line) => format!(
                    "{} to {}: {}{}{}",
                    line.at.offset,
                    line.end().offset,
                    String::from_utf8_lossy(line.text),
                    if line.is_torn { ", torn" } else { "" },
                    if line.in_last_file { ", last" } else { "" },
                ),
            });
        }
        (told, lines.unused())
    }

    #[test]
    fn files_are_read_in_order_and_what_does_not_fit_is_told() {
        let (told, unused) = read(&[(2, "c\nd"), (0, "a\n\n"), (9, "j\nk")]);
        let expected = [
            "file 0 for 0",
            "0 to 2: a",
            "2 to 3: ",
            "file 2 for 2",
            "0 to 2: c",
            "2 to 3: d, torn",
            "file 9 for 3",
            "0 to 2: j, last",
            "2 to 3: k, torn, last",
        ];
        assert_eq!((told, unused), (expected.map(String::from).to_vec(), None));
    }

    #[test]
    fn an_empty_last_file_is_not_used_yet_unless_it_is_the_only_one() {
        let (told, unused) = read(&[(0, "a\nb"), (1, "")]);
        assert_eq!(
            told,
            ["file 0 for 0", "0 to 2: a, last", "2 to 3: b, torn, last"]
        );
        assert_eq!(unused, Some(1));
        assert_eq!(read(&[(0, "")]), (vec!["file 0 for 0".to_owned()], None));
        assert_eq!(read(&[]), (Vec::new(), None));
    }
}
