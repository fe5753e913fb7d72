//! After everything: the environment ends, the job's folder goes. Never fails and never takes long, because the
//! job's own result must stand whatever happens here.

use std::time::Duration;

use crate::arguments::Connection;
use crate::client::Caller;
use crate::clock::Deadline;
use crate::connected::Connected;
use crate::exit::{Failure, Outcome};
use crate::folder::PrivateFolder;
use crate::hook::announce;
use crate::hook::configuration::{Annotation, Configuration};
use crate::job::{self, JobEnvironment};
use crate::output;
use crate::renewer::{self, Report};

/// Longest time for all of it, in seconds: a cancelled job shares a few with its command's own end.
const PRE_EXIT_SECONDS_MAX: u64 = 3;
/// How much of that the renewer may take, in milliseconds. The rest is for doing its work without it.
const RENEWER_MILLISECONDS_MAX: u64 = 1_700;

/// Runs the hook.
pub fn run() {
    let deadline = Deadline::after(Duration::from_secs(PRE_EXIT_SECONDS_MAX));
    let Some((configuration, folder, job)) = found() else {
        return;
    };
    let report = renewer::end(
        &folder,
        &job.name,
        deadline.within(Duration::from_millis(RENEWER_MILLISECONDS_MAX)),
    )
    .unwrap_or_default();
    let result = if report.released {
        Ok(report.checkpoint.clone())
    } else {
        release(&job, deadline)
    };
    job.forget(&folder);
    remark(&job, &report, result.as_ref().err());
    announce_end(&configuration, &job, &result, deadline);
}

/// What this job's earlier hook left. Nothing, when there was none, or this hook has run already.
fn found() -> Option<(Configuration, PrivateFolder, JobEnvironment)> {
    let configuration = Configuration::of_this_hook().ok()?;
    let folder = PrivateFolder::of_buildkite_job().ok()?;
    let job = JobEnvironment::read(&folder, &configuration.name);
    if job.is_none() {
        folder.remove_if_empty();
    }
    Some((configuration, folder, job?))
}

/// Releases without the renewer. Returns the ledger's checkpoint, if it could be had.
fn release(job: &JobEnvironment, deadline: Deadline) -> Outcome<Option<String>> {
    let connection = Connection {
        server: Some(job.server.clone()),
        audience: Some(job.audience.clone()),
        ca: job.ca.clone(),
        ..Connection::default()
    };
    let connected = Connected::new(&connection, None, None)?;
    let token = connected.token(deadline, None)?;
    let caller = Caller::Token(&token);
    let answer = connected
        .client
        .release(caller, &job.environment, 0, deadline);
    if !job::is_released(answer.as_ref()) {
        answer?;
    }
    Ok(connected
        .client
        .checkpoint(caller, deadline)
        .ok()
        .map(|checkpoint| checkpoint.note))
}

fn remark(job: &JobEnvironment, report: &Report, failure: Option<&Failure>) {
    let tally = &report.tally;
    if let Some(reason) = tally.last_failure.as_ref().filter(|_| tally.failures > 0) {
        output::remark(&format!(
            "kubler: {} of {} renewals failed, the last one: {reason}",
            tally.failures,
            tally.failures + tally.renewals
        ));
    }
    match failure {
        None => output::remark(&format!(
            "kubler: environment {} is released, its credentials are dead",
            job.environment
        )),
        Some(failure) => output::remark(&format!(
            "kubler: environment {} could not be released ({}); it ends with its lease, since nobody renews it any more",
            job.environment, failure.message
        )),
    }
}

fn announce_end(
    configuration: &Configuration,
    job: &JobEnvironment,
    result: &Outcome<Option<String>>,
    deadline: Deadline,
) {
    let checkpoint = result.as_ref().ok().and_then(Option::as_deref);
    let released = if result.is_ok() {
        "released with the job"
    } else {
        "ends with its lease"
    };
    std::thread::scope(|scope| {
        if let Some(note) = checkpoint {
            scope.spawn(move || announce::checkpoint(job, note, deadline));
        }
        if configuration.annotation == Annotation::Shown {
            scope.spawn(move || announce::ended(job, released, checkpoint, deadline));
        }
    });
}
