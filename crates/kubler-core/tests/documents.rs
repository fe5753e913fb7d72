//! Documents name the tests that hold what they promise: those tests must be there.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The names of all functions in Rust files below `folder`.
fn functions(folder: &Path, into: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let names = text.lines().filter_map(|line| {
                let (_, rest) = line.trim_start().split_once("fn ")?;
                rest.split(['(', '<']).next()
            });
            into.extend(names.map(str::to_owned));
        }
    }
}

/// What a document names as `module::test`, or `module::beginning…`.
fn named(document: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join(document)).unwrap();
    let code = text.split('`').skip(1).step_by(2);
    let rows = code.filter(|code| code.contains("::") && !code.contains([' ', '(', '{']));
    let last = rows.filter_map(|code| code.rsplit("::").next());
    // Types begin with a capital, modules of tests end here.
    last.filter(|name| {
        name.contains('_') && name.starts_with(|first: char| first.is_ascii_lowercase())
    })
    .map(str::to_owned)
    .collect()
}

#[test]
fn every_test_that_a_document_names_is_there() {
    let mut known = Vec::new();
    functions(&root().join("crates"), &mut known);
    for document in [
        "docs/threat-model.md",
        "docs/ARCHITECTURE.md",
        "docs/verification-guards.md",
    ] {
        let names = named(document);
        assert!(!names.is_empty(), "{document} names no test");
        for name in names {
            let is_there = match name.strip_suffix('…') {
                Some(beginning) => known.iter().any(|function| function.starts_with(beginning)),
                None => known.contains(&name),
            };
            assert!(
                is_there,
                "{document} names `{name}`, and there is no such test"
            );
        }
    }
}
