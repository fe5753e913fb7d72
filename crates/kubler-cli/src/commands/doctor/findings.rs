//! What was found, and how it is printed.

use serde::Serialize;

use crate::arguments::Format;
use crate::exit::{Failure, Outcome};
use crate::output;

/// How one thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it must be.
    Ok,
    /// To be known, nothing to be done.
    Note,
    /// Something must be done.
    Wrong,
}

/// How one thing was found.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    state: State,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

/// What was found, in the order of looking.
#[derive(Default)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// As it must be.
    pub fn ok(&mut self, what: &'static str, message: impl Into<String>) {
        self.0.push(Finding {
            what,
            state: State::Ok,
            message: message.into(),
            hint: None,
        });
    }

    /// To be known.
    pub fn note(&mut self, what: &'static str, message: impl Into<String>) {
        self.0.push(Finding {
            what,
            state: State::Note,
            message: message.into(),
            hint: None,
        });
    }

    /// Something must be done.
    pub fn wrong(&mut self, what: &'static str, failure: &Failure) {
        self.0.push(Finding {
            what,
            state: State::Wrong,
            message: failure.message.clone(),
            hint: failure.hint.clone(),
        });
    }

    /// Whether nothing must be done.
    pub fn are_well(&self) -> bool {
        self.0.iter().all(|finding| finding.state != State::Wrong)
    }

    /// Prints them.
    pub fn print(&self, format: Format) -> Outcome<()> {
        match format {
            Format::Json => output::json(&self.0),
            Format::Text => output::text(&text(&self.0)),
        }
    }
}

fn text(findings: &[Finding]) -> String {
    let mut lines = Vec::new();
    for finding in findings {
        let mark = match finding.state {
            State::Ok => "ok   ",
            State::Note => "note ",
            State::Wrong => "WRONG",
        };
        lines.push(format!(
            "{mark} {}: {}",
            finding.what,
            output::plain(&finding.message)
        ));
        lines.extend(
            finding
                .hint
                .as_ref()
                .map(|hint| format!("      hint: {}", output::plain(hint))),
        );
    }
    lines.join("\n")
}
