//! What is printed: data on standard output, all else on standard error.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is the one place"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use jiff::{SignedDuration, Timestamp};
use kubler_api::{Approval, Approvals, Differences, Environment, Environments, Phase};
use kubler_core::text;
use serde::Serialize;
use signal_hook::consts::SIGPIPE;

use crate::exit::{Exit, Failure, Outcome};

/// Data for programs, as it is.
pub fn data(text: &str) -> Outcome<()> {
    let mut stdout = std::io::stdout().lock();
    let written = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    if let Err(error) = &written
        && error.kind() == ErrorKind::BrokenPipe
    {
        // Whoever reads has enough, as `head` does. Programs end by this signal then, and say nothing.
        let _ = signal_hook::low_level::emulate_default_handler(SIGPIPE);
    }
    written.map_err(|error| Failure::io("write to standard output", &error))
}

/// Data for people.
pub fn text(text: &str) -> Outcome<()> {
    data(&lines(text))
}

/// Data as JSON: for programs, and for people who look at it.
pub fn json(value: &impl Serialize) -> Outcome<()> {
    let json = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    data(&escaped(&json))
}

/// A remark for people.
pub fn remark(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", lines(text));
}

/// Text of somebody outside, without what a terminal would act on and what would deceive whoever reads it.
pub fn plain(text: &str) -> String {
    text::plain(text.chars()).collect()
}

/// The same for text that has lines.
fn lines(text: &str) -> String {
    text.split('\n').map(plain).collect::<Vec<_>>().join("\n")
}

