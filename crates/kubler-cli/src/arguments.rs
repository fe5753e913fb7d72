//! The command line: what was typed, and what it means.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use kubler_api::Scope;

use crate::commands;
use crate::hook;
use crate::job;
use crate::renewer;
use crate::variables;

/// Isolated Kubernetes environments for CI jobs: one for each job, for its identity, for as long as it runs.
#[derive(Debug, Parser)]
#[command(name = "kubler", version, propagate_version = true, arg_required_else_help = true, after_help = exit_codes())]
pub struct Arguments {
    #[command(flatten)]
    pub connection: Connection,
    /// What to print on standard output.
    #[arg(long, global = true, env = variables::KUBLER_OUTPUT, value_enum, default_value_t, hide_env_values = true)]
    pub output: Format,
    #[command(subcommand)]
    pub command: Command,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For scripts.
    Json,
}

/// Where the server is, and who calls.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Connection")]
pub struct Connection {
    /// The server, as `https://name:port`.
    #[arg(long, global = true, value_name = "URL", env = variables::KUBLER_SERVER, hide_env_values = true)]
    pub server: Option<String>,
    /// Audience of the identity token [default: the server's URL].
    #[arg(long, global = true, value_name = "AUDIENCE", env = variables::KUBLER_AUDIENCE, hide_env_values = true)]
    pub audience: Option<String>,
    /// PEM file of the CA to trust instead of the system's.
    #[arg(long, global = true, value_name = "FILE", env = variables::KUBLER_CA, hide_env_values = true)]
    pub ca: Option<PathBuf>,
    /// File with an identity token; `-` is standard input [default: the Buildkite agent of this job].
    #[arg(long, global = true, value_name = "FILE", env = variables::KUBLER_TOKEN_FILE, hide_env_values = true)]
    pub token_file: Option<PathBuf>,
    /// PEM file of an operator's certificate.
    #[arg(long, global = true, value_name = "FILE", env = variables::KUBLER_CLIENT_CERTIFICATE, hide_env_values = true)]
    pub client_certificate: Option<PathBuf>,
    /// PEM file of its key.
    #[arg(long, global = true, value_name = "FILE", env = variables::KUBLER_CLIENT_KEY, hide_env_values = true)]
    pub client_key: Option<PathBuf>,
}

/// What to ask for.
#[derive(Debug, Clone, Args)]
pub struct Wanted {
    /// The profile to make it of [default with `--like`: that environment's].
    #[arg(long, value_name = "PROFILE", env = variables::KUBLER_PROFILE, hide_env_values = true, required_unless_present = "like")]
    pub profile: Option<String>,
    /// Its name within the job, or within the build with `--scope build`.
    #[arg(long, value_name = "NAME", default_value = kubler_api::NAME_DEFAULT, value_parser = name)]
    pub name: String,
    /// Who may use it: this job, or any job of this build, by name.
    #[arg(long, value_enum, default_value_t)]
    pub scope: ScopeArgument,
    /// Make nothing: attach to what another job of this build has made by this name; needs `--scope build`.
    #[arg(long)]
    pub attach: bool,
    /// Make the same again as this environment, alive or dead (`env_…`): refused, with what differs, when its profile has
    /// changed since.
    #[arg(long, value_name = "ENVIRONMENT", conflicts_with = "attach")]
    pub like: Option<String>,
    /// With `--like`: make it all the same, and say what differs.
    #[arg(long, requires = "like")]
    pub despite_differences: bool,
    /// Longest time to wait until it is usable, in seconds; 0 returns at once.
    #[arg(long, value_name = "SECONDS", default_value_t = commands::WAIT_SECONDS_DEFAULT,
        value_parser = wait_seconds)]
    pub wait: u64,
}

fn wait_seconds(text: &str) -> Result<u64, String> {
    seconds(text, commands::WAIT_SECONDS_MAX)
}

/// How long a release may wait for the verified end.
pub fn release_wait(text: &str) -> Result<u64, String> {
    seconds(text, kubler_api::WAIT_SECONDS_MAX)
}

