//! What the gateway needs to know of every environment, in memory: written by the store after each durable
//! change, read on every request, watched by every open stream.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use jiff::Timestamp;
use kubler_core::environment::{EndReason, Environment, Phase};
use kubler_core::ids::EnvironmentId;
use kubler_core::invariants::check_environment;
use kubler_core::lease::ServingSince;
use kubler_core::tombstone::Tombstone;
use tokio::sync::watch;

/// One environment's current state, and a way to wait for the next.
pub type Watched = watch::Receiver<Arc<Environment>>;

/// All environments that are not forgotten, and since when the server has been serving.
#[derive(Debug)]
pub struct Directory {
    known: RwLock<Known>,
    serving_since: watch::Sender<ServingSince>,
}

/// Every environment by its id, and those that are looked at often.
#[derive(Debug, Default)]
struct Known {
    all: HashMap<EnvironmentId, watch::Sender<Arc<Environment>>>,
    /// Those that are not gone: a week's tombstones are never walked through.
    remaining: HashSet<EnvironmentId>,
    /// Those whose record breaks an invariant, and which; normally none. Found out once, when the record comes in.
    broken: HashMap<EnvironmentId, &'static str>,
    /// Why the last try to make it failed, of those that are tried again.
    failures: HashMap<EnvironmentId, String>,
}

impl Known {
    fn current(&self, id: EnvironmentId) -> Option<Arc<Environment>> {
        self.all.get(&id).map(|sender| Arc::clone(&sender.borrow()))
    }

    /// Sorts a record that came in to where its state belongs.
    fn sort(&mut self, environment: &Environment) {
        let id = environment.id;
        if environment.phase == Phase::Gone {
            self.remaining.remove(&id);
        } else {
            self.remaining.insert(id);
        }
        let before = self.current(id).map(|before| before.phase);
        if before != Some(environment.phase) {
            self.failures.remove(&id);
        }
        match check_environment(environment) {
            Ok(()) => self.broken.remove(&id),
            Err(violation) => {
                tracing::error!(environment = %id, broken = violation.broken, "a record breaks an invariant: it is not served");
                self.broken.insert(id, violation.broken)
            }
        };
    }
}

/// Whether somebody waits for a place for it, makes it, or ends it: what may fail and be tried again.
const fn is_worked_on(environment: &Environment) -> bool {
    matches!(
        environment.phase,
        Phase::Requested | Phase::Provisioning | Phase::Releasing
    )
}

