//! The reconciler over a real store and ledger, and an engine whose world is a set.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use kubler_core::environment::Environment;
use kubler_core::identity::Identity;
use kubler_core::plan::{Condition, Unremembered};
use kubler_core::policy::{Action, Caller, PolicySet, Target, starter};
use kubler_core::profile::EngineKind;
use serde_json::json;
use tokio::sync::Notify;

use super::*;
use crate::clock::ManualClock;
use crate::engine::{Evidence, Upstream};

const ORGANIZATION: &str = "01945ecf-0000-4000-8000-000000000001";
/// How long a condition may take to come true.
const BOUND: Duration = Duration::from_secs(10);

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

/// What exists, and what goes wrong.
#[derive(Default)]
struct World {
    exists: Mutex<BTreeSet<EnvironmentId>>,
    /// Errors of the next removals, last one first.
    resists: Mutex<Vec<ErrorClass>>,
    /// Errors of the next makings, last one first.
    fails: Mutex<Vec<ErrorClass>>,
    /// Making never comes to its end.
    makes_for_ever: bool,
    /// Looking never comes to its end.
    looks_for_ever: bool,
    changed: Notify,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn trouble(class: ErrorClass) -> EngineError {
    EngineError {
        message: "not today".into(),
        class,
    }
}

#[async_trait]
impl Engine for World {
    fn kind(&self) -> EngineKind {
        EngineKind::Local
    }
    async fn provision(&self, environment: &Environment) -> Result<(), EngineError> {
        locked(&self.exists).insert(environment.id);
        if self.makes_for_ever {
            std::future::pending::<()>().await;
        }
        locked(&self.fails)
            .pop()
            .map_or(Ok(()), |class| Err(trouble(class)))
    }
    async fn observe(&self) -> Result<Vec<Observed>, EngineError> {
        if self.looks_for_ever {
            std::future::pending::<()>().await;
        }
        let whole = |id: &EnvironmentId| Observed {
            id: *id,
            condition: Condition::Whole,
            unremembered: Unremembered::Ends,
        };
        Ok(locked(&self.exists).iter().map(whole).collect())
    }
    async fn remove(&self, id: EnvironmentId) -> Result<Evidence, EngineError> {
        if let Some(class) = locked(&self.resists).pop() {
            return Err(trouble(class));
        }
        locked(&self.exists).remove(&id);
        Ok(Evidence::default())
    }
    fn upstream(&self, _: EnvironmentId) -> Option<Arc<Upstream>> {
        None
    }
    async fn changed(&self) {
        self.changed.notified().await;
    }
}

struct Bench {
    world: Arc<World>,
    clock: Arc<ManualClock>,
    reconciler: Arc<Reconciler>,
    shutdown: CancellationToken,
    _folder: tempfile::TempDir,
}

impl Bench {
    /// A reconciler that runs, with room for one making at a time.
    async fn with(world: World) -> Self {
        Self::losing(world, Vec::new()).await
    }

    /// The same, where only the ledger knows some environments.
    async fn losing(world: World, lost: Vec<EnvironmentId>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = Arc::new(world);
        let clock = Arc::new(ManualClock::new(at(0)));
        let directory = Arc::new(Directory::new(Timestamp::MIN));
        let limits = kubler_core::configuration::Limits {
            provisioning_max: 1,
            ..Default::default()
        };
        let store = Store::open(
            &folder.path().join("store.sqlite"),
            Arc::clone(&directory),
            limits,
        )
        .await;
        let ledger = Ledger::open(
            &folder.path().join("ledger"),
            "test/ledger",
            &kubler_core::configuration::Ledger::default(),
            Arc::clone(&clock) as _,
        );
        let reconciler = Arc::new(Reconciler {
            store: Arc::new(store.unwrap()),
            directory,
            engines: vec![Arc::clone(&world) as _],
            ledger: ledger.unwrap(),
            clock: Arc::clone(&clock) as _,
            wake: Wake::default(),
            downtime: Arc::new(Downtime::new(at(0))),
            gauges: Arc::default(),
            lost,
        });
        let shutdown = CancellationToken::new();
        tokio::spawn(Arc::clone(&reconciler).run(shutdown.clone()));
        Self {
            world,
            clock,
            reconciler,
            shutdown,
            _folder: folder,
        }
    }

    /// An environment of the nth job, asked for now, with a lease of 300 s.
    async fn request(&self, nth: u8) -> EnvironmentId {
        let environment = environment(nth, self.clock.now());
        let configuration = serde_json::from_value(json!({
            "url": "https://localhost:8443",
            "issuers": [{ "kind": "buildkite", "audience": "kubler", "organizations": [{ "id": ORGANIZATION, "slug": "acme" }] }],
            "kubernetes": { "1.34": {} },
            "profiles": [{ "name": "ci-small", "kubernetes": "1.34" }],
        }));
        let policies =
            PolicySet::parse(&starter(ORGANIZATION, "acme"), &configuration.unwrap()).unwrap();
        let caller = Caller::Job(Box::new(environment.identity.clone()));
        let target = Target::Profile(Box::new(environment.resolved.clone()));
        let permit = policies
            .decide(&caller, Action::CreateEnvironment, target)
            .unwrap();
        let id = environment.id;
        self.reconciler
            .store
            .create_environment(permit, environment)
            .await
            .unwrap();
        self.reconciler.wake.wake();
        id
    }

