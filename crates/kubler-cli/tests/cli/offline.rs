//! What needs no server: policies and ledgers as files.

use std::path::Path;
use std::process::Output;

use jiff::Timestamp;
use kubler_core::ledger::checkpoint::PrivateKey;
use kubler_core::ledger::layout;
use kubler_core::ledger::merkle::{leaf_hash, root};
use kubler_core::ledger::record::{Body, Kind, LedgerAction};
use zeroize::Zeroizing;

use crate::desk::kubler;

const ORGANIZATION: &str = "0194b014-8517-7cef-b232-76a827315f08";

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A ledger of ten records, eight of them signed. Returns a checkpoint over six.
fn ledger(folder: &Path) -> String {
    ledger_of(folder, LedgerAction::ServerStart)
}

/// Another history under the same key.
fn resign(folder: &Path) {
    ledger_of(folder, LedgerAction::ServerStop);
}

fn ledger_of(folder: &Path, action: LedgerAction) -> String {
    let key = PrivateKey::from_random("kubler.example", &Zeroizing::new([7; 32])).unwrap();
    let mut records = Vec::new();
    let mut leaves = Vec::new();
    for sequence in 0..10 {
        let mut line = Vec::new();
        let body = Body::new(Kind::Event, action);
        body.seal().unwrap().write_line(
            sequence,
            Timestamp::from_second(1_700_000_000).unwrap(),
            &mut line,
        );
        leaves.push(leaf_hash(&line));
        line.push(b'\n');
        records.push(line);
    }
    // Two files: where one ends, the next goes on.
    std::fs::write(folder.join(layout::segment_name(0)), records[..4].concat()).unwrap();
    std::fs::write(folder.join(layout::segment_name(4)), records[4..].concat()).unwrap();
    std::fs::write(folder.join(layout::LEAVES), leaves[..8].concat()).unwrap();
    std::fs::write(
        folder.join(layout::CHECKPOINTS),
        format!("{}\n", key.sign(8, root(&leaves[..8]))),
    )
    .unwrap();
    std::fs::write(folder.join(layout::PUBLIC_KEY), key.public().to_string()).unwrap();
    key.sign(6, root(&leaves[..6]))
}

fn verify(folder: &Path, more: &[&str]) -> Output {
    let jobs = tempfile::tempdir().unwrap();
    kubler(jobs.path())
        .args(["ledger", "verify"])
        .arg(folder)
        .args(more)
        .output()
        .unwrap()
}

