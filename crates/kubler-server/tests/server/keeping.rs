//! What is kept, and what became of it meanwhile: an older ledger put back, a copied folder, a lost file, an older
//! store; and back-ups. The server names each, does not start on what it must not, and goes on when an operator decides.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use kubler_testkit::buildkite::Buildkite;
use kubler_testkit::kubler::Server;
use reqwest::Method;
use rustix::process::Signal;
use serde_json::Value;

use crate::SOON;

/// Files of a folder, by name.
type Files = BTreeMap<String, Vec<u8>>;

fn files(folder: &Path, begins: &[&str]) -> Files {
    let mut all = Files::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if begins.iter().any(|begin| name.starts_with(begin)) {
            all.insert(name, std::fs::read(entry.path()).unwrap());
        }
    }
    all
}

/// Into the files that are there: they stay the same files.
fn put_back(folder: &Path, files: &Files) {
    for (name, bytes) in files {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}

/// The same for a store: nothing of its log or index may stay from another one.
fn put_store_back(data: &Path, files: &Files) {
    for name in ["store.sqlite-wal", "store.sqlite-shm"] {
        let _ = std::fs::remove_file(data.join(name));
    }
    put_back(data, files);
}

const LEDGER: &[&str] = &["records-", "leaves", "checkpoints"];
const STORE: &[&str] = &["store.sqlite"];

fn ledger(server: &Server) -> PathBuf {
    server.folder().join("data/ledger")
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn run(server: &Server, arguments: &[&str]) -> Output {
    Command::new(server.programs().server())
        .args(arguments)
        .arg("--config")
        .arg(server.folder().join("kubler.yaml"))
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// A start that must end at once, with what it said.
fn refused(server: &Server, says: &[&str]) {
    let before = files(&ledger(server), LEDGER);
    let mut started = Command::new(server.programs().server())
        .args(["serve", "--config"])
        .arg(server.folder().join("kubler.yaml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + SOON;
    while started.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            let _ = started.kill();
            panic!("it starts: {}", said(&started.wait_with_output().unwrap()));
        }
        std::thread::yield_now();
    }
    let output = started.wait_with_output().unwrap();
    let checked = Command::new(server.programs().server())
        .args(["check", "--config"])
        .arg(server.folder().join("kubler.yaml"))
        .output()
        .unwrap();
    for output in [output, checked] {
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        for part in says {
            assert!(text.contains(part), "no `{part}` in {text}");
        }
    }
    assert_eq!(
        files(&ledger(server), LEDGER),
        before,
        "nothing was changed"
    );
}

fn recover(server: &Server, arguments: &[&str], says: &[&str]) {
    let output = run(server, &[&["ledger", "recover"], arguments].concat());
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    for part in says {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
}

fn verify(server: &Server, arguments: &[&str]) -> String {
    let folder = ledger(server);
    let folder = folder.to_str().unwrap();
    said(&server.cli(&[&["ledger", "verify", folder], arguments].concat()))
}

async fn write_records(server: &Server) {
    for _ in 0..3 {
        let read = server.operator(Method::GET, "/v1/environments").await;
        assert_eq!(read.status, 200, "{read:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn l5_an_older_ledger_is_refused_by_its_store_and_its_sink_until_an_operator_decides() {
    let buildkite = Buildkite::start();
    let mut server = Server::of(&buildkite)
        .section("ledger: {sinks: [{file: kept.checkpoint}]}")
        .start()
        .await;
    write_records(&server).await;
    server.stop().await;
    let sink = server.folder().join("kept.checkpoint");
    let old = files(&ledger(&server), LEDGER);
    let old_store = files(&server.folder().join("data"), STORE);
    server.restart().await;
    write_records(&server).await;
    server.stop().await;
    let kept = std::fs::read(&sink).unwrap();
    let store = files(&server.folder().join("data"), STORE);

    put_back(&ledger(&server), &old);
    std::fs::remove_file(&sink).unwrap();
    refused(
        &server,
        &[
            "older than what the store knows",
            "hint: ",
            "ledger recover --config",
        ],
    );
    // The store was put back as well: only the sink knows.
    put_store_back(&server.folder().join("data"), &old_store);
    std::fs::write(&sink, &kept).unwrap();
    refused(
        &server,
        &["older than what the sink `kept.checkpoint` knows"],
    );

    put_store_back(&server.folder().join("data"), &store);
    let mine = server.folder().join("mine");
    std::fs::write(&mine, &kept).unwrap();
    recover(
        &server,
        &["--reason", "the disk of Monday is lost"],
        &[
            "older than what the store knows",
            "older than what the sink",
            "told: record ",
        ],
    );
    server.restart().await;
    write_records(&server).await;
    let records = server.cli(&["ledger", "records", "--limit", "1000", "--output", "json"]);
    let records = said(&records);
    assert!(records.contains("the disk of Monday is lost"), "{records}");
    server.stop().await;
    assert!(verify(&server, &[]).starts_with("intact"));
    // Whoever kept a checkpoint still sees it.
    let seen = verify(&server, &["--checkpoint", mine.to_str().unwrap()]);
    assert!(seen.starts_with("NOT intact"), "{seen}");
    // The sink has the new ones, and the server starts.
    assert_ne!(std::fs::read(&sink).unwrap(), kept);
    server.restart().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn l5_a_copy_a_lost_file_and_a_changed_record_are_named_and_put_in_order() {
    let buildkite = Buildkite::start();
    let mut server = Server::of(&buildkite).start().await;
    write_records(&server).await;
    server.stop().await;
    let folder = ledger(&server);

    // A copy of the whole data folder, beside the original.
    let copied = Command::new("cp")
        .arg("-a")
        .arg(server.folder().join("data"))
        .arg(server.folder().join("copy"))
        .status()
        .unwrap();
    assert!(copied.success());
    let configuration = server.folder().join("kubler.yaml");
    let text = std::fs::read_to_string(&configuration).unwrap();
    std::fs::write(&configuration, text.replacen("data: data", "data: copy", 1)).unwrap();
    refused(
        &server,
        &[
            "is a copy",
            "hint: two servers must never sign with one key",
        ],
    );
    std::fs::write(&configuration, &text).unwrap();

    // Its name is another one than the configuration states.
    let named = text.replacen(
        "policies: policies",
        "policies: policies\nledger: {origin: other.test/ledger}",
        1,
    );
    std::fs::write(&configuration, named).unwrap();
    refused(&server, &["`ledger.origin` is `other.test/ledger`"]);
    std::fs::write(&configuration, &text).unwrap();

    let notes = std::fs::read(folder.join("checkpoints")).unwrap();
    std::fs::remove_file(folder.join("checkpoints")).unwrap();
    refused(
        &server,
        &["its file `checkpoints` is missing", "ledger recover"],
    );
    recover(
        &server,
        &["--reason", "lost"],
        &["found: its file `checkpoints` is missing"],
    );
    assert!(verify(&server, &[]).starts_with("intact"));
    // Leaves are only derived: they are mended at the next start.
    std::fs::remove_file(folder.join("leaves")).unwrap();
    server.restart().await;
    server.stop().await;
    assert!(verify(&server, &[]).starts_with("intact"));

    // A record in the middle is changed.
    let name = "records-00000000000000000000.jsonl";
    let whole = std::fs::read_to_string(folder.join(name)).unwrap();
    let changed = whole.replacen("server.stop", "server.tops", 1);
    std::fs::write(folder.join(name), &changed).unwrap();
    refused(&server, &["is damaged", "ledger recover"]);
    recover(
        &server,
        &["--reason", "a bad disk"],
        &["found: record ", "set aside: "],
    );
    let aside = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join(name).is_file())
        .max()
        .unwrap();
    assert_eq!(std::fs::read_to_string(aside.join(name)).unwrap(), changed);
    assert!(verify(&server, &[]).starts_with("intact"));
    server.restart().await;
    server.stop().await;

    // All of it is gone, and the store knows it: nothing takes its place, not even a folder.
    let elsewhere = server.folder().join("ledger-elsewhere");
    std::fs::rename(&folder, &elsewhere).unwrap();
    for _ in 0..2 {
        let started = Command::new(server.programs().server())
            .args(["serve", "--config"])
            .arg(server.folder().join("kubler.yaml"))
            .output()
            .unwrap();
        let text = said(&started);
        assert_eq!(started.status.code(), Some(1), "{text}");
        for part in [
            "is missing: the store knows one",
            "hint: nothing was changed",
            "ledger recover --config /",
        ] {
            assert!(text.contains(part), "no `{part}` in {text}");
        }
        assert!(!folder.exists(), "a ledger was begun");
    }
    std::fs::rename(&elsewhere, &folder).unwrap();

    // A key that came from elsewhere, and one that is lost.
    let key = std::fs::read(folder.join("key")).unwrap();
    std::fs::write(folder.join("key.pub"), "other.test/ledger+00000000+AA==\n").unwrap();
    refused(&server, &["one of them was copied from elsewhere"]);
    std::fs::remove_file(folder.join("key")).unwrap();
    refused(&server, &["its private key is lost", "--begin-anew"]);
    recover(
        &server,
        &["--reason", "the key is lost", "--begin-anew"],
        &["the store knows the ledger", "set aside: "],
    );
    server.restart().await;
    server.stop().await;
    assert!(verify(&server, &[]).starts_with("intact"));
    assert_ne!(std::fs::read(folder.join("key")).unwrap(), key);
    assert!(!notes.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn l9_a_store_that_was_put_back_leaks_nothing_and_makes_nothing_twice() {
    let buildkite = Buildkite::start();
    let mut server = Server::of(&buildkite).start().await;
    let build = buildkite.build("app").start();
    let (first, second) = (build.job("first").run(), build.job("second").run());
    let ended = id_of(&server.create(&first, "main").await);
    server.stop().await;
    let data = server.folder().join("data");
    let old = files(&data, STORE);
    server.restart().await;
    let path = format!("/v1/environments/{ended}/release");
    let token = server.token(&first);
    let released = server
        .request(Method::POST, &path, Some(&token), None)
        .await;
    assert_eq!(released.status, 200, "{released:?}");
    server
        .wait_for(&ended, SOON, |environment| environment["phase"] == "gone")
        .await;
    let unknown = id_of(&server.create(&second, "main").await);
    server.kill().await;
    put_store_back(&data, &old);

    server.restart().await;
    server.wait_until_no_control_plane(SOON).await.unwrap();
    let known = server
        .wait_for(&ended, SOON, |environment| environment["phase"] == "gone")
        .await;
    assert!(
        known["end"]["message"]
            .as_str()
            .unwrap()
            .contains("put back"),
        "{known}"
    );
    let deadline = Instant::now() + SOON;
    let records = loop {
        let records = server.cli(&["ledger", "records", "--limit", "1000", "--output", "json"]);
        if said(&records).contains("environment.orphan") {
            break records;
        }
        assert!(Instant::now() < deadline, "{}", server.log());
    };
    let records: Vec<Value> = serde_json::from_slice(&records.stdout).unwrap();
    let behind: Vec<_> = records
        .iter()
        .filter(|record| record["action"] == "store.behind")
        .collect();
    assert_eq!(behind.len(), 1, "{behind:?}");
    assert_eq!(
        behind[0]["details"]["unknown"],
        serde_json::json!([unknown])
    );
    assert_eq!(
        behind[0]["details"]["told_gone"],
        serde_json::json!([ended])
    );
    let told = |id: &str, action: &str| {
        let of = |record: &&Value| record["environment_id"] == *id && record["action"] == action;
        records.iter().filter(of).count()
    };
    assert_eq!(told(&unknown, "environment.orphan"), 1);
    let provisioned = records.iter().filter(|record| {
        record["environment_id"] == *ended && record["phase"]["to"] == "provisioning"
    });
    assert_eq!(provisioned.count(), 1, "made once");
    // Said once: the next start finds nothing of it.
    server.restart().await;
    let records = server.cli(&["ledger", "records", "--limit", "1000", "--output", "json"]);
    assert_eq!(said(&records).matches("store.behind").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_was_taken_while_creates_ran_is_restored_whole() {
    let buildkite = Buildkite::start();
    let mut server = Server::of(&buildkite)
        .section("ledger: {checkpoint_seconds: 1}")
        .start()
        .await;
    let build = buildkite.build("app").start();
    let before = build.job("before").run();
    let id = id_of(&server.create(&before, "main").await);
    let backup = server.folder().join("backup");
    let during = build.job("during").run();
    let taking = {
        let (program, config) = (
            server.programs().server(),
            server.folder().join("kubler.yaml"),
        );
        let backup = backup.clone();
        tokio::task::spawn_blocking(move || {
            // Its first seconds: until something is signed it is told to try again.
            loop {
                let taken = Command::new(&program)
                    .args(["backup", "--with-keys", "--config"])
                    .arg(&config)
                    .arg(&backup)
                    .output()
                    .unwrap();
                if taken.status.success() || !said(&taken).contains("nothing of it is signed") {
                    return taken;
                }
                std::fs::remove_dir_all(&backup).unwrap();
            }
        })
    };
    let late = id_of(&server.create(&during, "main").await);
    let taken = taking.await.unwrap();
    assert!(taken.status.success(), "{}", said(&taken));
    write_records(&server).await;
    for entry in std::fs::read_dir(backup.join("ledger")).unwrap() {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    // The machine is lost.
    server.kill().await;
    let deadline = Instant::now() + SOON;
    while !server.processes().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", server.processes());
        for process in server.processes() {
            process.signal(Signal::KILL);
        }
    }
    let data = server.folder().join("data");
    let not_empty = run(
        &server,
        &["restore", "--reason", "x", backup.to_str().unwrap()],
    );
    assert!(
        said(&not_empty).contains("is not empty"),
        "{}",
        said(&not_empty)
    );
    std::fs::remove_dir_all(&data).unwrap();
    let manifest = backup.join("manifest.json");
    let sound = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(
        &manifest,
        sound.replacen("\"sha256\": \"", "\"sha256\": \"0", 1),
    )
    .unwrap();
    let spoiled = run(
        &server,
        &["restore", "--reason", "x", backup.to_str().unwrap()],
    );
    assert!(
        said(&spoiled).contains("not what it was"),
        "{}",
        said(&spoiled)
    );
    assert!(!data.exists());
    std::fs::write(&manifest, &sound).unwrap();
    let restored = run(
        &server,
        &[
            "restore",
            "--reason",
            "the machine was lost",
            backup.to_str().unwrap(),
        ],
    );
    assert!(restored.status.success(), "{}", said(&restored));

    server.restart().await;
    let known = server
        .wait_for(&id, SOON, |environment| environment["phase"] == "gone")
        .await;
    assert_eq!(known["id"], *id);
    // What was asked for when the copy was taken, and was not made then, is made now: once, and of nothing else is
    // anything there.
    let planes = server.control_planes();
    assert!(
        planes.len() <= 1 && planes.iter().all(|plane| plane.command.contains(&late)),
        "{planes:?}"
    );
    let again = build.job("again").run();
    server.create(&again, "main").await;
    server.stop().await;
    assert!(verify(&server, &[]).starts_with("intact"));
}

fn id_of(environment: &Value) -> String {
    environment["id"].as_str().unwrap().to_owned()
}
