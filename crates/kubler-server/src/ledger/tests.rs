mod crash;
mod ends;
mod full_disk;
mod kill;
mod recover;
mod scale;

use std::convert::Infallible;
use std::time::Duration;

use kubler_core::identity::{Identity, Job, Named, Run, Runner, Source};
use kubler_core::ledger::layout;
use kubler_core::ledger::record::{Kind, LedgerAction, Outcome};
use kubler_core::ledger::verify::{Report, verify};
use kubler_core::text::UntrustedText;

use super::*;
use crate::clock::SystemClock;

struct World(tempfile::TempDir);

impl World {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn open(&self) -> Result<Ledger, LedgerError> {
        Self::open_in(&self.folder())
    }

    fn open_in(folder: &Path) -> Result<Ledger, LedgerError> {
        Ledger::open(
            folder,
            "kubler.test/ledger",
            &LedgerSettings::default(),
            Arc::new(SystemClock),
        )
    }

    fn open_within(&self, bounds: Bounds) -> Result<Ledger, LedgerError> {
        let opening = Opening {
            origin: "kubler.test/ledger",
            settings: &LedgerSettings::default(),
            bounds,
            witnesses: &[],
            judge: Judge::Refuse,
            clock: Arc::new(SystemClock),
        };
        super::open::open(LedgerLock::take(&self.folder())?, opening).map(|(ledger, _)| ledger)
    }

    fn folder(&self) -> PathBuf {
        self.0.path().join("ledger")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    fn records(&self) -> PathBuf {
        self.file(&layout::segment_name(0))
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.records()).unwrap()
    }

    /// All segments, one after the other.
    fn all(&self) -> String {
        let mut segments: Vec<_> = std::fs::read_dir(self.folder())
            .unwrap()
            .filter_map(|entry| layout::segment_first(entry.unwrap().file_name().to_str()?))
            .collect();
        segments.sort_unstable();
        segments
            .into_iter()
            .map(|first| std::fs::read_to_string(self.file(&layout::segment_name(first))).unwrap())
            .collect()
    }

    /// Every line of every segment, without its line feed.
    fn lines(&self) -> Vec<String> {
        self.all().lines().map(str::to_owned).collect()
    }

    /// As `kubler ledger verify` does, from the files alone.
    fn verify(&self) -> Report {
        let key = std::fs::read_to_string(self.file(layout::PUBLIC_KEY)).unwrap();
        // With their line feeds: a line without one is torn, not changed.
        let lines = self
            .all()
            .split_inclusive('\n')
            .map(|line| Ok::<_, Infallible>(line.as_bytes().to_vec()))
            .collect::<Vec<_>>();
        let leaves = std::fs::read(self.file(layout::LEAVES)).unwrap_or_default();
        let leaves: Vec<_> = leaves
            .chunks(32)
            .map(|leaf| Ok::<_, Infallible>(leaf.try_into().unwrap()))
            .collect();
        let notes = std::fs::read(self.file(layout::CHECKPOINTS)).unwrap_or_default();
        verify(lines, leaves, &notes, &PublicKey::parse(&key).unwrap(), &[])
    }
}

fn start() -> Body {
    Body::new(Kind::Start, LedgerAction::EnvironmentCreate)
}

#[tokio::test]
async fn l4_a_start_is_in_the_file_before_it_is_acknowledged_and_its_end_after() {
    let world = World::new();
    let ledger = world.open().unwrap();
    let entry = ledger.start(start(), Durability::Disk).await.unwrap();
    assert_eq!(world.text().lines().count(), 1);
    entry
        .end(Outcome {
            status: 200,
            ..Outcome::default()
        })
        .await;
    let text = world.text();
    assert!(
        text.lines().nth(1).unwrap().contains("\"start\":0"),
        "{text}"
    );
}

#[tokio::test]
async fn what_is_dropped_is_closed_and_what_a_crash_left_open_is_closed_at_the_next_start() {
    let world = World::new();
    let ledger = world.open().unwrap();
    drop(ledger.start(start(), Durability::Process).await.unwrap());
    assert!(world.text().contains("\"close_reason\":\"client\""));
    std::mem::forget(ledger.start(start(), Durability::Process).await.unwrap());
    drop(ledger);
    // The forgotten entry holds a clone, as a killed process would: only the lock is given back by hand.
    std::fs::remove_file(world.0.path().join("ledger").join(layout::LOCK)).unwrap();
    world.open().unwrap();
    assert!(
        world.text().contains("\"close_reason\":\"crash\""),
        "{}",
        world.text()
    );
}

