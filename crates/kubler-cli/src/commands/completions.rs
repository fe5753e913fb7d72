//! `kubler completions`: for shells.

use clap::{Args, Command, CommandFactory as _};
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
    clap_complete::generate(arguments.shell, &mut shown(), "kubler", &mut script);
    output::data(String::from_utf8_lossy(&script).trim_end())
}

/// The command line without what only the plugin calls: completions know no hidden commands.
fn shown() -> Command {
    let root = crate::arguments::Arguments::command();
    Command::new("kubler")
        .version(env!("CARGO_PKG_VERSION"))
        .propagate_version(true)
        .args(root.get_arguments().cloned())
        .subcommands(
            root.get_subcommands()
                .filter(|sub| !sub.is_hide_set())
                .cloned(),
        )
}
