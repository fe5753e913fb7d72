//! `kubler policy explain JOB`: what the server refused a job, why, and the smallest change that would allow it.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use kubler_api::error::ErrorCode;
use kubler_core::ledger::record::{Body, Decision, LedgerAction, Record};
use kubler_core::policy::{self, Action, Question, Subject};
use serde::Serialize;
use serde_json::Value;

use super::Files;
use crate::arguments::{Connection, Format};
use crate::clock::Deadline;
use crate::commands::ASK_SECONDS_MAX;
use crate::exit::{Exit, Failure, Outcome};
use crate::output;
use crate::server::client::RecordsFilter;
use crate::server::connected::{Connected, Proof};

/// Records of one job that are looked at.
const RECORDS_MAX: usize = 10_000;
/// Refusals that are told, the latest ones.
const REFUSALS_MAX: usize = 20;

/// One refusal, as the ledger has it and as policies see it now.
#[derive(Debug, Serialize)]
struct Refusal {
    at: Timestamp,
    request_id: Option<String>,
    action: String,
    asked: BTreeMap<String, String>,
    /// Policies that forbade it.
    forbidden_by: Vec<String>,
    /// Policies that came closest, and what they failed on.
    closest: Vec<String>,
    /// Why a token was refused before any policy was asked.
    before_policy: Option<String>,
    /// What would have allowed it.
    hint: Option<String>,
    policy_digest: Option<String>,
    /// What the configuration at hand says now.
    now: Option<Now>,
}

#[derive(Debug, Serialize)]
struct Now {
    allowed: bool,
    detail: Option<String>,
    hint: Option<String>,
    /// Profiles that the job could have.
    allowed_profiles: Vec<String>,
}

/// Asks the server's ledger; and the policies at hand, when the configuration is.
pub fn run(job: &str, files: &Files, connection: &Connection, format: Format) -> Outcome<Exit> {
    let records = records(job, connection)?;
    let starts: HashMap<u64, &Body> = records
        .iter()
        .map(|record| (record.sequence, &record.body))
        .collect();
    let mut refusals: Vec<_> = records
        .iter()
        .filter_map(|record| refusal(record, &starts, files))
        .collect();
    let more = refusals.len().saturating_sub(REFUSALS_MAX);
    refusals.drain(..more);
    match format {
        Format::Json => output::json(&refusals)?,
        Format::Text if refusals.is_empty() => {}
        Format::Text => output::text(refusals.iter().map(text).collect::<String>().trim_end())?,
    }
    if refusals.is_empty() {
        return Err(Failure::new(Exit::Ended, format!("the ledger has no refusal of job `{job}`"))
            .hint("a job that nobody knew is counted by its address only: `kubler ledger records` shows `caller.refuse_many`; and `kubler doctor` in the job finds what keeps its token from being believed"));
    }
    if more > 0 {
        output::remark(&format!("{more} older refusals are left out"));
    }
    Ok(Exit::Denied)
}

fn records(job: &str, connection: &Connection) -> Outcome<Vec<Record>> {
    let connected = Connected::new(connection, None, None)?;
    let deadline = Deadline::after(Duration::from_secs(ASK_SECONDS_MAX));
    let proof = connected.proof(deadline)?;
    let (mut records, mut next) = (Vec::new(), Some(0));
    while let Some(from) = next.filter(|_| records.len() < RECORDS_MAX) {
        let filter = RecordsFilter {
            environment: None,
            job: Some(job),
            from,
            limit: RECORDS_MAX - records.len(),
        };
        let page = connected
            .client
            .records(proof.caller(), &filter, deadline)
            .map_err(|failure| next_of(failure, &proof, job))?;
        for record in page.records {
            records.push(serde_json::from_value(record).map_err(|error| {
                Failure::new(Exit::Failed, format!("a record cannot be read: {error}"))
                    .hint("is this `kubler` older than its server?")
            })?);
        }
        next = page.next;
    }
    Ok(records)
}

/// Whoever asks as a job is not helped by a permit to read everybody's records.
fn next_of(failure: Failure, proof: &Proof, job: &str) -> Failure {
    match (failure.code, proof) {
        (Some(ErrorCode::Denied), Proof::Token(_)) => failure.hint(format!(
            "ask an operator: this is read from the server's ledger, with `--client-certificate` and `--client-key`, as `kubler policy explain {job}`"
        )),
        _ => failure,
    }
}