#[tokio::test]
async fn a_torn_last_record_is_cut_and_said() {
    let world = World::new();
    let ledger = world.open().unwrap();
    ledger
        .event(
            Body::new(Kind::Event, LedgerAction::ServerStart),
            Durability::Disk,
        )
        .await
        .unwrap();
    drop(ledger);
    let whole = world.text();
    std::fs::write(world.records(), format!("{whole}{{\"sequence\":1,\"at")).unwrap();
    let ledger = world.open().unwrap();
    let text = world.text();
    assert!(
        text.starts_with(&whole) && text.contains("\"torn_bytes\""),
        "{text}"
    );
    ledger
        .event(
            Body::new(Kind::Event, LedgerAction::ServerStop),
            Durability::Disk,
        )
        .await
        .unwrap();
}

#[tokio::test]
async fn l5_a_ledger_that_is_not_what_its_checkpoint_says_is_not_opened() {
    for damage in ["change", "cut"] {
        let world = World::new();
        let ledger = world.open().unwrap();
        for _ in 0..3 {
            ledger
                .event(
                    Body::new(Kind::Event, LedgerAction::ServerStart),
                    Durability::Disk,
                )
                .await
                .unwrap();
        }
        assert_eq!(ledger.checkpoint().unwrap().size, 3);
        drop(ledger);
        let text = world.text();
        let changed = if damage == "change" {
            text.replacen("server.start", "server.stop", 1)
        } else {
            text.lines()
                .take(2)
                .map(|line| format!("{line}\n"))
                .collect()
        };
        std::fs::write(world.records(), changed).unwrap();
        assert!(
            matches!(world.open(), Err(LedgerError::Damaged { .. })),
            "{damage}"
        );
    }
}

#[tokio::test]
async fn a_checkpoint_is_signed_once_for_each_size_and_goes_on_after_a_restart() {
    let world = World::new();
    let ledger = world.open().unwrap();
    ledger
        .event(
            Body::new(Kind::Event, LedgerAction::ServerStart),
            Durability::Disk,
        )
        .await
        .unwrap();
    let first = ledger.checkpoint().unwrap();
    assert_eq!(first, ledger.checkpoint().unwrap());
    assert_eq!(ledger.verifying_key().open(&first.note).unwrap().size, 1);
    drop(ledger);
    let ledger = world.open().unwrap();
    assert_eq!(first, ledger.checkpoint().unwrap());
    ledger
        .event(
            Body::new(Kind::Event, LedgerAction::ServerStop),
            Durability::Disk,
        )
        .await
        .unwrap();
    assert_eq!(ledger.checkpoint().unwrap().size, 2);
    let leaves = std::fs::read(world.0.path().join("ledger").join(layout::LEAVES)).unwrap();
    assert_eq!(leaves.len(), 64);
}

#[test]
fn a_second_server_is_refused() {
    let world = World::new();
    let _first = world.open().unwrap();
    assert!(matches!(world.open(), Err(LedgerError::InUse(_))));
}

#[tokio::test]
async fn records_are_found_by_environment_and_read_on_by_sequence() {
    let world = World::new();
    let ledger = world.open().unwrap();
    let id = kubler_core::ids::EnvironmentId::from_random([7; 16]);
    for nth in 0..600_u32 {
        let mut body = Body::new(Kind::Event, LedgerAction::EnvironmentPhase);
        body.environment_id = nth.is_multiple_of(100).then_some(id);
        ledger.event(body, Durability::Process).await.unwrap();
    }
    let found = ledger
        .read(&Query {
            environment: Some(id),
            ..Query::default()
        })
        .unwrap();
    let sequences: Vec<_> = found
        .records
        .iter()
        .map(|record| record["sequence"].as_u64().unwrap())
        .collect();
    assert_eq!(sequences, [0, 100, 200, 300, 400, 500]);
    let page = ledger
        .read(&Query {
            from: 300,
            limit: Some(10),
            ..Query::default()
        })
        .unwrap();
    assert_eq!(
        (
            page.records.len(),
            page.records[0]["sequence"].as_u64(),
            page.next
        ),
        (10, Some(300), Some(310))
    );
    let none = ledger
        .read(&Query {
            from: 600,
            ..Query::default()
        })
        .unwrap();
    assert_eq!((none.records.len(), none.next), (0, None));
}

