//! A disk that is really full: a small file system of a test's own, and a neighbour on it who takes every byte that
//! becomes free.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::leaks::{self, Mark};

/// Where the small file system is mounted, for the test that runs on it.
const DISK: &str = "KUBLER_TEST_DISK";
/// What the shell ends with when it may not mount.
const MAY_NOT_MOUNT: i32 = 77;
/// Longest wait for the end of what ran on the disk.
const END_BOUND: Duration = Duration::from_secs(10);
/// How much the neighbour writes at once, in bytes.
const BITE_BYTES: usize = 4096;

/// Runs the ignored test `name` of the running test program on a file system of `size`, which is gone when the test is.
/// Where none can be mounted the test is skipped with the reason; as root (as CI runs it) that is a failure.
///
/// # Panics
/// With what it printed, when that test fails.
#[allow(clippy::print_stdout)] // a test that was skipped says so
pub fn on_a_disk_of(size: &str, name: &str) {
    let disk = tempfile::Builder::new()
        .prefix("kd")
        .tempdir_in("/tmp")
        .unwrap();
    let is_root = rustix::process::geteuid().is_root();
    let mut command = Command::new("unshare");
    if !is_root {
        command.args(["--user", "--map-root-user"]);
    }
    let script = format!(
        "mount -t tmpfs -o size={size},mode=0700 kubler-test \"$0\" || exit {MAY_NOT_MOUNT}; exec \"$@\""
    );
    let ran = command
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .arg(disk.path())
        .arg(std::env::current_exe().unwrap())
        .arg(name)
        .args(["--exact", "--ignored", "--nocapture"])
        .env(DISK, disk.path())
        .output();
    let cannot = match ran {
        Ok(output) if output.status.success() => {
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(said.contains("1 passed"), "{said}");
            return;
        }
        Ok(output)
            if output.status.code() == Some(MAY_NOT_MOUNT)
                || output.stderr.starts_with(b"unshare: ") =>
        {
            String::from_utf8_lossy(&output.stderr).into_owned()
        }
        Ok(output) => panic!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) => format!("`unshare` cannot be run: {error}"),
    };
    let in_ci = std::env::var_os("CI").is_some();
    assert!(
        !(is_root && in_ci),
        "as root in CI a file system must be there: {cannot}"
    );
    println!("skipped: a file system cannot be mounted here: {cannot}");
}

/// The small file system that this test runs on; `None` when it was not started by [`on_a_disk_of`].
pub fn disk() -> Option<PathBuf> {
    std::env::var_os(DISK).map(PathBuf::from)
}

/// Data of a server on the disk, outside of the server's own folder: whatever runs from them ends with this.
pub struct Data(PathBuf);

impl Data {
    /// Those that will be in `folder`. To be made before the server, so that it goes after it.
    pub const fn in_folder(folder: PathBuf) -> Self {
        Self(folder)
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        let left = Mark::of(&self.0.to_string_lossy()).kill_processes(END_BOUND);
        if let Ok(installation) = std::fs::read_to_string(self.0.join("local/installation")) {
            leaks::sweep_groups(installation.trim(), END_BOUND);
        }
        if !left.is_empty() && !std::thread::panicking() {
            panic!("processes outlive their disk: {left:#?}");
        }
    }
}

/// Whoever shares the disk: writes as long as there is a byte.
pub struct Neighbour {
    path: PathBuf,
    rests: Arc<AtomicBool>,
    moves_out: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Neighbour {
    /// Takes everything that is free below `folder`, and goes on taking, with a `pause` between two looks.
    pub fn moves_in(folder: &Path, pause: Duration) -> Self {
        let path = folder.join("neighbour");
        let mut file = File::create(&path).unwrap();
        let mut fill = move || {
            while file
                .write(&[0; BITE_BYTES])
                .is_ok_and(|written| written > 0)
            {}
        };
        fill();
        let moves_out = Arc::new(AtomicBool::new(false));
        let rests = Arc::new(AtomicBool::new(false));
        let (told, resting) = (Arc::clone(&moves_out), Arc::clone(&rests));
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                if !resting.load(Ordering::Relaxed) {
                    fill();
                }
                if pause.is_zero() {
                    std::thread::yield_now();
                } else {
                    std::thread::sleep(pause);
                }
            }
        });
        Self {
            path,
            rests,
            moves_out,
            thread,
        }
    }

    /// Keeps what it has, and takes no more.
    pub fn rests(&self) {
        self.rests.store(true, Ordering::Relaxed);
    }

    /// Gives back all of it.
    pub fn moves_out(self) {
        self.moves_out.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        std::fs::remove_file(self.path).unwrap();
    }
}
