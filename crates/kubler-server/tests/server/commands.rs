//! `kubler-server init`, `check`, `migrate` and the reference pages: what they print and how they end.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kubler_server::reference::Page;
use kubler_testkit::kubler::Programs;

const ID: &str = "01945ecf-0000-4000-8000-00000000000a";

/// A folder as `init` leaves it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self::of(ID)
    }

    fn of(organization_id: &str) -> Self {
        let place = tempfile::tempdir().unwrap();
        let made = Command::new(Programs::find().server())
            .arg("init")
            .arg(place.path().join("k"))
            .args([
                "--organization",
                "acme",
                "--organization-id",
                organization_id,
            ])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", said(&made));
        Self(place)
    }

    fn path(&self, below: &str) -> PathBuf {
        self.0.path().join("k").join(below)
    }

    fn read(&self, below: &str) -> String {
        std::fs::read_to_string(self.path(below)).unwrap()
    }

    fn edit(&self, from: &str, to: &str) {
        let text = self.read("kubler.yaml");
        assert!(text.contains(from), "no `{from}` in {text}");
        std::fs::write(self.path("kubler.yaml"), text.replacen(from, to, 1)).unwrap();
    }

    fn run(&self, command: &str) -> Output {
        self.command(command).output().unwrap()
    }

    fn command(&self, command: &str) -> Command {
        let mut program = Command::new(Programs::find().server());
        program
            .args([command, "--config"])
            .arg(self.path("kubler.yaml"));
        program
    }
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn print(arguments: &[&str]) -> String {
    let output = Command::new(Programs::find().server())
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn init_writes_an_organizations_id_in_the_one_form_that_tokens_have() {
    for written in [ID.to_uppercase(), ID.replace('-', ""), format!("{{{ID}}}")] {
        let folder = Folder::of(&written);
        assert!(
            folder
                .read("kubler.yaml")
                .contains(&format!("- id: \"{ID}\""))
        );
        let policies = folder.read("policies/acme.cedar");
        assert!(policies.contains(&format!("principal.organization_id == \"{ID}\"")));
    }
}

#[test]
fn check_says_what_would_be_served_and_changes_nothing() {
    let folder = Folder::new();
    let checked = folder.run("check");
    let text = said(&checked);
    assert_eq!(checked.status.code(), Some(0), "{text}");
    assert!(checked.stderr.is_empty(), "{text}");
    for part in [
        "profile ci-small: Kubernetes v1.34.",
        "profile untrusted: ",
        "bounds of each environment by the system: open files, memory dumps",
        "policies: ",
        "kubler.yaml is fine",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!folder.path("data").exists());
}

#[test]
fn t9_check_ends_with_1_and_says_what_is_wrong_and_what_to_do() {
    type Spoil = fn(&Folder);
    let cases: [(&str, Spoil, &[&str]); 11] = [
        (
            "an unknown key",
            |it| it.edit("policies: policies", "polices: policies"),
            &["line ", "`polices`", "hint: did you mean `policies`?"],
        ),
        (
            "egress without a port",
            |it| {
                it.edit(
                    "    description: a cluster",
                    "    egress: [hooks.example]\n    description: a cluster",
                )
            },
            &[
                "`profiles[0].egress[0]`: `hooks.example` is not `name:port`",
                "hint: ",
            ],
        ),
        (
            "a version that is not there",
            |it| it.edit("  \"1.34\": {}", "  \"1.34\": {}\n  \"1.2\": {}"),
            &["not `1.2`", "hint: name it `1.34`"],
        ),
        (
            "a folder without programs",
            |it| it.edit("  \"1.34\": {}", "  \"1.34\": {folder: tls}"),
            &[
                "`kubler-control-plane` for Kubernetes `1.34` was not found",
                "/tls`",
                "etcd only",
            ],
        ),
        (
            "a policy for everybody",
            |it| {
                std::fs::write(
                    it.path("policies/bad.cedar"),
                    "permit (principal, action, resource);",
                )
                .unwrap()
            },
            &["bad.cedar:1", "hint: `kubler policy check`"],
        ),
        (
            "no certificate",
            |it| std::fs::remove_file(it.path("tls/server.pem")).unwrap(),
            &[
                "server.pem` cannot be read",
                "hint: the configuration names it",
            ],
        ),
        (
            "certificate and key swapped",
            |it| {
                it.edit(
                    "policies: policies",
                    "policies: policies\ntls: {certificate: tls/server.key, key: tls/server.pem, ca: tls/ca.pem}",
                )
            },
            &["tls/server.key", "tls/server.pem", "hint: ", "swapped"],
        ),
        (
            "a log filter that is none",
            |it| it.edit("policies: policies", "policies: policies\nlog: kubler=loud"),
            &["`log` is `kubler=loud`", "hint: such as `info`"],
        ),
        (
            "a key that is none",
            |it| std::fs::write(it.path("tls/server.key"), "nothing").unwrap(),
            &["key", "hint: "],
        ),
        (
            "a manifest that is not there",
            |it| {
                it.edit(
                    "    description: a cluster",
                    "    manifests: [none.yaml]\n    description: a cluster",
                )
            },
            &["none.yaml` cannot be read", "hint: "],
        ),
        (
            "an empty webhook secret",
            |it| {
                std::fs::write(it.path("secrets/hook"), "\n").unwrap();
                it.edit(
                    "        slug:",
                    "        webhook_secret: secrets/hook\n        slug:",
                );
            },
            &["secrets/hook`: it holds no secret", "hint: "],
        ),
    ];
    for (case, spoil, parts) in cases {
        let folder = Folder::new();
        spoil(&folder);
        let checked = folder.run("check");
        let text = said(&checked);
        assert_eq!(checked.status.code(), Some(1), "{case}: {text}");
        assert!(checked.stdout.is_empty(), "{case}: {text}");
        for part in parts {
            assert!(text.contains(part), "{case}: no `{part}` in {text}");
        }
        let once = text.matches("os error").count();
        assert!(
            once <= 1,
            "{case}: the cause is said {once} times in {text}"
        );
    }
}

#[test]
fn init_refuses_what_could_never_work_and_writes_nothing() {
    let cases = [
        (["--organization", "Acme Inc"], "not the slug"),
        (["--organization", "acme-"], "not the slug"),
        (["--listen", "8443"], "not `address:port`"),
        (["--listen", ":8443"], "not `address:port`"),
        (["--listen", "0.0.0.0:84430"], "not `address:port`"),
        (
            ["--kubernetes", "1.99"],
            "no programs for Kubernetes `1.99`",
        ),
        (["--url", "http://kubler"], "not `https://name:port`"),
    ];
    for (arguments, says) in cases {
        let place = tempfile::tempdir().unwrap();
        let mut command = Command::new(Programs::find().server());
        command
            .arg("init")
            .arg(place.path().join("k"))
            .args(["--organization-id", ID]);
        if arguments[0] != "--organization" {
            command.args(["--organization", "acme"]);
        }
        let refused = command.args(arguments).output().unwrap();
        let text = said(&refused);
        assert_eq!(refused.status.code(), Some(1), "{arguments:?}: {text}");
        assert!(
            text.contains(says) && text.contains("hint: "),
            "{arguments:?}: {text}"
        );
        assert!(!place.path().join("k").exists(), "{arguments:?}");
    }
}

#[test]
fn the_cases_of_init_hold_for_the_policies_of_init() {
    let folder = Folder::new();
    let tested = Command::new(Programs::find().cli())
        .args(["policy", "test"])
        .arg(folder.path("cases.yaml"))
        .arg("--config")
        .arg(folder.path("kubler.yaml"))
        .output()
        .unwrap();
    assert_eq!(tested.status.code(), Some(0), "{}", said(&tested));
}

#[test]
fn troubleshooting_knows_every_error_code() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/troubleshooting.md");
    let page = std::fs::read_to_string(page).unwrap();
    for code in kubler_api::error::ErrorCode::ALL {
        let heading = format!("\n### `{}`\n", code.as_str());
        let section = page.split_once(&heading).map(|(_, rest)| rest);
        let section = section.unwrap_or_else(|| panic!("no section for `{}`", code.as_str()));
        let section = section
            .split("\n## ")
            .next()
            .and_then(|text| text.split("\n### ").next());
        for part in ["- **What:**", "- **Why:**", "- **Next:**"] {
            assert!(
                section.unwrap().contains(part),
                "`{}` has no {part}",
                code.as_str()
            );
        }
    }
}

