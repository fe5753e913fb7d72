use super::*;
use crate::invariants::fixtures::{environment, placement, timestamp};

fn events() -> [Event; 5] {
    [
        Event::ProvisioningStarted,
        Event::BecameReady,
        Event::Broke(EndReason::Failed {
            message: "x".into(),
        }),
        Event::ReleaseRequested(EndReason::Released),
        Event::FoundGone,
    ]
}

/// One row a phase, one column an event: the next phase, `=` when nothing changes, `!` when it is refused.
#[test]
fn the_table_of_phases_is_this_one() {
    let table: Vec<String> = Phase::ALL
        .into_iter()
        .map(|phase| {
            let cells: Vec<_> = events()
                .into_iter()
                .map(|event| {
                    let mut start = environment();
                    start.phase = phase;
                    match start.transition(event, timestamp(9)) {
                        Ok(Some(next)) => next.phase.as_str().to_owned(),
                        Ok(None) => "=".to_owned(),
                        Err(_) => "!".to_owned(),
                    }
                })
                .collect();
            format!("{}: {}", phase.as_str(), cells.join(" "))
        })
        .collect();
    assert_eq!(
        table,
        [
            "requested: provisioning ! failed releasing !",
            "provisioning: = ready failed releasing !",
            "ready: ! = failed releasing !",
            "failed: ! ! = releasing !",
            "releasing: ! ! = = gone",
            "gone: ! ! = = =",
        ]
    );
}

#[test]
fn a_place_on_a_host_is_taken_once_and_stays() {
    let mut start = environment();
    start.resolved.profile.engine = EngineKind::Namespace;
    assert_eq!(start.site(), None);
    let placed = start.transition(Event::Placed(placement()), timestamp(1));
    let placed = placed.unwrap().unwrap();
    assert_eq!(placed.phase, Phase::Provisioning);
    assert_eq!(placed.site(), Some(Site::Host("east".into())));
    assert_eq!(placed.namespace(), Some("kubler-env-01"));
    let elsewhere = Placement {
        host: "west".into(),
        ..placement()
    };
    let again = placed.transition(Event::Placed(elsewhere), timestamp(2));
    assert_eq!(again, Ok(None), "something may have been made in the first");
    let ended = placed.transition(Event::ReleaseRequested(EndReason::Released), timestamp(3));
    assert_eq!(ended.unwrap().unwrap().site(), placed.site());
}

#[test]
fn the_first_reason_stays_and_so_does_the_moment_of_death() {
    let mut start = environment();
    start.phase = Phase::Ready;
    let broken = start
        .transition(
            Event::Broke(EndReason::Failed {
                message: "apiserver died".into(),
            }),
            timestamp(10),
        )
        .unwrap()
        .unwrap();
    let releasing = broken
        .transition(Event::ReleaseRequested(EndReason::Lapsed), timestamp(20))
        .unwrap()
        .unwrap();
    assert_eq!(
        releasing.reason,
        Some(EndReason::Failed {
            message: "apiserver died".into()
        })
    );
    assert_eq!(releasing.dead_at, Some(timestamp(10)));
}

#[test]
fn every_change_counts_up() {
    let start = environment();
    let next = start
        .transition(Event::ProvisioningStarted, timestamp(1))
        .unwrap()
        .unwrap();
    assert_eq!(next.version, start.version + 1);
}

#[test]
fn c8_a_job_scope_is_for_its_job_and_a_build_scope_for_its_build() {
    let mut mine = environment();
    let other_job = Owner {
        job_id: "another".into(),
        ..mine.owner()
    };
    let other_run = Owner {
        run_id: "another".into(),
        ..mine.owner()
    };
    let other_organization = Owner {
        organization_id: "another".into(),
        ..mine.owner()
    };
    assert!(mine.is_open_to(&mine.owner()));
    assert!(!mine.is_open_to(&other_job));
    mine.scope = Scope::Build;
    assert!(mine.is_open_to(&other_job));
    assert!(!mine.is_open_to(&other_run));
    assert!(!mine.is_open_to(&other_organization));
}

#[test]
fn a_unique_key_cannot_be_imitated_by_its_parts() {
    let owner = environment().owner();
    let one = Owner {
        job_id: "a\",\"b".into(),
        ..owner.clone()
    };
    let two = Owner {
        job_id: "a".into(),
        ..owner
    };
    assert_ne!(
        Environment::unique_key(&one, Scope::Job, "c"),
        Environment::unique_key(&two, Scope::Job, "b\",\"c")
    );
}

#[test]
fn names_are_dns_labels() {
    assert!(is_name("main") && is_name("e2e-1"));
    for name in ["", "-a", "a-", "A", "a.b", "a/b", "ü", &"a".repeat(41)] {
        assert!(!is_name(name), "{name}");
    }
}
