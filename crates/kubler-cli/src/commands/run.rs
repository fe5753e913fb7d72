//! `kubler run`: an environment around a command. Kept alive from the first answer that names it, gone after the command
//! unless it was there before; signals and the exit code pass through.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;
use kubler_api::Environment;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};

use crate::arguments::{Connection, Wanted};
use crate::clock::Deadline;
use crate::commands::kubeconfig;
use crate::exit::{Exit, Failure, Outcome, SIGNAL_BASE};
use crate::job::abandoned;
use crate::job::folder::PrivateFolder;
use crate::output;
use crate::process::signals::{Came, Signals, Work};
use crate::process::watched;
use crate::renewer::renewal::Renewal;
use crate::server::connected::Connected;
use crate::server::creation::{self, Asking, First};
use crate::server::ending::Ending;
use crate::variables;

/// Signals that a person or a supervisor sends to this process and means for the command.
const PASSED_ON: &[i32] = &[SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];
/// Those that end this process itself while there is no command.
const ENDING: &[i32] = &[SIGHUP, SIGINT, SIGQUIT, SIGTERM];
/// How long a signal waits for the answer that says what was made, in seconds. A second signal does not wait.
const FIRST_ANSWER_SECONDS_MAX: u64 = 5;

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    wanted: Wanted,
    /// The command and its arguments.
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Runs the command. Returns the code to end with.
pub fn run(arguments: &Arguments, connection: &Connection) -> Outcome<u8> {
    let connected = Arc::new(Connected::new(connection, None, None)?);
    if !connected.tokens()?.is_renewable() {
        return Err(
            Failure::usage("a token from standard input cannot be renewed")
                .hint("give `--token-file FILE` with a file that is kept fresh"),
        );
    }
    let mut signals =
        Signals::listen(PASSED_ON).map_err(|error| Failure::io("listen to signals", &error))?;
    let id = rustix::process::getpid().as_raw_nonzero().get();
    let job = format!("run-{id}");
    let folder = PrivateFolder::of_job(&job)?;
    abandoned::belongs_to(&folder, id)?;
    abandoned::clear_beside(&folder);
    let (environment, alive) = match Creation::of(&connected, &arguments.wanted, &mut signals) {
        Ok(Creation::Done(environment, alive)) => (*environment, alive),
        Ok(Creation::Interrupted(number)) => {
            folder.remove_if_empty();
            return Ok(code_of_signal(number));
        }
        Err(failure) => {
            folder.remove_if_empty();
            return Err(failure);
        }
    };
    let begun = Begun {
        connected,
        environment,
        alive,
        folder,
        job,
    };
    let status = begun.around(&arguments.command, &mut signals);
    begun.end(&mut signals);
    Ok(code(status?))
}

/// The making of the environment, which a signal ends: there is no command yet that could be meant.
enum Creation {
    /// It is usable.
    Done(Box<Environment>, Alive),
    /// This signal came first. What had been made is released.
    Interrupted(i32),
}

/// An environment that the server knows of: kept alive from then on, however long it takes to make it.
struct Alive {
    ending: Ending,
    renewal: Renewal,
}

impl Creation {
    fn of(connected: &Arc<Connected>, wanted: &Wanted, signals: &mut Signals) -> Outcome<Self> {
        let failed = |error: std::io::Error| Failure::io("ask for an environment", &error);
        let alive = Arc::new(Mutex::new(None::<Alive>));
        let slot = || alive.lock().unwrap_or_else(PoisonError::into_inner);
        // Dropping it says that the environment is no longer wanted.
        let (wanting, unwanted) = UnixStream::pair().map_err(failed)?;
        let making = {
            let (connected, wanted, alive) =
                (Arc::clone(connected), wanted.clone(), Arc::clone(&alive));
            Work::start(move || {
                let asking = Asking {
                    stop: Some(unwanted.as_fd()),
                    tells_who_made_it: true,
                };
                let note = |first: &First<'_>| {
                    let begun = Alive::new(first, &connected)?;
                    *alive.lock().unwrap_or_else(PoisonError::into_inner) = Some(begun);
                    Ok(())
                };
                creation::create_with(&connected, &wanted, &asking, note)
            })
        }
        .map_err(failed)?;
        let came = signals.wait(ENDING, making.as_fd(), None).map_err(failed)?;
        if let Came::Signal(number) = came {
            output::remark(&format!(
                "kubler: signal {number} ends the making of the environment"
            ));
            drop(wanting);
            if slot().is_none() {
                // The first call may still make one: only its answer says which.
                let bound = Deadline::after(Duration::from_secs(FIRST_ANSWER_SECONDS_MAX));
                let _ = signals.wait(ENDING, making.as_fd(), Some(bound));
            }
            let known = slot().take();
            end_what_is(known, connected, signals);
            return Ok(Self::Interrupted(number));
        }
        let gone = || Failure::new(Exit::Failed, "the making of the environment broke off");
        let made = making.result().ok_or_else(gone).flatten();
        let known = slot().take();
        match (made, known) {
            (Ok(created), Some(alive)) => Ok(Self::Done(Box::new(created.environment), alive)),
            (Ok(_), None) => Err(gone()),
            (Err(failure), known) => {
                end_what_is(known, connected, signals);
                Err(failure)
            }
        }
    }
}

