//! Proof that nothing is left: processes, files, listening sockets. Read from `/proc`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use uuid::Uuid;

/// How often a condition is looked at again.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// Digits of a mark: short, so that paths which hold it stay short.
const MARK_DIGITS: usize = 12;

/// A text that everything a test starts carries: in arguments, environment or working folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark(String);

impl Mark {
    /// The variable by which children inherit it.
    pub const VARIABLE: &'static str = "KUBLER_TESTKIT_MARK";

    /// A mark that nobody else has.
    #[allow(clippy::new_without_default, reason = "two defaults would differ")]
    pub fn new() -> Self {
        let mut digits = Uuid::new_v4().simple().to_string();
        digits.truncate(MARK_DIGITS);
        Self(format!("km{digits}"))
    }

    /// A text that is known to be in the arguments, environment or working folder of what is meant.
    pub fn of(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The processes that carry it, and all that came from them. This process and dead ones are not counted.
    pub fn processes(&self) -> Vec<Process> {
        let all = all_processes();
        let mut found: BTreeSet<i32> = all
            .values()
            .filter(|process| process.carries(&self.0))
            .map(|process| process.pid)
            .collect();
        loop {
            let children = all
                .values()
                .filter(|process| found.contains(&process.parent));
            let new: Vec<i32> = children
                .map(|process| process.pid)
                .filter(|pid| !found.contains(pid))
                .collect();
            if new.is_empty() {
                break;
            }
            found.extend(new);
        }
        let own = i32::try_from(std::process::id()).unwrap_or_default();
        all.into_values()
            .filter(|process| process.pid != own && found.contains(&process.pid))
            .collect()
    }

    /// Ends all of them with SIGKILL; gives back those that live on after `bound`.
    pub fn kill_processes(&self, bound: Duration) -> Vec<Process> {
        let deadline = Instant::now() + bound;
        loop {
            let left = self.processes();
            if left.is_empty() || Instant::now() > deadline {
                return left;
            }
            for process in &left {
                process.signal(Signal::KILL);
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Waits until no process carries it.
    ///
    /// # Errors
    /// `Left` with the processes after `bound`.
    pub async fn wait_until_no_process(&self, bound: Duration) -> Result<(), Left> {
        wait_until_none("processes", bound, || self.processes()).await
    }
}

/// A living process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// The id of its parent.
    pub parent: i32,
    /// Start in clock ticks since boot: together with the id it names one process for ever.
    pub start_ticks: u64,
    /// Arguments joined by spaces.
    pub command: String,
}

impl Process {
    /// The process with this id, if it lives.
    pub fn find(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in brackets may hold anything, brackets included.
        let (_, fields) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split(' ').collect();
        if matches!(*fields.first()?, "Z" | "X") {
            return None;
        }
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command)
            .trim_end_matches('\0')
            .replace('\0', " ");
        Some(Self {
            pid,
            parent: fields.get(1)?.parse().ok()?,
            start_ticks: fields.get(19)?.parse().ok()?,
            command,
        })
    }

    /// It still lives, and is not another one with its id.
    pub fn lives(&self) -> bool {
        Self::find(self.pid).is_some_and(|now| now.start_ticks == self.start_ticks)
    }

    /// The value of a variable that it was started with.
    pub fn variable(&self, name: &str) -> Option<String> {
        let environment = fs::read(format!("/proc/{}/environ", self.pid)).ok()?;
        let mut pairs = environment
            .split(|byte| *byte == 0)
            .map(String::from_utf8_lossy);
        pairs.find_map(|pair| {
            pair.split_once('=')
                .filter(|(known, _)| *known == name)
                .map(|(_, value)| value.to_owned())
        })
    }

    /// Sends it a signal, if it still lives.
    pub fn signal(&self, signal: Signal) {
        if let (true, Some(pid)) = (self.lives(), Pid::from_raw(self.pid)) {
            // It may have ended since: that is what was wanted.
            let _ = kill_process(pid, signal);
        }
    }

    fn carries(&self, text: &str) -> bool {
        let environment = || fs::read(format!("/proc/{}/environ", self.pid)).unwrap_or_default();
        let folder = || fs::read_link(format!("/proc/{}/cwd", self.pid)).unwrap_or_default();
        self.command.contains(text)
            || String::from_utf8_lossy(&environment()).contains(text)
            || folder().to_string_lossy().contains(text)
    }
}

fn all_processes() -> BTreeMap<i32, Process> {
    let names = fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .map(|entry| entry.file_name());
    let pids = names.filter_map(|name| name.to_str()?.parse().ok());
    pids.filter_map(Process::find)
        .map(|process| (process.pid, process))
        .collect()
}

/// Every file, socket and link below a folder; nothing for a folder that is not there.
pub fn files_in(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() && !path.is_symlink() {
            files.extend(files_in(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Control groups of an installation of the engine `local`, one folder for each environment and controller.
pub fn groups(installation: &str) -> Vec<PathBuf> {
    let folders = group_folders(installation);
    let entries = folders
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok());
    let paths = entries.flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = paths.filter(|path| path.is_dir()).collect();
    found.sort();
    found
}

/// Where the installation's groups would be: below this process's own, which its children share.
fn group_folders(installation: &str) -> Vec<PathBuf> {
    let name = format!("kubler-{}", installation.get(..12).unwrap_or(installation));
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let folders = own.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let group = Path::new("/sys/fs/cgroup").join(controllers);
        Some(group.join(path.trim_start_matches('/')).join(&name))
    });
    folders.collect()
}

/// Takes away the groups of an installation whose processes were ended by hand.
pub fn sweep_groups(installation: &str, bound: Duration) {
    let deadline = Instant::now() + bound;
    while !groups(installation).is_empty() && Instant::now() < deadline {
        for group in groups(installation) {
            let _ = fs::remove_dir(group);
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
    for folder in group_folders(installation) {
        let _ = fs::remove_dir(folder);
    }
}

/// Where processes listen: `127.0.0.1:PORT` as the kernel writes it in hexadecimal, or the path of a Unix socket.
pub fn listening_sockets(processes: &[Process]) -> Vec<String> {
    let listening = all_listening_sockets();
    let folders = processes
        .iter()
        .filter_map(|process| fs::read_dir(format!("/proc/{}/fd", process.pid)).ok());
    let links = folders
        .flatten()
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok());
    let sockets = links.filter_map(|link| {
        let inode = link
            .to_str()?
            .strip_prefix("socket:[")?
            .strip_suffix(']')?
            .parse()
            .ok()?;
        listening.get(&inode).cloned()
    });
    sockets.collect::<BTreeSet<String>>().into_iter().collect()
}

/// Something listens on this TCP port of the machine.
pub fn port_is_open(port: u16) -> bool {
    let end = format!(":{port:04X}");
    all_listening_sockets()
        .values()
        .any(|address| address.ends_with(&end))
}

/// Listening sockets of the machine by inode.
fn all_listening_sockets() -> BTreeMap<u64, String> {
    /// State and flag that say "listens" in `/proc/net/tcp` and `/proc/net/unix`.
    const TCP_LISTEN: &str = "0A";
    const UNIX_ACCEPT: &str = "00010000";
    let mut sockets = BTreeMap::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in fs::read_to_string(table)
            .unwrap_or_default()
            .lines()
            .skip(1)
        {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if let [_, address, _, TCP_LISTEN, _, _, _, _, _, inode, ..] = fields[..] {
                sockets.insert(inode.parse().unwrap_or_default(), address.to_owned());
            }
        }
    }
    for line in fs::read_to_string("/proc/net/unix")
        .unwrap_or_default()
        .lines()
        .skip(1)
    {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [_, _, _, UNIX_ACCEPT, _, _, inode, path] = fields[..] {
            sockets.insert(inode.parse().unwrap_or_default(), path.to_owned());
        }
    }
    sockets
}

/// Something that should be gone is not.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what} left after {bound:?}: {found:#?}")]
pub struct Left {
    what: String,
    bound: Duration,
    found: Vec<String>,
}

/// Waits until `look` finds nothing.
///
/// # Errors
/// `Left` with what it still finds after `bound`.
pub async fn wait_until_none<T: Debug>(
    what: &str,
    bound: Duration,
    mut look: impl FnMut() -> Vec<T>,
) -> Result<(), Left> {
    let deadline = Instant::now() + bound;
    loop {
        let left = look();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let found = left.iter().map(|one| format!("{one:?}")).collect();
            return Err(Left {
                what: what.into(),
                bound,
                found,
            });
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}