fn seconds(text: &str, most: u64) -> Result<u64, String> {
    let example = most.min(commands::WAIT_SECONDS_DEFAULT);
    match text.parse() {
        Ok(seconds) if seconds <= most => Ok(seconds),
        _ => Err(format!(
            "use whole seconds without a unit, such as {example}, at most {most}"
        )),
    }
}

/// The number of a build.
pub fn build_number(text: &str) -> Result<u64, String> {
    whole(
        text,
        "use the build's number as the CI shows it, such as 1234",
    )
}

/// A place in the ledger.
pub fn sequence(text: &str) -> Result<u64, String> {
    whole(text, "use the sequence of a record, such as 1200")
}

/// How many records are asked for at once.
pub fn records_limit(text: &str) -> Result<u64, String> {
    let expected = "use a whole number from 1 to 100000, such as 200";
    whole(text, expected).and_then(|limit| {
        if (1..=100_000).contains(&limit) {
            Ok(limit)
        } else {
            Err(expected.to_owned())
        }
    })
}

fn whole(text: &str, expected: &str) -> Result<u64, String> {
    text.parse().map_err(|_| expected.to_owned())
}

fn name(text: &str) -> Result<String, String> {
    match job::checked_name(text) {
        Ok(()) => Ok(text.to_owned()),
        Err(failure) => Err(failure.hint.unwrap_or(failure.message)),
    }
}

/// [`Scope`] on the command line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScopeArgument {
    /// This job.
    #[default]
    Job,
    /// Any job of this build.
    Build,
}

impl From<ScopeArgument> for Scope {
    fn from(scope: ScopeArgument) -> Self {
        match scope {
            ScopeArgument::Job => Self::Job,
            ScopeArgument::Build => Self::Build,
        }
    }
}

/// An environment that exists.
#[derive(Debug, Clone, Args)]
pub struct Existing {
    /// The environment: `env_…`.
    #[arg(value_name = "ENVIRONMENT", env = variables::KUBLER_ENVIRONMENT, hide_env_values = true)]
    pub environment: String,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make, look at, keep and end environments.
    #[command(subcommand, visible_alias = "environment")]
    Env(commands::environment::Command),
    /// Write a kubeconfig without secrets, and print where it is.
    Kubeconfig(commands::kubeconfig::Arguments),
    /// Give kubectl a session: the exec plugin of a kubeconfig.
    Credential(commands::credential::Arguments),
    /// Run a command with an environment around it: kept alive while it runs, gone after it.
    Run(commands::run::Arguments),
    /// Find environments, alive or dead, by pipeline, build, job, commit or image.
    Trace(commands::trace::Arguments),
    /// See, approve and refuse requests that wait for an operator.
    #[command(subcommand)]
    Approval(commands::approval::Command),
    /// Ask policies: check, test, explain.
    #[command(subcommand)]
    Policy(commands::policy::Command),
    /// Verify a ledger offline, keep its checkpoints.
    #[command(subcommand)]
    Ledger(commands::ledger::Command),
    /// Look for what keeps a job from its environment.
    Doctor(commands::doctor::Arguments),
    /// Print completions for a shell.
    Completions(commands::completions::Arguments),
    /// Print the reference page.
    #[command(hide = true)]
    Reference,
    /// What the Buildkite plugin's hooks call.
    #[command(subcommand, hide = true)]
    Hook(hook::Command),
    /// What the plugin leaves beside a job.
    #[command(hide = true)]
    Renewer(renewer::Arguments),
}

fn exit_codes() -> String {
    let lines: Vec<_> = crate::exit::Exit::ALL
        .iter()
        .map(|(code, meaning)| format!("  {code}  {}", meaning.trim()))
        .collect();
    format!(
        "Exit codes:\n{}\n`kubler run` ends like its command: with its code, or 128 + n after signal n.",
        lines.join("\n")
    )
}

#[cfg(test)]
mod tests;
