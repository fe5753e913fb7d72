//! Makes the world agree with the store: looks, plans, acts. The plan is pure and lives in `kubler_core::plan`;
//! this only carries it out, each environment in a task of its own, so that one that is stuck delays no other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kubler_core::environment::{EndReason, Environment, Event, Phase};
use kubler_core::ids::EnvironmentId;
use kubler_core::ledger::record::{Body, Kind, LedgerAction};
use kubler_core::plan::{Observed, Situation, Step, plan};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::Wake;
use crate::broker::record_phase;
use crate::clock::Clock;
use crate::directory::Directory;
use crate::engine::{Engine, EngineError, ErrorClass};
use crate::ledger::{Durability, Ledger};
use crate::store::Store;

/// Longest time between two looks at leases and deadlines.
const TICK_MAX: Duration = Duration::from_millis(500);
/// Time between two looks at the world when nothing asks for one.
const OBSERVE_EVERY: Duration = Duration::from_secs(5);
/// A gap between two ticks that is longer than this was downtime: a suspended machine, a stopped process.
const GAP: SignedDuration = SignedDuration::from_secs(5);
/// How often making an environment is tried before it has failed.
const PROVISION_TRIES_MAX: u32 = 3;
/// Wait before the first repeat; doubles each time.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
/// Longest wait between two tries.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// What could not be ended after this many tries is an alarm.
const ALARM_TRIES: u32 = 5;

/// Carries out plans.
pub struct Reconciler {
    /// What should exist.
    pub store: Arc<Store>,
    /// The same, in memory.
    pub directory: Arc<Directory>,
    /// What makes and destroys.
    pub engine: Arc<dyn Engine>,
    /// What is written down.
    pub ledger: Ledger,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Who wakes us.
    pub wake: Wake,
    /// How many environments may be made at once.
    pub provisioning_max: usize,
    /// Numbers for the metrics page.
    pub gauges: Arc<Gauges>,
}

/// What the reconciler knows that nobody else does.
#[derive(Debug, Default)]
pub struct Gauges {
    /// Environments that resist their end.
    pub stuck: AtomicU64,
    /// The last look at the world worked.
    engine_works: AtomicBool,
}

impl Gauges {
    /// Whether the last look at the world worked.
    pub fn engine_works(&self) -> bool {
        self.engine_works.load(Ordering::Relaxed)
    }
}

/// One environment's work under way.
struct Work {
    step: Step,
    abort: AbortHandle,
}

/// How often something failed, and when to try again.
#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    not_before: Timestamp,
}

struct Done {
    id: EnvironmentId,
    result: Result<(), EngineError>,
}

/// State between two rounds. All of it may be lost at any moment: it is rebuilt from store and world.
#[derive(Default)]
struct Rounds {
    busy: BTreeMap<EnvironmentId, Work>,
    failures: BTreeMap<EnvironmentId, Failures>,
    tasks: JoinSet<Done>,
    observed_at: Option<Timestamp>,
    ticked_at: Option<Timestamp>,
}

