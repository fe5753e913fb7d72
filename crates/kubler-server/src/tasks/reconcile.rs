//! Makes the world agree with the store: looks, plans, acts. The plan is pure and lives in `kubler_core::plan`;
//! this only carries it out, each environment in a task of its own, so that one that is stuck delays no other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kubler_core::environment::{EndReason, Environment, Event, Phase, Placement, Site};
use kubler_core::host::names;
use kubler_core::host::placement::{self, Candidate};
use kubler_core::ids::EnvironmentId;
use kubler_core::ledger::record::{Body, Kind, LedgerAction};
use kubler_core::plan::{Observed, Situation, Step, plan};
use kubler_core::profile::EngineKind;
use serde_json::Map;
use tokio::task::{self, AbortHandle, JoinError, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::Wake;
use super::downtime::Downtime;
use super::unremembered::Told;
use crate::clock::Clock;
use crate::directory::Directory;
use crate::engine::{Engine, EngineError, ErrorClass, Evidence, Standing};
use crate::ledger::{Durability, Ledger};
use crate::metrics::Gauges;
use crate::store::{Store, StoreError};

/// Longest time between two looks at leases and deadlines.
const TICK_MAX: Duration = Duration::from_millis(500);
/// Time between two looks at the world when nothing asks for one.
const LOOK_EVERY: SignedDuration = SignedDuration::from_secs(5);
/// Time between two looks at a host cluster.
const LOOK_AT_HOST_EVERY: SignedDuration = SignedDuration::from_secs(10);
/// Environments that are made at once on host clusters, which work at it and not this machine.
const PROVISIONING_ON_HOSTS_MAX: usize = 32;
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
    /// What makes and destroys, one for each part of the world.
    pub engines: Vec<Arc<dyn Engine>>,
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
    kind: EngineKind,
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

/// A look at one part of the world under way. It may take long, and nothing waits for it.
struct Look {
    site: Site,
    /// What was stored, and in which version, when the look began.
    known: BTreeMap<EnvironmentId, u64>,
    found: JoinHandle<Result<Vec<Observed>, EngineError>>,
}

/// What a look saw.
struct Seen {
    site: Site,
    known: BTreeMap<EnvironmentId, u64>,
    found: Vec<Observed>,
}

/// What is to be made on hosts, and where: decided anew in each round, and written down before anything is made.
type Places = BTreeMap<EnvironmentId, Placement>;

/// State between two rounds. All of it may be lost at any moment: it is rebuilt from store and world.
#[derive(Default)]
struct Rounds {
    busy: BTreeMap<EnvironmentId, Work>,
    failures: BTreeMap<EnvironmentId, Failures>,
    tasks: JoinSet<Result<(), EngineError>>,
    looks: Vec<Look>,
    told: Told,
    /// When the last look at each part of the world began; absent when one is wanted now.
    looked_at: BTreeMap<Site, Timestamp>,
}

impl Reconciler {
    /// Runs until `shutdown`. What is under way then is finished or found again at the next start.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut rounds = Rounds::default();
        let mut seen = None;
        for id in &self.lost {
            // On hosts a namespace's own mark says what becomes of it.
            self.remove(
                &mut rounds,
                *id,
                Some(Site::Here),
                Step::RemoveOrphan(Site::Here, *id),
            );
        }
        loop {
            self.round(&mut rounds, seen.take()).await;
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.wake.woken() => {}
                site = self.changed() => self.look_again(&mut rounds, &site),
                Some(done) = rounds.tasks.join_next_with_id() => self.joined(&mut rounds, done).await,
                look = looked(&mut rounds.looks) => seen = self.saw(look, &mut rounds.told),
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
        self.look(rounds, &stored, now);
        let (places, unplaced) = self.places(&stored, now);

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
            .chain(unplaced)
            .collect();
        let observed = seen.map(|seen| (seen.site, seen.found));
        let steps = plan(&Situation {
            stored: &stored,
            observed: &observed.into_iter().collect(),
            busy: &busy,
            places: self.room(rounds),
            serving_since: self.directory.serving_since(),
            now,
        });
        for step in steps {
            self.act(rounds, step, &places, now).await;
        }
    }

    /// Begins to look where a look is due.
    fn look(&self, rounds: &mut Rounds, stored: &[Environment], now: Timestamp) {
        for engine in &self.engines {
            let site = engine.site();
            let is_looking = rounds.looks.iter().any(|look| look.site == site);
            if is_looking || !rounds.looks_due(&site, now) {
                continue;
            }
            let known = stored
                .iter()
                .map(|environment| (environment.id, environment.version));
            let engine = Arc::clone(engine);
            rounds.looks.push(Look {
                site: site.clone(),
                known: known.collect(),
                found: tokio::spawn(async move { engine.observe().await }),
            });
            rounds.looked_at.insert(site, now);
        }
    }

    /// The places on hosts of those that have none yet, and those for which there is none now: these wait.
    fn places(&self, stored: &[Environment], now: Timestamp) -> (Places, Vec<EnvironmentId>) {
        let mut waiting: Vec<_> = stored
            .iter()
            .filter(|it| it.phase == Phase::Requested && it.site().is_none())
            .collect();
        if waiting.is_empty() {
            return Default::default();
        }
        waiting.sort_by_key(|environment| (environment.created_at, environment.id));
        let standings: Vec<Standing> = self.engines.iter().filter_map(|it| it.standing()).collect();
        let mut candidates: Vec<_> = standings
            .iter()
            .map(|standing| Candidate {
                host: &standing.host,
                environments: taken(stored, &standing.host.name),
                health: standing.health,
                enforcement: standing.enforcement,
            })
            .collect();
        let (mut places, mut unplaced) = (Places::new(), Vec::new());
        for environment in waiting {
            let profile = environment.resolved.profile.namespace.clone();
            match placement::choose(&profile.unwrap_or_default(), &candidates) {
                Ok(host) => {
                    for candidate in candidates.iter_mut().filter(|it| it.host.name == host.name) {
                        candidate.environments += 1;
                    }
                    let standing = standings.iter().find(|it| it.host.name == host.name);
                    let version = standing.map(|it| it.kubernetes_version.clone());
                    let place = names::placement(environment, host, version.unwrap_or_default());
                    places.insert(environment.id, place);
                }
                Err(none) => {
                    tracing::debug!(environment = %environment.id, %none, %now, "an environment waits");
                    self.directory
                        .note_failure(environment.id, none.to_string());
                    unplaced.push(environment.id);
                }
            }
        }
        (places, unplaced)
    }

    /// How many more may be made at once.
    fn room(&self, rounds: &Rounds) -> BTreeMap<EngineKind, usize> {
        let here = self.store.limits().provisioning_max as usize;
        let most = [
            (EngineKind::Local, here),
            (EngineKind::Namespace, PROVISIONING_ON_HOSTS_MAX),
        ];
        most.map(|(kind, most)| (kind, most.saturating_sub(rounds.provisioning(kind))))
            .into()
    }

    /// Something changed there: what was found is out of date, and what waits after a failure need not.
    fn look_again(&self, rounds: &mut Rounds, site: &Site) {
        rounds.looked_at.remove(site);
        if matches!(site, Site::Host(_)) {
            let is_there = |id: EnvironmentId| {
                let environment = self.directory.get(id);
                environment.and_then(|it| it.site()).as_ref() == Some(site)
            };
            let waiting = rounds.failures.iter_mut().filter(|(id, _)| is_there(**id));
            waiting.for_each(|(_, failures)| failures.not_before = Timestamp::MIN);
        }
    }

    /// The engine that works there.
    fn engine(&self, site: &Site) -> Option<&Arc<dyn Engine>> {
        self.engines.iter().find(|engine| engine.site() == *site)
    }

    /// Where something in the world changed.
    async fn changed(&self) -> Site {
        let changes = self.engines.iter().map(|engine| {
            Box::pin(async move {
                engine.changed().await;
                engine.site()
            })
        });
        if self.engines.is_empty() {
            return std::future::pending().await;
        }
        futures_util::future::select_all(changes).await.0
    }

    fn saw(
        &self,
        (look, found): (Look, Result<Vec<Observed>, EngineError>),
        told: &mut Told,
    ) -> Option<Seen> {
        let Look { site, known, .. } = look;
        if site == Site::Here {
            self.gauges.engine_worked(found.is_ok());
        }
        match found {
            Ok(found) => {
                if let Some(standing) = self.engine(&site).and_then(|engine| engine.standing()) {
                    told.tell(&self.directory, &standing);
                }
                Some(Seen { site, known, found })
            }
            Err(error) => {
                tracing::warn!(%site, %error, "a part of the world could not be looked at; nothing is concluded from that");
                None
            }
        }
    }

    async fn act(&self, rounds: &mut Rounds, step: Step, places: &Places, now: Timestamp) {
        match step {
            Step::Provision(id) => self.provision(rounds, id, places.get(&id), now).await,
            Step::Break(id, reason) => self.change(id, Event::Broke(reason), now).await,
            Step::End(id, reason) => {
                // Whoever is still making it must stop before it is taken away.
                if let Some(work) = rounds.busy.get(&id) {
                    work.abort.abort();
                }
                rounds.failures.remove(&id);
                self.change(id, Event::ReleaseRequested(reason), now).await;
            }
            Step::Remove(id) => self.end(rounds, id),
            Step::RemoveOrphan(ref site, id) => self.remove(rounds, id, Some(site.clone()), step),
        }
    }

    async fn provision(
        &self,
        rounds: &mut Rounds,
        id: EnvironmentId,
        place: Option<&Placement>,
        now: Timestamp,
    ) {
        // Written down before anything is made there: whoever ends it knows where to look.
        let started = place.map_or(Event::ProvisioningStarted, |place| {
            Event::Placed(place.clone())
        });
        self.change(id, started, now).await;
        let Some(environment) = self
            .directory
            .get(id)
            .filter(|environment| environment.phase == Phase::Provisioning)
        else {
            return;
        };
        let kind = environment.resolved.profile.engine;
        let site = environment.site();
        let engine = site.as_ref().and_then(|site| self.engine(site)).cloned();
        rounds.begin(id, kind, Step::Provision(id), async move {
            let engine = engine.ok_or_else(|| no_engine(site.as_ref()))?;
            engine.provision(&environment).await
        });
    }

    /// Takes away what is remembered.
    fn end(&self, rounds: &mut Rounds, id: EnvironmentId) {
        let environment = self.directory.get(id);
        let site = environment.and_then(|environment| environment.site());
        self.remove(rounds, id, site, Step::Remove(id));
    }

    /// Takes away, looks, and only then says so.
    fn remove(&self, rounds: &mut Rounds, id: EnvironmentId, site: Option<Site>, step: Step) {
        let (store, ledger, clock) = (
            Arc::clone(&self.store),
            self.ledger.clone(),
            Arc::clone(&self.clock),
        );
        let is_orphan = matches!(step, Step::RemoveOrphan(..));
        let kind = match site {
            Some(Site::Here) => EngineKind::Local,
            Some(Site::Host(_)) | None => EngineKind::Namespace,
        };
        let engine = site.as_ref().and_then(|site| self.engine(site)).cloned();
        let remembered = self.directory.get(id).filter(|_| !is_orphan);
        rounds.begin(id, kind, step, async move {
            let evidence = match (engine, site) {
                (Some(engine), _) => match remembered {
                    Some(environment) => engine.end(&environment).await?,
                    None => engine.remove(id).await?,
                },
                (None, site @ Some(_)) => return Err(no_engine(site.as_ref())),
                // No place was ever chosen for it: nothing was made anywhere.
                (None, None) => Evidence::default(),
            };
            let evidence = match serde_json::to_value(evidence) {
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
                self.directory.note_failure(id, error.message.clone());
                tracing::error!(environment = %id, %error, count, "an environment resists its end; trying on");
            }
            _ => {
                self.directory.note_failure(id, error.message.clone());
                tracing::warn!(environment = %id, %error, count, "an environment could not be ended; trying again");
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
        kind: EngineKind,
        step: Step,
        work: impl Future<Output = Result<(), EngineError>> + Send + 'static,
    ) {
        let abort = self.tasks.spawn(work);
        self.busy.insert(
            id,
            Work {
                kind,
                step,
                task: abort.id(),
                abort,
            },
        );
    }

    fn looks_due(&self, site: &Site, now: Timestamp) -> bool {
        let every = match site {
            Site::Here => LOOK_EVERY,
            Site::Host(_) => LOOK_AT_HOST_EVERY,
        };
        self.looked_at
            .get(site)
            .is_none_or(|last| now.duration_since(*last) >= every)
    }

    fn provisioning(&self, kind: EngineKind) -> usize {
        self.busy
            .values()
            .filter(|work| work.kind == kind && matches!(work.step, Step::Provision(_)))
            .count()
    }

    fn stuck(&self) -> u64 {
        self.failures
            .values()
            .filter(|failures| failures.count >= ALARM_TRIES)
            .count() as u64
    }
}

/// The first look under way that ends; never, when there is none.
async fn looked(looks: &mut Vec<Look>) -> (Look, Result<Vec<Observed>, EngineError>) {
    if looks.is_empty() {
        return std::future::pending().await;
    }
    let ends = looks.iter_mut().map(|look| &mut look.found);
    let (found, nth, _) = futures_util::future::select_all(ends).await;
    let look = looks.swap_remove(nth);
    let found = found.unwrap_or_else(|panicked| Err(EngineError::transient(&panicked)));
    (look, found)
}

/// Environments of a host that are not gone.
fn taken(stored: &[Environment], host: &str) -> u32 {
    let is_there = |environment: &&Environment| {
        let placement = environment.placement.as_ref();
        placement.is_some_and(|placement| placement.host == host)
    };
    u32::try_from(stored.iter().filter(is_there).count()).unwrap_or(u32::MAX)
}

fn no_engine(site: Option<&Site>) -> EngineError {
    let site = site.map_or_else(|| "no host".into(), ToString::to_string);
    EngineError::permanent(format!(
        "nothing works on {site}: it is not in the configuration"
    ))
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
