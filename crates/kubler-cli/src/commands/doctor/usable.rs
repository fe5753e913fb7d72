//! Whether the caller gets an environment, and whether the one it has can run what it is given.

use std::process;
use std::time::Duration;

use kubler_api::error::ErrorCode;
use kubler_api::{CreateEnvironment, Environment, Phase, Scope};

use super::{Arguments, LOOK_SECONDS_MAX};
use crate::clock::{self, Deadline};
use crate::commands::doctor::findings::Findings;
use crate::exit::{Exit, Failure, Outcome};
use crate::job::folder::PrivateFolder;
use crate::output;
use crate::server::client::{Filter, PendingPod};
use crate::server::connected::Connected;
use crate::server::session;
use crate::variables;

/// The engine whose environments have no nodes.
const ENGINE_WITHOUT_NODES: &str = "local";
/// How many pods are named.
const PODS_NAMED_MAX: usize = 5;

/// Looks.
pub fn look(arguments: &Arguments, connected: &Connected, findings: &mut Findings) {
    let environment = arguments
        .environment
        .as_deref()
        .and_then(|id| shown(id, connected, findings));
    match (&arguments.profile, &environment) {
        (Some(profile), Some(environment)) if environment.profile == *profile => {
            had(environment, findings);
        }
        (Some(profile), _) => tried(profile, connected, findings),
        (None, Some(environment)) => had(environment, findings),
        (None, None) => believed(connected, findings),
    }
    match &environment {
        Some(environment) => pods(environment, connected, findings),
        None => findings.note(
            "pods",
            "no environment was looked into (give one, or set `KUBLER_ENVIRONMENT`); a `local` environment has no nodes: its pods stay Pending",
        ),
    }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(LOOK_SECONDS_MAX))
}

fn shown(id: &str, connected: &Connected, findings: &mut Findings) -> Option<Environment> {
    let deadline = soon();
    let found = connected
        .proof(deadline)
        .and_then(|proof| connected.client.environment(proof.caller(), id, deadline));
    match found {
        Ok(environment) => {
            let phase = output::phase(environment.phase);
            findings.ok("environment", format!("{id} is {phase}"));
            Some(environment)
        }
        Err(failure) => {
            findings.wrong("environment", &failure);
            None
        }
    }
}

fn had(environment: &Environment, findings: &mut Findings) {
    findings.ok(
        "policy",
        format!(
            "profile `{}` is allowed: {} was made of it",
            environment.profile, environment.id
        ),
    );
}

/// Asks for an environment and ends it at once: only the server knows its policies and what is still free.
fn tried(profile: &str, connected: &Connected, findings: &mut Findings) {
    if connected.tokens().is_err() {
        findings.note(
            "policy",
            format!(
                "an operator makes no environments: `kubler policy explain TOKEN --profile {profile}` says what a job would get"
            ),
        );
        return;
    }
    match trial(profile, connected) {
        Ok(environment) => findings.ok(
            "policy",
            format!(
                "profile `{profile}` is allowed: {} was asked for and ended",
                environment.id
            ),
        ),
        Err(failure) => {
            let message = match failure.code {
                Some(ErrorCode::Denied) => {
                    format!("profile `{profile}` is not allowed: {}", failure.message)
                }
                _ => failure.message.clone(),
            };
            findings.wrong("policy", &Failure { message, ..failure });
        }
    }
}

fn trial(profile: &str, connected: &Connected) -> Outcome<Environment> {
    let deadline = soon();
    let proof = connected.proof(deadline)?;
    // A name of its own: what the job has by another name is not touched.
    let name = format!("doctor-{}-{}", clock::now().as_second(), process::id());
    let request = CreateEnvironment {
        profile: profile.to_owned(),
        name,
        attach: false,
        like: None,
        despite_differences: false,
        scope: Scope::Job,
        wait_seconds: 0,
    };
    let made = connected
        .client
        .create(proof.caller(), &request, deadline)?;
    connected
        .client
        .release(proof.caller(), &made.id, 0, deadline)
}

/// The cheapest question that needs an identity: the environments of this job.
fn believed(connected: &Connected, findings: &mut Findings) {
    let filter = Filter {
        job: variables::get(variables::BUILDKITE_JOB_ID),
        ..Filter::default()
    };
    let deadline = soon();
    let found = connected.proof(deadline).and_then(|proof| {
        connected
            .client
            .environments(proof.caller(), &filter, deadline)
    });
    let known = "the server knows this caller";
    let next = "`--profile PROFILE` asks whether it may use one";
    match found {
        Ok(found) => findings.ok(
            "policy",
            format!(
                "{known}, and shows {} environments; {next}",
                found.environments.len()
            ),
        ),
        Err(failure) if failure.code == Some(ErrorCode::Denied) => {
            findings.note("policy", format!("{known}; {}; {next}", failure.message));
        }
        Err(failure) => findings.wrong("policy", &failure),
    }
}

fn pods(environment: &Environment, connected: &Connected, findings: &mut Findings) {
    if environment.phase != Phase::Ready {
        findings.note(
            "pods",
            format!(
                "{} is not ready: there is nothing to look into",
                environment.id
            ),
        );
        return;
    }
    if connected.tokens().is_err() {
        findings.note(
            "pods",
            "only the job itself may look into its environment; run this in the job",
        );
        return;
    }
    let pending = PrivateFolder::of_this_job()
        .and_then(|folder| {
            let session = session::session(connected, &folder, &environment.id);
            folder.remove_if_empty();
            session
        })
        .and_then(|session| {
            connected
                .client
                .pending_pods(&session.token.into(), &environment.id, soon())
        });
    match pending {
        Ok(pending) => say_pods(environment, &pending, findings),
        Err(failure) => findings.wrong("pods", &failure),
    }
}

fn say_pods(environment: &Environment, pending: &[PendingPod], findings: &mut Findings) {
    let has_nodes = environment.engine != ENGINE_WITHOUT_NODES;
    let why = if has_nodes {
        ""
    } else {
        "; a `local` environment has no nodes: controllers, CRDs, RBAC and webhooks work, and no pod runs"
    };
    if pending.is_empty() {
        return findings.ok("pods", format!("none is Pending{why}"));
    }
    let named: Vec<_> = pending
        .iter()
        .take(PODS_NAMED_MAX)
        .map(ToString::to_string)
        .collect();
    let more = if pending.len() > PODS_NAMED_MAX {
        ", …"
    } else {
        ""
    };
    let message = format!("{} Pending: {}{more}{why}", pending.len(), named.join(", "));
    if has_nodes {
        let hint = "see `kubectl describe pod`; the profile may be too small";
        findings.wrong("pods", &Failure::new(Exit::Found, message).hint(hint));
    } else {
        // As it must be there: nothing is wrong.
        findings.note("pods", format!("{message}; do not wait for them"));
    }
}