#[test]
fn without_any_programs_check_says_how_to_get_them() {
    let folder = Folder::new();
    let checked = folder
        .command("check")
        .env("KUBLER_CACHE", folder.path("empty"))
        .output()
        .unwrap();
    let text = said(&checked);
    assert_eq!(checked.status.code(), Some(1), "{text}");
    for part in [
        "`kubler-control-plane`",
        "kube/*/bin",
        "run `kube/build`",
        "etcd only",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn migrate_makes_the_store_and_may_be_repeated() {
    let folder = Folder::new();
    for _ in 0..2 {
        let migrated = folder.run("migrate");
        let text = said(&migrated);
        assert_eq!(migrated.status.code(), Some(0), "{text}");
        assert!(text.contains("store.sqlite is up to date"), "{text}");
        assert!(folder.path("data/store.sqlite").is_file());
    }
}

#[test]
fn migrate_ends_with_1_when_there_is_nothing_to_migrate() {
    let spoiled = Folder::new();
    std::fs::create_dir(spoiled.path("data")).unwrap();
    std::fs::write(spoiled.path("data/store.sqlite"), "x".repeat(5000)).unwrap();
    let blocked = Folder::new();
    std::fs::write(blocked.path("data"), "").unwrap();
    let faulty = Folder::new();
    faulty.edit("data: data", "data: data\nlimits: {queue_max: 0}");
    let absent = Folder::new();
    std::fs::remove_file(absent.path("kubler.yaml")).unwrap();
    for (folder, part) in [
        (spoiled, "the store failed"),
        (blocked, "data` cannot be made"),
        (faulty, "`limits.queue_max`: 0 is out of bounds"),
        (absent, "kubler.yaml` cannot be read"),
    ] {
        let migrated = folder.run("migrate");
        let text = said(&migrated);
        assert_eq!(migrated.status.code(), Some(1), "{part}: {text}");
        assert!(
            text.contains(part) && text.contains("hint: "),
            "{part}: {text}"
        );
    }
}

#[test]
fn the_reference_says_what_the_program_knows() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference");
    let committed = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap_or_default();
    let mut pages: Vec<_> = Page::ALL
        .into_iter()
        .map(|page| {
            (
                format!("{}.md", page.word()),
                print(&["reference", page.word()]),
            )
        })
        .collect();
    pages.push(("kubler.schema.json".into(), print(&["schema"])));
    pages.push(("openapi.json".into(), print(&["openapi"])));
    for (file, text) in pages {
        assert!(
            committed(&file) == text,
            "docs/reference/{file} is old: run `make reference`"
        );
    }
}