impl Reconciler {
    /// Runs until `shutdown`. What is under way then is finished or found again at the next start.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut rounds = Rounds::default();
        let mut look = true;
        loop {
            self.round(&mut rounds, look).await;
            look = tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.wake.woken() => false,
                () = self.engine.changed() => true,
                Some(done) = rounds.tasks.join_next() => {
                    if let Ok(done) = done {
                        self.finished(&mut rounds, done).await;
                    }
                    false
                }
                () = tokio::time::sleep(TICK_MAX) => false,
            };
        }
        rounds.tasks.shutdown().await;
    }

    async fn round(&self, rounds: &mut Rounds, look: bool) {
        let now = self.clock.now();
        self.notice_gap(rounds, now);
        rounds.busy.retain(|_, work| !work.abort.is_finished());

        // What was Ready before looking must be found; what is stored after looking is no orphan.
        let before: BTreeMap<_, _> = self
            .directory
            .remaining()
            .into_iter()
            .map(|environment| (environment.id, environment.version))
            .collect();
        let observed = self.observe(rounds, look, now).await;
        let stored = self.directory.remaining();
        let waiting = |id: EnvironmentId| {
            rounds
                .failures
                .get(&id)
                .is_some_and(|failures| failures.not_before > now)
        };
        let changed_meanwhile = stored.iter().filter(|environment| {
            observed.is_some() && before.get(&environment.id) != Some(&environment.version)
        });
        let busy: BTreeSet<_> = rounds
            .busy
            .keys()
            .copied()
            .chain(changed_meanwhile.map(|environment| environment.id))
            .chain(rounds.failures.keys().copied().filter(|id| waiting(*id)))
            .collect();
        let steps = plan(&Situation {
            stored: &stored,
            observed: observed.as_deref(),
            busy: &busy,
            provisioning_max: self.provisioning_max.saturating_sub(rounds.provisioning()),
            serving_since: self.directory.serving_since(),
            now,
        });
        for step in steps {
            self.act(rounds, step, now).await;
        }
    }

    /// Time that passed without us was downtime: nobody could renew then.
    fn notice_gap(&self, rounds: &mut Rounds, now: Timestamp) {
        if let Some(last) = rounds.ticked_at.replace(now)
            && now.duration_since(last) > GAP
        {
            tracing::warn!(
                seconds = now.duration_since(last).as_secs(),
                "time passed without a tick: leases are given one more term"
            );
            self.directory.resumed(now);
        }
    }

    async fn observe(
        &self,
        rounds: &mut Rounds,
        look: bool,
        now: Timestamp,
    ) -> Option<Vec<Observed>> {
        let due = rounds.observed_at.is_none_or(|last| {
            now.duration_since(last) >= SignedDuration::try_from(OBSERVE_EVERY).unwrap_or_default()
        });
        if !look && !due {
            return None;
        }
        rounds.observed_at = Some(now);
        let observed = self.engine.observe().await;
        self.gauges
            .engine_works
            .store(observed.is_ok(), Ordering::Relaxed);
        match observed {
            Ok(observed) => Some(observed),
            Err(error) => {
                tracing::warn!(%error, "the world could not be looked at; nothing is concluded from that");
                None
            }
        }
    }

    async fn act(&self, rounds: &mut Rounds, step: Step, now: Timestamp) {
        match step {
            Step::Provision(id) => self.provision(rounds, id, now).await,
            Step::Break(id, reason) => self.change(id, Event::Broke(reason), now).await,
            Step::End(id, reason) => {
                // Whoever is still making it must stop before it is taken away.
                if let Some(work) = rounds.busy.remove(&id) {
                    work.abort.abort();
                }
                rounds.failures.remove(&id);
                self.change(id, Event::ReleaseRequested(reason), now).await;
                self.wake.wake();
            }
            Step::Remove(id) => self.remove(rounds, id, Step::Remove(id)),
            Step::RemoveOrphan(id) => self.remove(rounds, id, Step::RemoveOrphan(id)),
        }
    }

    async fn provision(&self, rounds: &mut Rounds, id: EnvironmentId, now: Timestamp) {
        self.change(id, Event::ProvisioningStarted, now).await;
        let Some(environment) = self
            .directory
            .get(id)
            .filter(|environment| environment.phase == Phase::Provisioning)
        else {
            return;
        };
        let engine = Arc::clone(&self.engine);
        let abort = rounds.tasks.spawn(async move {
            Done {
                id,
                result: engine.provision(&environment).await,
            }
        });
        rounds.busy.insert(
            id,
            Work {
                step: Step::Provision(id),
                abort,
            },
        );
    }

    fn remove(&self, rounds: &mut Rounds, id: EnvironmentId, step: Step) {
        if rounds.busy.contains_key(&id) {
            return;
        }
        let engine = Arc::clone(&self.engine);
        let store = Arc::clone(&self.store);
        let ledger = self.ledger.clone();
        let clock = Arc::clone(&self.clock);
        let orphan = matches!(step, Step::RemoveOrphan(_));
        let abort = rounds.tasks.spawn(async move {
            let result = remove(engine.as_ref(), &store, &ledger, clock.as_ref(), id, orphan).await;
            Done { id, result }
        });
        rounds.busy.insert(id, Work { step, abort });
    }

    async fn finished(&self, rounds: &mut Rounds, done: Done) {
        let id = done.id;
        let Some(work) = rounds.busy.remove(&id) else {
            return;
        };
        let now = self.clock.now();
        let Err(error) = done.result else {
            rounds.failures.remove(&id);
            if matches!(work.step, Step::Provision(_)) {
                self.change(id, Event::BecameReady, now).await;
            }
            self.count_stuck(rounds);
            return;
        };
        let count = rounds
            .failures
            .get(&id)
            .map_or(0, |failures| failures.count)
            + 1;
        rounds.failures.insert(
            id,
            Failures {
                count,
                not_before: kubler_core::lease::after(now, backoff(count)),
            },
        );
        match work.step {
            Step::Provision(_)
                if error.class == ErrorClass::Permanent || count >= PROVISION_TRIES_MAX =>
            {
                rounds.failures.remove(&id);
                self.change(
                    id,
                    Event::Broke(EndReason::Failed {
                        message: error.message,
                    }),
                    now,
                )
                .await;
                self.wake.wake();
            }
            Step::Provision(_) => {
                tracing::warn!(environment = %id, %error, count, "an environment could not be made; trying again")
            }
            _ if count >= ALARM_TRIES => {
                tracing::error!(environment = %id, %error, count, "an environment resists its end; trying on")
            }
            _ => {
                tracing::warn!(environment = %id, %error, count, "an environment could not be ended; trying again")
            }
        }
        self.count_stuck(rounds);
    }

    fn count_stuck(&self, rounds: &Rounds) {
        let stuck = rounds
            .failures
            .values()
            .filter(|failures| failures.count >= ALARM_TRIES)
            .count();
        self.gauges.stuck.store(stuck as u64, Ordering::Relaxed);
    }

    async fn change(&self, id: EnvironmentId, event: Event, now: Timestamp) {
        match self.store.apply(id, event, now).await {
            Ok(Some((before, environment))) => {
                record_phase(
                    &self.ledger,
                    None,
                    Some(before),
                    &environment,
                    serde_json::Map::new(),
                )
                .await
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(environment = %id, %error, "a change could not be written; trying again")
            }
        }
    }
}

