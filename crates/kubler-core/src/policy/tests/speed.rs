//! How long a decision takes. Asserts only that it is not absurd; `--nocapture` shows the figures.

use std::time::Instant;

use super::*;

const ROUNDS: usize = 2000;
/// Far above what is measured, also without optimisation on a busy machine.
const MICROSECONDS_MAX: u128 = 20_000;

fn p50(mut run: impl FnMut()) -> u128 {
    let mut taken: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_nanos()
        })
        .collect();
    taken.sort_unstable();
    taken[ROUNDS / 2] / 1000
}

#[test]
fn a_decision_takes_microseconds() {
    let many: String = (0..200)
        .map(|nth| format!("@id(\"p{nth}\") permit (principal is Job, action, resource) when {{ principal.organization_id == \"{ORGANIZATION}\" && principal.pipeline_id == \"11945ecf-0000-4000-8000-{nth:012}\" }};\n"))
        .collect();
    let mut files = starter(ORGANIZATION, "acme");
    let starter = PolicySet::parse(&files, &configuration()).unwrap();
    files.insert("many.cedar".into(), many);
    let large = PolicySet::parse(&files, &configuration()).unwrap();
    let caller = job(|_| ());
    let webhook = job(|identity| identity.source.trigger = "webhook".into());
    for (name, set) in [("starter", &starter), ("starter + 200", &large)] {
        let (own, full) = (environment(|_| ()), profile("ci-small"));
        let use_kubernetes = p50(|| {
            drop(
                set.decide(&caller, Action::UseKubernetes, own.clone())
                    .unwrap(),
            )
        });
        let create = p50(|| {
            drop(
                set.decide(&caller, Action::CreateEnvironment, full.clone())
                    .unwrap(),
            )
        });
        let denied = p50(|| {
            drop(
                set.decide(&webhook, Action::CreateEnvironment, full.clone())
                    .unwrap_err(),
            )
        });
        println!(
            "{name}: use_kubernetes {use_kubernetes} µs, create {create} µs, denied {denied} µs (p50 of {ROUNDS})"
        );
        assert!(use_kubernetes.max(create) < MICROSECONDS_MAX);
    }
}
