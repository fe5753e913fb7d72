//! What documents tell people to type is what this program takes.

use std::path::{Path, PathBuf};

use clap::{CommandFactory as _, Parser as _};

use super::Arguments;

/// Every document that shows commands.
fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut documents = vec![
        root.join("README.md"),
        root.join("plugins/buildkite/README.md"),
    ];
    let pages = std::fs::read_dir(root.join("docs")).unwrap();
    documents.extend(
        pages
            .map(|page| page.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "md")),
    );
    documents
}

/// The command lines in a text: between backticks, and the lines of code blocks.
fn command_lines(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (index, part) in text.split("```").enumerate() {
        if index % 2 == 1 {
            let code = part.replace("\\\n", " ");
            found.extend(code.lines().filter_map(of_a_line));
        } else {
            found.extend(part.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    found
        .iter()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|line| line.starts_with("kubler "))
        .collect()
}

fn of_a_line(line: &str) -> Option<String> {
    let line = line.trim().trim_start_matches("$ ");
    let line = line.split(" #").next()?;
    // What YAML runs is a command line too.
    let line = line
        .trim_start_matches("- ")
        .trim_start_matches("command: ");
    Some(line.to_owned())
}

/// A command that is only mentioned, by its words.
fn is_mention(words: &[&str]) -> bool {
    let mut command = Arguments::command();
    command.build();
    let mut at = &command;
    words
        .iter()
        .skip(1)
        .all(|word| match at.find_subcommand(word) {
            Some(sub) => {
                at = sub;
                true
            }
            None => false,
        })
}

fn fault(line: &str) -> Option<clap::Error> {
    let words: Vec<_> = line.split(' ').collect();
    if is_mention(&words) {
        return None;
    }
    let error = Arguments::try_parse_from(words).err()?;
    let is_help = matches!(
        error.kind(),
        clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion
    );
    (!is_help).then_some(error)
}

#[test]
fn every_command_line_in_the_documents_is_one() {
    let mut seen = 0;
    for document in documents() {
        for line in command_lines(&std::fs::read_to_string(&document).unwrap()) {
            if let Some(error) = fault(&line) {
                panic!("{}: `{line}`\n{error}", document.display());
            }
            seen += 1;
        }
    }
    assert!(seen >= 15, "only {seen} command lines were found");
}

#[test]
fn a_command_line_that_is_none_is_found() {
    let text = "| why | `kubler policy\ncheck FOLDER` |\n```sh\n$ kubler env show \\\n  env_1 --nowhere # why\n```\nand `kubler policy explain`";
    let lines = command_lines(text);
    assert_eq!(
        lines,
        [
            "kubler policy check FOLDER",
            "kubler env show env_1 --nowhere",
            "kubler policy explain"
        ]
    );
    let faulty: Vec<_> = lines.iter().map(|line| fault(line).is_some()).collect();
    assert_eq!(faulty, [true, true, false]);
}
