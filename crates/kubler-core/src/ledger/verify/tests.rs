use std::convert::Infallible;

use jiff::Timestamp;
use proptest::prelude::*;
use zeroize::Zeroizing;

use super::super::checkpoint::PrivateKey;
use super::super::merkle::{self, leaf_hash};
use super::super::record::{Body, Kind, LedgerAction};
use super::*;

/// A ledger of 100 records with checkpoints at 40 and 90.
#[derive(Clone)]
struct Files {
    lines: Vec<Vec<u8>>,
    leaves: Vec<Hash>,
    checkpoints: Vec<String>,
}

fn key(byte: u8) -> PrivateKey {
    PrivateKey::from_random("kubler.example", &Zeroizing::new([byte; 32])).unwrap()
}

fn line(sequence: u64, environment: &str) -> Vec<u8> {
    let mut body = Body::new(Kind::Event, LedgerAction::ServerStart);
    body.details.insert("e".into(), environment.into());
    let mut line = Vec::new();
    body.seal().unwrap().write_line(
        sequence,
        Timestamp::from_second(1_700_000_000).unwrap(),
        &mut line,
    );
    line.push(b'\n');
    line
}

fn leaves_of(lines: &[Vec<u8>]) -> Vec<Hash> {
    lines
        .iter()
        .map(|line| leaf_hash(line.strip_suffix(b"\n").unwrap()))
        .collect()
}

fn files_signed_by(key: &PrivateKey, text: &str) -> Files {
    let lines: Vec<_> = (0..100).map(|n| line(n, text)).collect();
    let leaves = leaves_of(&lines[..90]);
    let checkpoints = [40, 90]
        .map(|size: usize| key.sign(size.try_into().unwrap(), merkle::root(&leaves[..size])));
    Files {
        lines,
        leaves,
        checkpoints: checkpoints.into(),
    }
}

fn files() -> Files {
    files_signed_by(&key(1), "x")
}

impl Files {
    fn verify(&self, kept: &[Kept]) -> Report {
        let lines = self.lines.iter().cloned().map(Ok::<_, Infallible>);
        let leaves = self.leaves.iter().copied().map(Ok);
        verify(lines, leaves, &self.notes(), key(1).public(), kept)
    }

    fn notes(&self) -> Vec<u8> {
        let notes = self.checkpoints.iter().map(|note| format!("{note}\n"));
        notes.collect::<String>().into_bytes()
    }

    fn first_fault(&self) -> Fault {
        self.verify(&[]).faults.first().cloned().expect("a fault")
    }
}

fn kept(note: &str) -> Kept {
    Kept {
        name: "build-7.checkpoint".into(),
        note: note.into(),
    }
}

#[test]
fn l5_an_untouched_ledger_is_intact_and_says_what_it_cannot_know() {
    let report = files().verify(&[]);
    assert!(report.is_intact(), "{report}");
    assert_eq!(
        (report.records, report.unsigned(), report.checkpoints),
        (100, 10, 2)
    );
    assert!(
        report
            .to_string()
            .contains("rollback and re-signing cannot be excluded"),
        "{report}"
    );
}

#[test]
fn l5_a_changed_record_is_named() {
    let mut files = files();
    files.lines[57] = line(57, "forged");
    assert_eq!(files.first_fault(), Fault::Changed { sequence: 57 });
    files.lines[20] = line(20, "forged");
    assert_eq!(files.first_fault(), Fault::Changed { sequence: 20 });
}

#[test]
fn l5_a_changed_record_whose_leaf_was_changed_too_is_named_as_near_as_a_signature_allows() {
    let mut files = files();
    files.lines[57] = line(57, "forged");
    files.leaves = leaves_of(&files.lines[..90]);
    assert_eq!(
        files.first_fault(),
        Fault::ChangedWithin {
            first: 40,
            last: 89
        }
    );
    files.leaves.clear();
    assert_eq!(
        files.first_fault(),
        Fault::ChangedWithin {
            first: 40,
            last: 89
        }
    );
}

