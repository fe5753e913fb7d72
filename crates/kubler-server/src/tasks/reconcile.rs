//! Makes the world agree with the store: looks, plans, acts. The plan is pure and lives in `kubler_core::plan`;
//! this only carries it out, each environment in a task of its own, so that one that is stuck delays no other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kubler_core::environment::{EndReason, Event, Phase};
use kubler_core::ids::EnvironmentId;
use kubler_core::ledger::record::{Body, Kind, LedgerAction};
use kubler_core::plan::{Observed, Situation, Step, plan};
use serde_json::Map;
use tokio::task::{self, AbortHandle, JoinError, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::Wake;
use super::downtime::Downtime;
use crate::clock::Clock;
use crate::directory::Directory;
use crate::engine::{Engine, EngineError, ErrorClass};
use crate::ledger::{Durability, Ledger};
use crate::metrics::Gauges;
use crate::store::{Store, StoreError};

/// Longest time between two looks at leases and deadlines.
const TICK_MAX: Duration = Duration::from_millis(500);
/// Time between two looks at the world when nothing asks for one.
const LOOK_EVERY: SignedDuration = SignedDuration::from_secs(5);
/// How often making an environment is tried before it has failed.
const PROVISION_TRIES_MAX: u32 = 3;
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
    /// Since when nobody ticked.
    pub downtime: Arc<Downtime>,
    /// Numbers for the metrics page.
    pub gauges: Arc<Gauges>,
    /// Environments that only the ledger knows: whatever is left of them is taken away first of all.
    pub lost: Vec<EnvironmentId>,
}

/// One environment's work under way. It stays known until its task was joined: nobody begins a second one before.
struct Work {
    step: Step,
    task: task::Id,
    abort: AbortHandle,
}

/// How often something failed, and when to try again.
#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    not_before: Timestamp,
}

/// A look at the world under way. It may take long, and nothing waits for it.
struct Look {
    /// What was stored, and in which version, when the look began.
    known: BTreeMap<EnvironmentId, u64>,
    found: JoinHandle<Result<Vec<Observed>, EngineError>>,
}

/// What a look saw.
struct Seen {
    known: BTreeMap<EnvironmentId, u64>,
    found: Vec<Observed>,
}

/// State between two rounds. All of it may be lost at any moment: it is rebuilt from store and world.
#[derive(Default)]
struct Rounds {
    busy: BTreeMap<EnvironmentId, Work>,
    failures: BTreeMap<EnvironmentId, Failures>,
    tasks: JoinSet<Result<(), EngineError>>,
    look: Option<Look>,
    /// When the last look began; `None` when one is wanted now.
    looked_at: Option<Timestamp>,
}

