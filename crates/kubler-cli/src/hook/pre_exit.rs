//! After everything: the environment ends. What kubectl needs to tell of that stays until the job's process is gone; then
//! the renewer removes the job's folder. Never fails and never takes long, because the
//! job's own result must stand whatever happens here.

use std::time::Duration;

use jiff::Timestamp;
use kubler_api::error::ErrorCode;

use crate::arguments::Connection;
use crate::clock::{self, Deadline};
use crate::exit::{Failure, Outcome};
use crate::hook::announce;
use crate::hook::configuration::{Annotation, Configuration};
use crate::job::folder::PrivateFolder;
use crate::job::{self, JobEnvironment};
use crate::output;
use crate::renewer::renewal::Tally;
use crate::renewer::{self, Report};
use crate::server::client::Caller;
use crate::server::connected::Connected;

/// Longest time for all of it, in milliseconds: a cancelled job shares a few seconds with its command's own end.
/// Three seconds are promised; the rest is for starting and ending the hook itself.
const PRE_EXIT_MILLISECONDS_MAX: u64 = 2_800;
/// How much of that the renewer may take, in milliseconds. The rest is for doing its work without it.
const RENEWER_MILLISECONDS_MAX: u64 = 1_700;

/// How the environment ends.
enum Ending {
    /// The server knows that the job is over.
    Released,
    /// Other jobs of the build may be using it; with this job it was seen alive until then.
    LeftToTheBuild(Option<Timestamp>),
    /// It had ended before this job did.
    EndedBefore,
    /// The server could not be told, and why.
    WithItsLease(Failure),
}

/// Runs the hook.
pub fn run() {
    let deadline = Deadline::after(Duration::from_millis(PRE_EXIT_MILLISECONDS_MAX));
    let Some((configuration, folder, job)) = found() else {
        return;
    };
    let renewer_bound = deadline.within(Duration::from_millis(RENEWER_MILLISECONDS_MAX));
    let reported = renewer::end(&folder, &job.name, renewer_bound);
    if reported.is_some() {
        job.forget_but_kubeconfigs(&folder);
    } else {
        job.forget(&folder);
    }
    let report = reported.unwrap_or_default();
    let (ending, checkpoint) = end(&job, &report, deadline);
    remark(&job, &report.tally, &ending);
    announce_end(
        &configuration,
        &job,
        &ending,
        checkpoint.as_deref(),
        deadline,
    );
}

/// Ends the environment, unless the renewer did, or it is not this job's alone.
fn end(job: &JobEnvironment, report: &Report, deadline: Deadline) -> (Ending, Option<String>) {
    if job.is_left_to_the_build() {
        return (left(job, deadline), report.checkpoint.clone());
    }
    if report.released {
        return (Ending::Released, report.checkpoint.clone());
    }
    match release(job, deadline) {
        Ok(checkpoint) => (Ending::Released, checkpoint),
        Err(failure) => (Ending::WithItsLease(failure), None),
    }
}

/// The last proof of life of this job, so that the next one has a whole lease to come. Without it the lease runs from
/// the last renewal.
fn left(job: &JobEnvironment, deadline: Deadline) -> Ending {
    let renewed = connected(job).and_then(|connected| {
        let token = connected.token(deadline, None)?;
        connected.client.renew(&token, &job.environment, deadline)
    });
    match renewed {
        Ok(environment) => Ending::LeftToTheBuild(Some(environment.lease_end)),
        Err(failure) if failure.code == Some(ErrorCode::EnvironmentEnded) => Ending::EndedBefore,
        Err(_) => Ending::LeftToTheBuild(None),
    }
}

fn connected(job: &JobEnvironment) -> Outcome<Connected> {
    let connection = Connection {
        server: Some(job.server.clone()),
        audience: Some(job.audience.clone()),
        ca: job.ca.clone(),
        ..Connection::default()
    };
    Connected::new(&connection, None, None)
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
    let connected = connected(job)?;
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

fn remark(job: &JobEnvironment, tally: &Tally, ending: &Ending) {
    let id = &job.environment;
    if let Some(reason) = &tally.last_failure {
        let tries = tally.failures + tally.renewals;
        output::remark(&format!(
            "kubler: {} of {tries} renewals failed, the last one: {reason}",
            tally.failures
        ));
    }
    output::remark(&match ending {
        Ending::Released => {
            format!("kubler: environment {id} is released, its credentials are dead")
        }
        Ending::LeftToTheBuild(lease_end) => {
            let until = lease_end.map_or_else(
                || "ends with its lease".to_owned(),
                |end| format!("ends at {}", output::moment(end, clock::now())),
            );
            format!(
                "kubler: environment {id} is left to the other jobs of this build; it {until} unless one of them renews it"
            )
        }
        Ending::EndedBefore => {
            format!("kubler: environment {id} of this build had ended before this job did")
        }
        Ending::WithItsLease(failure) => format!(
            "kubler: environment {id} could not be released ({}); it ends with its lease, since nobody renews it any more",
            failure.message
        ),
    });
}

fn announce_end(
    configuration: &Configuration,
    job: &JobEnvironment,
    ending: &Ending,
    checkpoint: Option<&str>,
    deadline: Deadline,
) {
    let words = match ending {
        Ending::Released => "released with the job",
        Ending::LeftToTheBuild(_) => "left to the other jobs of this build",
        Ending::EndedBefore => "had ended before the job did",
        Ending::WithItsLease(_) => "ends with its lease",
    };
    std::thread::scope(|scope| {
        if let Some(note) = checkpoint {
            scope.spawn(move || announce::checkpoint(job, note, deadline));
        }
        if configuration.annotation == Annotation::Shown {
            scope.spawn(move || announce::ended(job, words, checkpoint, deadline));
        }
    });
}
