//! `kubler completions`: for shells.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::exit::Outcome;
use crate::output;

#[derive(Debug, Args)]
pub struct Arguments {
    /// For which shell.
    shell: Shell,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Outcome<()> {
    let mut script = Vec::new();
    clap_complete::generate(
        arguments.shell,
        &mut crate::arguments::Arguments::command(),
        "kubler",
        &mut script,
    );
    output::data(String::from_utf8_lossy(&script).trim_end())
}
