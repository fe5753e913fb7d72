//! What the gateway needs to know of every environment, in memory: written by the store after each durable
//! change, read on every request, watched by every open stream.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;
use kubler_core::environment::{EndReason, Environment, Phase};
use kubler_core::ids::EnvironmentId;
use kubler_core::lease::{self, ServingSince};
use tokio::sync::watch;

/// One environment's current state, and a way to wait for the next.
pub type Watched = watch::Receiver<Arc<Environment>>;

/// All environments that are not forgotten, and since when the server has been serving.
#[derive(Debug)]
pub struct Directory {
    environments: RwLock<HashMap<EnvironmentId, watch::Sender<Arc<Environment>>>>,
    serving_since: watch::Sender<ServingSince>,
}

impl Directory {
    /// An empty directory of a server that serves since `now`.
    pub fn new(now: Timestamp) -> Self {
        Self {
            environments: RwLock::default(),
            serving_since: watch::Sender::new(ServingSince(now)),
        }
    }

    /// The environment as it is now.
    pub fn get(&self, id: EnvironmentId) -> Option<Arc<Environment>> {
        let environments = self
            .environments
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        environments
            .get(&id)
            .map(|sender| Arc::clone(&sender.borrow()))
    }

    /// The environment as it is now and will be.
    pub fn watch(&self, id: EnvironmentId) -> Option<Watched> {
        let environments = self
            .environments
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        environments.get(&id).map(watch::Sender::subscribe)
    }

    /// Makes a durable change known. An older version than the known one is ignored.
    pub fn put(&self, environment: Environment) {
        let environment = Arc::new(environment);
        let mut environments = self
            .environments
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        match environments.get(&environment.id) {
            Some(sender) => {
                sender.send_if_modified(|known| {
                    let newer = environment.version > known.version;
                    if newer {
                        *known = Arc::clone(&environment);
                    }
                    newer
                });
            }
            None => {
                environments.insert(environment.id, watch::Sender::new(environment));
            }
        }
    }

    /// Every environment that is not gone, as it is now.
    pub fn remaining(&self) -> Vec<Environment> {
        let environments = self
            .environments
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let current = environments
            .values()
            .map(|sender| Arc::clone(&sender.borrow()));
        current
            .filter(|environment| environment.phase != Phase::Gone)
            .map(|environment| environment.as_ref().clone())
            .collect()
    }

    /// Forgets a tombstone.
    pub fn remove(&self, id: EnvironmentId) {
        self.environments
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id);
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

    /// Why `environment` cannot be used at `now`, if it cannot: it ended, or its lease or deadline is over
    /// although nobody has written that down yet. A record that breaks an invariant is never usable.
    pub fn ended(&self, environment: &Environment, now: Timestamp) -> Option<EndReason> {
        if !environment.phase.is_live() {
            return Some(environment.reason.clone().unwrap_or(EndReason::Revoked));
        }
        if let Err(violation) = kubler_core::invariants::check_environment(environment) {
            return Some(EndReason::Failed {
                message: violation.broken.into(),
            });
        }
        lease::ended(environment, self.serving_since(), now)
    }
}
