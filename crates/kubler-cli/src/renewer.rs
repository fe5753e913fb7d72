//! `kubler renewer`: the process beside a job that keeps its environment alive, and ends it when the job is over.
//!
//! It lives exactly as long as the job: it watches the process that *is* the job (the agent's bootstrap) and the
//! agent itself. When the job is over and nobody came to say so, it is the one that releases, with the last token
//! it got: by then the job may be unable to mint another. It never looks whether a process "can be signalled":
//! a dead one that nobody collected can.

pub mod renewal;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

use crate::arguments::Connection;
use crate::clock::Deadline;
use crate::exit::{Exit, Failure, Outcome};
use crate::job::agent_api::JobApi;
use crate::job::folder::PrivateFolder;
use crate::job::{self, JobEnvironment};
use crate::process::watched::{self, Process};
use crate::renewer::renewal::{Renewal, Tally};
use crate::server::client::Caller;
use crate::server::connected::Connected;
use crate::variables;

/// Longest time for ending the environment, in seconds: mint if need be, release, read the checkpoint.
const END_SECONDS_MAX: u64 = 3;
/// Longest time for minting a token at the end, in seconds, when the last one is too old.
const LAST_MINT_SECONDS_MAX: u64 = 1;
/// How long the job may go on without its agent, in seconds. Nobody will ever report its result; what it gets
/// is the time that a cancelled job has for its own hooks.
const WITHOUT_AGENT_SECONDS_MAX: u64 = 10;
/// How long a renewer may take to watch what it has to watch.
const START_BOUND: Duration = Duration::from_secs(5);
/// How often a wait without an end is begun anew.
const WATCH_ANEW: Duration = Duration::from_secs(3600);
/// How often its report is looked for.
const REPORT_LOOK: Duration = Duration::from_millis(10);
/// What it says when it does.
const WATCHING: &str = "watching";

#[derive(Debug, Args)]
pub struct Arguments {
    /// The environment's name within the job.
    #[arg(long)]
    name: String,
    /// Process id of the agent's bootstrap.
    #[arg(long)]
    bootstrap: i32,
    /// Milliseconds between two renewals.
    #[arg(long)]
    every: u64,
}

/// What a renewer leaves for the hook that ended it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// What it did before.
    pub tally: Tally,
    /// Whether the server knows that the job is over.
    pub released: bool,
    /// The ledger's checkpoint after that.
    pub checkpoint: Option<String>,
}

/// Starts a renewer that outlives this process, and waits until it watches.
pub fn start(
    job: &JobEnvironment,
    bootstrap: i32,
    every: Duration,
    token: Option<&SecretString>,
) -> Outcome<()> {
    let failed = |error: &std::io::Error| Failure::io("start the renewer", error);
    let program = std::env::current_exe().map_err(|error| failed(&error))?;
    let every = every.as_millis().to_string();
    let mut command = Command::new(program);
    command.args([
        "renewer",
        "--name",
        &job.name,
        "--bootstrap",
        &bootstrap.to_string(),
        "--every",
        &every,
    ]);
    command.envs(job.variables());
    // The job's identity is its agent's, whatever else the surroundings offer.
    for other in [
        variables::KUBLER_TOKEN_FILE,
        variables::KUBLER_CLIENT_CERTIFICATE,
        variables::KUBLER_CLIENT_KEY,
    ] {
        command.env_remove(other);
    }
    // Nothing of the hook's own: the agent waits for whoever keeps its output open.
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(&error))?;
    if let (Some(mut stdin), Some(token)) = (child.stdin.take(), token) {
        stdin
            .write_all(token.expose_secret().as_bytes())
            .map_err(|error| failed(&error))?;
    }
    let Some(stdout) = child.stdout.take() else {
        return Ok(());
    };
    let mut line = String::new();
    let ready = watched::first_of(&[stdout.as_fd()], Deadline::after(START_BOUND))
        .ok()
        .flatten()
        .is_some()
        && BufReader::new(stdout).read_line(&mut line).is_ok();
    if ready && line.trim() == WATCHING {
        return Ok(());
    }
    let _ = child.kill();
    let _ = child.wait();
    let reason = if line.trim().is_empty() {
        "it said nothing"
    } else {
        line.trim()
    };
    Err(Failure::new(
        Exit::Failed,
        format!("the renewer did not start: {reason}"),
    ))
}

