//! `kubler ledger records`: what was asked, decided and done, as the server's ledger has it.

use std::time::Duration;

use clap::Args;
use kubler_core::ledger::record::{Body, Decision, Kind, Record};
use serde_json::Value;

use crate::arguments::{self, Connection, Format};
use crate::clock::Deadline;
use crate::commands::ASK_SECONDS_MAX;
use crate::exit::{Exit, Failure, Outcome};
use crate::output;
use crate::server::client::RecordsFilter;
use crate::server::connected::Connected;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Only records about this environment (`env_…`).
    #[arg(long)]
    environment: Option<String>,
    /// Only records of this job.
    #[arg(long)]
    job: Option<String>,
    /// Begin with this sequence.
    #[arg(long, default_value_t = 0, value_parser = arguments::sequence)]
    from: u64,
    /// At most so many.
    #[arg(long, default_value_t = 200, value_parser = arguments::records_limit)]
    limit: u64,
}

/// Runs the command.
pub fn run(arguments: &Arguments, connection: &Connection, format: Format) -> Outcome<()> {
    let connected = Connected::new(connection, None, None)?;
    let deadline = Deadline::after(Duration::from_secs(ASK_SECONDS_MAX));
    let proof = connected.proof(deadline)?;
    let limit = usize::try_from(arguments.limit).unwrap_or(usize::MAX);
    let (mut records, mut next) = (Vec::new(), Some(arguments.from));
    while let Some(from) = next.filter(|_| records.len() < limit) {
        let filter = RecordsFilter {
            environment: arguments.environment.as_deref(),
            job: arguments.job.as_deref(),
            from,
            limit: limit - records.len(),
        };
        let page = connected
            .client
            .records(proof.caller(), &filter, deadline)?;
        records.extend(page.records);
        next = page.next;
    }
    match format {
        Format::Json => output::json(&records)?,
        Format::Text if records.is_empty() => say_nothing_was_found(arguments),
        Format::Text => output::text(&table(records)?)?,
    }
    if let Some(next) = next {
        output::remark(&format!("there are more: `--from {next}`"));
    }
    Ok(())
}

/// What was asked for may be there under another word.
fn say_nothing_was_found(arguments: &Arguments) {
    output::remark("nothing was found");
    match (&arguments.job, &arguments.environment) {
        (Some(job), _) if !is_job_id(job) => output::remark(&format!(
            "hint: `{}` is no job's id: that is 36 digits and `-`, such as `01945ecf-0000-4000-8000-0000000000bb`; `kubler trace {}` finds the jobs of a pipeline, build or commit",
            output::plain(job),
            output::plain(job)
        )),
        (Some(_), _) => output::remark(
            "hint: nothing was recorded of this job: it never asked, or nobody knew it (`caller.refuse_many`)",
        ),
        (None, Some(_)) => output::remark(
            "hint: an environment's id is `env_` and 32 digits, as `kubler env list --all` shows it",
        ),
        (None, None) => {}
    }
}

/// Whether it looks like the ids that CIs give their jobs.
pub fn is_job_id(text: &str) -> bool {
    text.len() == 36 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

fn table(records: Vec<Value>) -> Outcome<String> {
    let rows: Result<Vec<_>, _> = records
        .into_iter()
        .map(|record| serde_json::from_value::<Record>(record).map(|record| row(&record)))
        .collect();
    let unread = |error: serde_json::Error| {
        Failure::new(Exit::Failed, format!("a record cannot be read: {error}")).hint(
            "`--output json` prints records as they are; is this `kubler` older than its server?",
        )
    };
    Ok(output::table(
        &["SEQUENCE", "AT", "WHAT", "OF", "RESULT"],
        rows.map_err(unread)?,
    ))
}

fn row(record: &Record) -> Vec<String> {
    let body = &record.body;
    let action = serde_json::to_value(body.action).ok();
    let action = action
        .as_ref()
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let what = match body.kind {
        Kind::End => format!("{action} ends ({})", body.start.unwrap_or_default()),
        Kind::Start | Kind::Event => action,
    };
    vec![
        record.sequence.to_string(),
        format!("{:.3}", record.at),
        what,
        of(body),
        result(body),
    ]
}

/// Whose it is, and what it is about.
fn of(body: &Body) -> String {
    let job = body.identity.as_ref().map(|identity| {
        let (project, run) = (&identity.project.slug, identity.run.number);
        format!("{project}/{run} job {}", identity.job.id)
    });
    let operator = body
        .operator
        .as_ref()
        .map(|name| format!("operator {name}"));
    let environment = body.environment_id.map(|id| id.to_string());
    let request = body.request.as_ref().map(|request| {
        let parts = [
            Some(&request.verb),
            request.path.as_ref(),
            request.resource.as_ref(),
            request.namespace.as_ref(),
            request.name.as_ref(),
        ];
        parts
            .into_iter()
            .flatten()
            .cloned()
            .collect::<Vec<_>>()
            .join(" ")
    });
    let parts = [job, operator, environment, request];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// What was decided, changed or answered.
fn result(body: &Body) -> String {
    let decision = body.decision.as_ref().map(|decision| match decision {
        Decision::Allow { grounds } => format!("allowed by {}", grounds.policies.join(", ")),
        Decision::Deny { grounds, closest } if grounds.policies.is_empty() => {
            format!(
                "denied; closest: {}",
                closest.first().map_or("none", String::as_str)
            )
        }
        Decision::Deny { grounds, .. } => format!("forbidden by {}", grounds.policies.join(", ")),
    });
    let phase = body.phase.as_ref().map(|change| {
        let why = change
            .message
            .as_ref()
            .map(|why| format!(": {why}"))
            .unwrap_or_default();
        format!("{}{why}", change.to.as_str())
    });
    let outcome = body.outcome.as_ref().map(|outcome| {
        let why = outcome.close_reason.as_ref().or(outcome.message.as_ref());
        format!(
            "{}{}",
            outcome.status,
            why.map(|why| format!(" {why}")).unwrap_or_default()
        )
    });
    let reason = body
        .details
        .get("reason")
        .and_then(Value::as_str)
        .map(str::to_owned);
    let parts = [decision, phase, outcome, reason];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}
