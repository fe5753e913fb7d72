//! Control groups: what the system holds one environment to as a whole, where we may make such groups: as root, or
//! in a part of the tree that was delegated to us. One group for each environment, below one of the installation's.
//!
//! Of version 2 that part is the parent of our own group, when that is called `server` (systemd: `Delegate=yes` and
//! `DelegateSubgroup=server`); of version 1 it is below our own group of each controller.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::time::Duration;

use kubler_core::ids::EnvironmentId;
use kubler_core::profile::MEMORY_BYTES_MIN;

use super::limits::THREADS_MAX;

/// Our own group's name within a delegated part of version 2.
const OWN_GROUP: &str = "server";
/// How long a group of ended processes may stay busy, and how often it is tried again, in milliseconds.
const BUSY_MILLISECONDS_MAX: u64 = 2000;
const BUSY_POLL_MILLISECONDS: u64 = 5;
/// What the system counts beyond what a profile bounds: the program's own pages, logs, sockets.
const UNCOUNTED_BYTES: u64 = 64 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Controller {
    Memory,
    Cpu,
    Pids,
}

impl Controller {
    const ALL: [Self; 3] = [Self::Memory, Self::Cpu, Self::Pids];

    const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A folder in which groups can be made, and what they bound.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    version: Version,
    controllers: Vec<Controller>,
    folder: PathBuf,
}

/// The groups of one installation; none where there are none to be had.
#[derive(Debug, Default)]
pub(super) struct Groups {
    parts: Vec<Part>,
}

impl Groups {
    /// Finds where groups can be made and makes the installation's own. Whatever cannot be had is left out.
    pub(super) fn open(installation: &str) -> Self {
        let name = format!("kubler-{}", installation.get(..12).unwrap_or(installation));
        Self::make(found(), &name)
    }

    /// What they could bound. Changes nothing.
    pub(super) fn to_be_had() -> Vec<&'static str> {
        let mut parts = found();
        parts.retain(|part| rustix::fs::access(&part.folder, rustix::fs::Access::WRITE_OK).is_ok());
        Self { parts }.in_force()
    }

    fn make(parts: Vec<Part>, name: &str) -> Self {
        let made = parts.into_iter().filter_map(|part| {
            let made = part.make(name);
            made.inspect_err(
                |error| tracing::debug!(%error, folder = ?part.folder, "no control groups"),
            )
            .ok()
        });
        Self {
            parts: made.collect(),
        }
    }

    /// What they bound, in words of the system.
    pub(super) fn in_force(&self) -> Vec<&'static str> {
        let bounded = |one: &&Controller| {
            let mut parts = self.parts.iter();
            parts.any(|part| part.controllers.contains(one))
        };
        let all = Controller::ALL.iter().filter(bounded);
        all.map(|one| one.name()).collect()
    }

    /// Whether every environment has the same share of the CPU.
    pub(super) fn share_the_cpu(&self) -> bool {
        self.in_force().contains(&Controller::Cpu.name())
    }

    /// Takes a process, with all that it starts, into the group of an environment. Waits for the system.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn enter(
        &self,
        id: EnvironmentId,
        pid: i32,
        memory_bytes_max: u64,
    ) -> io::Result<()> {
        for part in &self.parts {
            let group = part.group(id);
            make_folder(&group)?;
            for controller in &part.controllers {
                if let Some((file, value)) = part.bound(*controller, memory_bytes_max) {
                    fs::write(group.join(file), value)?;
                }
            }
            fs::write(group.join("cgroup.procs"), pid.to_string())?;
        }
        Ok(())
    }

    /// Whether the system ended something of this environment for its memory.
    pub(super) fn ran_out_of_memory(&self, id: EnvironmentId) -> bool {
        self.parts.iter().any(|part| {
            let file = match part.version {
                Version::One => "memory.oom_control",
                Version::Two => "memory.events",
            };
            let text = fs::read_to_string(part.group(id).join(file)).unwrap_or_default();
            let killed = text
                .lines()
                .filter_map(|line| line.strip_prefix("oom_kill "));
            killed.map(str::trim).any(|count| count != "0")
        })
    }

    /// Takes an environment's groups away, whose processes have ended.
    ///
    /// # Errors
    /// When something still runs in one, or it may not be taken away.
    pub(super) async fn remove(&self, id: EnvironmentId) -> io::Result<()> {
        for part in &self.parts {
            let group = part.group(id);
            let mut tries = BUSY_MILLISECONDS_MAX / BUSY_POLL_MILLISECONDS;
            while let Err(error) = fs::remove_dir(&group) {
                match error.kind() {
                    io::ErrorKind::NotFound => break,
                    io::ErrorKind::ResourceBusy if tries > 0 => tries -= 1,
                    _ => return Err(error),
                }
                tokio::time::sleep(Duration::from_millis(BUSY_POLL_MILLISECONDS)).await;
            }
        }
        Ok(())
    }

    /// Every environment that has a group.
    pub(super) fn environments(&self) -> Vec<EnvironmentId> {
        let folders = self.parts.iter().map(|part| fs::read_dir(&part.folder));
        let entries = folders.flatten().flatten().flatten();
        let names = entries.map(|entry| entry.file_name());
        names
            .filter_map(|name| EnvironmentId::from_str(name.to_str()?).ok())
            .collect()
    }

    pub(super) fn exists(&self, id: EnvironmentId) -> bool {
        self.parts.iter().any(|part| part.group(id).exists())
    }

    /// Takes the installation's own groups away once no environment is left in them.
    ///
    /// # Errors
    /// When one may not be taken away.
    pub(super) fn destroy(&self) -> io::Result<()> {
        self.parts.iter().try_for_each(|part| gone(&part.folder))
    }

    /// Takes away everything that is empty: for tests that end everybody by hand.
    #[cfg(test)]
    pub(super) fn sweep(&self) -> io::Result<()> {
        for part in &self.parts {
            for id in self.environments() {
                gone(&part.group(id))?;
            }
        }
        self.destroy()
    }

    /// Bounds the memory of a group to what it has and so much more.
    #[cfg(test)]
    pub(super) fn hold_to_what_it_has(&self, id: EnvironmentId, more: u64) {
        let of_memory = |part: &&Part| part.controllers.contains(&Controller::Memory);
        for part in self.parts.iter().filter(of_memory) {
            let (now, limit) = match part.version {
                Version::One => ("memory.usage_in_bytes", "memory.limit_in_bytes"),
                Version::Two => ("memory.current", "memory.max"),
            };
            let now = fs::read_to_string(part.group(id).join(now)).unwrap();
            let now: u64 = now.trim().parse().unwrap();
            fs::write(part.group(id).join(limit), (now + more).to_string()).unwrap();
        }
    }
}

