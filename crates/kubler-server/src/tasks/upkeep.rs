//! Small repeated work: forgetting tombstones and spent tokens, signing checkpoints.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::ledger::Ledger;
use crate::ledger::sinks::Sinks;
use crate::store::Store;

/// Time between two rounds of forgetting.
const FORGET_EVERY: Duration = Duration::from_secs(600);

/// How long the end of the server waits for its sinks.
const LAST_DELIVERY: Duration = Duration::from_secs(5);

/// Forgets what is of no use any more, until `shutdown`.
pub async fn forget(store: Arc<Store>, clock: Arc<dyn Clock>, shutdown: CancellationToken) {
    loop {
        if let Err(error) = store.forget(clock.now()).await {
            tracing::warn!(%error, "old records could not be forgotten; trying again later");
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(FORGET_EVERY) => {}
        }
    }
}

/// Signs checkpoints, and shows each to those who remember it: the store, and the sinks.
pub struct Checkpoints {
    /// What is signed.
    pub ledger: Ledger,
    /// Remembers the last one.
    pub store: Arc<Store>,
    /// Remember them outside.
    pub sinks: Arc<Sinks>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

impl Checkpoints {
    /// Signs one when there is something new. Gives how many records are signed and remembered by the store.
    pub async fn sign(&self, remembered: u64) -> u64 {
        let checkpoint = match self.ledger.checkpoint() {
            Ok(checkpoint) => checkpoint,
            Err(error) => {
                tracing::error!(%error, "no checkpoint could be signed; trying again");
                return remembered;
            }
        };
        self.sinks.publish(&checkpoint, self.clock.now());
        if checkpoint.size == remembered {
            return remembered;
        }
        let key = self.ledger.verifying_key();
        match self.store.saw_ledger(key, &checkpoint.note).await {
            Ok(()) => checkpoint.size,
            Err(error) => {
                tracing::warn!(%error, "the store could not remember a checkpoint; trying again");
                remembered
            }
        }
    }

    /// Signs whenever there is something new, until `shutdown`, and once more then.
    pub async fn run(self: Arc<Self>, every: Duration, shutdown: CancellationToken) {
        let (mut last, mut remembered) = (false, 0);
        while !last {
            tokio::select! {
                () = shutdown.cancelled() => last = true,
                () = tokio::time::sleep(every) => {}
            }
            remembered = self.sign(remembered).await;
        }
    }

    /// Signs the last one before the end of the process, and gives it to the sinks when they take it soon.
    pub async fn finish(&self) {
        self.sign(0).await;
        let delivered = self.sinks.deliver_once(self.clock.now());
        if tokio::time::timeout(LAST_DELIVERY, delivered)
            .await
            .is_err()
        {
            tracing::warn!("a sink did not take the last checkpoint; the next start gives it one");
        }
    }
}
