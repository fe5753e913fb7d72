//! Small repeated work: forgetting tombstones and spent tokens, signing checkpoints.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::ledger::Ledger;
use crate::store::Store;

/// Time between two rounds of forgetting.
const FORGET_EVERY: Duration = Duration::from_secs(600);

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

/// Signs a checkpoint whenever there is something new, until `shutdown`, and once more then.
pub async fn checkpoint(ledger: Ledger, every: Duration, shutdown: CancellationToken) {
    let mut last = false;
    while !last {
        tokio::select! {
            () = shutdown.cancelled() => last = true,
            () = tokio::time::sleep(every) => {}
        }
        if let Err(error) = ledger.checkpoint() {
            tracing::error!(%error, "no checkpoint could be signed; trying again");
        }
    }
}
