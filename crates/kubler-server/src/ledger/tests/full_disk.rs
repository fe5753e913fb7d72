//! A disk that is really full, with a neighbour on it who takes every byte that becomes free.

use std::fs::File;
use std::io::Write as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

const DISK: &str = "KUBLER_TEST_DISK";
/// What the shell ends with when it may not mount.
const MAY_NOT_MOUNT: i32 = 77;

/// Runs the ignored test `name` of this module on a file system of its own, which is gone when the test is.
fn on_a_disk_of(size: &str, name: &str) {
    let disk = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let script = format!(
        "mount -t tmpfs -o size={size} kubler-test \"$0\" || exit {MAY_NOT_MOUNT}; exec \"$@\""
    );
    let ran = command
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .arg(disk.path())
        .arg(std::env::current_exe().unwrap())
        .arg(format!("ledger::tests::full_disk::{name}"))
        .args(["--exact", "--ignored", "--nocapture"])
        .env(DISK, disk.path())
        .output();
    match ran {
        Ok(output) if output.status.success() => {
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(said.contains("1 passed"), "{said}");
        }
        Ok(output)
            if output.status.code() == Some(MAY_NOT_MOUNT)
                || output.stderr.starts_with(b"unshare: ") =>
        {
            println!(
                "skipped: a file system cannot be mounted here: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(output) => panic!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) => println!("skipped: `unshare` cannot be run: {error}"),
    }
}

fn world() -> Option<World> {
    let disk = std::env::var_os(DISK)?;
    Some(World(tempfile::tempdir_in(disk).unwrap()))
}

/// Whoever shares the disk: writes as long as there is a byte.
struct Neighbour {
    path: PathBuf,
    moves_out: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Neighbour {
    fn moves_in(world: &World) -> Self {
        let path = world.0.path().join("neighbour");
        let mut file = File::create(&path).unwrap();
        let fill = move || while file.write(&[0; 4096]).is_ok_and(|written| written > 0) {};
        let mut fill = fill;
        fill();
        let moves_out = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&moves_out);
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                fill();
                std::thread::yield_now();
            }
        });
        Self {
            path,
            moves_out,
            thread,
        }
    }

    fn moves_out(self) {
        self.moves_out.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        std::fs::remove_file(self.path).unwrap();
    }
}

/// Starts until there is no room for another.
async fn starts_until_full(ledger: &Ledger) -> Vec<Entry> {
    let mut entries = Vec::new();
    loop {
        match ledger.start(start(), Durability::Process).await {
            Ok(entry) => entries.push(entry),
            Err(LedgerError::Full) => return entries,
            Err(error) => panic!("{error}"),
        }
    }
}

fn ends(world: &World) -> usize {
    let lines = world.lines();
    lines
        .iter()
        .filter(|line| line.contains("\"kind\":\"end\""))
        .count()
}

/// Small ones, so that files change and rooms end soon.
const SMALL: Bounds = Bounds {
    segment_bytes_max: 64 * 1024,
    ends_kept: 200,
    step_bytes: 16 * 1024,
    leaf_bytes_kept: 64 * 1024,
    note_bytes_kept: 8 * 1024,
};

#[test]
fn l4_a_full_disk_stops_neither_ends_nor_their_signatures_when_a_segment_is_full_too() {
    on_a_disk_of("4m", "ends_where_no_next_segment_can_be_had");
}