#[test]
fn l5_a_line_that_is_no_canonical_record_is_named() {
    let mut files = files();
    files.lines[12] = b"{}\n".to_vec();
    assert!(matches!(
        files.first_fault(),
        Fault::NotARecord { sequence: 12, .. }
    ));
    let spaced = String::from_utf8(line(12, "x"))
        .unwrap()
        .replacen(':', ": ", 1);
    files.lines[12] = spaced.into_bytes();
    assert!(matches!(
        files.first_fault(),
        Fault::NotARecord { sequence: 12, .. }
    ));
}

#[test]
fn l5_removed_records_are_named() {
    let mut files = files();
    files.lines.drain(57..60);
    assert_eq!(
        files.first_fault(),
        Fault::Removed {
            first: 57,
            last: 59
        }
    );
    // Behind the last checkpoint too, by the gap in the count.
    let mut files = self::files();
    files.lines.remove(95);
    assert_eq!(
        files.first_fault(),
        Fault::Removed {
            first: 95,
            last: 95
        }
    );
}

#[test]
fn l5_a_removed_record_that_was_renumbered_away_is_named() {
    let mut files = files();
    files.lines.remove(57);
    for (sequence, text) in files.lines.iter_mut().enumerate().skip(57) {
        *text = line(sequence.try_into().unwrap(), "x");
    }
    files.lines.remove(98);
    files.lines[57] = line(57, "y");
    assert_eq!(files.first_fault(), Fault::Changed { sequence: 57 });
}

#[test]
fn l5_reordered_records_are_named() {
    let mut files = files();
    files.lines.swap(57, 60);
    assert_eq!(
        files.first_fault(),
        Fault::Reordered {
            sequence: 57,
            found: 60
        }
    );
    let mut files = self::files();
    files.lines[57] = line(13, "x");
    assert_eq!(
        files.first_fault(),
        Fault::Reordered {
            sequence: 57,
            found: 13
        }
    );
}

#[test]
fn l5_a_cut_inside_the_last_checkpoint_is_named() {
    let mut files = files();
    files.lines.truncate(89);
    assert_eq!(
        files.first_fault(),
        Fault::Cut {
            size: 89,
            checkpoint: 90
        }
    );
    files.lines.clear();
    assert_eq!(
        files.first_fault(),
        Fault::Cut {
            size: 0,
            checkpoint: 90
        }
    );
    let mut torn = self::files();
    torn.lines.truncate(60);
    torn.lines[59].pop();
    assert_eq!(
        torn.first_fault(),
        Fault::Cut {
            size: 59,
            checkpoint: 90
        }
    );
}

#[test]
fn l5_a_torn_last_line_behind_the_last_checkpoint_is_said_but_is_no_fault() {
    let mut files = files();
    files.lines[99].truncate(20);
    let report = files.verify(&[]);
    assert!(report.is_intact() && report.torn, "{report}");
}

#[test]
fn l5_a_torn_checkpoint_is_said_and_vouches_for_nothing_but_is_no_fault() {
    let mut files = files();
    files.checkpoints[1].truncate(30);
    let notes = files.notes();
    let lines = files.lines.iter().cloned().map(Ok::<_, Infallible>);
    let leaves = files.leaves.iter().copied().map(Ok);
    let torn = &notes[..notes.len() - 1];
    let report = verify(lines, leaves, torn, key(1).public(), &[]);
    assert!(report.is_intact() && report.torn_checkpoint, "{report}");
    assert_eq!((report.checkpoints, report.unsigned()), (1, 60));
    let said = "the last checkpoint is incomplete";
    assert!(report.to_string().contains(said), "{report}");
}

#[test]
fn l5_bytes_that_are_no_checkpoint_are_named() {
    let files = files();
    let mut notes = files.notes();
    notes.extend([0xff; 40]);
    let lines = files.lines.iter().cloned().map(Ok::<_, Infallible>);
    let leaves = files.leaves.iter().copied().map(Ok);
    let report = verify(lines, leaves, &notes, key(1).public(), &[]);
    assert!(
        matches!(
            report.faults.as_slice(),
            [Fault::BadCheckpoint { number: 3, .. }]
        ),
        "{report}"
    );
}

