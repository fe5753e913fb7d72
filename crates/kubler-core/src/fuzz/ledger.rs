//! The ledger's files. `record`: a line. `notes`: the file of checkpoints. `verify`: changes to a sound ledger, of
//! four bytes each: what is changed, where (two bytes), and into what.

use std::convert::Infallible;
use std::sync::LazyLock;

use jiff::Timestamp;
use serde_json::Value;
use zeroize::Zeroizing;

use crate::ledger::checkpoint::{PrivateKey, PublicKey};
use crate::ledger::merkle::{self, Hash, leaf_hash};
use crate::ledger::notes::{NOTE_BYTES_MAX, Notes, Tail};
use crate::ledger::record::{Body, Kind, LedgerAction, RECORD_BYTES_MAX, Record};
use crate::ledger::verify::{Kept, Report, verify as verify_ledger};

pub(super) fn record(input: &[u8]) -> bool {
    let taken = Record::from_line(input);
    if let Ok(record) = &taken {
        assert_eq!(serde_json::to_vec(record).ok().as_deref(), Some(input));
        sealed_again(record);
    }
    if let Ok(text) = std::str::from_utf8(input) {
        keeps_no_token(text);
    }
    taken.is_ok()
}

/// A record that goes through the writer once more is a record that can be read.
fn sealed_again(record: &Record) {
    let Ok(sealed) = record.body.clone().seal() else {
        return;
    };
    let mut line = Vec::new();
    sealed.write_line(record.sequence, record.at, &mut line);
    assert!(line.len() < RECORD_BYTES_MAX + 100);
    assert!(!line.contains(&b'\n'));
    let read = Record::from_line(&line).expect("the writer's line is read");
    assert_eq!((read.sequence, read.at), (record.sequence, record.at));
    assert_eq!(
        (read.body.kind, read.body.action),
        (record.body.kind, record.body.action)
    );
}

/// Rule L1: whatever stands around it, a token that somebody put into a text is not kept.
fn keeps_no_token(text: &str) {
    const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.c2lnbmF0dXJl";
    const OPAQUE: &str = "c4n4ryc4n4ryc4n4ry";
    for (secret, hidden) in [
        (TOKEN, format!("{text}{TOKEN}{text}")),
        (OPAQUE, format!("{text} Bearer {OPAQUE} {text}")),
        (OPAQUE, format!("{text} bearer  {OPAQUE}")),
    ] {
        // A text that holds the very same word elsewhere says nothing.
        if text.contains(secret) {
            continue;
        }
        let mut body = Body::new(Kind::Event, LedgerAction::ServerStart);
        body.details.insert("text".into(), hidden.into());
        let Ok(sealed) = body.seal() else {
            continue;
        };
        let mut line = Vec::new();
        sealed.write_line(0, Timestamp::UNIX_EPOCH, &mut line);
        let read = Record::from_line(&line).expect("the writer's line is read");
        let text = read.body.details.get("text").and_then(Value::as_str);
        // Of what is too long nothing is kept.
        assert!(text.is_none_or(|text| !text.contains(secret)), "{text:?}");
    }
}

pub(super) fn notes(input: &[u8]) -> bool {
    let notes = Notes::read(input);
    let mut rest = input;
    for note in &notes.whole {
        let blank = rest.iter().take_while(|byte| **byte == b'\n').count();
        rest = rest[blank..]
            .strip_prefix(note.as_bytes())
            .expect("notes stand in order");
        // Whether it is signed is for the key to say, but every key must be able to say.
        let _ = key().public().open(note);
    }
    let tail = match notes.tail {
        Tail::Clean => &[][..],
        Tail::Torn(tail) => {
            assert!(tail.len() < NOTE_BYTES_MAX);
            tail
        }
        Tail::Foreign(tail) => tail,
    };
    assert_eq!(
        rest.trim_ascii_start(),
        tail.trim_ascii_start(),
        "bytes were lost"
    );
    let Ok(text) = std::str::from_utf8(input) else {
        return false;
    };
    let public = PublicKey::parse(text);
    if let Ok(public) = &public {
        assert_eq!(PublicKey::parse(&public.to_string()).as_ref(), Ok(public));
    }
    if let Ok(checkpoint) = key().public().open(text) {
        assert!(
            text.starts_with(&checkpoint.body()),
            "more was read than was signed"
        );
    }
    public.is_ok() || !notes.whole.is_empty()
}

fn key() -> &'static PrivateKey {
    static KEY: LazyLock<PrivateKey> = LazyLock::new(|| {
        PrivateKey::from_random("kubler.example", &Zeroizing::new([1; 32])).expect("a name")
    });
    &KEY
}