/// Whether the renewer of this environment lives.
pub fn is_alive(folder: &PrivateFolder, name: &str) -> bool {
    let process: Option<Process> = folder.read_json(&process_name(name));
    process
        .and_then(Process::watch)
        .is_some_and(|watch| !watched::ended_by(&watch, Deadline::after(Duration::ZERO)))
}

/// Tells the renewer of this environment to end it, and waits for its report. `None` when there is no renewer any more,
/// or it does not report in time; then it is killed. A renewer that has reported does nothing more than to remove what is
/// left of the job on this machine, once the job is over.
pub fn end(folder: &PrivateFolder, name: &str, deadline: Deadline) -> Option<Report> {
    let process: Process = folder.read_json(&process_name(name))?;
    let watch = process.watch()?;
    watched::signal(&watch, rustix::process::Signal::TERM);
    while !watched::ended_by(&watch, deadline.within(REPORT_LOOK)) {
        let report = folder.read_json(&report_name(name));
        if report.is_some() {
            return report;
        }
        if deadline.is_over() {
            watched::signal(&watch, rustix::process::Signal::KILL);
            break;
        }
    }
    None
}

/// Runs the renewer. Its standard output is a pipe to the hook, for one line.
pub fn run(arguments: &Arguments, connection: &Connection) -> Outcome<()> {
    let prepared = Prepared::new(arguments, connection);
    let line = match &prepared {
        Ok(_) => WATCHING.to_owned(),
        Err(failure) => failure.lines().replace('\n', "; "),
    };
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    prepared?.keep_alive();
    Ok(())
}

struct Prepared {
    job: JobEnvironment,
    folder: PrivateFolder,
    connected: Arc<Connected>,
    renewal: Renewal,
    watches: Watches,
}

/// What can end a job.
struct Watches {
    /// Somebody asks this process to end.
    asked: UnixStream,
    /// The job itself: its process, or its API's connection.
    job: OwnedFd,
    /// The agent.
    agent: Option<OwnedFd>,
}

/// What came to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// `pre-exit` said so.
    Asked,
    /// The job's process ended.
    Job,
    /// The agent ended and the job did not.
    Agent,
}

impl Prepared {
    fn new(arguments: &Arguments, connection: &Connection) -> Outcome<Self> {
        let watches = Watches::new(arguments.bootstrap)?;
        // A terminal that goes away with the hook must not take this process along.
        rustix::process::setsid()
            .map_err(|error| Failure::io("leave the hook's session", &error.into()))?;
        let folder = PrivateFolder::of_buildkite_job()?;
        let job = JobEnvironment::read(&folder, &arguments.name).ok_or_else(|| {
            Failure::new(
                Exit::Failed,
                format!("nothing is known of the environment `{}`", arguments.name),
            )
        })?;
        // Nothing of the checkout is kept busy. Paths that matter are absolute by now.
        std::env::set_current_dir("/")
            .map_err(|error| Failure::io("leave the checkout", &error))?;
        let mut token = String::new();
        std::io::stdin()
            .lock()
            .read_to_string(&mut token)
            .map_err(|error| Failure::io("read the first token", &error))?;
        let token = (!token.is_empty()).then(|| SecretString::from(token));
        let connected = Arc::new(Connected::new(connection, None, None)?);
        let process =
            Process::this().map_err(|error| Failure::io("look at this process", &error))?;
        folder.remove_files(&report_name(&job.name));
        folder.write_json(&process_name(&job.name), &process)?;
        let every = Duration::from_millis(arguments.every);
        let renewal = Renewal::start(
            Arc::clone(&connected),
            job.environment.clone(),
            every,
            token,
        )
        .map_err(|error| Failure::io("start renewing", &error))?;
        Ok(Self {
            job,
            folder,
            connected,
            renewal,
            watches,
        })
    }

    fn keep_alive(mut self) {
        let mut end = self.watches.wait();
        self.renewal.stop();
        if end == End::Agent {
            end = self.watches.wait_without_agent();
        }
        let report = self.release();
        self.renewal.settle();
        if end == End::Asked {
            let report_name = report_name(&self.job.name);
            let written = self.folder.write_json(&report_name, &report);
            if written.is_ok() {
                // Later hooks of the job have its kubeconfig still: kubectl is told of the end there.
                self.watches.wait_for_job();
            }
        }
        self.job.forget(&self.folder);
    }

