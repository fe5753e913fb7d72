//! The store on a disk that is really full.

use std::time::Duration;

use kubler_testkit::disk::{self, Neighbour};

use super::*;

/// So many live when the disk becomes full.
const LIVING: u16 = 300;

#[test]
fn l4_on_a_full_disk_nothing_new_is_stored_and_every_end_is() {
    disk::on_a_disk_of("64m", "store::tests::full_disk::every_end");
}

#[tokio::test]
#[ignore = "needs a small disk: `l4_on_a_full_disk…` runs it"]
async fn every_end() {
    let Some(disk) = disk::disk() else { return };
    let shelf = Shelf::at(
        tempfile::tempdir_in(&disk).unwrap(),
        Limits {
            environments_max: 1000,
            queue_max: 1000,
            ..Limits::default()
        },
    )
    .await;
    let of = |nth| environment(nth, &job(nth), "main");
    for nth in 0..LIVING {
        shelf.create(&of(nth)).await.unwrap();
    }
    let neighbour = Neighbour::moves_in(&disk, Duration::ZERO);
    // What has room still is taken; then it is refused, and for that reason.
    let mut begun = LIVING;
    let refused = loop {
        match shelf.create(&of(begun)).await {
            Ok(_) => begun += 1,
            Err(error) => break error,
        }
        assert!(begun < LIVING * 3, "the room for ends is given away");
    };
    assert!(matches!(refused, StoreError::NoRoom), "{refused}");
    assert!(matches!(
        shelf.store.check(at(1)).await,
        Err(StoreError::NoRoom)
    ));
    // Every one of them, through all its phases, with more to say each time.
    let long = "x".repeat(1000);
    for nth in 0..begun {
        let reason = EndReason::Failed {
            message: long.clone(),
        };
        for event in [Event::ReleaseRequested(reason), Event::FoundGone] {
            let ended = shelf.store.apply(of(nth).id, event, at(2)).await;
            ended
                .unwrap_or_else(|error| panic!("end {nth}: {error}"))
                .unwrap();
        }
    }
    neighbour.moves_out();
    // By itself.
    shelf.create(&of(begun)).await.unwrap();
    shelf.store.check(at(10)).await.unwrap();
}
