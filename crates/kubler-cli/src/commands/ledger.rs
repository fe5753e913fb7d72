//! `kubler ledger`: check a ledger from its files and public key alone, and keep its checkpoints elsewhere.

pub mod records;

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use kubler_core::ledger::checkpoint::PublicKey;
use kubler_core::ledger::layout;
use kubler_core::ledger::verify::{self, Kept, Report};

use crate::arguments::{Connection, Format};
use crate::clock::Deadline;
use crate::commands::ASK_SECONDS_MAX;
use crate::exit::{Exit, Failure, Outcome};
use crate::output;
use crate::server::connected::Connected;

/// Longest line of a ledger, in bytes. A longer one was never written.
const LINE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What people give instead of a ledger.
const FOLDER_HINT: &str = "a ledger is the folder `ledger` in the server's data, or a copy of it";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check that nothing in a ledger's folder was changed, removed or reordered. Needs no server.
    Verify(Verify),
    /// Print the ledger's latest signed checkpoint, to keep elsewhere.
    Checkpoint,
    /// Print records of the server's ledger. For operators, or whom a policy names.
    Records(records::Arguments),
}

#[derive(Debug, Args)]
pub struct Verify {
    /// The ledger's folder, or a copy.
    folder: PathBuf,
    /// File with a checkpoint that was kept elsewhere: names rollback and re-signing too. May be repeated.
    #[arg(long, value_name = "FILE")]
    checkpoint: Vec<PathBuf>,
    /// The ledger's public key, or a file with it [default: the one in the folder].
    #[arg(long, value_name = "KEY")]
    public_key: Option<String>,
}

/// Runs the command. Returns how to end.
pub fn run(command: &Command, connection: &Connection, format: Format) -> Outcome<Exit> {
    match command {
        Command::Verify(arguments) => verify(arguments, format),
        Command::Checkpoint => checkpoint(connection, format).map(|()| Exit::Done),
        Command::Records(arguments) => {
            records::run(arguments, connection, format).map(|()| Exit::Done)
        }
    }
}

fn checkpoint(connection: &Connection, format: Format) -> Outcome<()> {
    let connected = Connected::new(connection, None, None)?;
    let deadline = Deadline::after(Duration::from_secs(ASK_SECONDS_MAX));
    let checkpoint = connected
        .client
        .checkpoint(connected.proof(deadline)?.caller(), deadline)?;
    match format {
        Format::Json => output::json(&checkpoint),
        Format::Text => output::data(checkpoint.note.trim_end_matches('\n')),
    }
}

fn verify(arguments: &Verify, format: Format) -> Outcome<Exit> {
    let key = public_key(arguments)?;
    let kept = arguments
        .checkpoint
        .iter()
        .map(|path| kept(path))
        .collect::<Outcome<Vec<_>>>()?;
    // Checkpoints first: a server that is writing adds records before it signs them.
    let notes = notes(&arguments.folder)?;
    let report = verify::verify(
        lines(&arguments.folder)?,
        leaves(&arguments.folder)?,
        &notes,
        &key,
        &kept,
    );
    print(&report, format)?;
    if let Some(fault) = report.faults.first()
        && format == Format::Text
    {
        output::remark(&format!("hint: {}", fault.hint()));
    }
    if arguments.public_key.is_none() && format == Format::Text {
        output::remark(
            "the key was taken from the folder itself: compare it with one that was kept elsewhere (`--public-key`)",
        );
    }
    Ok(if report.is_intact() {
        Exit::Done
    } else {
        Exit::Found
    })
}

fn print(report: &Report, format: Format) -> Outcome<()> {
    match format {
        Format::Json => output::json(
            &serde_json::json!({ "intact": report.is_intact(), "report": report, "limits": report.limits() }),
        ),
        Format::Text => {
            let verdict = if report.is_intact() {
                "intact"
            } else {
                "NOT intact"
            };
            output::text(&format!("{verdict}\n{report}"))
        }
    }
}

fn public_key(arguments: &Verify) -> Outcome<PublicKey> {
    let (key, origin) = match &arguments.public_key {
        Some(key) if !Path::new(key).exists() => (key.clone(), "`--public-key`".to_owned()),
        Some(path) => (text(Path::new(path))?, format!("`{path}`")),
        None => {
            let path = arguments.folder.join(layout::PUBLIC_KEY);
            (text(&path)?, format!("`{}`", path.display()))
        }
    };
    PublicKey::parse(&key).map_err(|error| {
        Failure::usage(format!(
            "{origin} is not the public key of a ledger: {error}"
        ))
        .hint("it has the form `name+01234567+base64`")
    })
}

fn kept(path: &Path) -> Outcome<Kept> {
    Ok(Kept {
        name: path.display().to_string(),
        note: text(path)?,
    })
}

/// The file of checkpoints; nothing when there is none.
fn notes(folder: &Path) -> Outcome<Vec<u8>> {
    let path = folder.join(layout::CHECKPOINTS);
    match std::fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read
            .map_err(|error| Failure::usage(format!("cannot read `{}`: {error}", path.display()))),
    }
}

fn text(path: &Path) -> Outcome<String> {
    std::fs::read_to_string(path).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::usage(format!("cannot read `{}`: {error}", path.display())).hint(FOLDER_HINT)
}

/// Every line of the records, file by file in the order of their names, with its line feed.
fn lines(folder: &Path) -> Outcome<impl Iterator<Item = io::Result<Vec<u8>>>> {
    let entries = std::fs::read_dir(folder).map_err(|error| unreadable(folder, &error))?;
    let mut segments: Vec<(u64, PathBuf)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((
                layout::segment_first(entry.file_name().to_str()?)?,
                entry.path(),
            ))
        })
        .collect();
    segments.sort();
    if segments.is_empty() {
        return Err(
            Failure::usage(format!("`{}` holds no ledger", folder.display())).hint(FOLDER_HINT),
        );
    }
    Ok(segments.into_iter().flat_map(|(_, path)| Lines {
        path: Some(path),
        file: None,
    }))
}

/// The lines of one file. It is opened when its turn comes.
struct Lines {
    path: Option<PathBuf>,
    file: Option<BufReader<File>>,
}

impl Iterator for Lines {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(path) = self.path.take() {
            match File::open(path) {
                Ok(file) => self.file = Some(BufReader::with_capacity(1024 * 1024, file)),
                Err(error) => return Some(Err(error)),
            }
        }
        let mut line = Vec::new();
        match self
            .file
            .as_mut()?
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line)
        {
            Ok(0) => None,
            Ok(_) => Some(Ok(line)),
            Err(error) => Some(Err(error)),
        }
    }
}

/// The leaf hashes; none when there is no such file.
fn leaves(folder: &Path) -> Outcome<impl Iterator<Item = io::Result<[u8; 32]>>> {
    let path = folder.join(layout::LEAVES);
    let mut file = match File::open(&path) {
        Ok(file) => Some(BufReader::new(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            return Err(unreadable(&path, &error));
        }
    };
    Ok(std::iter::from_fn(move || {
        let mut hash = [0; 32];
        match file.as_mut()?.read_exact(&mut hash) {
            Ok(()) => Some(Ok(hash)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
            Err(error) => Some(Err(error)),
        }
    }))
}
