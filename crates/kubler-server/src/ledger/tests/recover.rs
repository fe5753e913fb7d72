//! What an operator's decision makes of a ledger that does not open.

use super::*;
use crate::ledger::lines::segments;
use crate::ledger::recover::{GoOn, Recovered, Recovery, recover};

const SMALL: Bounds = Bounds {
    segment_bytes_max: 4 * 1024,
    ends_kept: 4,
    step_bytes: 1024,
    leaf_bytes_kept: 64 * 1024,
    note_bytes_kept: 8 * 1024,
    disk_bytes_free_min: 0,
};

/// A ledger in several files, signed every ten records.
async fn in_several_files(world: &World) -> Vec<u64> {
    let ledger = world.open_within(SMALL).unwrap();
    for nth in 0..100 {
        let mut body = Body::new(Kind::Event, LedgerAction::ServerStart);
        body.details.insert("nth".into(), nth.into());
        ledger.event(body, Durability::Process).await.unwrap();
        if nth % 10 == 9 {
            ledger.checkpoint().unwrap();
        }
    }
    drop(ledger);
    let segments = segments(&world.folder()).unwrap();
    assert!(segments.len() > 2, "{segments:?}");
    segments
}

async fn put_in_order(world: &World, witnesses: &[Witness]) -> Recovered {
    let recovery = Recovery {
        origin: "kubler.test/ledger",
        settings: &LedgerSettings::default(),
        witnesses,
        reason: "a test",
        go_on: GoOn::WithWhatIsSound,
        clock: Arc::new(SystemClock),
    };
    recover(&world.folder(), recovery).await.unwrap()
}

#[tokio::test]
async fn l5_records_behind_a_lost_file_are_set_aside_and_what_was_before_goes_on() {
    let world = World::new();
    let segments = in_several_files(&world).await;
    let (lost, behind) = (segments[1], segments[2]);
    std::fs::remove_file(world.file(&layout::segment_name(lost))).unwrap();
    let rest = std::fs::read(world.file(&layout::segment_name(behind))).unwrap();
    assert!(matches!(world.open(), Err(LedgerError::Damaged { .. })));

    let recovered = put_in_order(&world, &[]).await;
    assert_eq!(recovered.kept, lost, "{recovered:?}");
    let aside = recovered.set_aside.unwrap();
    let kept = std::fs::read(aside.join(layout::segment_name(behind))).unwrap();
    assert_eq!(kept, rest);
    assert!(!world.file(&layout::segment_name(behind)).exists());
    let report = world.verify();
    assert!(report.is_intact() && report.unsigned() == 0, "{report}");
    let told = world.lines().pop().unwrap();
    for part in ["a test", "tail_sha256", "are missing", "set-aside-"] {
        assert!(told.contains(part), "no `{part}` in {told}");
    }
    world.open().unwrap();
}

#[tokio::test]
async fn l5_what_a_checkpoint_does_not_fit_goes_back_to_the_last_that_does() {
    let world = World::new();
    in_several_files(&world).await;
    // A record of its own form, and not the one that was signed.
    let first = world.text();
    let changed = first.replacen("\"nth\":3}", "\"nth\":4}", 1);
    assert_ne!(first, changed);
    std::fs::write(world.records(), changed).unwrap();
    assert!(world.open().is_err());
    let recovered = put_in_order(&world, &[]).await;
    assert_eq!(recovered.kept, 0, "{recovered:?}");
    assert!(world.verify().is_intact());
    world.open().unwrap();
}

#[tokio::test]
async fn l5_what_stands_behind_the_checkpoints_is_set_aside_too() {
    let world = World::new();
    in_several_files(&world).await;
    let path = world.file(layout::CHECKPOINTS);
    let mut notes = std::fs::read(&path).unwrap();
    notes.extend(vec![b'x'; 5000]);
    std::fs::write(&path, &notes).unwrap();
    assert!(world.open().is_err());
    let recovered = put_in_order(&world, &[]).await;
    assert_eq!(recovered.kept, 100, "no record is lost: {recovered:?}");
    let aside = recovered.set_aside.unwrap();
    assert_eq!(
        std::fs::read(aside.join(layout::CHECKPOINTS)).unwrap(),
        notes
    );
    assert!(world.verify().is_intact());
    world.open().unwrap();
}

#[tokio::test]
async fn l5_a_sound_ledger_only_gets_the_record_and_overrules_whom_it_must() {
    let world = World::new();
    in_several_files(&world).await;
    let key = std::fs::read_to_string(world.file(layout::PRIVATE_KEY)).unwrap();
    let key = kubler_core::ledger::checkpoint::PrivateKey::parse(&key.into()).unwrap();
    let ahead = Witness {
        name: "a sink".into(),
        note: key.sign(500, [1; 32]),
    };
    let other = Witness {
        note: key.sign(50, [1; 32]),
        ..ahead.clone()
    };
    let open = |witnesses: &[Witness]| {
        Ledger::open_before(
            LedgerLock::take(&world.folder()).unwrap(),
            "kubler.test/ledger",
            &LedgerSettings::default(),
            witnesses,
            Arc::new(SystemClock),
        )
    };
    let refused = |witness: &Witness, says: &str| match open(std::slice::from_ref(witness)) {
        Err(error @ LedgerError::NotTheKnown { .. }) => {
            assert!(error.to_string().contains(says), "{error}");
        }
        _ => panic!("{witness:?} is not heard"),
    };
    refused(&ahead, "older than what a sink knows: 500 records");
    refused(&other, "its first 50 records are not those that a sink saw");
    let unusable = Witness {
        note: format!("{}x", ahead.note),
        ..ahead.clone()
    };
    refused(&unusable, "what a sink kept cannot be used");
    let recovered = put_in_order(&world, std::slice::from_ref(&ahead)).await;
    assert_eq!((recovered.kept, recovered.set_aside), (100, None));
    open(std::slice::from_ref(&ahead)).unwrap();
    // Only the one that was there when it was decided.
    refused(&other, "its first 50 records");
}

#[tokio::test]
async fn l5_what_opening_lays_to_a_crash_is_nothing_to_put_in_order() {
    let world = World::new();
    let segments = in_several_files(&world).await;
    // A next file was made, and of the one before the last record is half there.
    let last = world.file(&layout::segment_name(*segments.last().unwrap()));
    let mut text = std::fs::read_to_string(&last).unwrap();
    text.push_str("{\"sequence\":100,\"at");
    std::fs::write(&last, text).unwrap();
    std::fs::write(world.file(&layout::segment_name(101)), "").unwrap();
    let recovered = put_in_order(&world, &[]).await;
    assert_eq!(
        (recovered.found.as_slice(), recovered.set_aside),
        (&[][..], None)
    );
    assert_eq!(recovered.kept, 100);
    let report = world.verify();
    assert!(report.is_intact(), "{report}");
    assert!(world.all().contains("\"torn_bytes\""));
    assert!(!world.file(&layout::segment_name(101)).exists());
}