impl Part {
    fn group(&self, id: EnvironmentId) -> PathBuf {
        self.folder.join(id.to_string())
    }

    /// The installation's part of it.
    fn make(&self, name: &str) -> io::Result<Self> {
        let folder = self.folder.join(name);
        if self.version == Version::Two {
            self.hand_down(&self.folder)?;
        }
        make_folder(&folder)?;
        if self.version == Version::Two {
            self.hand_down(&folder)?;
        }
        Ok(Self {
            folder,
            ..self.clone()
        })
    }

    /// Groups below this one may be bounded too.
    fn hand_down(&self, folder: &Path) -> io::Result<()> {
        let names = self
            .controllers
            .iter()
            .map(|one| format!("+{}", one.name()));
        let names: Vec<_> = names.collect();
        fs::write(folder.join("cgroup.subtree_control"), names.join(" "))
    }

    /// The file that bounds a group and what to write. Of the CPU every group has an equal share as it is made.
    fn bound(&self, one: Controller, memory_bytes_max: u64) -> Option<(&'static str, String)> {
        match one {
            Controller::Memory => {
                let file = match self.version {
                    Version::One => "memory.limit_in_bytes",
                    Version::Two => "memory.max",
                };
                Some((file, memory_bytes(memory_bytes_max).to_string()))
            }
            Controller::Pids => Some(("pids.max", THREADS_MAX.to_string())),
            Controller::Cpu => None,
        }
    }
}

/// A little above what a profile bounds: who grows slowly is told why by the looks at sizes, and this is for who
/// grows faster than that. Never so little that nothing could start.
fn memory_bytes(memory_bytes_max: u64) -> u64 {
    let bound = memory_bytes_max.max(MEMORY_BYTES_MIN);
    bound + bound / 4 + UNCOUNTED_BYTES
}

