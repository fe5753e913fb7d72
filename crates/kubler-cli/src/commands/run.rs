//! `kubler run`: an environment around a command. Kept alive while the command runs, gone after it; signals and
//! the exit code pass through.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use kubler_api::Environment;
use rustix::process::{Pid, Signal, kill_process};
use secrecy::SecretString;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use crate::abandoned;
use crate::arguments::{Connection, Wanted};
use crate::client::{CALL_SECONDS_MAX, Caller};
use crate::clock::Deadline;
use crate::commands::kubeconfig;
use crate::connected::{Connected, Proof};
use crate::creation;
use crate::exit::{Exit, Failure, Outcome, SIGNAL_BASE};
use crate::folder::PrivateFolder;
use crate::job;
use crate::output;
use crate::renewal::{self, Renewal};
use crate::variables;

/// Signals that a person or a supervisor sends to this process and means for the command.
const PASSED_ON: &[i32] = &[SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];

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
        Signals::new(PASSED_ON).map_err(|error| Failure::io("listen to signals", &error))?;
    let begun = Begun::new(&connected, &arguments.wanted)?;
    let status = begun.around(&arguments.command, &mut signals);
    begun.end();
    Ok(code(status?))
}

/// An environment that is kept alive. It is ended whatever happens to the command.
struct Begun {
    connected: Arc<Connected>,
    environment: Environment,
    renewal: Renewal,
    folder: PrivateFolder,
    job: String,
}

impl Begun {
    fn new(connected: &Arc<Connected>, wanted: &Wanted) -> Outcome<Self> {
        let id = rustix::process::getpid().as_raw_nonzero().get();
        let job = format!("run-{id}");
        let folder = PrivateFolder::of_job(&job)?;
        abandoned::belongs_to(&folder, id)?;
        abandoned::clear_beside(&folder);
        let created = match creation::create(connected, wanted) {
            Ok(created) => created,
            Err(failure) => {
                folder.remove_if_empty();
                return Err(failure);
            }
        };
        let token = match created.proof {
            Proof::Token(token) => Some(token),
            Proof::Certificate => None,
        };
        let every = renewal::every(&created.environment);
        let renewal = Renewal::start(
            Arc::clone(connected),
            created.environment.id.clone(),
            every,
            token,
        )
        .map_err(|error| Failure::io("start renewing", &error))?;
        Ok(Self {
            connected: Arc::clone(connected),
            environment: created.environment,
            renewal,
            folder,
            job,
        })
    }

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
            })?;
        wait(child, signals)
    }

    fn end(mut self) {
        self.renewal.stop();
        let deadline = Deadline::after(Duration::from_secs(CALL_SECONDS_MAX));
        let result = self.token(deadline).and_then(|token| {
            let answer = self.connected.client.release(
                Caller::Token(&token),
                &self.environment.id,
                0,
                deadline,
            );
            if job::is_released(answer.as_ref()) {
                Ok(())
            } else {
                answer.map(drop)
            }
        });
        if let Err(failure) = result {
            output::remark(&format!(
                "kubler: environment {} could not be released; it ends with its lease",
                self.environment.id
            ));
            output::remark(&failure.lines());
        }
        self.folder.remove_files("");
        self.folder.remove_if_empty();
        self.renewal.settle();
    }

    fn token(&self, deadline: Deadline) -> Outcome<SecretString> {
        match self.renewal.token() {
            Some(token) => Ok(token),
            None => self.connected.token(deadline, None),
        }
    }
}

/// Waits for the command's end and passes signals on meanwhile.
fn wait(mut child: Child, signals: &mut Signals) -> Outcome<ExitStatus> {
    let id = Pid::from_child(&child);
    let handle = signals.handle();
    // A terminal sends these to the command as well: sent twice, they would mean something else.
    let is_at_terminal = std::io::stdin().is_terminal();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for number in signals.forever() {
                let by_terminal = is_at_terminal && matches!(number, SIGINT | SIGQUIT);
                if let Some(signal) = Signal::from_named_raw(number).filter(|_| !by_terminal) {
                    let _ = kill_process(id, signal);
                }
            }
        });
        let status = child
            .wait()
            .map_err(|error| Failure::io("wait for the command", &error));
        handle.close();
        status
    })
}

fn code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| SIGNAL_BASE + signal));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(Exit::Failed as u8)
}