/// JSON of the same meaning, in which every character shows.
fn escaped(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        // Outside of its texts, indented JSON has line feeds.
        if c != '\n' && text::is_unsafe(c) {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// Rows below a head.
pub fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(head);
    table.add_rows(
        rows.into_iter()
            .map(|row| row.into_iter().map(|cell| plain(&cell)).collect::<Vec<_>>()),
    );
    trimmed(&table)
}

/// Names beside values.
pub fn pairs(pairs: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.add_rows(
        pairs
            .into_iter()
            .map(|(name, value)| [name.to_owned(), plain(&value)]),
    );
    trimmed(&table)
}

fn trimmed(table: &Table) -> String {
    table
        .lines()
        .map(|line| line.trim().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The phase in one word.
pub const fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Requested => "requested",
        Phase::Provisioning => "provisioning",
        Phase::Ready => "ready",
        Phase::Failed => "failed",
        Phase::Releasing => "releasing",
        Phase::Gone => "gone",
    }
}

/// A moment, and how far it is from `now`.
pub fn moment(moment: Timestamp, now: Timestamp) -> String {
    let distance = moment.duration_since(now);
    let relative = if distance.is_negative() {
        format!("{} ago", span(-distance))
    } else {
        format!("in {}", span(distance))
    };
    format!("{} ({relative})", round(moment))
}

fn round(moment: Timestamp) -> Timestamp {
    Timestamp::from_second(moment.as_second()).unwrap_or(moment)
}

/// A span in at most two units.
pub fn span(span: SignedDuration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0 => format!("{} ms", span.subsec_millis()),
        1..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// One environment for people.
pub fn environment(environment: &Environment, now: Timestamp) -> String {
    let owner = &environment.owner;
    let mut rows = vec![
        ("environment", environment.id.clone()),
        ("phase", phase(environment.phase).to_owned()),
    ];
    if let Some(end) = &environment.end {
        rows.push(("ended", format!("{} (`{}`)", end.message, end.code)));
    }
    if let Some(failure) = &environment.last_failure {
        rows.push(("last failure", failure.clone()));
    }
    rows.extend([
        ("name", environment.name.clone()),
        (
            "profile",
            format!(
                "{} ({} engine{})",
                environment.profile,
                environment.engine,
                version(environment)
            ),
        ),
    ]);
    if let (Some(host), Some(namespace)) = (&environment.host, &environment.namespace) {
        rows.push(("host", host.clone()));
        rows.push(("namespace", namespace.clone()));
    }
    rows.extend([
        (
            "job",
            format!(
                "{}/{} #{} {}",
                owner.organization, owner.pipeline, owner.build_number, owner.job_id
            ),
        ),
        (
            "commit",
            format!(
                "{} ({})",
                owner.commit,
                owner.branch.as_deref().unwrap_or("no branch")
            ),
        ),
        ("url", owner.url.clone()),
    ]);
    rows.extend(environment.attached.iter().map(|job| {
        let step = job.step_key.as_deref().unwrap_or("no step key");
        let at = round(job.attached_at);
        ("attached", format!("{} ({step}) at {at}", job.job_id))
    }));
    rows.extend([("created", moment(environment.created_at, now))]);
    if let Some(ready_at) = environment.ready_at {
        let took = span(ready_at.duration_since(environment.created_at));
        rows.push(("ready", format!("{} (after {took})", round(ready_at))));
    }
    match environment.dead_at {
        Some(dead_at) => rows.push(("credentials dead", moment(dead_at, now))),
        None => {
            rows.push(("lease ends", moment(environment.lease_end, now)));
            rows.push(("deadline", moment(environment.deadline, now)));
        }
    }
    if let Some(gone_at) = environment.gone_at {
        rows.push(("verified gone", moment(gone_at, now)));
    }
    rows.push(("gateway", environment.gateway.url.clone()));
    rows.push(("digest", environment.digest.clone()));
    pairs(rows)
}

/// The version, as far as it is known: on a host cluster only when a place is chosen.
fn version(environment: &Environment) -> String {
    match environment.kubernetes_version.as_str() {
        "" => String::new(),
        version => format!(", Kubernetes {version}"),
    }
}

/// What differs in two environments, for people.
pub fn differences(found: &Differences) -> String {
    let digest = if found.same {
        "the same digest"
    } else {
        "other digests"
    };
    let head = format!("{} and {}: {digest}", found.before.id, found.after.id);
    if found.differences.is_empty() {
        return head;
    }
    let side = |side: &Option<String>| side.clone().unwrap_or_else(|| "-".into());
    let rows = found.differences.iter().map(|difference| {
        vec![
            difference.what.clone(),
            side(&difference.before),
            side(&difference.after),
        ]
    });
    format!("{head}\n{}", table(&["WHAT", "BEFORE", "AFTER"], rows))
}

/// What was not as it was made, by environment.
pub fn drifts(found: &BTreeMap<String, Vec<kubler_api::Drift>>) -> String {
    let rows = found.iter().flat_map(|(id, drifts)| {
        drifts.iter().map(move |drift| {
            let changes = drift.changes.iter().map(|change| {
                let found = change.found.as_deref().unwrap_or("nothing");
                format!("{} {} -> {found}", change.path, change.applied)
            });
            let by = drift.by.as_ref().map_or("-", |by| by.manager.as_str());
            let answer = drift.message.as_ref().map_or_else(
                || drift.answer.clone(),
                |message| format!("{}: {message}", drift.answer),
            );
            vec![
                id.clone(),
                drift.object.clone(),
                drift.found_at.to_string(),
                by.to_owned(),
                answer,
                changes.collect::<Vec<_>>().join("; "),
            ]
        })
    });
    let head = ["ENVIRONMENT", "OBJECT", "FOUND", "BY", "ANSWER", "CHANGES"];
    table(&head, rows)
}

/// Environments for people.
pub fn environments(found: &Environments, now: Timestamp) -> String {
    let head = [
        "ENVIRONMENT",
        "PHASE",
        "PROFILE",
        "PIPELINE",
        "BUILD",
        "JOB",
        "COMMIT",
        "CREATED",
        "ENDED",
    ];
    let environments = table(
        &head,
        found.environments.iter().map(|environment| {
            let owner = &environment.owner;
            vec![
                environment.id.clone(),
                phase(environment.phase).to_owned(),
                environment.profile.clone(),
                format!("{}/{}", owner.organization, owner.pipeline),
                owner.build_number.to_string(),
                owner.job_id.clone(),
                owner.commit.chars().take(12).collect(),
                moment(environment.created_at, now),
                environment
                    .end
                    .as_ref()
                    .map_or_else(|| "-".to_owned(), |end| end.code.clone()),
            ]
        }),
    );
    let attached: Vec<_> = found
        .environments
        .iter()
        .flat_map(|environment| {
            environment.attached.iter().map(|job| {
                vec![
                    environment.id.clone(),
                    job.job_id.clone(),
                    job.step_key.clone().unwrap_or_else(|| "-".into()),
                    moment(job.attached_at, now),
                ]
            })
        })
        .collect();
    let mut tables = vec![environments];
    if !attached.is_empty() {
        let head = ["ENVIRONMENT", "ATTACHED JOB", "STEP", "ATTACHED"];
        tables.push(table(&head, attached));
    }
    let images: Vec<_> = found.environments.iter().flat_map(images).collect();
    if !images.is_empty() {
        tables.push(table(&["ENVIRONMENT", "IMAGE"], images));
    }
    tables.join("\n\n")
}

/// One row for each image that an environment was asked to run.
fn images(environment: &Environment) -> impl Iterator<Item = Vec<String>> {
    let more = environment
        .images_truncated
        .then_some("… there may be more in the ledger");
    let all = environment.images.iter().map(String::as_str).chain(more);
    all.map(|image| vec![environment.id.clone(), image.to_owned()])
}

/// Requests that wait for an operator.
pub fn approvals(found: &Approvals, now: Timestamp) -> String {
    let head = [
        "APPROVAL",
        "STATE",
        "WHAT",
        "ENVIRONMENT",
        "JOB",
        "ASKED",
        "UNTIL",
    ];
    table(
        &head,
        found.approvals.iter().map(|approval| {
            vec![
                approval.id.clone(),
                approval.state.clone(),
                approval.what.clone(),
                approval.environment_id.clone(),
                approval.job_url.clone(),
                moment(approval.asked_at, now),
                round(approval.until).to_string(),
            ]
        }),
    )
}

/// What was said to one of them.
pub fn answered(approval: &Approval) -> String {
    let (what, until) = (plain(&approval.what), round(approval.until));
    if approval.state == "approved" {
        format!("approved: `{what}`; the job may repeat exactly this request, once, until {until}")
    } else {
        format!("refused: `{what}`; the job cannot ask for it again before {until}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_at_most_two_units() {
        let text = |seconds| span(SignedDuration::from_secs(seconds));
        assert_eq!(
            [text(5), text(65), text(7260)],
            ["5 s", "1 min 5 s", "2 h 1 min"]
        );
        assert_eq!(span(SignedDuration::from_millis(20)), "20 ms");
    }

    #[test]
    fn c6_json_for_people_shows_every_character_and_means_the_same() {
        let value = serde_json::json!({ "a\u{202e}b": "\u{200d}\u{e0041}\u{7f}\n\u{9b}é" });
        let json = escaped(&serde_json::to_string_pretty(&value).unwrap());
        assert!(
            json.contains(r#""a\u202eb": "\u200d\udb40\udc41\u007f\n\u009bé""#),
            "{json}"
        );
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&json).unwrap(),
            value
        );
    }

    #[test]
    fn c6_a_terminal_gets_no_commands_of_outsiders() {
        assert_eq!(plain("a\u{1b}[2Jb\nc"), "a\u{fffd}[2Jb\u{fffd}c");
        assert_eq!(
            plain("etc\u{202e}nimda\u{61c}\u{200b}x\u{2060}\u{feff}"),
            "etc\u{fffd}nimda\u{fffd}\u{fffd}x\u{fffd}\u{fffd}"
        );
        assert_eq!(lines("a\u{202e}\r\nb"), "a\u{fffd}\u{fffd}\nb");
        assert!(!table(&["X"], [vec!["\u{1b}]0;x\u{7}".to_owned()]]).contains('\u{1b}'));
    }
}