fn refusal(record: &Record, starts: &HashMap<u64, &Body>, files: &Files) -> Option<Refusal> {
    let body = &record.body;
    let detail = |name: &str| {
        body.details
            .get(name)
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let (grounds, closest) = match &body.decision {
        Some(Decision::Deny { grounds, closest }) => (Some(grounds), closest.clone()),
        _ if body.action == LedgerAction::CallerRefuse => (None, Vec::new()),
        _ => return None,
    };
    let request = body.request.as_ref().map(|request| {
        let parts = [
            Some(&request.verb),
            request.resource.as_ref(),
            request.path.as_ref(),
        ];
        let words: Vec<_> = parts.into_iter().flatten().map(String::as_str).collect();
        ("request".to_owned(), words.join(" "))
    });
    let environment = body
        .environment_id
        .map(|id| ("environment".to_owned(), id.to_string()));
    let named = ["profile", "name", "scope", "like"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), detail(name)?)));
    let before_policy = grounds.is_none().then(|| {
        let parts = [detail("reason"), detail("detail")];
        parts.into_iter().flatten().collect::<Vec<_>>().join(": ")
    });
    let start = body.start.and_then(|start| starts.get(&start));
    Some(Refusal {
        at: record.at,
        request_id: body.request_id.map(|id| id.to_string()),
        action: body.action.as_str().to_owned(),
        asked: named.chain(request).chain(environment).collect(),
        forbidden_by: grounds.map(|it| it.policies.clone()).unwrap_or_default(),
        closest,
        before_policy,
        hint: detail("hint"),
        policy_digest: grounds.map(|it| it.policy_digest.clone()),
        now: start.and_then(|start| now(start, detail("profile"), files)),
    })
}

/// What the configuration at hand says today, when there is one: also which profile would do.
fn now(start: &Body, profile: Option<String>, files: &Files) -> Option<Now> {
    if start.action != LedgerAction::EnvironmentCreate || !files.configuration.exists() {
        return None;
    }
    let (checked, configuration) = super::load(files).ok()?;
    let subject = Subject::Job(start.identity.clone()?);
    let question = Question {
        action: Action::CreateEnvironment,
        profile,
        environment: None,
    };
    let allowed_profiles = policy::offered_to(&checked.set, &configuration, &subject);
    Some(
        match policy::explain(&checked.set, &configuration, &subject, &question) {
            Ok(answer) => Now {
                allowed: answer.allowed,
                detail: answer.detail,
                hint: answer.hint,
                allowed_profiles,
            },
            Err(fault) => Now {
                allowed: false,
                detail: Some(fault.message),
                hint: Some(fault.hint),
                allowed_profiles,
            },
        },
    )
}

fn text(refusal: &Refusal) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name}: {}", output::plain(value));
    };
    let asked: Vec<_> = refusal
        .asked
        .iter()
        .map(|(name, value)| format!("{name} `{value}`"))
        .collect();
    line(
        "refused",
        &format!("{} ({:.0})", refusal.action, refusal.at),
    );
    line("asked", &asked.join(", "));
    if let Some(reason) = &refusal.before_policy {
        line("before policy", reason);
    }
    if !refusal.forbidden_by.is_empty() {
        line("forbidden by", &refusal.forbidden_by.join(", "));
    }
    for closest in &refusal.closest {
        line("close", closest);
    }
    if let Some(hint) = &refusal.hint {
        line("hint", hint);
    }
    if let Some(now) = &refusal.now {
        match (&now.detail, now.allowed) {
            (_, true) => line("now", "the policies at hand would allow it"),
            (Some(detail), false) => line("now", &format!("still denied: {detail}")),
            (None, false) => line("now", "still denied"),
        }
        if now.allowed_profiles.is_empty() {
            line("profiles", "none is allowed for this job");
        } else {
            line(
                "profiles",
                &format!("this job may have {}", now.allowed_profiles.join(", ")),
            );
        }
    }
    if let Some(id) = &refusal.request_id {
        line("request", id);
    }
    text.push('\n');
    text
}
