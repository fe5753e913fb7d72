//! A whole real cluster with one real node, where pods run: the program `lab`, held by its standard input. Needs root.
//!
//! ```no_run
//! # use kubler_testkit::lab;
//! let Some(lab) = lab::or_skip() else { return };
//! lab.kubectl_ok(&["get", "nodes"]);
//! ```

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use serde_json::Value;

use crate::agent::kube_folder;
use crate::cluster::Access;
use crate::kubler::Programs;
use crate::leaks::{Mark, Process};

/// Longest wait for a node, on a machine that does much else.
const START_BOUND: Duration = Duration::from_secs(240);
/// Longest wait for its end.
const END_BOUND: Duration = Duration::from_secs(60);
/// How often a condition is looked at again.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// An image that is there, with a shell and a small HTTP server: `imagePullPolicy: IfNotPresent`, as nothing is pulled.
pub const BUSYBOX: &str = "docker.io/library/busybox:1.37";
/// The name of its node.
pub const NODE: &str = "lab";
/// Set to `required` where a lab must be there, as in CI.
const VARIABLE: &str = "KUBLER_LAB";
/// Set to [`TEST_IMAGES`] for a lab with the images of upstream's tests.
pub const IMAGES_VARIABLE: &str = "KUBLER_LAB_IMAGES";
/// See [`IMAGES_VARIABLE`].
pub const TEST_IMAGES: &str = "tests";
/// What it takes, by a program and the package that has it.
const NEEDED: [(&str, &str); 8] = [
    ("/usr/bin/containerd", "containerd"),
    ("/usr/bin/ctr", "containerd"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/lib/cni/ptp", "containernetworking-plugins"),
    ("/usr/sbin/ip", "iproute2"),
    ("/usr/sbin/iptables", "iptables"),
    ("/usr/sbin/ipset", "ipset"),
    ("/usr/bin/busybox", "busybox-static"),
];

/// A running lab. Dropping it ends it, and panics if something of it is left.
pub struct Lab {
    access: Access,
    number: u8,
    child: Child,
}

impl std::ops::Deref for Lab {
    type Target = Access;

    fn deref(&self) -> &Access {
        &self.access
    }
}

/// The lab that all tests of this program share; it ends with the program. `None`, and a word on why, where none can
/// be: as somebody else than root, or without what it takes.
///
/// # Panics
/// When `KUBLER_LAB=required` and there is none, and when it does not start where it could.
pub fn or_skip() -> Option<&'static Lab> {
    static SHARED: LazyLock<Lab> = LazyLock::new(Lab::start);
    can_be().then(|| &*SHARED)
}

/// Whether a lab can be here; says why not.
///
/// # Panics
/// When `KUBLER_LAB=required` and none can be.
#[allow(clippy::print_stdout)] // a test that was skipped says so
pub fn can_be() -> bool {
    let Some(reason) = missing() else { return true };
    let required = std::env::var(VARIABLE).is_ok_and(|value| value == "required");
    assert!(!required, "a lab is required here: {reason}");
    println!("skipped: {reason}");
    false
}

/// What keeps a lab from being here.
fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root: pods run on a real node".to_owned());
    }
    let missing = NEEDED.iter().find(|(path, _)| !Path::new(path).exists());
    if let Some((path, package)) = missing {
        return Some(format!("needs `{path}`: apt-get install {package}"));
    }
    let folder = kube_folder();
    ["kubelet", "kube-scheduler", "kube-proxy", "kube-router"]
        .into_iter()
        .find(|name| !folder.join(name).exists())
        .map(|name| format!("needs `{name}`: run `kube/build lab`"))
}

impl Lab {
    /// Starts one of one's own; [`or_skip`] gives the one that tests share.
    ///
    /// # Panics
    /// With what it said, when it does not start.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// The same with the images that upstream's own tests ask for; `kube/build conformance` builds what is in them.
    ///
    /// # Panics
    /// With what it said, when it does not start.
    pub fn start_with_test_images() -> Self {
        Self::start_with(TEST_IMAGES)
    }

    fn start_with(images: &str) -> Self {
        let mut said = tempfile::tempfile().expect("a file");
        let mut child = Command::new(program())
            .env(IMAGES_VARIABLE, images)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(said.try_clone().expect("a file"))
            .spawn()
            .expect("the program `lab`");
        let output = child.stdout.take().expect("its output");
        let (found, ready) = channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(output).read_line(&mut line);
            let _ = found.send(read.map(|_| line).unwrap_or_default());
        });
        let line = match ready.recv_timeout(START_BOUND) {
            Ok(line) if !line.is_empty() => line,
            Ok(_) | Err(RecvTimeoutError::Disconnected) => panic!("no lab: {}", all_of(&mut said)),
            Err(RecvTimeoutError::Timeout) => {
                let _ = child.kill();
                panic!("no lab after {START_BOUND:?}: {}", all_of(&mut said))
            }
        };
        let ready: Value = serde_json::from_str(&line).expect("what it says of itself");
        let text = |key: &str| ready[key].as_str().expect("a text").to_owned();
        let number = ready["number"].as_u64().expect("a number");
        Self {
            access: Access::new(&text("url"), Path::new(&text("folder"))),
            number: u8::try_from(number).expect("a number"),
            child,
        }
    }

    /// Its number on this machine.
    pub const fn number(&self) -> u8 {
        self.number
    }

    /// Everything that lives in its world.
    pub fn processes(&self) -> Vec<Process> {
        mark(self.number).processes()
    }

    /// SIGKILL to its supervisor alone, and the end of that.
    pub fn kill_supervisor(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn end(&mut self) -> Result<(), String> {
        // Closing its standard input is what ends it, also when this process is killed.
        drop(self.child.stdin.take());
        let deadline = Instant::now() + END_BOUND;
        while self.child.try_wait().expect("our child").is_none() {
            if Instant::now() > deadline {
                let pid = self.child.id().cast_signed();
                Process::find(pid).inspect(|process| process.signal(Signal::KILL));
                return Err(format!("lab {} does not end", self.number));
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let ended = self.end();
        if let (Err(why), false) = (ended, std::thread::panicking()) {
            panic!("{why}");
        }
    }
}

/// What is left on the machine of a lab that has ended, by its number. If somebody has taken the number meanwhile,
/// nothing: a lab sweeps before it starts.
///
/// # Panics
/// When its lock cannot be looked at.
pub fn leftovers(number: u8) -> Vec<String> {
    let lock = File::open(format!("/run/kubler-lab/{number}")).expect("its lock");
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Vec::new();
    }
    let name = format!("kubler-lab-{number}");
    let mut paths = vec![
        Path::new("/tmp").join(&name),
        Path::new("/sys/class/net").join(format!("kublerlab{number}")),
        Path::new("/sys/fs/cgroup").join(&name),
    ];
    let groups = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten();
    paths.extend(groups.flatten().map(|entry| entry.path().join(&name)));
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mounts = mounts.lines().filter(|line| line.contains(&name));
    paths
        .iter()
        .filter(|path| path.exists())
        .map(|path| path.display().to_string())
        .chain(mounts.map(str::to_owned))
        .chain(mark(number).processes().iter().map(|it| format!("{it:?}")))
        .collect()
}

/// What everything in a lab's world carries.
pub fn mark(number: u8) -> Mark {
    Mark::of(&format!("kubler.lab.{number}.inside"))
}

/// The program, beside the programs under test.
pub fn program() -> PathBuf {
    Programs::find().folder().join("lab")
}

fn all_of(file: &mut File) -> String {
    let mut text = String::new();
    let _ = file.rewind().and_then(|()| file.read_to_string(&mut text));
    text
}