#[test]
fn l5_a_ledger_is_verified_from_its_files_alone() {
    let folder = tempfile::tempdir().unwrap();
    ledger(folder.path());
    let output = verify(folder.path(), &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(
        text(&output).starts_with("intact\n")
            && text(&output).contains("rollback and re-signing cannot be excluded"),
        "{}",
        text(&output)
    );
}

#[test]
fn l5_a_changed_record_is_named_and_the_code_says_so() {
    let folder = tempfile::tempdir().unwrap();
    ledger(folder.path());
    let segment = folder.path().join(layout::segment_name(4));
    let changed =
        std::fs::read_to_string(&segment)
            .unwrap()
            .replacen("server.start", "server.stop", 1);
    std::fs::write(&segment, changed).unwrap();
    let output = verify(folder.path(), &[]);
    assert_eq!(output.status.code(), Some(7));
    assert!(
        text(&output).contains("NOT intact") && text(&output).contains("record 4 was changed"),
        "{}",
        text(&output)
    );
}

/// What a ledger's folder can be turned into, and what must be said of it first.
#[test]
fn l5_what_was_done_to_a_ledger_is_named_with_a_next_step() {
    type Done<'a> = &'a dyn Fn(&Path);
    let path = |folder: &Path, first| folder.join(layout::segment_name(first));
    let edit = |path: &Path, change: &dyn Fn(Vec<&str>) -> Vec<String>| {
        let text = std::fs::read_to_string(path).unwrap();
        std::fs::write(path, change(text.split_inclusive('\n').collect()).concat()).unwrap();
    };
    let owned = |lines: Vec<&str>| lines.into_iter().map(str::to_owned).collect::<Vec<_>>();
    let cases: [(&str, Done<'_>); 5] = [
        ("record 5 was removed", &|folder| {
            edit(&path(folder, 4), &|mut lines| {
                lines.remove(1);
                owned(lines)
            });
        }),
        (
            "records were reordered: record 6 stands where record 5 should be",
            &|folder| {
                edit(&path(folder, 4), &|mut lines| {
                    lines.swap(1, 2);
                    owned(lines)
                });
            },
        ),
        (
            "the end was cut off: 6 records are there, and the last checkpoint vouches for 8",
            &|folder| {
                edit(&path(folder, 4), &|lines| owned(lines[..2].to_vec()));
            },
        ),
        ("checkpoint 1 of the ledger was changed", &|folder| {
            edit(&folder.join(layout::CHECKPOINTS), &|mut lines| {
                lines[1] = "7\n";
                owned(lines)
            });
        }),
        ("no checkpoint vouches for these records", &|folder| {
            std::fs::remove_file(folder.join(layout::CHECKPOINTS)).unwrap();
        }),
    ];
    for (said, done) in cases {
        let folder = tempfile::tempdir().unwrap();
        ledger(folder.path());
        done(folder.path());
        let output = verify(folder.path(), &[]);
        assert_eq!(output.status.code(), Some(7), "{said}: {}", text(&output));
        let printed = String::from_utf8_lossy(&output.stdout);
        let mut findings = printed.lines().skip(1);
        assert!(
            findings.any(|line| line.starts_with(said)),
            "{said}: {printed}"
        );
        assert!(text(&output).contains("\nhint: "), "{}", text(&output));
        assert!(printed.contains("cannot be excluded"), "{printed}");
    }
}

#[test]
fn l5_a_torn_checkpoint_is_said_and_is_no_fault() {
    let folder = tempfile::tempdir().unwrap();
    ledger(folder.path());
    let notes = folder.path().join(layout::CHECKPOINTS);
    let mut bytes = std::fs::read(&notes).unwrap();
    // Torn in the middle of the dash before the signature.
    let again = bytes.iter().position(|byte| *byte == 0xe2).unwrap() + 1;
    bytes.extend_from_within(..again);
    std::fs::write(&notes, bytes).unwrap();
    let output = verify(folder.path(), &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let said = "the last checkpoint is incomplete";
    assert!(text(&output).contains(said), "{}", text(&output));
}

#[test]
fn l5_a_kept_checkpoint_names_re_signing() {
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let kept = elsewhere.path().join("build-7");
    std::fs::write(&kept, ledger(folder.path())).unwrap();
    // The same key over another history: what has the key can do that, and by itself it looks well.
    resign(folder.path());
    assert_eq!(verify(folder.path(), &[]).status.code(), Some(0));
    let output = verify(folder.path(), &["--checkpoint", kept.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(7));
    let said = "the history was rewritten and signed again: the first 6 records";
    assert!(text(&output).contains(said), "{}", text(&output));
}

#[test]
fn l5_a_kept_checkpoint_names_rollback() {
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let kept = elsewhere.path().join("build-7");
    std::fs::write(&kept, ledger(folder.path())).unwrap();
    let kept = kept.to_str().unwrap();
    let output = verify(folder.path(), &["--checkpoint", kept]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).contains("agrees with"), "{}", text(&output));
    std::fs::remove_file(folder.path().join(layout::segment_name(4))).unwrap();
    std::fs::remove_file(folder.path().join(layout::CHECKPOINTS)).unwrap();
    std::fs::write(folder.path().join(layout::LEAVES), "").unwrap();
    let output = verify(folder.path(), &["--checkpoint", kept]);
    assert_eq!(output.status.code(), Some(7));
    assert!(text(&output).contains("rolled back"), "{}", text(&output));
}

#[test]
fn what_is_no_ledger_is_wrong_use() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(
        verify(folder.path(), &["--public-key", "nonsense"])
            .status
            .code(),
        Some(2)
    );
    assert_eq!(verify(Path::new("/nowhere"), &[]).status.code(), Some(2));
}

fn policies(folder: &Path) {
    let configuration = format!(
        "url: https://kubler.example:8443\nissuers:\n  - kind: buildkite\n    audience: https://kubler.example:8443\n    organizations:\n      - {{id: {ORGANIZATION}, slug: acme}}\n\
         kubernetes: {{\"1.34\": {{}}}}\nprofiles:\n  - {{name: ci-small, kubernetes: \"1.34\"}}\n  - {{name: ci-fork, kubernetes: \"1.34\"}}\n"
    );
    std::fs::write(folder.join("kubler.yaml"), configuration).unwrap();
    std::fs::create_dir(folder.join("policies")).unwrap();
    for (name, text) in kubler_core::policy::starter(ORGANIZATION, "acme") {
        std::fs::write(folder.join("policies").join(name), text).unwrap();
    }
}

fn policy(folder: &Path, arguments: &[&str]) -> Output {
    kubler(folder)
        .current_dir(folder)
        .arg("policy")
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn policies_are_checked_and_explained_offline() {
    let folder = tempfile::tempdir().unwrap();
    policies(folder.path());
    let checked = policy(folder.path(), &["check"]);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked));
    let operator = policy(
        folder.path(),
        &["explain", "--operator", "alice", "--action", "read_ledger"],
    );
    assert_eq!(operator.status.code(), Some(0), "{}", text(&operator));
    assert!(
        text(&operator).starts_with("allowed: `read_ledger`"),
        "{}",
        text(&operator)
    );
    let claims = serde_json::json!({ "iss": "https://agent.buildkite.com", "aud": "https://kubler.example:8443", "sub": "x",
        "organization_id": ORGANIZATION, "organization_slug": "acme", "pipeline_id": ORGANIZATION, "pipeline_slug": "app",
        "build_id": ORGANIZATION, "build_number": 7, "build_branch": "main", "build_tag": null, "build_commit": "HEAD", "step_key": null,
        "job_id": ORGANIZATION, "agent_id": ORGANIZATION, "build_source": "ui", "runner_environment": "self-hosted" });
    std::fs::write(folder.path().join("claims.json"), claims.to_string()).unwrap();
    let denied = policy(
        folder.path(),
        &["explain", "claims.json", "--action", "read_ledger"],
    );
    assert_eq!(denied.status.code(), Some(3), "{}", text(&denied));
    assert!(
        text(&denied).starts_with("denied: `read_ledger`"),
        "{}",
        text(&denied)
    );
}

#[test]
fn golden_cases_hold_or_do_not() {
    let folder = tempfile::tempdir().unwrap();
    policies(folder.path());
    let case = |expect: &str| {
        format!(
            "cases:\n  - name: operators read the ledger\n    operator: alice\n    action: read_ledger\n    expect: {expect}\n"
        )
    };
    std::fs::write(folder.path().join("good.yaml"), case("allow")).unwrap();
    std::fs::write(folder.path().join("bad.yaml"), case("deny")).unwrap();
    let good = policy(folder.path(), &["test", "good.yaml"]);
    assert_eq!(good.status.code(), Some(0), "{}", text(&good));
    assert_eq!(
        policy(folder.path(), &["test", "good.yaml", "bad.yaml"])
            .status
            .code(),
        Some(7)
    );
}

#[test]
fn a_faulty_policy_is_named_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    policies(folder.path());
    std::fs::write(
        folder.path().join("policies/x.cedar"),
        "permit (principal, action, resource);\n",
    )
    .unwrap();
    let output = policy(folder.path(), &["check"]);
    assert_eq!(output.status.code(), Some(7));
    assert!(text(&output).contains("x.cedar:1"), "{}", text(&output));
    // Each fault has its own hint, as the server says them.
    let second = folder.path().join("policies/y.cedar");
    std::fs::write(second, "permit (principal, action, resource);\n").unwrap();
    let both = text(&policy(folder.path(), &["check"]));
    let (faults, hints) = (
        both.matches(".cedar:1").count(),
        both.matches("hint: ").count(),
    );
    assert!(faults >= 2 && hints >= faults, "{both}");
}