impl Rounds {
    fn provisioning(&self) -> usize {
        self.busy
            .values()
            .filter(|work| matches!(work.step, Step::Provision(_)))
            .count()
    }
}

/// Takes away, looks, and only then says so.
async fn remove(
    engine: &dyn Engine,
    store: &Store,
    ledger: &Ledger,
    clock: &dyn Clock,
    id: EnvironmentId,
    orphan: bool,
) -> Result<(), EngineError> {
    let evidence = engine.remove(id).await?;
    let evidence = match serde_json::to_value(&evidence) {
        Ok(serde_json::Value::Object(map)) => map,
        _ => serde_json::Map::new(),
    };
    let transient = |error: &dyn std::fmt::Display| EngineError {
        message: error.to_string(),
        class: ErrorClass::Transient,
    };
    if orphan {
        let mut body = Body::new(Kind::Event, LedgerAction::EnvironmentOrphan);
        body.environment_id = Some(id);
        body.details = evidence;
        ledger
            .event(body, Durability::Process)
            .await
            .map_err(|error| transient(&error))?;
        return Ok(());
    }
    let changed: Option<(Phase, Environment)> = store
        .apply(id, Event::FoundGone, clock.now())
        .await
        .map_err(|error| transient(&error))?;
    if let Some((before, environment)) = changed {
        record_phase(ledger, None, Some(before), &environment, evidence).await;
    }
    Ok(())
}

fn backoff(count: u32) -> Duration {
    BACKOFF_FIRST
        .saturating_mul(1 << count.saturating_sub(1).min(10))
        .min(BACKOFF_MAX)
}