    async fn release(&self, id: EnvironmentId) {
        let event = Event::ReleaseRequested(EndReason::Released);
        self.reconciler
            .store
            .apply(id, event, self.clock.now())
            .await
            .unwrap();
        self.reconciler.wake.wake();
    }

    async fn reaches(&self, id: EnvironmentId, phase: Phase) -> Arc<Environment> {
        let mut watched = self.reconciler.directory.watch(id).unwrap();
        let reached = watched.wait_for(|environment| environment.phase == phase);
        let reached = tokio::time::timeout(BOUND, reached).await;
        reached
            .unwrap_or_else(|_| panic!("{id} is not {phase:?}"))
            .unwrap()
            .clone()
    }

    fn exists(&self, id: EnvironmentId) -> bool {
        locked(&self.world.exists).contains(&id)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn environment(nth: u8, now: Timestamp) -> Environment {
    let identity: Identity = serde_json::from_value(json!({
        "issuer": "https://agent.buildkite.com",
        "organization": { "id": ORGANIZATION, "slug": "acme" },
        "project": { "id": "01945ecf-0000-4000-8000-000000000002", "slug": "web" },
        "run": { "id": "01945ecf-0000-4000-8000-000000000003", "number": 5, "url": "https://buildkite.com/acme/web/builds/5" },
        "job": { "id": format!("01945ecf-0000-4000-8000-0000000001{nth:02}"), "url": "https://buildkite.com/acme/web/builds/5#job" },
        "source": { "branch": "main", "commit": "HEAD", "trigger": "ui" },
        "runner": { "environment": "self-hosted", "agent_id": "01945ecf-0000-4000-8000-000000000005" },
    }))
    .unwrap();
    let resolved = kubler_core::profile::ResolvedProfile {
        profile: serde_json::from_value(json!({ "name": "ci-small", "kubernetes": "1.34" }))
            .unwrap(),
        kubernetes_version: "v1.34.4".into(),
        manifests: std::collections::BTreeMap::new(),
    };
    Environment {
        id: EnvironmentId::from_random([nth; 16]),
        name: "main".into(),
        scope: kubler_core::environment::Scope::Job,
        identity,
        digest: resolved.digest(),
        resolved,
        placement: None,
        phase: Phase::Requested,
        reason: None,
        created_at: now,
        ready_at: None,
        lease_end: kubler_core::lease::after(now, Duration::from_secs(300)),
        deadline: kubler_core::lease::after(now, Duration::from_secs(7200)),
        dead_at: None,
        gone_at: None,
        version: 0,
    }
}

#[tokio::test]
async fn what_is_asked_for_is_made_and_what_is_released_goes() {
    let bench = Bench::with(World::default()).await;
    let id = bench.request(1).await;
    bench.reaches(id, Phase::Ready).await;
    assert!(bench.exists(id));
    bench.release(id).await;
    bench.reaches(id, Phase::Gone).await;
    assert!(!bench.exists(id));
}

#[tokio::test]
async fn what_fails_for_good_has_failed_at_once_and_is_taken_away() {
    let bench = Bench::with(World {
        fails: Mutex::new(vec![ErrorClass::Permanent]),
        ..World::default()
    })
    .await;
    let id = bench.request(1).await;
    let gone = bench.reaches(id, Phase::Gone).await;
    assert_eq!(
        gone.reason,
        Some(EndReason::Failed {
            message: "not today".into()
        })
    );
    assert!(!bench.exists(id));
}

#[tokio::test]
async fn why_the_last_try_failed_is_known_until_one_works() {
    let bench = Bench::with(World {
        fails: Mutex::new(vec![ErrorClass::Transient]),
        ..World::default()
    })
    .await;
    let directory = Arc::clone(&bench.reconciler.directory);
    let id = bench.request(1).await;
    let deadline = std::time::Instant::now() + 6 * BOUND;
    while directory.last_failure(id).as_deref() != Some("not today") {
        assert!(std::time::Instant::now() < deadline, "nothing is told");
        tokio::task::yield_now().await;
    }
    bench.clock.advance(Duration::from_secs(60));
    bench.reaches(id, Phase::Ready).await;
    assert_eq!(directory.last_failure(id), None);
}

#[tokio::test]
async fn what_fails_once_is_tried_again_and_does_not_stand_in_the_way() {
    let bench = Bench::with(World {
        fails: Mutex::new(vec![ErrorClass::Transient]),
        ..World::default()
    })
    .await;
    let first = bench.request(1).await;
    bench.reaches(first, Phase::Provisioning).await;
    // There is one place, and the first waits for its second try without it.
    let second = bench.request(2).await;
    bench.reaches(second, Phase::Ready).await;
    bench.clock.advance(Duration::from_secs(1));
    bench.reaches(first, Phase::Ready).await;
}

#[tokio::test]
async fn an_end_does_not_wait_for_a_making_that_hangs() {
    let bench = Bench::with(World {
        makes_for_ever: true,
        ..World::default()
    })
    .await;
    let id = bench.request(1).await;
    bench.reaches(id, Phase::Provisioning).await;
    bench.clock.advance(Duration::from_secs(4));
    for _ in 0..75 {
        // In steps that are no downtime.
        bench
            .reconciler
            .downtime
            .tick(&bench.reconciler.directory, bench.clock.now());
        bench.clock.advance(Duration::from_secs(4));
    }
    bench.reconciler.wake.wake();
    let gone = bench.reaches(id, Phase::Gone).await;
    assert_eq!(gone.reason, Some(EndReason::Lapsed));
    assert!(!bench.exists(id));
}

#[tokio::test]
async fn what_resists_its_end_is_an_alarm_until_it_is_gone() {
    let many = vec![ErrorClass::Transient; ALARM_TRIES as usize];
    let bench = Bench::with(World {
        resists: Mutex::new(many),
        ..World::default()
    })
    .await;
    let id = bench.request(1).await;
    bench.reaches(id, Phase::Ready).await;
    bench.release(id).await;
    let (mut alarmed, deadline) = (false, std::time::Instant::now() + BOUND);
    while bench.reconciler.directory.get(id).unwrap().phase != Phase::Gone {
        assert!(std::time::Instant::now() < deadline, "it never went");
        alarmed |= bench.reconciler.gauges.stuck() == 1;
        // Each wait before a try is shorter than this, and none is downtime.
        bench.clock.advance(Duration::from_secs(4));
        bench
            .reconciler
            .downtime
            .tick(&bench.reconciler.directory, bench.clock.now());
        bench.reconciler.wake.wake();
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(alarmed);
    tokio::time::timeout(BOUND, async {
        while bench.reconciler.gauges.stuck() != 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn what_belongs_to_nothing_is_taken_away() {
    let bench = Bench::with(World::default()).await;
    let stranger = EnvironmentId::from_random([9; 16]);
    locked(&bench.world.exists).insert(stranger);
    bench.world.changed.notify_one();
    tokio::time::timeout(BOUND, async {
        while bench.exists(stranger) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_world_that_cannot_be_looked_at_delays_no_end_and_is_no_downtime() {
    let bench = Bench::with(World {
        looks_for_ever: true,
        ..World::default()
    })
    .await;
    let id = bench.request(1).await;
    bench.reaches(id, Phase::Ready).await;
    for _ in 0..76 {
        bench.clock.advance(Duration::from_secs(4));
        bench
            .reconciler
            .downtime
            .tick(&bench.reconciler.directory, bench.clock.now());
    }
    bench.reconciler.wake.wake();
    let gone = bench.reaches(id, Phase::Gone).await;
    assert_eq!(gone.reason, Some(EndReason::Lapsed));
}

#[tokio::test]
async fn time_without_a_tick_is_given_back() {
    let bench = Bench::with(World::default()).await;
    let id = bench.request(1).await;
    bench.reaches(id, Phase::Ready).await;
    bench.clock.advance(Duration::from_secs(400));
    bench.reconciler.wake.wake();
    tokio::time::timeout(BOUND, async {
        while bench.reconciler.directory.serving_since().0 != at(400) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(
        bench.reconciler.directory.get(id).unwrap().phase,
        Phase::Ready
    );
}

#[test]
fn what_cannot_help_itself_is_asked_seldom() {
    assert_eq!(
        backoff(ErrorClass::Transient, 1),
        Duration::from_millis(200)
    );
    assert_eq!(backoff(ErrorClass::Transient, 40), Duration::from_secs(30));
    assert_eq!(backoff(ErrorClass::Permanent, 1), Duration::from_secs(5));
    assert_eq!(backoff(ErrorClass::Permanent, 40), Duration::from_secs(300));
}

#[tokio::test]
async fn l9_what_only_the_ledger_knows_is_looked_for_and_told_gone() {
    let id = environment(1, at(0)).id;
    // Nothing of it is in the world: no look at it would ever say so.
    let bench = Bench::losing(World::default(), vec![id]).await;
    let deadline = std::time::Instant::now() + BOUND;
    while !bench.reconciler.ledger.tells_gone(id).unwrap() {
        assert!(
            std::time::Instant::now() < deadline,
            "it is never told gone"
        );
        tokio::task::yield_now().await;
    }
}
