//! What a crash leaves in each of the files, and what opening makes of it.

use std::os::unix::fs::FileExt as _;

use kubler_core::ledger::merkle::leaf_hash;

use super::*;
use crate::directory::Directory;
use crate::tasks::restored::catch_up;

async fn some_events(ledger: &Ledger, count: usize) {
    for _ in 0..count {
        let body = Body::new(Kind::Event, LedgerAction::ServerStart);
        ledger.event(body, Durability::Process).await.unwrap();
    }
}

fn append(path: &Path, bytes: &[u8]) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    let end = file.metadata().unwrap().len();
    file.write_all_at(bytes, end).unwrap();
}

#[tokio::test]
async fn l5_leaves_that_a_crash_left_without_their_signature_are_not_written_twice() {
    let world = World::new();
    let ledger = world.open().unwrap();
    some_events(&ledger, 3).await;
    ledger.checkpoint().unwrap();
    some_events(&ledger, 2).await;
    drop(ledger);
    // Killed between the leaves and the note.
    let leaves: Vec<_> = world
        .text()
        .lines()
        .skip(3)
        .map(|line| leaf_hash(line.as_bytes()))
        .collect();
    append(&world.file(layout::LEAVES), &leaves.concat());

    let ledger = world.open().unwrap();
    let length = || std::fs::metadata(world.file(layout::LEAVES)).unwrap().len();
    assert_eq!(length(), 3 * 32);
    assert!(world.text().contains("\"unsigned_leaf_bytes\":64"));
    some_events(&ledger, 1).await;
    let size = ledger.checkpoint().unwrap().size;
    drop(ledger);
    let report = world.verify();
    assert!(report.is_intact(), "{report}");
    assert_eq!(length(), size * 32);
}

#[tokio::test]
async fn l5_a_note_that_was_torn_anywhere_is_cut_and_said_and_the_next_one_holds() {
    let world = World::new();
    let ledger = world.open().unwrap();
    some_events(&ledger, 1).await;
    let first = ledger.checkpoint().unwrap().note;
    some_events(&ledger, 1).await;
    let second = ledger.checkpoint().unwrap().note;
    drop(ledger);
    let whole = std::fs::read(world.file(layout::CHECKPOINTS)).unwrap();
    let begin = first.len() + 1;
    assert_eq!(whole.len(), begin + second.len() + 1);
    // Up to, and without, the line feed that completes it: also in the middle of a character.
    for torn in 1..second.len() {
        let torn_bytes = u64::try_from(torn).unwrap();
        std::fs::write(world.file(layout::CHECKPOINTS), &whole[..begin + torn]).unwrap();
        let ledger = world
            .open()
            .unwrap_or_else(|error| panic!("{torn}: {error}"));
        let said = world.text();
        let said = said.lines().last().unwrap();
        assert!(
            said.contains("\"ledger.recover\"")
                && said.contains(&format!("\"torn_checkpoint_bytes\":{torn_bytes}")),
            "{torn}: {said}"
        );
        ledger.checkpoint().unwrap();
        drop(ledger);
        let report = world.verify();
        assert!(report.is_intact(), "{torn}: {report}");
    }
}

#[tokio::test]
async fn l4_a_record_that_was_torn_anywhere_is_cut_and_said() {
    let world = World::new();
    let ledger = world.open().unwrap();
    some_events(&ledger, 1).await;
    ledger.checkpoint().unwrap();
    some_events(&ledger, 1).await;
    drop(ledger);
    let text = std::fs::read(world.records()).unwrap();
    let begin = text.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for torn in 1..text.len() - begin {
        std::fs::write(world.records(), &text[..begin + torn]).unwrap();
        let before = world.verify();
        assert!(before.is_intact() && before.torn, "{torn}: {before}");
        drop(world.open().unwrap());
        let lines = world.lines();
        assert_eq!(lines.len(), 2, "{torn}");
        let said = format!("\"torn_bytes\":{torn}}}");
        assert!(lines[1].contains(&said), "{torn}: {}", lines[1]);
        let report = world.verify();
        assert!(report.is_intact(), "{torn}: {report}");
    }
}

/// What opening said, and that it changed nothing.
fn refused_unchanged(world: &World) -> String {
    let state = |world: &World| -> Vec<_> {
        let mut files: Vec<_> = std::fs::read_dir(world.folder())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        let read = |path: PathBuf| (std::fs::read(&path).unwrap(), path);
        files.into_iter().map(read).collect()
    };
    let before = state(world);
    let error = world.open().err().expect("it must not be opened");
    assert!(matches!(error, LedgerError::Damaged { .. }), "{error}");
    assert!(error.hint().contains("kubler ledger verify"));
    assert!(before == state(world), "{error}: but files were changed");
    error.to_string()
}