/// Records of the sound ledger; the second checkpoint leaves some of them out.
const RECORDS: u64 = 12;
const SIZES: [usize; 2] = [4, 9];

#[derive(Clone)]
struct Files {
    records: Vec<u8>,
    leaves: Vec<u8>,
    checkpoints: Vec<u8>,
}

impl Files {
    fn sound() -> &'static Self {
        static SOUND: LazyLock<Files> = LazyLock::new(|| {
            let (mut records, mut hashes) = (Vec::new(), Vec::new());
            for sequence in 0..RECORDS {
                let body = Body::new(Kind::Event, LedgerAction::ServerStart);
                let mut line = Vec::new();
                let sealed = body.seal().expect("a short record");
                sealed.write_line(sequence, Timestamp::UNIX_EPOCH, &mut line);
                hashes.push(leaf_hash(&line));
                line.push(b'\n');
                records.append(&mut line);
            }
            let notes = SIZES.map(|size| {
                let root = merkle::root(&hashes[..size]);
                key().sign(size.try_into().expect("small"), root) + "\n"
            });
            let [_, signed] = SIZES;
            Files {
                records,
                leaves: hashes[..signed].concat(),
                checkpoints: notes.concat().into_bytes(),
            }
        });
        &SOUND
    }

    /// The bytes of the records that the last checkpoint vouches for.
    fn signed(&self) -> &[u8] {
        let [_, signed] = SIZES;
        let lines = self.records.split_inclusive(|byte| *byte == b'\n');
        let length = lines.take(signed).map(<[u8]>::len).sum();
        &self.records[..length]
    }

    fn verify(&self, kept: &[Kept]) -> Report {
        let lines = self.records.split_inclusive(|byte| *byte == b'\n');
        let lines = lines.map(|line| Ok::<_, Infallible>(line.to_vec()));
        let leaves = self.leaves.chunks_exact(32);
        let leaves = leaves.map(|leaf| Ok(Hash::try_from(leaf).expect("32 bytes")));
        verify_ledger(lines, leaves, &self.checkpoints, key().public(), kept)
    }

    fn change(&mut self, change: &[u8; 4]) {
        let [what, high, low, byte] = *change;
        let sound = Self::sound();
        let file = match what % 3 {
            0 => &mut self.records,
            1 => &mut self.leaves,
            _ => &mut self.checkpoints,
        };
        let at = usize::from(u16::from_be_bytes([high, low])) % (file.len() + 1);
        match what / 3 % 8 {
            0 | 1 => {
                if let Some(there) = file.get_mut(at) {
                    *there ^= byte;
                }
            }
            2 => file.truncate(at),
            3 => file.insert(at, byte),
            4 => drop(file.drain(at..file.len().min(at + usize::from(byte)))),
            5 => {
                let piece = file[at..file.len().min(at + usize::from(byte))].to_vec();
                file.extend_from_slice(&piece);
            }
            6 => {
                let piece = file[at..file.len().min(at + usize::from(byte))].to_vec();
                file.splice(..0, piece);
            }
            _ => file.clone_from(match what % 3 {
                0 => &sound.records,
                1 => &sound.leaves,
                _ => &sound.checkpoints,
            }),
        }
    }
}

pub(super) fn verify(input: &[u8]) -> bool {
    let sound = Files::sound();
    let mut files = sound.clone();
    for change in input.as_chunks::<4>().0.iter().take(16) {
        files.change(change);
    }
    let [_, signed] = SIZES;
    let size = u64::try_from(signed).expect("small");
    let report = files.verify(&[]);
    assert!(!report.to_string().is_empty());
    for fault in &report.faults {
        assert!(!fault.hint().is_empty());
    }
    let vouched = report.last_checkpoint.as_ref().map_or(0, |last| last.size);
    if report.is_intact() {
        // What is called intact is there byte for byte, as far as it was signed.
        assert!(vouched <= report.records);
        if vouched == size {
            assert!(
                files.records.starts_with(sound.signed()),
                "a change was not seen"
            );
        }
    }
    let note = String::from_utf8(sound.checkpoints.clone()).expect("notes are text");
    let last = note
        .trim_end()
        .rsplit("\n\nkubler")
        .next()
        .expect("a second note");
    let kept = [Kept {
        name: "kept".into(),
        note: format!("kubler{last}\n"),
    }];
    // With a checkpoint from elsewhere not even an older copy passes.
    let report = files.verify(&kept);
    if report.is_intact() {
        assert!(
            files.records.starts_with(sound.signed()),
            "an older copy was not seen"
        );
        assert_eq!(report.agrees_with, ["kept"]);
    }
    report.is_intact()
}
