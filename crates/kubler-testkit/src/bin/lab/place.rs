//! What a lab has on the machine outside of its own world, by its number: a folder, a link, control groups, a lock.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use kubler_testkit::leaks::Mark;
use rustix::fs::{FlockOperation, flock};

/// How many labs a machine may have at once.
const LABS_MAX: u8 = 16;
/// Longest wait for the end of what was killed.
const END_BOUND: Duration = Duration::from_secs(30);
/// How often a condition is looked at again.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Where locks are: gone with a boot, as labs are.
const LOCKS: &str = "/run/kubler-lab";
/// Where control groups are mounted.
const GROUPS: &str = "/sys/fs/cgroup";

/// One lab's place. It belongs to whoever holds its lock, which ends with its process.
pub(crate) struct Place {
    number: u8,
    _lock: Option<File>,
}

impl Place {
    /// The first that nobody has. All that nobody has are swept of what an earlier lab may have left.
    pub(crate) fn take() -> Self {
        let mut free = Self::sweep_free().into_iter();
        free.next()
            .unwrap_or_else(|| panic!("this machine has {LABS_MAX} labs already"))
    }

    /// Sweeps all that nobody has.
    pub(crate) fn sweep_free() -> Vec<Self> {
        fs::create_dir_all(LOCKS).expect("a folder for locks");
        let mut free = Vec::new();
        for number in 0..LABS_MAX {
            let lock = File::create(Path::new(LOCKS).join(number.to_string())).expect("a lock");
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                let place = Self {
                    number,
                    _lock: Some(lock),
                };
                place.sweep();
                free.push(place);
            }
        }
        free
    }

    /// The one with this number, which somebody else holds.
    pub(crate) const fn of(number: u8) -> Self {
        Self {
            number,
            _lock: None,
        }
    }

    pub(crate) const fn number(&self) -> u8 {
        self.number
    }

    /// `kubler-lab-N`.
    pub(crate) fn name(&self) -> String {
        format!("kubler-lab-{}", self.number)
    }

    /// What everything in its world carries in its environment; no path holds it, so that those who only use a lab
    /// are not taken for it.
    pub(crate) fn mark(&self) -> Mark {
        kubler_testkit::lab::mark(self.number)
    }

    /// Its folder; short, since sockets are in it.
    pub(crate) fn folder(&self) -> PathBuf {
        Path::new("/tmp").join(self.name())
    }

    /// The node's address, inside.
    pub(crate) fn node_address(&self) -> String {
        format!("10.77.{}.1", self.number)
    }

    /// The machine's end of the wire.
    fn outer_address(&self) -> String {
        format!("10.77.{}.2", self.number)
    }

    /// The machine's end of the wire.
    fn link(&self) -> String {
        format!("kublerlab{}", self.number)
    }

    /// Makes the folder and the control groups.
    pub(crate) fn prepare(&self) {
        fs::create_dir(self.folder()).expect("a folder");
        for controller in controllers() {
            fs::create_dir_all(controller.join(self.name())).expect("a control group");
        }
    }

    /// Lays the wire between the machine and the world of a process.
    pub(crate) fn connect(&self, process: u32) {
        let (link, peer) = (self.link(), process.to_string());
        ip(&[
            "link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &peer,
        ]);
        let address = format!("{}/30", self.outer_address());
        ip(&["address", "add", &address, "dev", &link]);
        ip(&["link", "set", &link, "up"]);
    }

    /// Ends and removes all of it. Names and marks are its own alone.
    pub(crate) fn sweep(&self) {
        let left = self.mark().kill_processes(END_BOUND);
        assert!(left.is_empty(), "these cannot be ended: {left:#?}");
        // Pods carry nothing, but they are in its groups.
        let deadline = Instant::now() + END_BOUND;
        while !self.remove_groups() {
            assert!(
                Instant::now() < deadline,
                "groups stay: {:?}",
                self.groups()
            );
            std::thread::sleep(LOOK_INTERVAL);
        }
        if Path::new("/sys/class/net").join(self.link()).exists() {
            // It goes by itself when the world of its other end has gone.
            let _ = Command::new("ip")
                .args(["link", "delete", &self.link()])
                .output();
        }
        if self.folder().exists() {
            fs::remove_dir_all(self.folder()).expect("a folder that can be removed");
        }
    }

    fn groups(&self) -> Vec<PathBuf> {
        let groups = controllers().into_iter();
        let groups = groups.map(|controller| controller.join(self.name()));
        groups.filter(|group| group.exists()).collect()
    }

    /// Whether none is left.
    fn remove_groups(&self) -> bool {
        for group in self.groups() {
            remove_group(&group);
        }
        self.groups().is_empty()
    }
}

/// Deepest first; what still runs in it is killed.
fn remove_group(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|line| line.parse().ok()) {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    let _ = fs::remove_dir(group);
}

/// The hierarchies of control groups: one for each controller, or a single one.
fn controllers() -> Vec<PathBuf> {
    let root = Path::new(GROUPS);
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let entries = fs::read_dir(root).expect("control groups").flatten();
    let folders = entries.map(|entry| entry.path());
    // Several names of one hierarchy are links to it.
    folders
        .filter(|folder| !folder.is_symlink() && folder.join("cgroup.procs").exists())
        .collect()
}

/// Runs `ip`.
pub(crate) fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("ip");
    assert!(
        output.status.success(),
        "ip {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