#[tokio::test]
async fn l5_what_no_crash_explains_is_refused_and_left_as_it_is() {
    let world = World::new();
    let ledger = world.open().unwrap();
    some_events(&ledger, 3).await;
    ledger.checkpoint().unwrap();
    some_events(&ledger, 3).await;
    drop(ledger);
    let records = world.text();
    let notes = std::fs::read(world.file(layout::CHECKPOINTS)).unwrap();
    let line = |nth: usize| records.split_inclusive('\n').nth(nth).unwrap();

    // Cut inside of what was signed, in the middle of a line.
    std::fs::write(world.records(), &records[..line(0).len() + 20]).unwrap();
    let said = refused_unchanged(&world);
    assert!(said.contains("covers 3 records, and there are 1"), "{said}");

    // Behind the last checkpoint: two records in the wrong order.
    let mut lines: Vec<_> = records.split_inclusive('\n').collect();
    lines.swap(4, 5);
    std::fs::write(world.records(), lines.concat()).unwrap();
    let said = refused_unchanged(&world);
    assert!(said.contains("record 5 stands where record 4"), "{said}");

    // A file whose last line is torn, though another file follows.
    std::fs::write(world.records(), &records[..records.len() - 5]).unwrap();
    let next = line(5).replace("\"sequence\":5", "\"sequence\":6");
    std::fs::write(world.file(&layout::segment_name(6)), next).unwrap();
    let said = refused_unchanged(&world);
    assert!(said.contains("should begin with record 5"), "{said}");
    std::fs::remove_file(world.file(&layout::segment_name(6))).unwrap();

    // Something else than the beginning of a note behind the last one.
    std::fs::write(world.records(), &records).unwrap();
    append(&world.file(layout::CHECKPOINTS), &[0xff; 10]);
    let said = refused_unchanged(&world);
    assert!(said.contains("what is no checkpoint"), "{said}");

    std::fs::write(world.file(layout::CHECKPOINTS), notes).unwrap();
    world.open().unwrap();
}

#[tokio::test]
async fn l5_leaves_that_do_not_fit_the_signed_records_are_mended_from_them_and_said() {
    for damage in ["changed", "cut", "gone"] {
        let world = World::new();
        let ledger = world.open().unwrap();
        some_events(&ledger, 5).await;
        ledger.checkpoint().unwrap();
        drop(ledger);
        let path = world.file(layout::LEAVES);
        let whole = std::fs::read(&path).unwrap();
        let mut wrong = whole.clone();
        match damage {
            "changed" => wrong[2 * 32] ^= 1,
            "cut" => wrong.truncate(2 * 32 + 7),
            _ => wrong.clear(),
        }
        std::fs::write(&path, wrong).unwrap();
        let ledger = world.open().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole, "{damage}");
        let from = if damage == "gone" { 0 } else { 2 };
        let said = format!("\"leaves_mended_from\":{from}");
        assert!(world.text().contains(&said), "{damage}: {}", world.text());
        ledger.checkpoint().unwrap();
        let report = world.verify();
        assert!(report.is_intact(), "{damage}: {report}");
    }
}

#[tokio::test]
async fn a_segment_that_was_made_before_a_crash_and_not_used_is_taken_away() {
    let world = World::new();
    let ledger = world.open().unwrap();
    some_events(&ledger, 3).await;
    drop(ledger);
    let unused = world.file(&layout::segment_name(3));
    std::fs::write(&unused, "").unwrap();
    let ledger = world.open().unwrap();
    assert!(!unused.exists());
    some_events(&ledger, 1).await;
    assert_eq!(world.text().lines().count(), 4);
}

#[tokio::test]
async fn a_crash_while_the_key_was_made_leaves_a_ledger_that_opens() {
    let world = World::new();
    drop(world.open().unwrap());
    std::fs::remove_file(world.file(layout::PUBLIC_KEY)).unwrap();
    std::fs::write(world.file("key.new"), "PRIVATE+K").unwrap();
    let ledger = world.open().unwrap();
    let public = std::fs::read_to_string(world.file(layout::PUBLIC_KEY)).unwrap();
    assert_eq!(public.trim(), ledger.verifying_key().to_string());
}

#[tokio::test]
async fn segments_follow_each_other_and_are_read_as_one() {
    let world = World::new();
    let bounds = Bounds {
        segment_bytes_max: 4096,
        step_bytes: 4096,
        ..Bounds::ORDINARY
    };
    let ledger = world.open_within(bounds).unwrap();
    let left_open = ledger.start(start(), Durability::Process).await.unwrap();
    for _ in 0..200 {
        some_events(&ledger, 1).await;
        ledger.checkpoint().unwrap();
    }
    std::mem::forget(left_open);
    let segments = || {
        let names = std::fs::read_dir(world.folder()).unwrap();
        names
            .filter_map(|entry| layout::segment_first(entry.unwrap().file_name().to_str()?))
            .count()
    };
    assert!(segments() > 2, "{}", segments());
    let page = ledger
        .read(&Query {
            from: 150,
            limit: Some(2),
            ..Query::default()
        })
        .unwrap();
    assert_eq!(page.records[1]["sequence"], 151);
    drop(ledger);
    // The forgotten entry keeps the lock.
    std::fs::remove_file(world.file(layout::LOCK)).unwrap();
    let ledger = world.open_within(bounds).unwrap();
    assert_eq!(ledger.checkpoint().unwrap().size, 202);
    let report = world.verify();
    assert!(report.is_intact(), "{report}");
    assert!(world.lines()[201].contains("\"close_reason\":\"crash\""));
}

