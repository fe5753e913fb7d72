//! `kubler approval`: requests that wait for an operator.

use std::time::Duration;

use clap::{Args, Subcommand};

use crate::arguments::{Connection, Format};
use crate::clock::{self, Deadline};
use crate::commands::ASK_SECONDS_MAX;
use crate::exit::Outcome;
use crate::output;
use crate::server::connected::Connected;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the requests that wait for an approval, and those that were answered and not yet repeated.
    List,
    /// Let one request through, once, when it is repeated exactly as it was.
    Approve(One),
    /// Refuse one request.
    Refuse(One),
}

#[derive(Debug, Args)]
pub struct One {
    /// The approval: `apr_…`, as the refusal and `kubler approval list` name it.
    #[arg(value_name = "APPROVAL")]
    approval: String,
}

/// Runs the command.
pub fn run(command: &Command, connection: &Connection, format: Format) -> Outcome<()> {
    let connected = Connected::new(connection, None, None)?;
    let deadline = Deadline::after(Duration::from_secs(ASK_SECONDS_MAX));
    let proof = connected.proof(deadline)?;
    let answer = |one: &One, approve| {
        connected
            .client
            .answer_approval(proof.caller(), &one.approval, approve, deadline)
    };
    let answered = match command {
        Command::List => {
            let found = connected.client.approvals(proof.caller(), deadline)?;
            return match format {
                Format::Json => output::json(&found),
                Format::Text if found.approvals.is_empty() => {
                    output::remark("nothing waits for an approval");
                    Ok(())
                }
                Format::Text => output::text(&output::approvals(&found, clock::now())),
            };
        }
        Command::Approve(one) => answer(one, true)?,
        Command::Refuse(one) => answer(one, false)?,
    };
    match format {
        Format::Json => output::json(&answered),
        Format::Text => output::text(&output::answered(&answered)),
    }
}
