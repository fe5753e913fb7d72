//! The world behind a lock, and a bell that rings whenever it changed.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use super::world::{Changed, World};

/// How often the stand-in looks for lost agents when nobody asks.
const SWEEP_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Clone)]
pub(crate) struct Shared {
    world: Arc<Mutex<World>>,
    changes: watch::Sender<u64>,
}

impl Shared {
    pub(crate) fn new(world: World) -> Self {
        Self {
            world: Arc::new(Mutex::new(world)),
            changes: watch::Sender::new(0),
        }
    }

    /// Looks at the world or changes it, as it is at this instant, and rings the bell.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut World, Timestamp) -> T) -> T {
        let result = self.enter(change).0;
        self.ring();
        result
    }

    /// Looks at the world as it is at this instant. Lost agents are given up first: nobody sees them alive.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&World) -> T) -> T {
        let (result, changed) = self.enter(|world, _| look(world));
        if changed == Changed::Yes {
            self.ring();
        }
        result
    }

    fn enter<T>(&self, visit: impl FnOnce(&mut World, Timestamp) -> T) -> (T, Changed) {
        let mut world = self.world.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Timestamp::now();
        let changed = world.give_up_lost_agents(now);
        (visit(&mut world, now), changed)
    }

    fn ring(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Waits until `look` finds something, for at most `bound`.
    pub(crate) async fn wait<T>(
        &self,
        bound: Duration,
        mut look: impl FnMut(&World) -> Option<T>,
    ) -> Option<T> {
        let mut changes = self.changes.subscribe();
        let found = async {
            loop {
                changes.mark_unchanged();
                if let Some(found) = self.look(&mut look) {
                    return found;
                }
                // The sender lives in `self`: this cannot fail.
                let _ = changes.changed().await;
            }
        };
        tokio::time::timeout(bound, found).await.ok()
    }

    /// Notices lost agents, for those who wait.
    pub(crate) fn sweep(&self) -> impl Future<Output = ()> + use<> {
        let shared = self.clone();
        async move {
            loop {
                tokio::time::sleep(SWEEP_INTERVAL).await;
                shared.look(|_| ());
            }
        }
    }
}