#[tokio::test]
async fn the_end_that_a_crash_left_out_is_found_by_its_job_also_after_the_next_start() {
    let world = World::new();
    let mut body = start();
    body.identity = Some(Box::new(crate::store::tests::job(1)));
    let of_job = || Query {
        job: Some(crate::store::tests::job(1).job.id),
        ..Query::default()
    };
    let ledger = world.open().unwrap();
    std::mem::forget(ledger.start(body, Durability::Disk).await.unwrap());
    for _ in 0..2 {
        // The forgotten entry keeps the lock.
        let _ = std::fs::remove_file(world.file(layout::LOCK));
        let ledger = world.open().unwrap();
        let found = ledger.read(&of_job()).unwrap().records;
        let kinds: Vec<_> = found.iter().map(|record| &record["kind"]).collect();
        assert_eq!(kinds, ["start", "end"], "{found:#?}");
    }
}

#[tokio::test]
async fn what_the_store_knows_and_the_ledger_does_not_is_recorded_once_at_the_next_start() {
    use kubler_core::environment::{EndReason, Environment, Event};

    use crate::store::tests::{at, environment, job};

    let world = World::new();
    let directory = Directory::new(at(0));
    let then =
        |before: &Environment, event: Event| before.transition(event, at(1)).unwrap().unwrap();
    let requested = environment(1, &job(1), "main");
    let releasing = then(&requested, Event::ReleaseRequested(EndReason::Released));
    let gone = then(&releasing, Event::FoundGone);
    let untold = environment(2, &job(2), "main");
    let ledger = world.open().unwrap();
    ledger
        .phase_changed(None, None, &requested, serde_json::Map::new())
        .await;
    drop(ledger);
    let phases = || -> Vec<_> {
        let lines = world.lines().into_iter();
        let records = lines.map(|line| serde_json::from_str::<serde_json::Value>(&line).unwrap());
        let told = |record: serde_json::Value| {
            let phase = &record["phase"];
            format!(
                "{} {} {}",
                phase["from"], phase["to"], record["details"]["recorded_after"]
            )
        };
        records.map(told).collect()
    };
    let first = "null \"requested\" null";
    // Killed behind the store's word, twice: each is caught up with once, and not at the start after it.
    directory.put(releasing);
    directory.put(untold);
    for _ in 0..2 {
        catch_up(&world.open().unwrap(), &directory).await;
    }
    let mut expected = vec![
        first,
        "\"requested\" \"releasing\" \"crash\"",
        "null \"requested\" \"crash\"",
    ];
    let mut found = phases();
    found[1..].sort_by_key(|line| line.starts_with("null"));
    assert_eq!(found, expected);
    directory.put(gone);
    for _ in 0..2 {
        catch_up(&world.open().unwrap(), &directory).await;
    }
    expected.push("\"releasing\" \"gone\" \"crash\"");
    let mut found = phases();
    found[1..3].sort_by_key(|line| line.starts_with("null"));
    assert_eq!(found, expected);
}

#[tokio::test]
async fn an_orphan_that_was_taken_away_is_gone_and_nothing_is_caught_up_with() {
    use kubler_core::environment::{EndReason, Environment, Event};

    use crate::store::tests::{at, environment, job};

    let world = World::new();
    let then =
        |before: &Environment, event: Event| before.transition(event, at(1)).unwrap().unwrap();
    let lives = environment(1, &job(1), "main");
    let releasing = then(&lives, Event::ReleaseRequested(EndReason::Released));
    let gone = then(&releasing, Event::FoundGone);
    let ledger = world.open().unwrap();
    ledger
        .phase_changed(None, None, &lives, serde_json::Map::new())
        .await;
    assert_eq!(ledger.alive(), [lives.id]);
    // Its store was put back from a copy that did not know it, and what was left of it was taken away.
    let mut orphan = Body::new(Kind::Event, LedgerAction::EnvironmentOrphan);
    orphan.environment_id = Some(lives.id);
    ledger.event(orphan, Durability::Process).await.unwrap();
    assert_eq!(ledger.alive(), []);
    let told = world.lines();
    // The store of before came back: whatever it says, the ledger told the end. What still lives there is ended by
    // whoever compares the two, and told then.
    drop(ledger);
    for stored in [&lives, &gone] {
        let reopened = world.open().unwrap();
        let directory = Directory::new(at(0));
        directory.put(stored.clone());
        assert_eq!(reopened.alive(), []);
        assert!(reopened.tells_gone(stored.id).unwrap());
        catch_up(&reopened, &directory).await;
        assert_eq!(world.lines(), told);
    }
}