#[tokio::test]
async fn l7_a_hostile_branch_name_stays_on_its_line() {
    let world = World::new();
    let ledger = world.open().unwrap();
    let named = |id: &str| Named {
        id: id.into(),
        slug: id.into(),
    };
    let mut body = start();
    body.identity = Some(Box::new(Identity {
        issuer: "https://agent.buildkite.com".into(),
        organization: named("o"),
        project: named("p\n{\"sequence\":99}"),
        run: Run {
            id: "r".into(),
            number: 1,
            url: String::new(),
        },
        job: Job {
            id: "j".into(),
            step_key: None,
            url: String::new(),
        },
        source: Source {
            branch: Some(UntrustedText::new("main\n{\"sequence\":1}\u{1b}[2J")),
            tag: None,
            commit: UntrustedText::new("HEAD"),
            trigger: "ui".into(),
        },
        runner: Runner::default(),
    }));
    ledger.event(body, Durability::Disk).await.unwrap();
    let text = world.text();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(!text.contains('\u{1b}'));
}

#[tokio::test]
async fn refusals_of_unknown_callers_are_counted_not_listed() {
    let world = World::new();
    let clock = Arc::new(crate::clock::ManualClock::new(
        jiff::Timestamp::from_second(1_800_000_000).unwrap(),
    ));
    let folder = world.0.path().join("ledger");
    let ledger = Ledger::open(
        &folder,
        "kubler.test/ledger",
        &LedgerSettings::default(),
        Arc::<crate::clock::ManualClock>::clone(&clock),
    )
    .unwrap();
    for _ in 0..1000 {
        ledger.refuse(RefusalBeforeVerification {
            peer: [127, 0, 0, 1].into(),
            reason: "signature",
        });
    }
    clock.advance(Duration::from_secs(11));
    ledger.checkpoint().unwrap();
    let text = world.text();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("1000"), "{text}");
}

#[tokio::test]
async fn l4_refusals_before_verification_stay_within_their_bytes_per_hour() {
    const BYTES: u64 = 32 * 1024;
    let world = World::new();
    let clock = Arc::new(crate::clock::ManualClock::new(
        jiff::Timestamp::from_second(1_800_000_000).unwrap(),
    ));
    let settings = LedgerSettings {
        refusal_bytes_per_hour_max: BYTES,
        ..LedgerSettings::default()
    };
    let ledger = Ledger::open(
        &world.folder(),
        "kubler.test/ledger",
        &settings,
        Arc::<crate::clock::ManualClock>::clone(&clock),
    )
    .unwrap();
    let refuse = |source: u32, reason| {
        ledger.refuse(RefusalBeforeVerification {
            peer: std::net::Ipv4Addr::from(source).into(),
            reason,
        });
    };
    let (mut source, mut noted) = (0, 0);
    for _ in 0..720 {
        for _ in 0..20 {
            source += 1;
            noted += 2;
            refuse(source, "signature");
            refuse(1, "expired");
        }
        clock.advance(Duration::from_secs(5));
    }
    let bytes = std::fs::metadata(world.records()).unwrap().len();
    assert!(bytes <= BYTES, "{bytes}");
    // Nothing is forgotten: what found no room is counted together, and written when there is some.
    clock.advance(Duration::from_secs(3600));
    refuse(1, "expired");
    clock.advance(Duration::from_secs(11));
    ledger.checkpoint().unwrap();
    let count = |line: &String| {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(record["action"], "caller.refuse_many");
        record["details"]["count"].as_u64().unwrap()
    };
    assert_eq!(world.lines().iter().map(count).sum::<u64>(), noted + 1);
}

#[tokio::test]
async fn refusals_that_find_no_room_are_counted_on() {
    let world = World::new();
    let clock = Arc::new(crate::clock::ManualClock::new(
        jiff::Timestamp::from_second(1_800_000_000).unwrap(),
    ));
    let ledger = Ledger::open(
        &world.folder(),
        "kubler.test/ledger",
        &LedgerSettings::default(),
        Arc::<crate::clock::ManualClock>::clone(&clock),
    )
    .unwrap();
    let refuse = || {
        ledger.refuse(RefusalBeforeVerification {
            peer: [127, 0, 0, 1].into(),
            reason: "signature",
        });
        clock.advance(Duration::from_secs(11));
    };
    ledger.fill();
    refuse();
    refuse();
    assert_eq!(world.text(), "");
    ledger.writer().empty();
    refuse();
    ledger.checkpoint().unwrap();
    assert!(world.text().contains("\"count\":3"), "{}", world.text());
}
