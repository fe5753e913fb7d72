//! Processes that may outlive the server: started detached, found again by pid, start time and mark (never by
//! name), watched and ended through a pidfd, which cannot come to mean another process.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The environment variable that carries the mark; children of ours have few others.
const MARK_VARIABLE: &str = "KUBLER_MARK";
/// How long a process may take to end after SIGKILL, in seconds.
const END_SECONDS_MAX: u64 = 10;
/// Field of `/proc/PID/stat` that holds the start time, counted from the one after the name.
const START_TIME_FIELD: usize = 19;
/// The one that holds its time in user mode; the time in the kernel comes next.
const USER_TIME_FIELD: usize = 11;

/// Whose a process is: the installation, and what it is within it (an environment's id, or `etcd`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    installation: String,
    subject: String,
}

impl Mark {
    pub(super) fn new(installation: &str, subject: impl ToString) -> Self {
        Self {
            installation: installation.to_owned(),
            subject: subject.to_string(),
        }
    }

    /// Every living process that carries it.
    pub(super) fn processes(&self) -> Vec<Process> {
        let found = Process::all(&self.installation).unwrap_or_default();
        found
            .into_iter()
            .filter(|(subject, _)| *subject == self.subject)
            .map(|(_, process)| process)
            .collect()
    }

    fn value(&self) -> String {
        format!("{}/{}", self.installation, self.subject)
    }
}

/// What is written down of a process, so that a later server finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessRecord {
    /// Process id.
    pub(super) pid: i32,
    /// When it started, in clock ticks since the machine did.
    pub(super) started: u64,
}

/// How a process ended, for people.
pub(super) type Ending = String;

/// A process that was certainly ours when this value was made, and can only mean that one.
#[derive(Debug)]
pub(super) struct Process {
    record: ProcessRecord,
    descriptor: AsyncFd<OwnedFd>,
    /// Once it has ended: how. Only the first to ask is told by the system.
    ending: Mutex<Option<Ending>>,
}

impl Process {
    fn new(record: ProcessRecord, descriptor: AsyncFd<OwnedFd>) -> Self {
        Self {
            record,
            descriptor,
            ending: Mutex::default(),
        }
    }

    /// Starts `command` with `mark` and a cleaned environment, in a process group of its own, so that no signal
    /// of the server's terminal reaches it: those go to the foreground group. A session of its own would add
    /// nothing, as it holds no descriptor of the terminal.
    pub(super) fn start(command: &mut Command, mark: &Mark) -> io::Result<Self> {
        let child = command
            .env_clear()
            .env(MARK_VARIABLE, mark.value())
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        // Not reaped yet, so the number still means our child.
        let descriptor = open(pid)?;
        let started = start_time(pid).unwrap_or_default();
        Ok(Self::new(ProcessRecord { pid, started }, descriptor))
    }

    /// The recorded process, if it still lives and carries the mark.
    pub(super) fn find(record: ProcessRecord, mark: &Mark) -> Option<Self> {
        // The descriptor comes first: what is read afterwards is about the same process or about none.
        let descriptor = open(record.pid).ok()?;
        let found = Self::new(record, descriptor);
        let same = start_time(record.pid) == Some(record.started)
            && read_mark(record.pid).as_deref() == Some(mark.value().as_str());
        (same && found.is_alive()).then_some(found)
    }

    /// Every living process of the installation, with what it is.
    pub(super) fn all(installation: &str) -> io::Result<Vec<(String, Self)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let Some(subject) = subject_of(pid, installation) else {
                continue;
            };
            // Once more with the descriptor open, since the number may have changed hands in between.
            let (Ok(descriptor), Some(started)) = (open(pid), start_time(pid)) else {
                continue;
            };
            let process = Self::new(ProcessRecord { pid, started }, descriptor);
            if subject_of(pid, installation).as_ref() == Some(&subject) && process.is_alive() {
                found.push((subject, process));
            }
        }
        Ok(found)
    }

    pub(super) const fn record(&self) -> ProcessRecord {
        self.record
    }

    /// What it used of the CPU until now, in clock ticks; nothing when it has ended.
    pub(super) fn cpu_ticks(&self) -> Option<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.record.pid)).ok()?;
        let (_, after_name) = stat.rsplit_once(')')?;
        let mut times = after_name.split_whitespace().skip(USER_TIME_FIELD);
        let ticks = times.next()?.parse::<u64>().ok()? + times.next()?.parse::<u64>().ok()?;
        self.is_alive().then_some(ticks)
    }

    /// Whether it has not ended; a zombie has.
    pub(super) fn is_alive(&self) -> bool {
        let mut polled = [PollFd::new(&self.descriptor, PollFlags::IN)];
        matches!(
            rustix::event::poll(&mut polled, Some(&Timespec::default())),
            Ok(0)
        )
    }

    /// Waits for its end, and reaps it if it is our child.
    pub(super) async fn ended(&self) -> Ending {
        while self.is_alive() {
            match self.descriptor.readable().await {
                Ok(mut ready) if self.is_alive() => ready.clear_ready(),
                Ok(_) => break,
                // The runtime ends, and with it whoever asks.
                Err(_) => return "is not watched any more".to_owned(),
            }
        }
        self.ending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert_with(|| self.reap())
            .clone()
    }

    /// How it ended, if it has; does not wait for whoever watches it.
    pub(super) fn ending(&self) -> Option<Ending> {
        if self.is_alive() {
            return None;
        }
        let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        Some(ending.get_or_insert_with(|| self.reap()).clone())
    }

    /// Succeeds once, and only for a child of ours.
    fn reap(&self) -> Ending {
        match rustix::process::waitid(
            WaitId::PidFd(self.fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        ) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!("exited with code {code}"),
                (_, Some(signal)) => format!("was ended by signal {signal}"),
                _ => "ended".to_owned(),
            },
            _ => "ended".to_owned(),
        }
    }

    /// Ends it at once and waits until it is gone.
    ///
    /// # Errors
    /// When it may not be signalled, or does not end within [`END_SECONDS_MAX`].
    pub(super) async fn kill(&self) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(self.fd(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
        tokio::time::timeout(Duration::from_secs(END_SECONDS_MAX), self.ended())
            .await
            .map_err(|_| {
                io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("process {} does not end", self.record.pid),
                )
            })?;
        Ok(())
    }

    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(self.descriptor.get_ref())
    }
}

