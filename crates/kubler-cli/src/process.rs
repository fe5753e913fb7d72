//! Programs that `kubler` starts: always with a bound in time and in bytes, and stoppable from outside.

pub mod signals;
pub mod watched;

use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::clock::Deadline;

/// What is kept of a program's output, and likewise of its errors; the rest is read and dropped.
const OUTPUT_BYTES_MAX: usize = 1024 * 1024;

/// What a program left behind.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub output: Vec<u8>,
    /// Its standard error, as far as it is text.
    pub errors: String,
}

/// Why a program did not finish.
#[derive(Debug, thiserror::Error)]
pub enum Unfinished {
    /// It could not be started or watched.
    #[error("it cannot be started: {0}")]
    Start(#[from] io::Error),
    /// Its time was over; it was ended.
    #[error("it did not finish in time")]
    TimedOut,
    /// It was no longer wanted; it was ended.
    #[error("it was stopped")]
    Stopped,
}

/// A child that is killed when nobody waits for it any more.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `command` to its end, with `input` on its standard input. Ends it at `deadline`, and as soon as
/// `stop` becomes readable.
pub fn run(
    mut command: Command,
    input: &[u8],
    deadline: Deadline,
    stop: Option<BorrowedFd<'_>>,
) -> Result<Finished, Unfinished> {
    command
        .stdin(if input.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = Killed(command.spawn()?);
    if let Some(mut stdin) = child.0.stdin.take() {
        // A program that does not read is not our fault: its exit code tells.
        let _ = stdin.write_all(input);
    }
    let end = end_of(&child.0)?;
    let mut output = Pipe::new(child.0.stdout.take());
    let mut errors = Pipe::new(child.0.stderr.take());
    while !wait(&end, [&mut output, &mut errors], deadline, stop)? {}
    output.drain()?;
    errors.drain()?;
    let status = child.0.wait()?;
    Ok(Finished {
        status,
        output: output.kept,
        errors: String::from_utf8_lossy(&errors.kept).trim().to_owned(),
    })
}

/// A descriptor that becomes readable when the child ends.
fn end_of(child: &Child) -> io::Result<OwnedFd> {
    Ok(pidfd_open(Pid::from_child(child), PidfdFlags::empty())?)
}

/// Waits for one thing to happen; whether the program ended.
fn wait(
    end: &OwnedFd,
    pipes: [&mut Pipe; 2],
    deadline: Deadline,
    stop: Option<BorrowedFd<'_>>,
) -> Result<bool, Unfinished> {
    let left = deadline.left();
    if left.is_zero() {
        return Err(Unfinished::TimedOut);
    }
    let ready = {
        let mut polled = vec![PollFd::new(end, PollFlags::IN)];
        let watched: Vec<_> = pipes
            .iter()
            .map(|pipe| pipe.source.as_ref().map(|source| source.as_fd()))
            .collect();
        polled.extend(
            watched
                .iter()
                .chain([&stop])
                .flatten()
                .map(|fd| PollFd::new(fd, PollFlags::IN)),
        );
        let timeout = Timespec::try_from(left).unwrap_or(Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        });
        match poll(&mut polled, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Unfinished::Start(error.into())),
        }
        let mut ready = polled.iter().map(|fd| !fd.revents().is_empty());
        let ended = ready.next().unwrap_or(false);
        let pipes: Vec<_> = watched
            .iter()
            .map(|fd| fd.is_some() && ready.next().unwrap_or(false))
            .collect();
        (ended, pipes, ready.next().unwrap_or(false))
    };
    let (ended, pipes_ready, stopped) = ready;
    if stopped {
        return Err(Unfinished::Stopped);
    }
    for (pipe, ready) in pipes.into_iter().zip(pipes_ready) {
        if ready {
            pipe.read_once()?;
        }
    }
    Ok(ended)
}

/// One of the child's outputs.
struct Pipe {
    source: Option<Box<dyn Source>>,
    kept: Vec<u8>,
}

trait Source: Read + AsFd {}
impl<T: Read + AsFd> Source for T {}

impl Pipe {
    fn new(source: Option<impl Read + AsFd + 'static>) -> Self {
        Self {
            source: source.map(|source| Box::new(source) as Box<dyn Source>),
            kept: Vec::new(),
        }
    }

    fn read_once(&mut self) -> io::Result<()> {
        let Some(source) = &mut self.source else {
            return Ok(());
        };
        let mut buffer = [0; 8192];
        let bytes = source.read(&mut buffer)?;
        if bytes == 0 {
            self.source = None;
        } else if self.kept.len() < OUTPUT_BYTES_MAX {
            self.kept.extend(buffer.iter().take(bytes));
        }
        Ok(())
    }

    /// Reads what is there, and does not wait for grandchildren that keep the pipe open.
    fn drain(&mut self) -> io::Result<()> {
        while let Some(source) = &self.source {
            let mut polled = [PollFd::new(source, PollFlags::IN)];
            let now = Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            if poll(&mut polled, Some(&now))? == 0 {
                break;
            }
            self.read_once()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(20))
    }

    #[test]
    fn input_output_errors_and_status_arrive() {
        let finished = run(shell("cat; echo oops >&2; exit 3"), b"hello", soon(), None).unwrap();
        assert_eq!(finished.status.code(), Some(3));
        assert_eq!(finished.output, b"hello");
        assert_eq!(finished.errors, "oops");
    }

    #[test]
    fn more_than_a_pipe_holds_arrives() {
        let finished = run(shell("head -c 300000 /dev/zero"), b"", soon(), None).unwrap();
        assert_eq!(finished.output.len(), 300_000);
    }

    #[test]
    fn what_takes_too_long_is_ended() {
        let begun = Instant::now();
        let result = run(
            shell("exec sleep 60"),
            b"",
            Deadline::after(Duration::from_millis(50)),
            None,
        );
        assert!(matches!(result, Err(Unfinished::TimedOut)));
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn what_is_no_longer_wanted_is_ended() {
        let (stop, other) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(other);
        let begun = Instant::now();
        let result = run(shell("exec sleep 60"), b"", soon(), Some(stop.as_fd()));
        assert!(matches!(result, Err(Unfinished::Stopped)));
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_grandchild_that_keeps_the_pipe_does_not_hold_us_up() {
        let begun = Instant::now();
        let finished = run(shell("sleep 3 & echo done"), b"", soon(), None).unwrap();
        assert_eq!(finished.output, b"done\n");
        assert!(begun.elapsed() < Duration::from_secs(2));
    }
}
