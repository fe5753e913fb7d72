//! `kubler trace`: from a pipeline, a build, a job, a commit or an image to environments, alive or dead, and to their
//! images.

use std::time::Duration;

use clap::Args;

use crate::arguments::{Connection, Format};
use crate::clock::Deadline;
use crate::commands::{ASK_SECONDS_MAX, environment};
use crate::exit::{Exit, Failure, Outcome};
use crate::server::connected::Connected;

#[derive(Debug, Args)]
pub struct Arguments {
    /// An environment, pipeline, `pipeline/number`, build, job, the beginning of a commit, or an image: `name`,
    /// `name:tag`, `name@digest` or a digest.
    #[arg(value_name = "ANYTHING")]
    anything: String,
}

/// Runs the command.
pub fn run(arguments: &Arguments, connection: &Connection, format: Format) -> Outcome<()> {
    let connected = Connected::new(connection, None, None)?;
    let deadline = Deadline::after(Duration::from_secs(ASK_SECONDS_MAX));
    let proof = connected.proof(deadline)?;
    let found = connected
        .client
        .trace(proof.caller(), &arguments.anything, deadline)?;
    if found.environments.is_empty() && format == Format::Text {
        return Err(Failure::new(Exit::Ended, format!("nothing was found for `{}`", arguments.anything))
            .hint("give a pipeline, `pipeline/number`, a job's id, a commit or an image; a job sees its own pipeline only"));
    }
    environment::print(&found, format)
}
