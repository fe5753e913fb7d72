//! Other processes, watched by descriptors: exact, and safe against process ids that are used again. Asking
//! whether a signal could be sent would take a dead process that nobody collected for a living one.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::clock::Deadline;

/// How far up the line of parents is looked.
const ANCESTORS_MAX: usize = 32;

/// A process, told from any later one with the same id by when it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub id: i32,
    /// When it began, in the kernel's ticks.
    pub began: u64,
}

/// What the kernel says of a process.
struct Facts {
    is_dead: bool,
    parent: i32,
    began: u64,
}

impl Process {
    /// This process.
    pub fn this() -> io::Result<Self> {
        Self::of(rustix::process::getpid().as_raw_nonzero().get())
    }

    /// The process that has the id now.
    pub fn of(id: i32) -> io::Result<Self> {
        Ok(Self {
            id,
            began: facts(id)?.began,
        })
    }

    /// Whether it is certain that it ended. What cannot be read may live.
    pub fn is_gone(self) -> bool {
        match facts(self.id) {
            Ok(facts) => facts.is_dead || facts.began != self.began,
            Err(error) => {
                error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
            }
        }
    }

    /// A descriptor of it, if it is still that process.
    pub fn watch(self) -> Option<OwnedFd> {
        let descriptor = open(self.id)?;
        (facts(self.id).ok()?.began == self.began).then_some(descriptor)
    }
}

/// A descriptor of the process `id`, if it is an ancestor of this one.
pub fn watch_ancestor(id: i32) -> Option<OwnedFd> {
    let descriptor = open(id)?;
    let mut current = rustix::process::getpid().as_raw_nonzero().get();
    for _ in 0..ANCESTORS_MAX {
        current = facts(current).ok()?.parent;
        if current == id {
            return Some(descriptor);
        }
    }
    None
}

/// The ancestor of this process whose parent is the process `id`.
pub fn ancestor_below(id: i32) -> Option<i32> {
    let mut current = rustix::process::getpid().as_raw_nonzero().get();
    for _ in 0..ANCESTORS_MAX {
        let parent = parent(current)?;
        if parent == id {
            return Some(current);
        }
        current = parent;
    }
    None
}

/// The parent of the process `id`.
pub fn parent(id: i32) -> Option<i32> {
    Some(facts(id).ok()?.parent)
}

fn open(id: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(id)?, PidfdFlags::empty()).ok()
}

fn facts(id: i32) -> io::Result<Facts> {
    let text = fs::read_to_string(format!("/proc/{id}/stat"))?;
    // The program's name stands in parentheses and may hold anything, parentheses too.
    let fields: Vec<&str> = text
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().collect())
        .unwrap_or_default();
    let field = |index: usize| {
        fields
            .get(index)
            .and_then(|field| field.parse::<u64>().ok())
    };
    let unreadable = || io::Error::from(io::ErrorKind::InvalidData);
    Ok(Facts {
        is_dead: matches!(fields.first(), Some(&("Z" | "X"))),
        parent: field(1)
            .and_then(|parent| i32::try_from(parent).ok())
            .ok_or_else(unreadable)?,
        began: field(19).ok_or_else(unreadable)?,
    })
}

/// Sends a signal to the process behind the descriptor.
pub fn signal(process: &OwnedFd, signal: Signal) -> bool {
    pidfd_send_signal(process, signal).is_ok()
}

/// Waits until one of `watched` is readable or closed, at most until `deadline`. Returns its place; `None`
/// when the time is over.
pub fn first_of(watched: &[BorrowedFd<'_>], deadline: Deadline) -> io::Result<Option<usize>> {
    loop {
        let mut polled: Vec<_> = watched
            .iter()
            .map(|fd| PollFd::new(fd, PollFlags::IN))
            .collect();
        let timeout = Timespec::try_from(deadline.left()).unwrap_or(Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        });
        match poll(&mut polled, Some(&timeout)) {
            Ok(0) if deadline.is_over() => return Ok(None),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(polled.iter().position(|fd| !fd.revents().is_empty())),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until the process ended, at most until `deadline`; whether it did.
pub fn ended_by(process: &OwnedFd, deadline: Deadline) -> bool {
    matches!(first_of(&[process.as_fd()], deadline), Ok(Some(_)))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(10))
    }

    #[test]
    fn a_dead_child_that_nobody_collected_is_dead() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let watched = open(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(!ended_by(
            &watched,
            Deadline::after(Duration::from_millis(20))
        ));
        assert!(signal(&watched, Signal::KILL));
        assert!(
            ended_by(&watched, soon()),
            "it is dead although nobody waited for it"
        );
        child.wait().unwrap();
    }

    #[test]
    fn a_later_process_with_the_same_id_is_another() {
        let this = Process::this().unwrap();
        assert!(this.watch().is_some());
        assert!(
            Process {
                began: this.began + 1,
                ..this
            }
            .watch()
            .is_none()
        );
    }

    #[test]
    fn only_ancestors_are_watched_as_such() {
        let parent_of_this = parent(Process::this().unwrap().id).unwrap();
        assert!(watch_ancestor(parent_of_this).is_some());
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        assert!(watch_ancestor(i32::try_from(child.id()).unwrap()).is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
