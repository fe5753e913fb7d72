//! What a build shows of its environments: meta-data for other jobs, an annotation for people. Neither is proof
//! of anything: any job of the cluster may write both.

use std::process::Command;
use std::time::Duration;

use kubler_api::Environment;

use crate::clock::Deadline;
use crate::exit::{Exit, Failure, Outcome};
use crate::job::JobEnvironment;
use crate::job::token;
use crate::output;
use crate::process;
use crate::variables;

/// Longest time for one call of the agent, in seconds.
const CALL_SECONDS_MAX: u64 = 5;

/// Names the environment in the build's meta-data: `kubler:env:<job id>`.
pub fn environment(job: &JobEnvironment, deadline: Deadline) -> Outcome<()> {
    set(&key("env", job), &job.environment, deadline)
}

/// Keeps a checkpoint of the ledger in the build's meta-data: `kubler:checkpoint:<job id>`.
pub fn checkpoint(job: &JobEnvironment, note: &str, deadline: Deadline) -> Outcome<()> {
    set(&key("checkpoint", job), note, deadline)
}

/// Shows the environment on the job's page.
pub fn made(job: &JobEnvironment, environment: &Environment, deadline: Deadline) -> Outcome<()> {
    let body = format!(
        "{}{} lease {} s, deadline {}\n",
        head(job),
        rows(&[
            ("Kubernetes", &environment.kubernetes_version),
            (
                "digest",
                environment.digest.get(..16).unwrap_or(&environment.digest)
            )
        ]),
        environment.lease_seconds,
        environment.deadline
    );
    annotate(job, "info", &body, deadline)
}

/// Shows how it ended.
pub fn ended(
    job: &JobEnvironment,
    released: &str,
    checkpoint: Option<&str>,
    deadline: Deadline,
) -> Outcome<()> {
    let mut body = format!("{}{released}\n", head(job));
    if let Some(note) = checkpoint {
        let fenced = note.replace("```", "");
        body.push_str(&format!("\n<details><summary>Checkpoint of the ledger</summary>\n\n```\n{}\n```\n\n</details>\n", fenced.trim_end()));
    }
    annotate(job, "info", &body, deadline)
}

fn head(job: &JobEnvironment) -> String {
    let trace =
        variables::get(variables::BUILDKITE_JOB_ID).unwrap_or_else(|| job.environment.clone());
    format!(
        "**Kubernetes environment** `{}` of profile `{}` · trace: `kubler trace {}`\n\n",
        code(&job.environment),
        code(&job.profile),
        code(&trace)
    )
}

fn rows(pairs: &[(&str, &str)]) -> String {
    pairs
        .iter()
        .map(|(name, value)| format!("{name} `{}`, ", code(value)))
        .collect()
}

/// Text between backticks.
fn code(text: &str) -> String {
    output::plain(text).replace('`', "'")
}

fn annotate(job: &JobEnvironment, style: &str, body: &str, deadline: Deadline) -> Outcome<()> {
    let context = format!("kubler-{}", job.name);
    let of_job = agent(
        &[
            "annotate",
            "--scope",
            "job",
            "--style",
            style,
            "--context",
            &context,
        ],
        body,
        deadline,
    );
    if of_job.is_ok() {
        return of_job;
    }
    // Agents before v3.112 know no annotations of jobs: then it stands on the build's page, under a name of its own.
    let id = variables::get(variables::BUILDKITE_JOB_ID).unwrap_or_default();
    let context = format!("kubler-{id}-{}", job.name);
    agent(
        &[
            "annotate",
            "--style",
            style,
            "--context",
            context.get(..100).unwrap_or(&context),
        ],
        body,
        deadline,
    )
}

fn key(what: &str, job: &JobEnvironment) -> String {
    let id = variables::get(variables::BUILDKITE_JOB_ID).unwrap_or_default();
    if job.name == kubler_api::NAME_DEFAULT {
        format!("kubler:{what}:{id}")
    } else {
        format!("kubler:{what}:{id}:{}", job.name)
    }
}

fn set(key: &str, value: &str, deadline: Deadline) -> Outcome<()> {
    agent(&["meta-data", "set", key], value, deadline)
}

/// Calls the agent; the value goes through standard input.
fn agent(arguments: &[&str], input: &str, deadline: Deadline) -> Outcome<()> {
    let mut command = Command::new(token::agent_program());
    command.args(arguments);
    let what = || {
        format!(
            "`buildkite-agent {}`",
            arguments
                .iter()
                .take(2)
                .copied()
                .collect::<Vec<_>>()
                .join(" ")
        )
    };
    let deadline = deadline.within(Duration::from_secs(CALL_SECONDS_MAX));
    let finished = process::run(command, input.as_bytes(), deadline, None)
        .map_err(|unfinished| Failure::new(Exit::Failed, format!("{}: {unfinished}", what())))?;
    if finished.status.success() {
        return Ok(());
    }
    let reason = finished
        .errors
        .lines()
        .last()
        .unwrap_or("it gave no reason")
        .to_owned();
    Err(Failure::new(Exit::Failed, format!("{}: {reason}", what())))
}
