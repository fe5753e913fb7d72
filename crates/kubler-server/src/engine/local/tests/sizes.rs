//! Bounds of a profile: whoever passes one is ended and told which, and a neighbour lives.

use serde_json::json;

use super::super::etcd::wire;
use super::super::sampler::{Sampler, memory_bytes};
use super::resisting::Put;
use super::*;

/// What an idle environment may hold of its own, in bytes.
const IDLE_MEMORY_BYTES_MAX: u64 = 200 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_environment_that_stores_more_than_its_bound_is_ended_and_a_neighbour_lives() {
    let place = Place::new();
    let engine = place.engine().await;
    let (mut greedy, neighbour) = (environment(1), environment(2));
    greedy.resolved.profile.stored_bytes_max = Some(2 << 20);
    engine.provision(&greedy).await.unwrap();
    engine.provision(&neighbour).await.unwrap();
    assert_eq!(condition(&engine, greedy.id).await, Some(Condition::Whole));

    // One after another, as a job would, until it is over; and as much once more in a neighbour that may.
    let value = "x".repeat(700_000);
    for id in [greedy.id, neighbour.id] {
        let api = job_client(&engine, id).await;
        for number in 0..4 {
            let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("m{number}")}, "data": {"value": value}});
            let made = api
                .post("/api/v1/namespaces/default/configmaps", &map)
                .await
                .unwrap();
            assert!(made.is_success(), "{}", made.message());
        }
    }
    let message = fault_of(&engine, greedy.id).await;
    assert!(
        message.starts_with("it stores at least 2.")
            && message.ends_with("its profile allows 2.0 MiB (`stored_bytes_max`)"),
        "{message}"
    );
    // That it is over wakes whoever looks at the world.
    tokio::time::timeout(Duration::from_secs(WAIT_SECONDS), engine.changed())
        .await
        .expect("nobody is told");
    engine.remove(greedy.id).await.unwrap();
    assert_eq!(
        place.leftovers(&engine, greedy.id).await,
        Vec::<String>::new()
    );
    assert_eq!(
        condition(&engine, neighbour.id).await,
        Some(Condition::Whole)
    );
    let api = job_client(&engine, neighbour.id).await;
    assert!(api.get("/readyz").await.unwrap().is_success());
    engine.remove(neighbour.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_environment_that_holds_more_memory_than_its_bound_is_ended_also_when_adopted() {
    let place = Place::new();
    let engine = place
        .engine_with(|settings| settings.sample_every = Duration::from_secs(3600))
        .await;
    let (mut greedy, neighbour) = (environment(1), environment(2));
    greedy.resolved.profile.memory_bytes_max = Some(1 << 20);
    engine.provision(&greedy).await.unwrap();
    engine.provision(&neighbour).await.unwrap();
    assert_eq!(condition(&engine, greedy.id).await, Some(Condition::Whole));
    engine.stop(StopMode::KeepEnvironments).await.unwrap();
    drop(engine);

    let engine = place.engine().await;
    let message = fault_of(&engine, greedy.id).await;
    assert!(
        message.starts_with("its control plane holds ")
            && message.ends_with("its profile allows 1.0 MiB (`memory_bytes_max`)"),
        "{message}"
    );
    engine.remove(greedy.id).await.unwrap();
    assert_eq!(
        condition(&engine, neighbour.id).await,
        Some(Condition::Whole)
    );

    // What an idle environment holds once it has settled, with room for a busy machine: `make bench` measures the bar.
    let process = &engine.inner.mark(neighbour.id).processes()[0];
    let settled = eventually("it settles", || async {
        memory_bytes(process).filter(|bytes| *bytes <= IDLE_MEMORY_BYTES_MAX)
    })
    .await;
    println!("an idle environment holds {} MiB", settled >> 20);
    engine.remove(neighbour.id).await.unwrap();
    assert_eq!(memory_bytes(process), None, "it has ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_is_compacted_when_the_store_fills() {
    let place = Place::new();
    let engine = place
        .engine_with(|settings| settings.sample_every = Duration::from_secs(3600))
        .await;
    let root = engine.inner.etcd.root();
    let put = Put {
        key: b"/environments/x".to_vec(),
        value: b"x".to_vec(),
    };
    let first = root.call(&put).await.unwrap().header.unwrap().revision;
    let at_first = wire::Range {
        key: put.key.clone(),
        revision: first,
        ..wire::Range::default()
    };
    let sampler = |pressure_bytes| {
        let inner = &engine.inner;
        Sampler::new(
            Arc::clone(&inner.slots),
            inner.etcd.root(),
            Arc::clone(&inner.changes),
            pressure_bytes,
        )
    };
    let look = async |sampler: &mut Sampler| {
        root.call(&put).await.unwrap();
        sampler.look().await.unwrap();
        root.call(&at_first).await.map(drop)
    };
    let (mut roomy, mut full) = (sampler(u64::MAX), sampler(0));
    for _ in 0..3 {
        assert!(look(&mut roomy).await.is_ok(), "there was room for it");
    }
    assert!(
        look(&mut full).await.is_ok(),
        "what was there at the look before is kept"
    );
    let error = look(&mut full).await.unwrap_err();
    assert!(error.says("compacted"), "{error}");
}

/// The message of a broken environment, once it is.
pub(super) async fn fault_of(engine: &LocalEngine, id: EnvironmentId) -> String {
    eventually("it is found too large", || async {
        match condition(engine, id).await {
            Some(Condition::Broken { message }) => Some(message),
            _ => None,
        }
    })
    .await
}
