//! What store and ledger know of environments, compared after each start. What only the store knows is written down. A
//! store that was put back from an older copy: what it does not know any more is taken away, what had ended is not made a
//! second time, and the ledger says so.

use jiff::Timestamp;
use kubler_core::environment::{EndReason, Event, Phase};
use kubler_core::ids::EnvironmentId;
use kubler_core::ledger::record::{Body, Kind, LedgerAction};
use serde_json::{Map, Value};

use crate::directory::Directory;
use crate::ledger::{Durability, Ledger, LedgerError};
use crate::store::{Store, StoreError};

/// Most environments that one record names; the rest is counted.
const NAMED_MAX: usize = 100;

/// Why the two could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Writes down what the store knows and the ledger does not, since the server was killed between the two: after each
/// start, before anything else happens.
pub async fn catch_up(ledger: &Ledger, directory: &Directory) {
    let mut stored = directory.remaining();
    let known = |id: EnvironmentId| directory.get(id);
    let ended = ledger.alive().into_iter().filter_map(known);
    stored.extend(
        ended
            .filter(|environment| environment.phase == Phase::Gone)
            .map(|environment| environment.as_ref().clone()),
    );
    ledger.catch_up_with(&stored).await;
}

/// Compares the store with what the ledger tells. Gives the environments of this machine that only the ledger knows:
/// whatever is left of them must be taken away. About those on hosts the mark of their namespace decides, and until then
/// nobody says that they are gone.
///
/// # Errors
/// When one of the two cannot be read or written.
pub async fn compare(
    store: &Store,
    directory: &Directory,
    ledger: &Ledger,
    now: Timestamp,
) -> Result<Vec<EnvironmentId>, RestoreError> {
    let alive = ledger.alive();
    let is_unknown = |id: &EnvironmentId| directory.get(*id).is_none();
    let unknown: Vec<_> = alive.into_iter().filter(is_unknown).collect();
    let mut revived = Vec::new();
    for environment in directory.remaining() {
        if environment.phase.is_live() && ledger.tells_gone(environment.id)? {
            revived.push(environment.id);
        }
    }
    let mut here = Vec::new();
    for id in &unknown {
        if !ledger.tells_host(*id)? {
            here.push(*id);
        }
    }
    if unknown.is_empty() && revived.is_empty() {
        return Ok(here);
    }
    tracing::warn!(
        unknown = unknown.len(),
        revived = revived.len(),
        "the store is older than the ledger: what is left of environments that it does not know is taken away"
    );
    let mut body = Body::new(Kind::Event, LedgerAction::StoreBehind);
    body.details = Map::from_iter([
        ("unknown".to_owned(), named(&unknown)),
        ("unknown_count".to_owned(), unknown.len().into()),
        ("told_gone".to_owned(), named(&revived)),
        ("told_gone_count".to_owned(), revived.len().into()),
    ]);
    ledger.event(body, Durability::Disk).await?;
    for id in revived {
        let reason = EndReason::Failed {
            message: "it had ended before: the server's store was put back from an older copy"
                .into(),
        };
        if let Some((before, environment)) = store
            .apply(id, Event::ReleaseRequested(reason), now)
            .await?
        {
            ledger
                .phase_changed(None, Some(before), &environment, Map::new())
                .await;
        }
    }
    Ok(here)
}

fn named(ids: &[EnvironmentId]) -> Value {
    ids.iter()
        .take(NAMED_MAX)
        .map(|id| Value::from(id.to_string()))
        .collect()
}