impl Directory {
    /// An empty directory of a server that serves since `now`.
    pub fn new(now: Timestamp) -> Self {
        Self {
            known: RwLock::default(),
            serving_since: watch::Sender::new(ServingSince(now)),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The environment as it is now.
    pub fn get(&self, id: EnvironmentId) -> Option<Arc<Environment>> {
        self.read().current(id)
    }

    /// The environment as it is now and will be.
    pub fn watch(&self, id: EnvironmentId) -> Option<Watched> {
        self.read().all.get(&id).map(watch::Sender::subscribe)
    }

    /// Makes a durable change known. An older version than the known one is ignored.
    pub fn put(&self, environment: Environment) {
        let mut known = self.write();
        let id = environment.id;
        let is_older = |current: Arc<Environment>| current.version >= environment.version;
        if known.current(id).is_some_and(is_older) {
            return;
        }
        // Sorted before anybody is told: whoever wakes finds it where it belongs.
        known.sort(&environment);
        let environment = Arc::new(without_ballast(environment));
        match known.all.get(&id) {
            Some(sender) => drop(sender.send_replace(environment)),
            None => {
                known.all.insert(id, watch::Sender::new(environment));
            }
        }
    }

    /// Every environment that is not gone, as it is now.
    pub fn remaining(&self) -> Vec<Environment> {
        let known = self.read();
        let current = known.remaining.iter().filter_map(|id| known.current(*id));
        current
            .map(|environment| environment.as_ref().clone())
            .collect()
    }

    /// Forgets a tombstone.
    pub fn remove(&self, id: EnvironmentId) {
        let mut known = self.write();
        known.all.remove(&id);
        known.remaining.remove(&id);
        known.broken.remove(&id);
        known.failures.remove(&id);
    }

    /// Notes why the last try to make or end an environment failed.
    pub fn note_failure(&self, id: EnvironmentId, message: String) {
        let mut known = self.write();
        let is_worked_on = |current: Arc<Environment>| is_worked_on(&current);
        if known.current(id).is_some_and(is_worked_on) {
            known.failures.insert(id, message);
        }
    }

    /// Why the last try to make or end an environment failed, while it is tried again.
    pub fn last_failure(&self, id: EnvironmentId) -> Option<String> {
        self.read().failures.get(&id).cloned()
    }

    /// Since when jobs could renew.
    pub fn serving_since(&self) -> ServingSince {
        *self.serving_since.borrow()
    }

    /// Changes of that moment, for streams that wait for a lease's end.
    pub fn watch_serving_since(&self) -> watch::Receiver<ServingSince> {
        self.serving_since.subscribe()
    }

    /// Notes that the server could not be reached until now.
    pub fn resumed(&self, now: Timestamp) {
        self.serving_since.send_replace(ServingSince(now));
    }

    /// What is known of `environment` when it cannot be used at `now`: it ended, or its lease or deadline is over
    /// although nobody has written that down yet. A record that breaks an invariant is never usable.
    pub fn tombstone(&self, environment: &Environment, now: Timestamp) -> Option<Tombstone> {
        let broken = self.read().broken.get(&environment.id).copied();
        match broken.filter(|_| environment.phase.is_live()) {
            Some(message) => {
                let reason = EndReason::Failed {
                    message: message.into(),
                };
                Some(Tombstone::because(environment, reason, now))
            }
            None => Tombstone::of(environment, self.serving_since(), now),
        }
    }
}

/// A tombstone needs no manifests. Who asks what the dead was made of is told by the store, for as long as it keeps them.
fn without_ballast(mut environment: Environment) -> Environment {
    if environment.phase == Phase::Gone {
        environment.resolved.manifests.clear();
    }
    environment
}

#[cfg(test)]
mod tests {
    use kubler_core::environment::Event;

    use super::*;
    use crate::store::tests::{at, environment, job};

    fn released(environment: &Environment) -> Environment {
        environment
            .transition(Event::ReleaseRequested(EndReason::Released), at(5))
            .unwrap()
            .unwrap()
    }

    #[test]
    fn what_is_gone_remains_known_and_is_not_among_the_remaining() {
        let directory = Directory::new(at(0));
        let lives = environment(1, &job(1), "main");
        directory.put(lives.clone());
        let mut dying = environment(2, &job(2), "main");
        let manifest = ("a.yaml".into(), "kind: A".into());
        dying.resolved.manifests.extend([manifest]);
        dying.digest = dying.resolved.digest();
        let mut gone = released(&dying)
            .transition(Event::FoundGone, at(6))
            .unwrap()
            .unwrap();
        for state in [dying.clone(), released(&dying), gone.clone()] {
            directory.put(state);
        }
        assert_eq!(directory.remaining(), std::slice::from_ref(&lives));
        // All but what fills memory for a week and nobody asks for.
        assert_eq!(directory.get(lives.id).as_deref(), Some(&lives));
        assert!(!gone.resolved.manifests.is_empty());
        gone.resolved.manifests.clear();
        assert_eq!(directory.get(gone.id).as_deref(), Some(&gone));
        // A late, older version does not raise the dead.
        directory.put(dying);
        assert_eq!(directory.remaining(), [lives]);
        directory.remove(gone.id);
        assert_eq!(directory.get(gone.id), None);
    }

    #[test]
    fn a_record_that_breaks_an_invariant_is_never_usable_and_a_sound_one_after_it_is() {
        let directory = Directory::new(at(0));
        let sound = environment(1, &job(1), "main");
        directory.put(sound.clone());
        assert_eq!(directory.tombstone(&sound, at(1)), None);
        let tampered = Environment {
            digest: "0".repeat(64),
            version: 1,
            ..sound.clone()
        };
        directory.put(tampered.clone());
        let ended = directory.tombstone(&tampered, at(1)).unwrap().reason;
        assert!(ended.sentence().contains("digest"), "{ended:?}");
        let mended = Environment {
            version: 2,
            ..sound
        };
        directory.put(mended.clone());
        assert_eq!(directory.tombstone(&mended, at(1)), None);
    }
}
