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

/// A test, as a document may name it.
struct Test {
    /// Folders and file above it, without `.rs`, and `tests` for those within the file that they test.
    modules: Vec<String>,
    name: String,
}

/// All tests in Rust files below `folder`.
fn tests(folder: &Path, into: &mut Vec<Test>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let modules = path.with_extension("");
            let modules = modules.iter().map(|part| part.to_string_lossy().into());
            let modules: Vec<String> = modules.chain(["tests".to_owned()]).collect();
            into.extend(names(&text).map(|name| Test {
                modules: modules.clone(),
                name: name.to_owned(),
            }));
        }
    }
}

/// The names of a file's tests: of each function behind an attribute that makes it one.
fn names(text: &str) -> impl Iterator<Item = &str> {
    let mut is_test = false;
    text.lines().filter_map(move |line| {
        let line = line.trim_start();
        if ["#[test]", "#[tokio::test", "#[rstest"]
            .iter()
            .any(|attribute| line.starts_with(attribute))
        {
            is_test = true;
        }
        let line = line.strip_prefix("pub ").unwrap_or(line);
        let line = line.strip_prefix("async ").unwrap_or(line);
        let rest = line.strip_prefix("fn ")?;
        std::mem::take(&mut is_test).then(|| rest.split(['(', '<']).next())?
    })
}

/// What is named as `module::test`, or `module::beginning…`.
fn named(text: &str) -> impl Iterator<Item = &str> {
    let code = text.split('`').skip(1).step_by(2);
    let code = code.filter(|code| code.contains("::") && !code.contains([' ', '(', '{']));
    // Functions of a type, which begins with a capital, are no tests; modules are of one word.
    code.filter(|code| {
        let (module, name) = code.rsplit_once("::").unwrap_or_default();
        (name.contains('_') || name.ends_with('…'))
            && !module.contains(char::is_uppercase)
            && name.starts_with(|first: char| first.is_ascii_lowercase())
    })
}

fn is_there(all: &[Test], name: &str) -> bool {
    let (modules, name) = name.rsplit_once("::").unwrap();
    let is_meant = |test: &Test| match name.strip_suffix('…') {
        Some(beginning) => test.name.starts_with(beginning),
        None => test.name == name,
    };
    let is_within = |test: &Test| {
        modules
            .split("::")
            .all(|module| test.modules.iter().any(|it| it == module))
    };
    all.iter().any(|test| is_meant(test) && is_within(test))
}

#[test]
fn every_test_that_a_document_names_is_there() {
    let mut all = Vec::new();
    tests(&root().join("crates"), &mut all);
    for document in [
        "docs/threat-model.md",
        "docs/ARCHITECTURE.md",
        "docs/verification-guards.md",
    ] {
        let text = std::fs::read_to_string(root().join(document)).unwrap();
        assert!(named(&text).count() > 0, "{document} names no test");
        for name in named(&text) {
            assert!(
                is_there(&all, name),
                "{document} names `{name}`, and there is no such test"
            );
        }
    }
}

#[test]
fn every_promise_of_the_threat_model_names_its_test() {
    let text = std::fs::read_to_string(root().join("docs/threat-model.md")).unwrap();
    let table = text.split("|---|---|\n").nth(1).unwrap();
    let rows = table.lines().take_while(|line| line.starts_with('|'));
    let mut count = 0;
    for row in rows {
        count += 1;
        assert!(
            named(row).count() > 0 || row.contains("`make "),
            "no test is named in {row}"
        );
    }
    assert!(count > 40, "{count} rows");
}
