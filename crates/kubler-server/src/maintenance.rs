//! What an operator does with the data folder while no server uses it, or beside one that runs: putting the ledger in
//! order, back-up, restore.

pub mod backup;
pub mod inspect;
pub mod restore;

use std::sync::Arc;

use crate::clock::Clock;
use crate::config::Loaded;
use crate::data_folder::DataFolder;
use crate::directory::Directory;
use crate::ledger::LedgerLock;
use crate::ledger::recover::{self, GoOn, Recovered, Recovery};
use crate::ledger::sinks::Sinks;
use crate::opening::witnesses;
use crate::start_error::StartError;
use crate::store::Store;

/// Puts the ledger in order as an operator decided, and lets the store remember it as it is then.
///
/// # Errors
/// When a server runs on it, or something cannot be read or written.
pub async fn recover_ledger(
    loaded: &Loaded,
    reason: &str,
    go_on: GoOn,
    clock: Arc<dyn Clock>,
) -> Result<Recovered, StartError> {
    let configuration = &loaded.configuration;
    let data = DataFolder::make(loaded)?;
    let folder = data.ledger();
    // Nobody else may have it while the store is opened. Given back at once: the next step takes it wherever it is.
    drop(LedgerLock::take_anywhere(&folder)?);
    let directory = Arc::new(Directory::new(clock.now()));
    let limits = configuration.limits.clone();
    let store = Store::open(&data.store(), directory, limits).await?;
    let sinks = Sinks::new(&configuration.ledger.sinks, &loaded.folder)?;
    let witnesses = witnesses(&store, &sinks).await?;
    let recovery = Recovery {
        origin: &configuration.ledger_origin(),
        settings: &configuration.ledger,
        witnesses: &witnesses,
        reason,
        go_on,
        clock,
    };
    let recovered = recover::recover(&folder, recovery).await?;
    store
        .saw_ledger(&recovered.key, &recovered.checkpoint.note)
        .await?;
    Ok(recovered)
}
