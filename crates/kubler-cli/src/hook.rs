//! `kubler hook`: what the Buildkite plugin's hooks call. The hooks themselves are a few lines of shell; what they
//! print on standard output is evaluated by that shell, everything for people goes to standard error.

mod announce;
mod configuration;
mod pre_command;
mod pre_exit;

use clap::{Args, Subcommand};

use crate::exit::Outcome;

#[derive(Debug, Subcommand)]
#[allow(clippy::enum_variant_names, reason = "the names are the hooks'")]
pub enum Command {
    /// The plugin's `environment` hook.
    Environment(Arguments),
    /// The plugin's `pre-command` hook.
    PreCommand(Arguments),
    /// The plugin's `pre-exit` hook.
    PreExit,
}

#[derive(Debug, Args)]
pub struct Arguments {
    /// Process id of the agent's bootstrap: the parent of the hook's shell.
    #[arg(long)]
    bootstrap: i32,
}

/// A hook in which an environment can be made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Before the checkout: `environment`.
    Environment,
    /// Before the command: `pre-command`.
    #[default]
    PreCommand,
}

/// Runs the hook.
pub fn run(command: &Command) -> Outcome<()> {
    match command {
        Command::Environment(arguments) => {
            pre_command::run(Phase::Environment, arguments.bootstrap)
        }
        Command::PreCommand(arguments) => pre_command::run(Phase::PreCommand, arguments.bootstrap),
        Command::PreExit => {
            pre_exit::run();
            Ok(())
        }
    }
}