fn make_folder(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn gone(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Where groups might be made on this machine.
fn found() -> Vec<Part> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    parts(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"))
}

/// The same from the texts of `/proc/self/mountinfo` and `/proc/self/cgroup`.
fn parts(mounts: &str, own: &str) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for mount in mounts.lines().filter_map(Mount::read) {
        let found = match mount.kind {
            "cgroup" => mount.version_1(own),
            "cgroup2" => mount.version_2(own),
            _ => None,
        };
        let Some(mut found) = found else {
            continue;
        };
        let is_free = |one: &Controller| !parts.iter().any(|part| part.controllers.contains(one));
        found.controllers.retain(is_free);
        if !found.controllers.is_empty() {
            parts.push(found);
        }
    }
    parts
}

/// One line of `/proc/self/mountinfo`.
struct Mount<'a> {
    root: &'a str,
    point: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let mut after = after.split(' ');
        Some(Self {
            root: before.next()?,
            point: before.next()?,
            kind: after.next()?,
            options: after.nth(1)?,
        })
    }

    fn version_1(&self, own: &str) -> Option<Part> {
        let names = |list: &str, one: &Controller| list.split(',').any(|name| name == one.name());
        let mounted = |one: &Controller| names(self.options, one);
        let controllers: Vec<_> = Controller::ALL.into_iter().filter(mounted).collect();
        let first = controllers.first()?;
        let path = own.lines().find_map(|line| {
            let (list, path) = line.split_once(':')?.1.split_once(':')?;
            names(list, first).then_some(path)
        });
        Some(Part {
            version: Version::One,
            folder: self.folder(path?)?,
            controllers,
        })
    }

    fn version_2(&self, own: &str) -> Option<Part> {
        let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
        let (delegated, name) = path.rsplit_once('/')?;
        let folder = (name == OWN_GROUP).then(|| self.folder(delegated))??;
        let listed = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
        let has = |one: &Controller| listed.split_whitespace().any(|name| name == one.name());
        Some(Part {
            version: Version::Two,
            folder,
            controllers: Controller::ALL.into_iter().filter(has).collect(),
        })
    }

    /// The folder of the group `path`, when it can be seen through this mount.
    fn folder(&self, path: &str) -> Option<PathBuf> {
        let below = path.strip_prefix(self.root.trim_end_matches('/'))?;
        Some(Path::new(self.point).join(below.trim_start_matches('/')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_version_1_are_made_below_our_own() {
        let mounts = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
            35 31 0:32 /docker/x /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let own = "8:pids:/\n4:memory:/docker/x/y\n1:cpu,cpuacct:/system.slice\n0::/\n";
        let part = |controller, folder: &str| Part {
            version: Version::One,
            controllers: vec![controller],
            folder: folder.into(),
        };
        let expected = [
            part(Controller::Cpu, "/sys/fs/cgroup/cpu,cpuacct/system.slice"),
            part(Controller::Memory, "/sys/fs/cgroup/memory/y"),
        ];
        assert_eq!(parts(mounts, own), expected);
    }

    #[test]
    fn groups_of_version_2_are_made_beside_our_own_when_that_part_is_ours() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().display().to_string();
        let delegated = folder.path().join("kubler.service");
        fs::create_dir(&delegated).unwrap();
        let listed = "cpuset cpu memory pids\n";
        fs::write(delegated.join("cgroup.controllers"), listed).unwrap();
        let mounts = format!("41 31 0:38 / {root} rw,relatime shared:9 - cgroup2 cgroup2 rw\n");
        assert_eq!(parts(&mounts, "0::/kubler.service\n"), []);
        let found = parts(&mounts, "0::/kubler.service/server\n");
        assert_eq!(found.len(), 1);
        let groups = Groups::make(found, "kubler-x");
        assert_eq!(groups.in_force(), ["memory", "cpu", "pids"]);
        let handed_down = fs::read_to_string(delegated.join("cgroup.subtree_control")).unwrap();
        assert_eq!(handed_down, "+memory +cpu +pids");

        let id = EnvironmentId::from_random([1; 16]);
        groups.enter(id, 42, 512 << 20).unwrap();
        let group = delegated.join("kubler-x").join(id.to_string());
        let read = |name: &str| fs::read_to_string(group.join(name)).unwrap();
        assert_eq!(read("memory.max"), (704 << 20).to_string());
        assert_eq!(read("cgroup.procs"), "42");
        assert_eq!(groups.environments(), [id]);
        fs::write(group.join("memory.events"), "oom 2\noom_kill 0\n").unwrap();
        assert!(!groups.ran_out_of_memory(id));
        fs::write(group.join("memory.events"), "oom 2\noom_kill 1\n").unwrap();
        assert!(groups.ran_out_of_memory(id));
    }

    #[test]
    fn what_may_not_be_made_is_left_out() {
        let part = Part {
            version: Version::One,
            controllers: vec![Controller::Cpu],
            folder: "/nowhere".into(),
        };
        let groups = Groups::make(vec![part], "kubler-x");
        assert!(groups.in_force().is_empty());
    }
}
