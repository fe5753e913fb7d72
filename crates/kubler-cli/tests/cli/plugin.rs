//! The plugin's own files.

use std::path::{Path, PathBuf};
use std::process::Command;

use kubler_core::environment::{NAME_BYTES_MAX, is_name};
use kubler_testkit::kubler::Programs;
use regex::Regex;
use serde_json::{Value, json};

fn plugin() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/buildkite")
}

fn hooks() -> Vec<PathBuf> {
    let mut hooks: Vec<_> = std::fs::read_dir(plugin().join("hooks"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    hooks.sort();
    hooks
}

fn description() -> Value {
    serde_saphyr::from_str(&std::fs::read_to_string(plugin().join("plugin.yml")).unwrap()).unwrap()
}

#[test]
fn hooks_are_executable_posix_shell() {
    use std::os::unix::fs::PermissionsExt as _;
    let names: Vec<_> = hooks()
        .iter()
        .map(|hook| hook.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["environment", "pre-command", "pre-exit"]);
    for hook in hooks() {
        let text = std::fs::read_to_string(&hook).unwrap();
        assert!(text.starts_with("#!/bin/sh\n"), "{}", hook.display());
        assert_eq!(
            std::fs::metadata(&hook).unwrap().permissions().mode() & 0o111,
            0o111
        );
        let checked = Command::new("sh").arg("-n").arg(&hook).output().unwrap();
        assert!(
            checked.status.success(),
            "{}",
            String::from_utf8_lossy(&checked.stderr)
        );
    }
}

/// A sourced hook does not know where it is, so that they cannot share a file.
#[test]
fn every_hook_finds_kubler_by_the_same_text() {
    let texts = hooks().into_iter().map(|hook| {
        let text = std::fs::read_to_string(&hook).unwrap();
        let begin = text.find("# The same text stands in every hook").unwrap();
        let end = text.find("unset kubler_program").unwrap();
        text[begin..end].to_owned()
    });
    let distinct: std::collections::BTreeSet<_> = texts.collect();
    assert_eq!(distinct.len(), 1);
}

#[test]
fn shellcheck_finds_nothing() {
    let checked = Command::new("shellcheck")
        .args(["--shell=sh", "--severity=style"])
        .args(hooks())
        .output();
    let checked = checked.expect("shellcheck is a Debian package: apt-get install shellcheck");
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stdout)
    );
}

#[test]
fn the_description_keeps_the_linters_rules() {
    let description = description();
    let fields = description.as_object().unwrap();
    for required in [
        "name",
        "description",
        "author",
        "requirements",
        "configuration",
    ] {
        assert!(fields.contains_key(required), "{required}");
    }
    for key in fields.keys() {
        assert!(
            [
                "name",
                "description",
                "author",
                "public",
                "requirements",
                "configuration"
            ]
            .contains(&key.as_str()),
            "{key}"
        );
    }
    for text in ["name", "description", "author"] {
        assert!(!fields[text].as_str().unwrap().trim().is_empty());
    }
    assert!(
        fields["requirements"]
            .as_array()
            .unwrap()
            .iter()
            .all(Value::is_string)
    );
    let configuration = fields["configuration"].as_object().unwrap();
    assert_eq!(configuration["additionalProperties"], false);
    for (name, property) in configuration["properties"].as_object().unwrap() {
        assert!(
            ["string", "integer", "boolean"].contains(&property["type"].as_str().unwrap()),
            "{name}"
        );
    }
}

/// Where agents find the server's CA: one path in everything that people paste.
const CA: &str = "/etc/kubler/ca.pem";

/// What people are told to paste: the documents' examples, and what `kubler-server init` prints.
fn examples() -> Vec<(String, String)> {
    let root = plugin().join("../..");
    let mut examples: Vec<_> = ["README.md", "plugins/buildkite/README.md"]
        .iter()
        .flat_map(|document| {
            let text = std::fs::read_to_string(root.join(document)).unwrap();
            text.split("```yaml\n")
                .skip(1)
                .map(|block| {
                    let block = block.split("```").next().unwrap().to_owned();
                    ((*document).to_owned(), block)
                })
                .collect::<Vec<_>>()
        })
        .collect();
    examples.push(("kubler-server init".to_owned(), printed_by_init()));
    examples
}

