//! A child that cannot outlive this process, however this process ends.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{Sender, channel};

use crate::leaks::{Mark, Process};

/// Most of a log that is shown, in bytes.
const LOG_SHOWN_BYTES: usize = 8 * 1024;

/// A program that runs in the background. Dropping it kills it.
pub struct Child {
    child: std::process::Child,
    log: PathBuf,
}

impl Child {
    /// Starts `program` in `folder` with `arguments`; its output goes to the file `log`. It inherits a PATH, the mark
    /// and nothing else.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start<A: AsRef<std::ffi::OsStr>>(
        program: &Path,
        arguments: &[A],
        folder: &Path,
        log: &Path,
        mark: &Mark,
    ) -> Self {
        let output = File::options().create(true).append(true).open(log);
        let output = output.expect("a log");
        // The kernel ends it when the thread that started it ends, and so when this process is killed.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(arguments)
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin",
            )
            .env("HOME", folder)
            .env(Mark::VARIABLE, mark.as_str())
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a log"))
            .stderr(output);
        let child = start_from_a_lasting_thread(command)
            .unwrap_or_else(|error| panic!("cannot start `{}`: {error}", program.display()));
        Self {
            child,
            log: log.to_owned(),
        }
    }

    /// Its process.
    ///
    /// # Panics
    /// When it has ended.
    pub fn process(&self) -> Process {
        let pid = self.child.id().cast_signed();
        Process::find(pid).unwrap_or_else(|| panic!("it has ended: {}", self.log()))
    }

    /// It runs no more.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("our child").is_some()
    }

    /// The end of what it said.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let end = bytes.len().saturating_sub(LOG_SHOWN_BYTES);
        String::from_utf8_lossy(&bytes[end..]).into_owned()
    }

    /// SIGKILL, and its end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A test's own thread may end before what it started, when other tests share it.
fn start_from_a_lasting_thread(mut command: Command) -> io::Result<std::process::Child> {
    type Task = Box<dyn FnOnce() + Send>;
    static STARTER: LazyLock<Sender<Task>> = LazyLock::new(|| {
        let (sender, tasks) = channel::<Task>();
        std::thread::spawn(move || tasks.into_iter().for_each(|task| task()));
        sender
    });
    let (answer, answers) = channel();
    let task = move || drop(answer.send(command.spawn()));
    STARTER.send(Box::new(task)).expect("the thread");
    answers.recv().expect("the thread")
}
