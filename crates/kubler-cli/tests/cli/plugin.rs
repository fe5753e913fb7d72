//! The plugin's own files.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

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

#[test]
fn every_example_in_the_readme_is_a_configuration_that_kubler_takes() {
    let readme = std::fs::read_to_string(plugin().join("README.md")).unwrap();
    let properties = description()["configuration"]["properties"].clone();
    let mut seen = 0;
    for block in readme.split("```yaml\n").skip(1) {
        let yaml: Value = serde_saphyr::from_str(block.split("```").next().unwrap()).unwrap();
        for step in yaml["steps"].as_array().unwrap() {
            for plugin in step["plugins"].as_array().unwrap() {
                let (reference, configuration) = plugin.as_object().unwrap().iter().next().unwrap();
                assert!(reference.starts_with("kubler/kubler#v"), "{reference}");
                for (key, value) in configuration.as_object().into_iter().flatten() {
                    let property = &properties[key];
                    assert!(!property.is_null(), "`{key}` is not in plugin.yml");
                    let allowed = property["enum"].as_array();
                    assert!(
                        allowed.is_none_or(|allowed| allowed.contains(value)),
                        "{key}: {value}"
                    );
                }
                seen += 1;
            }
        }
    }
    assert!(seen >= 5, "{seen}");
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
