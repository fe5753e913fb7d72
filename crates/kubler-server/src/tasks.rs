//! What runs by itself: woken *and* timed, and taking no input but the state of things.

pub mod certificates;
pub mod downtime;
pub mod reconcile;
pub mod restored;
pub mod unremembered;
pub mod upkeep;

use std::sync::Arc;

use tokio::sync::Notify;

/// Wakes the reconciler. Many wakes before it looks are one.
#[derive(Debug, Clone, Default)]
pub struct Wake(Arc<Notify>);

impl Wake {
    /// Something changed that it should look at.
    pub fn wake(&self) {
        self.0.notify_one();
    }

    /// Waits for the next wake.
    pub async fn woken(&self) {
        self.0.notified().await;
    }
}