// Its successor is unsafe for want of a promise that the descriptor stays open, which owning it gives.
#[allow(deprecated)]
fn open(pid: i32) -> io::Result<AsyncFd<OwnedFd>> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    AsyncFd::with_interest(
        rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?,
        Interest::READABLE,
    )
}

fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may hold anything, also spaces and brackets.
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name
        .split_whitespace()
        .nth(START_TIME_FIELD)?
        .parse()
        .ok()
}

fn read_mark(pid: i32) -> Option<String> {
    // Unreadable for other users' processes, which cannot be ours.
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    environment.split(|byte| *byte == 0).find_map(|variable| {
        let value = std::str::from_utf8(variable)
            .ok()?
            .strip_prefix(MARK_VARIABLE)?
            .strip_prefix('=')?;
        Some(value.to_owned())
    })
}

fn subject_of(pid: i32, installation: &str) -> Option<String> {
    Some(
        read_mark(pid)?
            .strip_prefix(installation)?
            .strip_prefix('/')?
            .to_owned(),
    )
}

/// The same without descriptors: for tests that clean up.
#[cfg(test)]
pub(super) fn subjects(installation: &str) -> Vec<(i32, String)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut found: Vec<_> = pids
        .filter_map(|pid| Some((pid, subject_of(pid, installation)?)))
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(mark: &Mark) -> Process {
        let process = Process::start(Command::new("/bin/sleep").arg("300"), mark).unwrap();
        // The kernel lets the parent go on a moment before it shows the new environment.
        while read_mark(process.record().pid).is_none() {
            std::thread::yield_now();
        }
        process
    }

    #[tokio::test]
    async fn a_process_is_found_again_by_pid_start_time_and_mark() {
        let mark = Mark::new("installation-find", "env_x");
        let process = sleeper(&mark);
        let record = process.record();
        // The kernel shows a new program's environment a moment after it began to run.
        let bound = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while Process::find(record, &mark).is_none() {
            assert!(std::time::Instant::now() < bound, "it was not found");
            tokio::task::yield_now().await;
        }
        assert!(
            Process::find(
                ProcessRecord {
                    started: record.started + 1,
                    ..record
                },
                &mark
            )
            .is_none()
        );
        assert!(Process::find(record, &Mark::new("installation-find", "env_y")).is_none());
        assert!(Process::find(record, &Mark::new("installation", "env_x")).is_none());
        process.kill().await.unwrap();
        assert!(Process::find(record, &mark).is_none());
    }

    #[tokio::test]
    async fn all_processes_of_an_installation_are_found_and_no_others() {
        let (ours, theirs) = (
            sleeper(&Mark::new("installation-a", "env_x")),
            sleeper(&Mark::new("installation-ab", "env_z")),
        );
        let found: Vec<_> = Process::all("installation-a")
            .unwrap()
            .into_iter()
            .map(|(subject, found)| (subject, found.record()))
            .collect();
        assert_eq!(found, [("env_x".to_owned(), ours.record())]);
        ours.kill().await.unwrap();
        theirs.kill().await.unwrap();
        assert!(Process::all("installation-a").unwrap().is_empty());
    }

    #[tokio::test]
    async fn an_ended_child_is_reaped_and_says_how_it_ended() {
        let mark = Mark::new("installation-reap", "env_x");
        let process =
            Process::start(Command::new("/bin/sh").args(["-c", "exit 3"]), &mark).unwrap();
        assert_eq!(process.ended().await, "exited with code 3");
        assert!(!process.is_alive());
        assert!(!std::path::Path::new(&format!("/proc/{}", process.record().pid)).exists());
        let killed = sleeper(&mark);
        rustix::process::pidfd_send_signal(killed.fd(), Signal::KILL).unwrap();
        assert_eq!(killed.ended().await, "was ended by signal 9");
    }
}