impl Reconciler {
    /// Runs until `shutdown`. What is under way then is finished or found again at the next start.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut rounds = Rounds::default();
        let mut seen = None;
        for id in &self.lost {
            self.remove(&mut rounds, *id, Step::RemoveOrphan(*id));
        }
        loop {
            self.round(&mut rounds, seen.take()).await;
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.wake.woken() => {}
                () = self.engine.changed() => rounds.looked_at = None,
                Some(done) = rounds.tasks.join_next_with_id() => self.joined(&mut rounds, done).await,
                found = looked(&mut rounds.look) => seen = self.saw(found),
                () = tokio::time::sleep(TICK_MAX) => {}
            }
        }
        rounds.tasks.shutdown().await;
    }

    async fn round(&self, rounds: &mut Rounds, seen: Option<Seen>) {
        let now = self.clock.now();
        // Before anything is concluded from the time: a suspended machine must not end what could not renew.
        self.downtime.tick(&self.directory, now);
        let stored = self.directory.remaining();
        if rounds.look.is_none() && rounds.looks_due(now) {
            let known = stored
                .iter()
                .map(|environment| (environment.id, environment.version));
            let engine = Arc::clone(&self.engine);
            rounds.look = Some(Look {
                known: known.collect(),
                found: tokio::spawn(async move { engine.observe().await }),
            });
            rounds.looked_at = Some(now);
        }

        // What changed since the look began is not what the look saw.
        let changed = stored.iter().filter(|environment| {
            seen.as_ref()
                .is_some_and(|seen| seen.known.get(&environment.id) != Some(&environment.version))
        });
        let waiting = rounds
            .failures
            .iter()
            .filter(|(_, failures)| failures.not_before > now);
        let busy: BTreeSet<_> = rounds
            .busy
            .keys()
            .copied()
            .chain(changed.map(|environment| environment.id))
            .chain(waiting.map(|(id, _)| *id))
            .collect();
        let steps = plan(&Situation {
            stored: &stored,
            observed: seen.as_ref().map(|seen| seen.found.as_slice()),
            busy: &busy,
            places: (self.store.limits().provisioning_max as usize)
                .saturating_sub(rounds.provisioning()),
            serving_since: self.directory.serving_since(),
            now,
        });
        for step in steps {
            self.act(rounds, step, now).await;
        }
    }

    fn saw(
        &self,
        (known, found): (
            BTreeMap<EnvironmentId, u64>,
            Result<Vec<Observed>, EngineError>,
        ),
    ) -> Option<Seen> {
        self.gauges.engine_worked(found.is_ok());
        match found {
            Ok(found) => Some(Seen { known, found }),
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
                if let Some(work) = rounds.busy.get(&id) {
                    work.abort.abort();
                }
                rounds.failures.remove(&id);
                self.change(id, Event::ReleaseRequested(reason), now).await;
            }
            Step::Remove(id) | Step::RemoveOrphan(id) => self.remove(rounds, id, step),
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
        rounds.begin(id, Step::Provision(id), async move {
            engine.provision(&environment).await
        });
    }

    /// Takes away, looks, and only then says so.
    fn remove(&self, rounds: &mut Rounds, id: EnvironmentId, step: Step) {
        let (engine, store, ledger, clock) = (
            Arc::clone(&self.engine),
            Arc::clone(&self.store),
            self.ledger.clone(),
            Arc::clone(&self.clock),
        );
        let is_orphan = matches!(step, Step::RemoveOrphan(_));
        rounds.begin(id, step, async move {
            let evidence = match serde_json::to_value(engine.remove(id).await?) {
                Ok(serde_json::Value::Object(evidence)) => evidence,
                _ => Map::new(),
            };
            if is_orphan {
                let mut body = Body::new(Kind::Event, LedgerAction::EnvironmentOrphan);
                body.environment_id = Some(id);
                body.details = evidence;
                ledger
                    .event(body, Durability::Process)
                    .await
                    .map_err(EngineError::transient)?;
            } else if let Some((before, environment)) = store
                .apply(id, Event::FoundGone, clock.now())
                .await
                .map_err(EngineError::transient)?
            {
                ledger
                    .phase_changed(None, Some(before), &environment, evidence)
                    .await;
            }
            Ok(())
        });
    }

    /// Some work is over, one way or the other.
    async fn joined(
        &self,
        rounds: &mut Rounds,
        done: Result<(task::Id, Result<(), EngineError>), JoinError>,
    ) {
        let (task, result) = match done {
            Ok(done) => done,
            // Stopped by us: what it was about has ended meanwhile.
            Err(stopped) if stopped.is_cancelled() => {
                rounds.busy.retain(|_, work| work.task != stopped.id());
                return;
            }
            Err(panicked) => (panicked.id(), Err(EngineError::transient(&panicked))),
        };
        let Some(id) = rounds
            .busy
            .iter()
            .find(|(_, work)| work.task == task)
            .map(|(id, _)| *id)
        else {
            return;
        };
        let Some(work) = rounds.busy.remove(&id) else {
            return;
        };
        let now = self.clock.now();
        match result {
            Ok(()) => {
                rounds.failures.remove(&id);
                if matches!(work.step, Step::Provision(_)) {
                    self.change(id, Event::BecameReady, now).await;
                }
            }
            Err(error) => self.failed(rounds, id, &work.step, error, now).await,
        }
        self.gauges.set_stuck(rounds.stuck());
    }

    async fn failed(
        &self,
        rounds: &mut Rounds,
        id: EnvironmentId,
        step: &Step,
        error: EngineError,
        now: Timestamp,
    ) {
        let failures = rounds.failures.entry(id).or_insert(Failures {
            count: 0,
            not_before: now,
        });
        failures.count += 1;
        let count = failures.count;
        failures.not_before = kubler_core::lease::after(now, backoff(error.class, count));
        match step {
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
            }
            Step::Provision(_) => {
                tracing::warn!(environment = %id, %error, count, "an environment could not be made; trying again");
                self.directory.note_failure(id, error.message);
            }
            _ if count >= ALARM_TRIES => {
                tracing::error!(environment = %id, %error, count, "an environment resists its end; trying on");
            }
            _ => {
                tracing::warn!(environment = %id, %error, count, "an environment could not be ended; trying again")
            }
        }
    }

    async fn change(&self, id: EnvironmentId, event: Event, now: Timestamp) {
        match self.store.apply(id, event, now).await {
            Ok(Some((before, environment))) => {
                self.ledger
                    .phase_changed(None, Some(before), &environment, Map::new())
                    .await;
                // The next step depends on it.
                self.wake.wake();
            }
            Ok(None) => {}
            // Somebody was faster, such as a release while it was made: the next round sees what is so.
            Err(StoreError::Transition(error)) => {
                tracing::debug!(environment = %id, %error, "a change came too late");
            }
            Err(error) => {
                tracing::error!(environment = %id, %error, "a change could not be written; trying again");
            }
        }
    }
}

impl Rounds {
    fn begin(
        &mut self,
        id: EnvironmentId,
        step: Step,
        work: impl Future<Output = Result<(), EngineError>> + Send + 'static,
    ) {
        let abort = self.tasks.spawn(work);
        self.busy.insert(
            id,
            Work {
                step,
                task: abort.id(),
                abort,
            },
        );
    }

    fn looks_due(&self, now: Timestamp) -> bool {
        self.looked_at
            .is_none_or(|last| now.duration_since(last) >= LOOK_EVERY)
    }

    fn provisioning(&self) -> usize {
        self.busy
            .values()
            .filter(|work| matches!(work.step, Step::Provision(_)))
            .count()
    }

    fn stuck(&self) -> u64 {
        self.failures
            .values()
            .filter(|failures| failures.count >= ALARM_TRIES)
            .count() as u64
    }
}

/// The end of the look under way; never, when there is none.
async fn looked(
    look: &mut Option<Look>,
) -> (
    BTreeMap<EnvironmentId, u64>,
    Result<Vec<Observed>, EngineError>,
) {
    let Some(under_way) = look else {
        return std::future::pending().await;
    };
    let found = (&mut under_way.found).await;
    let known = look.take().map(|look| look.known).unwrap_or_default();
    (
        known,
        found.unwrap_or_else(|panicked| Err(EngineError::transient(&panicked))),
    )
}

/// How long to wait before the next try: what can help itself is asked soon, what cannot seldom.
fn backoff(class: ErrorClass, count: u32) -> Duration {
    let (first, longest) = match class {
        ErrorClass::Transient => (Duration::from_millis(200), Duration::from_secs(30)),
        ErrorClass::Permanent => (Duration::from_secs(5), Duration::from_secs(300)),
    };
    first
        .saturating_mul(1 << count.saturating_sub(1).min(10))
        .min(longest)
}

#[cfg(test)]
mod tests;
