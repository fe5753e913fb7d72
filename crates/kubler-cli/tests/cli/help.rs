//! What people read.

use std::process::Output;

use crate::desk::{Desk, kubler, token};

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn help(arguments: &[&str]) -> String {
    let jobs = tempfile::tempdir().unwrap();
    let output = kubler(jobs.path())
        .env("COLUMNS", "100")
        .args(arguments)
        .arg("--help")
        .output()
        .unwrap();
    assert!(output.status.success());
    text(&output)
}

#[test]
fn help_pages() {
    let pages = [
        &[][..],
        &["env"],
        &["env", "create"],
        &["run"],
        &["credential"],
        &["ledger", "verify"],
        &["ledger", "records"],
        &["policy", "explain"],
    ];
    for page in pages {
        insta::assert_snapshot!(format!("help_{}", page.join("_")), help(page));
    }
}

#[test]
fn errors_say_what_to_do_next() {
    let desk = Desk::open();
    let jobs = tempfile::tempdir().unwrap();
    let file = jobs.path().join("token");
    std::fs::write(&file, token("j")).unwrap();
    let run = |arguments: &[&str]| {
        text(
            &desk
                .kubler(jobs.path())
                .arg("--token-file")
                .arg(&file)
                .args(arguments)
                .output()
                .unwrap(),
        )
    };
    let without_server = kubler(jobs.path())
        .args(["env", "show", "env_1"])
        .output()
        .unwrap();
    assert_eq!(without_server.status.code(), Some(2));
    insta::assert_snapshot!(text(&without_server), @r"
    error: no server is named
    hint: give `--server https://name:port` or set `KUBLER_SERVER`
    ");
    let nobody = desk
        .kubler(jobs.path())
        .args(["env", "list"])
        .output()
        .unwrap();
    assert_eq!(nobody.status.code(), Some(3));
    insta::assert_snapshot!(text(&nobody), @r"
    error: there is no identity to call with
    hint: run this inside a Buildkite job, give `--token-file FILE`, or be an operator with `--client-certificate` and `--client-key`
    ");
    insta::assert_snapshot!(run(&["env", "show", "env_none"]), @r"
    error: there is no such environment (`not_found`)
    hint: look
    request: req_0
    ");
    desk.refuse(
        403,
        "denied",
        "no policy allows it",
        "`kubler policy explain` shows which policy came closest",
    );
    insta::assert_snapshot!(run(&["env", "create", "--profile", "p"]), @r"
    error: no policy allows it (`denied`)
    hint: `kubler policy explain` shows which policy came closest
    request: req_0123
    ");
}

#[test]
fn an_environment_for_people_and_for_scripts() {
    let desk = Desk::open();
    let jobs = tempfile::tempdir().unwrap();
    let file = jobs.path().join("token");
    std::fs::write(&file, token("j")).unwrap();
    let run = |arguments: &[&str]| {
        desk.kubler(jobs.path())
            .arg("--token-file")
            .arg(&file)
            .args(arguments)
            .output()
            .unwrap()
    };
    let made = run(&["env", "create", "--profile", "ci-small", "--output", "json"]);
    let value: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(value["phase"], "ready");
    assert!(made.stderr.is_empty());
    let id = value["id"].as_str().unwrap();
    let shown = text(&run(&["env", "show", id]));
    assert!(
        shown.contains("ci-small (local engine, Kubernetes v1.34.4)")
            && shown.contains("(after 1 s)"),
        "{shown}"
    );
    let listed = text(&run(&["env", "list"]));
    assert!(
        listed.starts_with("ENVIRONMENT") && listed.contains("acme/app"),
        "{listed}"
    );
    assert!(run(&["env", "renew", id]).status.success());
    let written = text(&run(&["kubeconfig", id]));
    let kubeconfig = std::path::Path::new(written.trim());
    assert!(kubeconfig.is_file(), "{written}");
    assert!(text(&run(&["env", "release", id])).contains("`released`"));
    let kept = kubler_testkit::leaks::files_in(kubeconfig.parent().unwrap());
    assert_eq!(kept, [kubeconfig], "sessions go, and it tells of the end");
    let renewed = run(&["env", "renew", id]);
    assert_eq!(renewed.status.code(), Some(4), "{}", text(&renewed));
}

#[test]
fn the_reference_page_says_what_the_program_knows() {
    let jobs = tempfile::tempdir().unwrap();
    let output = kubler(jobs.path()).arg("reference").output().unwrap();
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/kubler.md");
    let page = std::fs::read_to_string(path).unwrap();
    assert!(
        page == text(&output),
        "run `kubler reference > docs/reference/kubler.md`"
    );
}

fn completions(shell: &str) -> String {
    let jobs = tempfile::tempdir().unwrap();
    let output = kubler(jobs.path())
        .args(["completions", shell])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn completions_complete_in_bash() {
    let jobs = tempfile::tempdir().unwrap();
    let script = jobs.path().join("kubler.bash");
    std::fs::write(&script, completions("bash")).unwrap();
    let complete = |words: &str, last: &str| {
        let count = words.split(' ').count();
        let before = words.split(' ').next_back().unwrap();
        let question = format!(
            "source {}; COMP_WORDS=({words} {last}); COMP_CWORD={count}; _kubler kubler '{last}' '{before}'; echo \"${{COMPREPLY[@]}}\"",
            script.display()
        );
        let output = std::process::Command::new("bash")
            .args(["--noprofile", "--norc", "-c", &question])
            .output()
            .unwrap();
        text(&output).trim().to_owned()
    };
    assert_eq!(complete("kubler", "pol"), "policy");
    for hidden in ["hoo", "renewe", "refer"] {
        assert_eq!(complete("kubler", hidden), "", "nobody types it");
    }
    assert_eq!(complete("kubler env", "rel"), "release");
    assert_eq!(complete("kubler policy check", "--conf"), "--config");
    assert_eq!(complete("kubler env list --phase", "rea"), "ready");
}

#[test]
fn completions_are_scripts_of_their_shells() {
    assert!(completions("zsh").starts_with("#compdef kubler"));
    assert!(completions("fish").contains("complete -c kubler"));
    for shell in ["zsh", "fish"] {
        let mut check = std::process::Command::new(shell);
        check.args(["-n", "-c"]).arg(completions(shell));
        // Few machines have them all.
        if let Ok(output) = check.output() {
            assert!(output.status.success(), "{shell}: {}", text(&output));
        }
    }
    let jobs = tempfile::tempdir().unwrap();
    let unknown = kubler(jobs.path())
        .args(["completions", "cmd"])
        .output()
        .unwrap();
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown).contains("bash"), "{}", text(&unknown));
}
