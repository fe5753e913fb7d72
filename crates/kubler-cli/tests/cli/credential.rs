//! What kubectl gets.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::desk::{Desk, token};

fn credential(desk: &Desk, jobs: &Path, token_file: Option<&Path>) -> Command {
    let mut command = desk.kubler(jobs);
    command.args(["credential", "--environment", "env_1"]);
    if let Some(path) = token_file {
        command.arg("--token-file").arg(path);
    }
    command
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn forty_kubectl_at_once_make_one_exchange() {
    let desk = Desk::open();
    desk.put("env_1");
    let jobs = tempfile::tempdir().unwrap();
    let file = jobs.path().join("token");
    std::fs::write(&file, token("j")).unwrap();
    let children: Vec<_> = (0..40)
        .map(|_| {
            credential(&desk, jobs.path(), Some(&file))
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let answers: Vec<Value> = children
        .into_iter()
        .map(|child| serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap())
        .collect();
    assert_eq!(desk.count("POST /v1/token"), 1);
    assert!(
        answers
            .iter()
            .all(|answer| answer["status"]["token"] == answers[0]["status"]["token"])
    );
    assert_eq!(answers[0]["kind"], "ExecCredential");
}

#[test]
fn nobody_else_reads_the_session() {
    use std::os::unix::fs::PermissionsExt as _;
    let desk = Desk::open();
    desk.put("env_1");
    let jobs = tempfile::tempdir().unwrap();
    let file = jobs.path().join("token");
    std::fs::write(&file, token("j")).unwrap();
    assert!(
        credential(&desk, jobs.path(), Some(&file))
            .status()
            .unwrap()
            .success()
    );
    let files = kubler_testkit::leaks::files_in(jobs.path());
    let session = files
        .iter()
        .find(|path| {
            path.extension()
                .is_some_and(|extension| extension == "session")
        })
        .unwrap();
    assert_eq!(
        std::fs::metadata(session).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(
        std::fs::metadata(session.parent().unwrap())
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o700
    );
}

#[test]
fn an_ended_environment_is_explained_and_nothing_is_kept() {
    let desk = Desk::open();
    desk.put("env_1");
    desk.release("env_1");
    let jobs = tempfile::tempdir().unwrap();
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("token");
    std::fs::write(&file, token("j")).unwrap();
    let output = credential(&desk, jobs.path(), Some(&file))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4));
    let told = errors(&output);
    assert!(
        told.contains("env_1 ended at 2026-01-02T03:04:05Z")
            && told.contains("its job released it"),
        "{told}"
    );
    assert!(
        told.contains("https://buildkite.com/acme/app/builds/7#job"),
        "{told}"
    );
    assert_eq!(std::fs::read_dir(jobs.path()).unwrap().count(), 0);
}

#[test]
fn the_end_is_explained_without_any_identity() {
    let desk = Desk::open();
    desk.put("env_1");
    desk.release("env_1");
    let jobs = tempfile::tempdir().unwrap();
    let output = credential(&desk, jobs.path(), None).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", errors(&output));
    assert!(errors(&output).contains("its job released it"));
    desk.put("env_1");
    let output = credential(&desk, jobs.path(), None).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", errors(&output));
    assert!(errors(&output).contains("no identity"));
}

#[test]
fn an_unknown_ca_is_not_believed() {
    let desk = Desk::open();
    let jobs = tempfile::tempdir().unwrap();
    let other = Desk::open();
    let output = desk
        .kubler(jobs.path())
        .arg("--ca")
        .arg(other.ca())
        .args(["doctor"])
        .output()
        .unwrap();
    let told = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        errors(&output)
    );
    assert!(told.contains("--ca"), "{told}");
    assert!(desk.calls().is_empty());
}