    /// Ends the environment. The credential on this machine goes first: that needs nobody's help.
    fn release(&self) -> Report {
        self.job.forget_session(&self.folder);
        let mut report = Report {
            tally: self.renewal.tally(),
            ..Report::default()
        };
        let deadline = Deadline::after(Duration::from_secs(END_SECONDS_MAX));
        let mint = || {
            self.connected
                .token(
                    deadline.within(Duration::from_secs(LAST_MINT_SECONDS_MAX)),
                    None,
                )
                .ok()
        };
        let Some(token) = self.renewal.token().or_else(mint) else {
            return report;
        };
        let caller = Caller::Token(&token);
        if !self.job.is_left_to_the_build() {
            let answer = self
                .connected
                .client
                .release(caller, &self.job.environment, 0, deadline);
            report.released = job::is_released(answer.as_ref());
        }
        report.checkpoint = self
            .connected
            .client
            .checkpoint(caller, deadline)
            .ok()
            .map(|checkpoint| checkpoint.note);
        report
    }
}

impl Watches {
    fn new(bootstrap: i32) -> Outcome<Self> {
        let failed = |error: std::io::Error| Failure::io("listen to signals", &error);
        let (asked, sender) = UnixStream::pair().map_err(failed)?;
        signal_hook::low_level::pipe::register(signal_hook::consts::SIGTERM, sender)
            .map_err(failed)?;
        let process = watched::watch_ancestor(bootstrap);
        let job = match process {
            Some(process) => process,
            None => job_connection()?,
        };
        Ok(Self {
            asked,
            job,
            agent: agent_of(bootstrap),
        })
    }

    fn wait(&self) -> End {
        let mut watched: Vec<BorrowedFd<'_>> = vec![self.asked.as_fd(), self.job.as_fd()];
        watched.extend(self.agent.iter().map(|agent| agent.as_fd()));
        loop {
            match watched::first_of(&watched, Deadline::after(WATCH_ANEW)) {
                Ok(None) => {}
                Ok(Some(0)) => return End::Asked,
                Ok(Some(1)) | Err(_) => return End::Job,
                Ok(Some(_)) => return End::Agent,
            }
        }
    }

    /// However long the last hooks of the job take.
    fn wait_for_job(&self) {
        while let Ok(None) = watched::first_of(&[self.job.as_fd()], Deadline::after(WATCH_ANEW)) {}
    }

    /// The agent is gone. The job's own hooks may still run, and `pre-exit` may still ask.
    fn wait_without_agent(&self) -> End {
        let deadline = Deadline::after(Duration::from_secs(WITHOUT_AGENT_SECONDS_MAX));
        match watched::first_of(&[self.asked.as_fd(), self.job.as_fd()], deadline) {
            Ok(Some(0)) => End::Asked,
            Ok(Some(_)) | Err(_) => End::Job,
            Ok(None) => End::Agent,
        }
    }
}

/// Where the job's process cannot be watched: a connection to its API, which ends with it.
fn job_connection() -> Outcome<OwnedFd> {
    let api = JobApi::of_this_job().ok_or_else(|| {
        Failure::new(
            Exit::Failed,
            "neither the job's process nor its API can be watched",
        )
        .hint("the end of this job could not be noticed; is this hook run by a Buildkite agent?")
    })?;
    api.hold()
        .map(OwnedFd::from)
        .map_err(|error| Failure::io("hold a connection to the job's API", &error))
}

/// The agent, if the number is its: in a container it is that of a process elsewhere.
fn agent_of(bootstrap: i32) -> Option<OwnedFd> {
    let agent: i32 = variables::get(variables::BUILDKITE_AGENT_PID)?
        .parse()
        .ok()?;
    let watch = watched::watch_ancestor(agent)?;
    (watched::parent(bootstrap)? == agent).then_some(watch)
}

fn process_name(name: &str) -> String {
    format!("{name}.renewer")
}

fn report_name(name: &str) -> String {
    format!("{name}.report")
}
