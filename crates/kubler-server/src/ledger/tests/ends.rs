//! Whatever begins gets its end.

use futures_util::FutureExt as _;

use super::*;

#[tokio::test]
async fn l4_a_start_whose_caller_goes_while_it_becomes_durable_gets_its_end() {
    let world = World::new();
    let ledger = world.open().unwrap();
    for _ in 0..20 {
        // Polled once, then dropped: the caller hung up while the disk was written.
        drop(ledger.start(start(), Durability::Disk).now_or_never());
    }
    let text = world.text();
    assert_eq!(
        (
            text.matches("\"kind\":\"start\"").count(),
            text.matches("\"close_reason\":\"client\"").count()
        ),
        (20, 20),
        "{text}"
    );
}

#[tokio::test]
async fn l4_after_a_failed_sync_nothing_begins_or_is_signed_and_ends_are_still_recorded() {
    let world = World::new();
    let ledger = world.open().unwrap();
    let open = ledger.start(start(), Durability::Disk).await.unwrap();
    ledger.0.syncer.fail();
    assert!(!ledger.is_writable());
    for durability in [Durability::Process, Durability::Disk] {
        let refused = ledger.start(start(), durability).await;
        assert!(matches!(refused, Err(LedgerError::Unusable { .. })));
    }
    assert_eq!(world.text().lines().count(), 1);
    open.end(Outcome::default()).await;
    // A release goes on without its start, and what it changes is recorded.
    let released = Body::new(Kind::Event, LedgerAction::EnvironmentPhase);
    ledger.event(released, Durability::Process).await.unwrap();
    assert_eq!(world.text().matches("\"kind\":\"end\"").count(), 1);
    assert_eq!(world.text().lines().count(), 3);
    assert!(ledger.checkpoint().is_err());
    drop(ledger);
    let ledger = world.open().unwrap();
    ledger.checkpoint().unwrap();
    let report = world.verify();
    assert!(report.is_intact(), "{report}");
}

#[tokio::test]
async fn l4_a_start_that_does_not_become_durable_is_refused_and_closed() {
    let world = World::new();
    let ledger = world.open().unwrap();
    // The thread that syncs cannot take the file before the fault is there.
    let held = ledger.0.syncer.hold();
    let mut starting = Box::pin(ledger.start(start(), Durability::Disk));
    assert!(starting.as_mut().now_or_never().is_none());
    ledger.0.syncer.fail();
    drop(held);
    let refused = starting.await;
    assert!(matches!(refused, Err(LedgerError::Unusable { .. })));
    let text = world.text();
    assert!(text.contains("\"close_reason\":\"not_durable\""), "{text}");
}