impl Alive {
    fn new(first: &First<'_>, connected: &Arc<Connected>) -> Outcome<Self> {
        Ok(Self {
            ending: Ending {
                environment: first.environment.id.clone(),
                scope: first.environment.scope,
                was_there: first.was_there,
            },
            renewal: first.keep_alive(connected)?,
        })
    }

    /// Ends it, so that nothing lives on that nobody renews.
    fn end(mut self, connected: &Arc<Connected>, signals: &mut Signals) {
        self.renewal.stop();
        let token = self.renewal.token();
        self.ending.end(connected, token, signals, ENDING);
        self.renewal.settle();
    }
}

fn end_what_is(alive: Option<Alive>, connected: &Arc<Connected>, signals: &mut Signals) {
    if let Some(alive) = alive {
        alive.end(connected, signals);
    }
}

/// An environment that is kept alive. It is ended whatever happens to the command.
struct Begun {
    connected: Arc<Connected>,
    environment: Environment,
    alive: Alive,
    folder: PrivateFolder,
    job: String,
}

impl Begun {
    fn around(&self, command: &[OsString], signals: &mut Signals) -> Outcome<ExitStatus> {
        let path = self.folder.file("kubeconfig");
        kubeconfig::write(&self.connected, &self.environment, Some(&self.job), &path)?;
        let (program, arguments) = command
            .split_first()
            .ok_or_else(|| Failure::usage("there is no command"))?;
        let child = Command::new(program)
            .args(arguments)
            .env("KUBECONFIG", &path)
            .env(variables::KUBLER_JOB, &self.job)
            .env(variables::KUBLER_ENVIRONMENT, &self.environment.id)
            .env(variables::KUBLER_SERVER, self.connected.client.server())
            .env(variables::KUBLER_AUDIENCE, &self.connected.audience)
            .spawn()
            .map_err(|error| {
                Failure::usage(format!(
                    "cannot run `{}`: {error}",
                    program.to_string_lossy()
                ))
                .hint("give a program on `PATH` or its path; shell syntax needs `sh -c`")
            })?;
        wait(child, signals).map_err(|error| Failure::io("wait for the command", &error))
    }

    fn end(self, signals: &mut Signals) {
        // The credential on this machine goes first: that needs nobody's help.
        self.folder.remove_files("");
        self.folder.remove_if_empty();
        self.alive.end(&self.connected, signals);
    }
}

/// Waits for the command's end and passes signals on meanwhile.
fn wait(mut child: Child, signals: &mut Signals) -> std::io::Result<ExitStatus> {
    // A descriptor: an id may be another process's once the command was collected.
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    // A terminal sends these to the command as well: sent twice, they would mean something else.
    let is_at_terminal = std::io::stdin().is_terminal();
    while let Came::Signal(number) = signals.wait(PASSED_ON, process.as_fd(), None)? {
        let by_terminal = is_at_terminal && matches!(number, SIGINT | SIGQUIT);
        if let Some(signal) = Signal::from_named_raw(number).filter(|_| !by_terminal) {
            watched::signal(&process, signal);
        }
    }
    // What was meant for the command is not meant for what comes after it.
    signals.forget();
    child.wait()
}

fn code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (None, Some(number)) => code_of_signal(number),
        (code, _) => code
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(Exit::Failed as u8),
    }
}

fn code_of_signal(number: i32) -> u8 {
    u8::try_from(SIGNAL_BASE + number).unwrap_or(Exit::Failed as u8)
}