/// The indented block that begins with `steps:`.
fn printed_by_init() -> String {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(Programs::find().server())
        .arg("init")
        .arg(folder.path().join("k"))
        .args(["--organization-id", "0194b014-8517-7cef-b232-76a827315f08"])
        .args(["--organization", "acme"])
        .args(["--url", "https://kubler.example:8443"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    let put = format!("tls/ca.pem {CA}\n");
    assert!(printed.contains(&put), "where it is put: {printed}");
    let lines: Vec<_> = printed
        .lines()
        .skip_while(|line| line.trim() != "steps:")
        .collect();
    let indent = lines[0].len() - lines[0].trim_start().len();
    let block: Vec<_> = lines
        .iter()
        .take_while(|line| line.starts_with(&" ".repeat(indent)))
        .map(|line| &line[indent..])
        .collect();
    block.join("\n")
}

/// Why `value` is not what `property` of the schema describes. Knows the words that plugin.yml uses.
fn fault(property: &Value, value: &Value) -> Option<String> {
    for (word, meaning) in property.as_object()? {
        let holds = match word.as_str() {
            "type" => match meaning.as_str().unwrap() {
                "string" => value.is_string(),
                "integer" => value.is_i64(),
                "boolean" => value.is_boolean(),
                other => panic!("the type `{other}` is new here"),
            },
            "enum" => meaning.as_array().unwrap().contains(value),
            "minLength" => value.as_str().unwrap().len() as u64 >= meaning.as_u64().unwrap(),
            "minimum" => value.as_i64() >= meaning.as_i64(),
            "maximum" => value.as_i64() <= meaning.as_i64(),
            "pattern" => Regex::new(meaning.as_str().unwrap())
                .unwrap()
                .is_match(value.as_str().unwrap()),
            other => panic!("the word `{other}` is new here"),
        };
        if !holds {
            return Some(format!("{value} against {word}: {meaning}"));
        }
    }
    None
}

/// What is wrong with a plugin's configuration.
fn faults(configuration: &Value) -> Vec<String> {
    let properties = description()["configuration"]["properties"].clone();
    configuration
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match &properties[key] {
            Value::Null => Some(format!("`{key}` is not in plugin.yml")),
            property => fault(property, value).map(|fault| format!("`{key}`: {fault}")),
        })
        .collect()
}

#[test]
fn every_example_to_paste_is_this_plugin_and_fits_its_schema() {
    let version = format!("kubler/kubler#v{}", env!("CARGO_PKG_VERSION"));
    let mut seen = std::collections::BTreeMap::<_, usize>::new();
    for (origin, example) in examples() {
        let yaml: Value = serde_saphyr::from_str(&example).unwrap();
        for step in yaml["steps"].as_array().unwrap() {
            for plugin in step["plugins"].as_array().unwrap() {
                let (reference, configuration) = plugin.as_object().unwrap().iter().next().unwrap();
                // Without an organization the agent would take it from `buildkite-plugins`.
                assert_eq!(*reference, version, "{origin}");
                let faults = faults(configuration);
                assert!(faults.is_empty(), "{origin}: {faults:#?}");
                let ca = configuration.get("ca").and_then(Value::as_str);
                assert!(
                    ca.is_none_or(|ca| ca == CA),
                    "{origin}: one path everywhere"
                );
                *seen.entry(origin.clone()).or_default() += 1;
            }
        }
    }
    for document in ["README.md", "docs/quick-start.md"] {
        let text = std::fs::read_to_string(plugin().join("../..").join(document)).unwrap();
        assert!(text.contains(CA), "{document}");
    }
    assert_eq!(seen["README.md"], 1);
    assert_eq!(seen["kubler-server init"], 1);
    assert!(seen["plugins/buildkite/README.md"] >= 5, "{seen:?}");
}

#[test]
fn the_schema_takes_what_kubler_and_the_server_take_and_no_more() {
    let longest = "a".repeat(NAME_BYTES_MAX);
    for good in ["a", "main", "shard-1", &longest] {
        assert_eq!(faults(&json!({ "name": good })), Vec::<String>::new());
        assert!(is_name(good), "{good}");
    }
    let too_long = "a".repeat(NAME_BYTES_MAX + 1);
    for bad in ["", "A", "a.b", "-a", "a-", "../x", &too_long] {
        assert_eq!(faults(&json!({ "name": bad })).len(), 1, "{bad}");
        assert!(!is_name(bad), "{bad}");
    }
    for wrong in [
        json!({ "server": "http://kubler.example" }),
        json!({ "scope": "pipeline" }),
        json!({ "wait": 0 }),
        json!({ "annotation": "yes" }),
        json!({ "profil": "ci-small" }),
        json!({ "download": "http://kubler.example/kubler" }),
        json!({ "sha256": "ABCD" }),
    ] {
        assert_eq!(faults(&wrong).len(), 1, "{wrong}");
    }
}

#[test]
fn without_kubler_the_job_is_told_what_is_missing() {
    let run = |hook: &str| {
        let path = plugin().join("hooks").join(hook);
        Command::new("/bin/sh")
            .arg(path)
            .env_clear()
            .env("PATH", "/nowhere")
            .output()
            .unwrap()
    };
    let output = run("pre-command");
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        told.contains("error: the command `kubler`") && told.contains("hint: "),
        "{told}"
    );
    assert!(run("environment").status.success());
    assert!(run("pre-exit").status.success());
}
