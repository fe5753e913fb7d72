//! A disk that is really full, with a neighbour on it who takes every byte that becomes free.

use std::time::Duration;

use kubler_testkit::disk::{self, Neighbour};

use super::*;

/// Runs the ignored test `name` of this module on a file system of its own.
fn on_a_disk_of(size: &str, name: &str) {
    disk::on_a_disk_of(size, &format!("ledger::tests::full_disk::{name}"));
}

fn world() -> Option<World> {
    Some(World(tempfile::tempdir_in(disk::disk()?).unwrap()))
}

/// One who takes every byte at the moment it becomes free.
fn moves_in(world: &World) -> Neighbour {
    Neighbour::moves_in(world.0.path(), Duration::ZERO)
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
    disk_bytes_free_min: 0,
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
    let neighbour = moves_in(&world);
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
    let neighbour = moves_in(&world);
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
    // To the last byte: that nothing new begins before that is another guard.
    let bounds = Bounds {
        disk_bytes_free_min: 0,
        ..Bounds::ORDINARY
    };
    let Some(world) = world() else { return };
    let ledger = world.open_within(bounds).unwrap();
    drop(ledger.start(start(), Durability::Process).await.unwrap());
    let neighbour = moves_in(&world);
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
