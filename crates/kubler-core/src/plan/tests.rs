use super::*;
use crate::invariants::fixtures::{environment, environment_id, timestamp};

const LONG_AGO: ServingSince = ServingSince(Timestamp::MIN);

fn in_phase(nth: u8, phase: Phase) -> Environment {
    let mut one = environment();
    one.id = environment_id(nth);
    one.created_at = timestamp(i64::from(nth));
    one.phase = phase;
    one
}

fn whole(nth: u8) -> Observed {
    Observed {
        id: environment_id(nth),
        condition: Condition::Whole,
        unremembered: Unremembered::Ends,
    }
}

fn planned(
    stored: &[Environment],
    observed: Option<&[Observed]>,
    busy: &[u8],
    now: i64,
) -> Vec<Step> {
    planned_in(2, stored, observed, busy, now)
}

fn planned_in(
    places: usize,
    stored: &[Environment],
    observed: Option<&[Observed]>,
    busy: &[u8],
    now: i64,
) -> Vec<Step> {
    let busy = busy.iter().map(|nth| environment_id(*nth)).collect();
    let observed = observed.map(|found| (Site::Here, found.to_vec()));
    plan(&Situation {
        stored,
        observed: &observed.into_iter().collect(),
        busy: &busy,
        places: [EngineKind::Local, EngineKind::Namespace]
            .map(|kind| (kind, places))
            .into(),
        serving_since: LONG_AGO,
        now: timestamp(now),
    })
}

#[test]
fn what_was_requested_is_made_oldest_first_and_no_more_than_fit() {
    let stored = [
        in_phase(3, Phase::Requested),
        in_phase(1, Phase::Requested),
        in_phase(2, Phase::Requested),
    ];
    assert_eq!(
        planned(&stored, Some(&[]), &[], 10),
        [
            Step::Provision(environment_id(1)),
            Step::Provision(environment_id(2))
        ]
    );
}

#[test]
fn one_that_is_being_made_leaves_the_other_places_free() {
    let stored = [
        in_phase(1, Phase::Provisioning),
        in_phase(2, Phase::Requested),
        in_phase(3, Phase::Requested),
    ];
    let second = [Step::Provision(environment_id(2))];
    assert_eq!(planned_in(1, &stored, Some(&[]), &[1], 10), second);
    assert_eq!(planned_in(0, &stored, Some(&[]), &[1], 10), []);
}

#[test]
fn making_goes_on_after_a_crash() {
    assert_eq!(
        planned(&[in_phase(1, Phase::Provisioning)], Some(&[]), &[], 10),
        [Step::Provision(environment_id(1))]
    );
}

#[test]
fn a_ready_environment_that_broke_is_noticed() {
    let broken = Observed {
        id: environment_id(1),
        condition: Condition::Broken {
            message: "died".into(),
        },
        unremembered: Unremembered::Ends,
    };
    let steps = planned(&[in_phase(1, Phase::Ready)], Some(&[broken]), &[], 10);
    assert_eq!(
        steps,
        [Step::Break(
            environment_id(1),
            EndReason::Failed {
                message: "died".into()
            }
        )]
    );
    let steps = planned(&[in_phase(1, Phase::Ready)], Some(&[]), &[], 10);
    assert!(matches!(steps.as_slice(), [Step::Break(..)]));
    assert_eq!(
        planned(&[in_phase(1, Phase::Ready)], Some(&[whole(1)]), &[], 10),
        []
    );
}

#[test]
fn nothing_is_concluded_when_the_world_could_not_be_looked_at() {
    assert_eq!(planned(&[in_phase(1, Phase::Ready)], None, &[], 10), []);
}

#[test]
fn what_failed_is_ended_and_what_ends_is_removed() {
    let mut failed = in_phase(1, Phase::Failed);
    failed.reason = Some(EndReason::Failed {
        message: "x".into(),
    });
    let stored = [failed, in_phase(2, Phase::Releasing)];
    assert_eq!(
        planned(&stored, Some(&[]), &[], 10),
        [
            Step::End(
                environment_id(1),
                EndReason::Failed {
                    message: "x".into()
                }
            ),
            Step::Remove(environment_id(2))
        ]
    );
}

#[test]
fn a_lapse_ends_also_what_is_being_made() {
    for phase in [Phase::Requested, Phase::Provisioning, Phase::Ready] {
        let steps = planned(&[in_phase(1, phase)], Some(&[whole(1)]), &[1], 300);
        assert_eq!(
            steps,
            [Step::End(environment_id(1), EndReason::Lapsed)],
            "{phase:?}"
        );
    }
}

#[test]
fn what_belongs_to_nothing_is_removed() {
    assert_eq!(
        planned(&[], Some(&[whole(7)]), &[], 10),
        [Step::RemoveOrphan(Site::Here, environment_id(7))]
    );
    assert_eq!(planned(&[], Some(&[whole(7)]), &[7], 10), []);
}
