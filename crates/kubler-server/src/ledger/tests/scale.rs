//! What opening costs. Run it by name, with `--ignored --nocapture`, and with optimisation.

use std::time::Instant;

use super::*;

const RECORDS: u64 = 1_000_000;

#[tokio::test]
#[ignore = "writes 1,000,000 records and says how long opening them takes"]
async fn opening_a_million_records() {
    let world = World::new();
    let ledger = world.open().unwrap();
    let environment = kubler_core::ids::EnvironmentId::from_random([7; 16]);
    let mut request = start();
    request.action = LedgerAction::KubernetesRequest;
    request.environment_id = Some(environment);
    request.request_id = Some(kubler_core::ids::RequestId::from_random([8; 16]));
    request.session_id = Some(kubler_core::ids::SessionId::from_random([9; 16]));
    request.peer = Some("192.0.2.17".into());
    request.decision = Some(kubler_core::ledger::record::Decision::Allow {
        grounds: kubler_core::policy::Grounds {
            policies: vec!["jobs-use-their-own-environment".into()],
            policy_digest: "0".repeat(64),
        },
    });
    let began = Instant::now();
    for nth in 0..RECORDS / 2 {
        let entry = ledger.start(request.clone(), Durability::Process).await;
        entry.unwrap().end(Outcome::default()).await;
        if nth.is_multiple_of(100_000) {
            ledger.checkpoint().unwrap();
        }
    }
    ledger.checkpoint().unwrap();
    println!("written in {:?}", began.elapsed());
    drop(ledger);
    let bytes: u64 = std::fs::read_dir(world.folder())
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    for _ in 0..3 {
        let began = Instant::now();
        let ledger = world.open().unwrap();
        println!(
            "opened in {:?}: {RECORDS} records, {bytes} bytes",
            began.elapsed()
        );
        drop(ledger);
    }
}