#[test]
fn l5_a_rollback_is_named_by_a_checkpoint_kept_elsewhere_and_only_by_it() {
    let whole = files();
    let mut files = whole.clone();
    files.lines.truncate(50);
    files.leaves.truncate(40);
    files.checkpoints.truncate(1);
    let alone = files.verify(&[]);
    assert!(alone.is_intact());
    assert!(alone.limits().contains("cannot be excluded"));
    let report = files.verify(&[kept(&whole.checkpoints[1])]);
    assert_eq!(
        report.faults,
        [Fault::RolledBack {
            kept: "build-7.checkpoint".into(),
            kept_size: 90,
            size: 50
        }]
    );
    let report = files.verify(&[kept(&whole.checkpoints[0])]);
    assert!(
        report.is_intact() && report.agrees_with == ["build-7.checkpoint"],
        "{report}"
    );
}

#[test]
fn l5_re_signing_with_the_same_key_is_named_by_a_checkpoint_kept_elsewhere() {
    let other = files_signed_by(&key(1), "another history");
    assert!(other.verify(&[]).is_intact());
    let report = other.verify(&[kept(&files().checkpoints[0])]);
    assert_eq!(
        report.faults,
        [Fault::Resigned {
            kept: "build-7.checkpoint".into(),
            kept_size: 40
        }]
    );
}

#[test]
fn l5_re_signing_with_another_key_is_named() {
    let (ours, theirs) = (key(1), key(2));
    let other = files_signed_by(&theirs, "another history");
    // Checked with the key that was kept.
    let report = other.verify(&[]);
    assert_eq!(
        report.faults.first(),
        Some(&Fault::ForeignCheckpoint {
            number: 1,
            signer: theirs.public().id(),
            key: ours.public().id()
        })
    );
    // Checked with the key that came with the files, and a checkpoint that was kept.
    let lines = other.lines.iter().cloned().map(Ok::<_, Infallible>);
    let leaves = other.leaves.iter().copied().map(Ok);
    let report = verify(
        lines,
        leaves,
        &other.notes(),
        theirs.public(),
        &[kept(&files().checkpoints[0])],
    );
    assert_eq!(
        report.faults,
        [Fault::OtherKey {
            kept: "build-7.checkpoint".into(),
            signer: ours.public().id(),
            key: theirs.public().id()
        }]
    );
}

#[test]
fn l5_changed_checkpoints_and_leaves_are_named() {
    let mut files = files();
    files.checkpoints[0] = files.checkpoints[0].replace("\n40\n", "\n41\n");
    assert!(matches!(
        files.first_fault(),
        Fault::BadCheckpoint { number: 1, .. }
    ));
    files.checkpoints.clear();
    assert_eq!(files.first_fault(), Fault::NoCheckpoint);
    let mut files = self::files();
    files.checkpoints.swap(0, 1);
    assert!(
        files
            .verify(&[])
            .faults
            .contains(&Fault::CheckpointOutOfOrder {
                number: 2,
                size: 40
            })
    );
    let mut files = self::files();
    files.leaves[3] = [0; 32];
    assert_eq!(files.first_fault(), Fault::LeafChanged { sequence: 3 });
}

#[test]
fn a_kept_text_that_is_no_checkpoint_is_named() {
    let report = files().verify(&[kept("hello")]);
    assert!(
        matches!(report.faults.as_slice(), [Fault::BadKept { .. }]),
        "{report}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn l5_no_changed_byte_inside_the_last_checkpoint_goes_unseen(record in 0_usize..90, at in any::<prop::sample::Index>(), flip in 1_u8..) {
        let mut files = files();
        let byte = at.get_mut(&mut files.lines[record]);
        *byte ^= flip;
        prop_assert!(!files.verify(&[]).is_intact());
    }
}
