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
            &["bad.cedar:1", "hint: `kubler policy check --config /"],
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
    are_faults(&cases);
}

type Spoil = fn(&Folder);

/// What is spoiled so is a fault, and `check` says these parts.
fn are_faults(cases: &[(&str, Spoil, &[&str])]) {
    let mut wrong = Vec::new();
    for (case, spoil, parts) in cases {
        let folder = Folder::new();
        spoil(&folder);
        let checked = folder.run("check");
        let text = said(&checked);
        let is_refused = checked.status.code() == Some(1) && checked.stdout.is_empty();
        let lacks: Vec<_> = parts.iter().filter(|part| !text.contains(**part)).collect();
        let is_said_twice = text.matches("os error").count() > 1;
        if !is_refused || !lacks.is_empty() || is_said_twice {
            wrong.push(format!("{case}: no {lacks:?} in {text}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn with_manifest(folder: &Folder, text: &str) {
    std::fs::write(folder.path("manifests/m.yaml"), text).unwrap();
    folder.edit(
        "    description: a cluster",
        "    manifests: [manifests/m.yaml]\n    description: a cluster",
    );
}

#[test]
fn t9_what_would_fail_every_job_is_a_fault_of_the_configuration() {
    let cases: [(&str, Spoil, &[&str]); 10] = [
        (
            "a manifest that is a word",
            |it| with_manifest(it, "bad\n"),
            &[
                "profile `ci-small`: manifest `manifests/m.yaml`: it is no Kubernetes object",
                "hint: each document",
            ],
        ),
        (
            "a manifest that is no YAML",
            |it| with_manifest(it, "a: b\nfoo: [\n"),
            &[
                "manifest `manifests/m.yaml` is not YAML: ",
                "line ",
                "hint: ",
            ],
        ),
        (
            "a manifest without a version, behind one that has it",
            |it| {
                let first = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";
                with_manifest(
                    it,
                    &format!("{first}---\nkind: Namespace\nmetadata: {{name: b}}\n"),
                );
            },
            &["manifest `manifests/m.yaml`, document 2: an object has no `apiVersion`"],
        ),
        (
            "a run folder that is too deep",
            |it| {
                let deep = format!("data: data\nrun: {}", "r".repeat(90));
                it.edit("data: data", &deep);
            },
            &[
                "`run` is `",
                "bytes too long",
                "hint: name a shorter folder",
            ],
        ),
        (
            "the CA of somebody else",
            |it| {
                let other = it.read("tls/operator-ca.pem");
                std::fs::write(it.path("tls/ca.pem"), other).unwrap();
            },
            &[
                "`tls.ca` did not sign the server's certificate",
                "hint: `tls.ca` is the CA",
            ],
        ),
        (
            "a name that the certificate does not have",
            |it| {
                it.edit(
                    "url: \"https://localhost:8443\"",
                    "url: \"https://kubler.test:8443\"",
                )
            },
            &[
                "is not for `kubler.test`, which `url` names",
                "hint: `openssl x509",
            ],
        ),
        (
            "an issuer as no token has it",
            |it| {
                it.edit(
                    "    url: https://agent.buildkite.com\n",
                    "    url: https://agent.buildkite.com/\n",
                )
            },
            &[
                "`issuers[0].url`: `https://agent.buildkite.com/` ends with `/`",
                "`iss`",
            ],
        ),
        (
            "a slug that is none",
            |it| it.edit("slug: \"acme\"", "slug: \"Globex Inc\""),
            &[
                "`issuers[0].organizations[0].slug`: `Globex Inc` is not the slug",
                "hint: it is what stands in",
            ],
        ),
        (
            "a pipeline's slug for its id",
            |it| policy(it, "principal.pipeline_id == \"api\""),
            &["more.cedar:1", "no `pipeline_id` is ever `api`", "hint: "],
        ),
        (
            "an id in upper case",
            |it| {
                policy(
                    it,
                    &format!("principal.job_id == \"{}\"", ID.to_uppercase()),
                )
            },
            &["no `job_id` is ever", "write `01945ecf-"],
        ),
    ];
    are_faults(&cases);
}

/// Another permit, with this condition.
fn policy(folder: &Folder, condition: &str) {
    let text = format!(
        "permit (principal is Job, action, resource) when {{ principal.organization_id == \"{ID}\" && {condition} }};"
    );
    std::fs::write(folder.path("policies/more.cedar"), text).unwrap();
}

fn keep(folder: &Folder, path: &str, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let path = folder.path("data").join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn t9_check_looks_at_what_is_kept_and_changes_nothing() {
    let cases: [(&str, Spoil, &[&str]); 6] = [
        (
            "a store that is no database",
            |it| keep(it, "store.sqlite", &"x".repeat(5000)),
            &[
                "the store failed",
                "hint: put a back-up",
                "kubler-server restore --config /",
            ],
        ),
        (
            "damaged session keys",
            |it| keep(it, "sessions/keys.json", "{"),
            &[
                "the file is damaged",
                "hint: `rm ",
                "keys.json`",
                "new sessions",
            ],
        ),
        (
            "a ledger without its key",
            |it| keep(it, "ledger/key.pub", "kubler.test/ledger+00000000+AA==\n"),
            &[
                "its private key is lost",
                "kubler-server ledger recover --config /",
                "--begin-anew",
            ],
        ),
        (
            "a data folder that nobody can make",
            |it| it.edit("data: data", "data: /proc/nope"),
            &["`/proc/nope` cannot be made", "hint: "],
        ),
        (
            "a data folder that is a file",
            |it| std::fs::write(it.path("data"), "").unwrap(),
            &["data` cannot be made", "hint: "],
        ),
        (
            "a key that is damaged",
            |it| keep(it, "ledger/key", "x"),
            &["its private key `key`", "hint: put the right key back"],
        ),
    ];
    are_faults(&cases);
}

#[test]
fn check_notes_what_is_no_fault_yet() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = Folder::new();
    folder.edit(
        "policies: policies",
        "policies: policies\nledger: {sinks: [{file: nowhere/checkpoint}]}",
    );
    for (mode, is_open) in [(0o644, true), (0o640, false)] {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(folder.path("tls/server.key"), mode).unwrap();
        let checked = folder.run("check");
        let text = said(&checked);
        assert_eq!(checked.status.code(), Some(0), "{text}");
        let note = "note: everybody on this machine may read the private key `";
        assert_eq!(text.contains(note), is_open, "{text}");
        let note = "note: the sink `nowhere/checkpoint`: there is no folder `";
        assert!(text.contains(note), "{text}");
    }
    assert!(!folder.path("data").exists());
}

#[test]
fn a_start_that_cannot_listen_leaves_nothing_behind() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = Folder::new();
    folder.edit("127.0.0.1:8443", &address);
    let refused = folder.run("serve");
    let text = said(&refused);
    assert_eq!(refused.status.code(), Some(1), "{text}");
    for part in [&address, "hint: another server may be running"] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
    assert!(!folder.path("data").exists(), "something was begun");
    let place = folder.0.path().display().to_string();
    let left = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let line = std::fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains(&place).then_some(line)
    });
    assert_eq!(left.collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn a_folder_that_is_named_as_the_configuration_is_told_apart_from_none() {
    let folder = Folder::new();
    let checked = Command::new(Programs::find().server())
        .args(["check", "--config"])
        .arg(folder.path(""))
        .output()
        .unwrap();
    let text = said(&checked);
    assert_eq!(checked.status.code(), Some(1), "{text}");
    assert!(
        text.contains("hint: it is a folder: name the file in it"),
        "{text}"
    );
}

#[test]
fn init_listens_where_its_url_leads() {
    for (url, listen) in [
        ("https://kubler.test", "0.0.0.0:443"),
        ("https://kubler.test:9443", "0.0.0.0:9443"),
        ("https://localhost:8444", "127.0.0.1:8444"),
        ("https://127.0.0.1:8444", "127.0.0.1:8444"),
        ("https://[::1]:8444", "[::1]:8444"),
    ] {
        let place = tempfile::tempdir().unwrap();
        let made = Command::new(Programs::find().server())
            .arg("init")
            .arg(place.path().join("k"))
            .args([
                "--organization",
                "acme",
                "--organization-id",
                ID,
                "--url",
                url,
            ])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", said(&made));
        let written = std::fs::read_to_string(place.path().join("k/kubler.yaml")).unwrap();
        assert!(
            written.contains(&format!("listen: \"{listen}\"")),
            "{url}: {written}"
        );
    }
}

#[test]
fn who_states_prefixed_forks_is_told_which_case_to_change() {
    let folder = Folder::new();
    let told = "the second case of\n        # cases.yaml expects `allow` then";
    folder.edit(told, told);
    folder.edit(
        "fork_branches_are_prefixed: false",
        "fork_branches_are_prefixed: true",
    );
    let test = || {
        Command::new(Programs::find().cli())
            .args(["policy", "test"])
            .arg(folder.path("cases.yaml"))
            .arg("--config")
            .arg(folder.path("kubler.yaml"))
            .output()
            .unwrap()
    };
    assert_ne!(test().status.code(), Some(0));
    let cases = folder.read("cases.yaml");
    let second = cases.match_indices("  - name: ").nth(1).unwrap().0;
    let (before, after) = cases.split_at(second);
    let changed = format!(
        "{before}{}",
        after.replacen("expect: deny", "expect: allow", 1)
    );
    std::fs::write(folder.path("cases.yaml"), changed).unwrap();
    let tested = test();
    assert_eq!(tested.status.code(), Some(0), "{}", said(&tested));
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