#[tokio::test]
#[ignore = "needs a small disk: `l4_a_full_disk_stops…` runs it"]
async fn ends_where_no_next_segment_can_be_had() {
    let Some(world) = world() else { return };
    let ledger = world.open_within(SMALL).unwrap();
    // Up to a length at which the next record would go into another file.
    while std::fs::metadata(world.records()).unwrap().len() < SMALL.segment_bytes_max - 4096 {
        drop(ledger.start(start(), Durability::Process).await.unwrap());
    }
    let neighbour = Neighbour::moves_in(&world);
    let mut open = starts_until_full(&ledger).await;
    let before = ends(&world);
    let began = open.len();
    for entry in open.drain(..) {
        entry.end_now(Outcome::default());
        ledger.checkpoint().unwrap();
        if ends(&world) > before + 20 {
            break;
        }
    }
    drop(open);
    assert_eq!(ends(&world), before + began);
    for nth in 0..SMALL.ends_kept {
        let mut body = Body::new(Kind::Event, LedgerAction::EnvironmentPhase);
        body.details.insert("text".into(), "x".repeat(700).into());
        let recorded = ledger.event(body, Durability::Disk).await;
        recorded.unwrap_or_else(|error| panic!("end {nth}: {error}"));
    }
    assert!(std::fs::metadata(world.records()).unwrap().len() > SMALL.segment_bytes_max);
    assert!(
        !world
            .file(&layout::segment_name(ledger.checkpoint().unwrap().size))
            .exists()
    );

    // A restart on the full disk still has what was its own, and refuses what it refused.
    drop(ledger);
    let ledger = world.open_within(SMALL).unwrap();
    let stop = Body::new(Kind::Event, LedgerAction::ServerStart);
    ledger.event(stop, Durability::Disk).await.unwrap();
    let refused = ledger.start(start(), Durability::Process).await;
    assert!(matches!(refused, Err(LedgerError::Full)));

    neighbour.moves_out();
    drop(ledger.start(start(), Durability::Disk).await.unwrap());
    ledger.checkpoint().unwrap();
    drop(ledger);
    let report = world.verify();
    assert!(report.is_intact() && report.unsigned() == 0, "{report}");
    let first = world.file(&layout::segment_name(report.records - 2));
    assert!(
        first.exists(),
        "the next file was begun as soon as it could be"
    );
}

#[test]
fn l5_a_signature_that_finds_no_room_is_made_later_and_doubles_nothing() {
    on_a_disk_of("4m", "signatures_without_room");
}

#[tokio::test]
#[ignore = "needs a small disk: `l5_a_signature_that_finds…` runs it"]
async fn signatures_without_room() {
    let Some(world) = world() else { return };
    // Leaves have room and notes have none, so that every attempt fails between the two.
    let bounds = Bounds {
        note_bytes_kept: 0,
        ..SMALL
    };
    let ledger = world.open_within(bounds).unwrap();
    let neighbour = Neighbour::moves_in(&world);
    for _ in 0..5 {
        let body = Body::new(Kind::Event, LedgerAction::ServerStart);
        ledger.event(body, Durability::Disk).await.unwrap();
        assert!(ledger.checkpoint().is_err());
    }
    neighbour.moves_out();
    assert_eq!(ledger.checkpoint().unwrap().size, 5);
    let report = world.verify();
    assert!(report.is_intact() && report.unsigned() == 0, "{report}");
    drop(ledger);
    world.open_within(bounds).unwrap();
}

#[test]
fn l4_on_a_full_disk_creates_are_refused_and_every_promised_end_is_recorded() {
    on_a_disk_of("32m", "every_promised_end");
}

#[tokio::test]
#[ignore = "needs a small disk: `l4_on_a_full_disk…` runs it"]
async fn every_promised_end() {
    const PROMISED: usize = 8192;
    let Some(world) = world() else { return };
    let ledger = world.open().unwrap();
    drop(ledger.start(start(), Durability::Process).await.unwrap());
    let neighbour = Neighbour::moves_in(&world);
    let before = ends(&world);
    let mut open = starts_until_full(&ledger).await;
    assert!(!ledger.is_writable());
    let began = open.len();
    open.drain(..)
        .for_each(|entry| entry.end_now(Outcome::default()));
    assert!(began > 100, "{began}");
    assert_eq!(ends(&world), before + began, "those that had begun");

    // What ends environments: no start was counted for it.
    for nth in 0..PROMISED {
        let mut body = Body::new(Kind::Event, LedgerAction::EnvironmentPhase);
        body.details.insert("text".into(), "x".repeat(700).into());
        let recorded = ledger.event(body, Durability::Disk).await;
        recorded.unwrap_or_else(|error| panic!("end {nth}: {error}"));
    }
    assert!(matches!(
        ledger.start(start(), Durability::Process).await,
        Err(LedgerError::Full)
    ));
    ledger.checkpoint().unwrap();
    neighbour.moves_out();
    assert!(ledger.is_writable());
    drop(ledger.start(start(), Durability::Disk).await.unwrap());
    ledger.checkpoint().unwrap();
    drop(ledger);
    let report = world.verify();
    assert!(report.is_intact() && report.unsigned() == 0, "{report}");
    world.open().unwrap();
}
