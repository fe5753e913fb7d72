//! `kubler reference`: the reference page, made of what the program itself knows.

use std::fmt::Write as _;

use clap::{Command, CommandFactory as _};

use crate::exit::{Exit, Outcome};
use crate::output;
use crate::variables;

/// Width of the help texts in the page, in columns.
const COLUMNS: usize = 100;

/// Prints the page, as Markdown.
pub fn run() -> Outcome<()> {
    let mut page = String::from(
        "# `kubler`\n\n<!-- Made by `kubler reference`; do not edit. -->\n\n## Exit codes\n\n| code | meaning |\n|---|---|\n",
    );
    for (code, meaning) in Exit::ALL {
        let _ = writeln!(page, "| {code} | {} |", meaning.trim());
    }
    page.push_str(
        "\n`kubler run` ends like its command: with its code, or 128 + n after signal n.\n",
    );
    page.push_str("\n## Environment variables\n\n| variable | meaning |\n|---|---|\n");
    for (name, meaning) in variables::ALL {
        let _ = writeln!(page, "| `{name}` | {} |", meaning.trim());
    }
    page.push_str("\n## Commands\n");
    let mut root = crate::arguments::Arguments::command()
        .term_width(COLUMNS)
        .after_help("");
    root.build();
    add(&root, &mut page);
    output::data(page.trim_end())
}

fn add(command: &Command, page: &mut String) {
    let name = command
        .get_bin_name()
        .unwrap_or_else(|| command.get_name())
        .to_owned();
    let help = command.clone().render_help().to_string();
    let help: Vec<_> = help.lines().map(str::trim_end).collect();
    let _ = write!(
        page,
        "\n### `{name}`\n\n```text\n{}\n```\n",
        help.join("\n").trim_end()
    );
    for sub in command
        .get_subcommands()
        .filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
    {
        add(sub, page);
    }
}
