//! Opens what is kept: the store, the ledger, the session keys. The store and the ledger are held against each other, and
//! the ledger against all who saw it before.

use std::sync::Arc;

use kubler_core::configuration::Configuration;
use kubler_core::ids::EnvironmentId;
use kubler_core::ledger::record::{Body, Kind, LedgerAction};
use kubler_core::policy::PolicySet;

use crate::broker::{Broker, JobBounds};
use crate::clock::Clock;
use crate::data_folder::DataFolder;
use crate::directory::Directory;
use crate::ledger::sinks::Sinks;
use crate::ledger::{self, Durability, Ledger, LedgerError, LedgerLock, Witness};
use crate::policy::Policies;
use crate::session::Sessions;
use crate::start_error::StartError;
use crate::store::{self, Store};
use crate::tasks::{Wake, restored};

/// What was opened.
pub struct Opened {
    /// What is done with it for callers.
    pub broker: Broker,
    /// Environments that only the ledger knows.
    pub lost: Vec<EnvironmentId>,
}

/// Opens all of it, and writes down the start and what is in force.
///
/// # Errors
/// The first thing that cannot be opened, or does not fit to the others.
pub async fn open(
    data: &DataFolder,
    configuration: &Configuration,
    policies: PolicySet,
    sinks: &Sinks,
    clock: &Arc<dyn Clock>,
) -> Result<Opened, StartError> {
    check_not_missing(data, sinks).await?;
    let lock = LedgerLock::take(&data.ledger())?;
    let directory = Arc::new(Directory::new(clock.now()));
    let limits = configuration.limits.clone();
    let store = Store::open(&data.store(), Arc::clone(&directory), limits).await?;
    let witnesses = witnesses(&store, sinks).await?;
    let ledger = open_ledger(configuration, lock, &witnesses, &policies, clock).await?;
    restored::catch_up(&ledger, &directory).await;
    let lost = restored::compare(&store, &directory, &ledger, clock.now()).await?;
    // Reading a large ledger took its time, and nobody could renew meanwhile.
    directory.resumed(clock.now());
    let sessions = Sessions::open(&data.sessions(), Arc::clone(clock))?;
    let broker = Broker {
        jobs: JobBounds::default(),
        policies: Arc::new(Policies::new(policies)),
        store: Arc::new(store),
        directory,
        ledger,
        approvals: Arc::default(),
        sessions: Arc::new(sessions),
        wake: Wake::default(),
        clock: Arc::clone(clock),
    };
    Ok(Opened { broker, lost })
}

/// A ledger that somebody knows is not begun anew by a start that does not find it. Asked before anything is written.
async fn check_not_missing(data: &DataFolder, sinks: &Sinks) -> Result<(), StartError> {
    let folder = data.ledger();
    if ledger::is_there(&folder) {
        return Ok(());
    }
    match seen_before(data, sinks).await?.into_iter().next() {
        None => Ok(()),
        Some(Witness { name: witness, .. }) => Err(LedgerError::Missing { folder, witness }.into()),
    }
}

/// Everybody who saw the ledger before, without opening the store. Changes nothing.
///
/// # Errors
/// When what somebody saw is there and cannot be read.
pub async fn seen_before(data: &DataFolder, sinks: &Sinks) -> Result<Vec<Witness>, StartError> {
    let mut all = Vec::from_iter(store::seen_by(&data.store()).await?);
    all.extend(sinks.witnesses().await?);
    Ok(all)
}

/// Opens the ledger and writes down the start and what is in force.
async fn open_ledger(
    configuration: &Configuration,
    lock: LedgerLock,
    witnesses: &[Witness],
    policies: &PolicySet,
    clock: &Arc<dyn Clock>,
) -> Result<Ledger, LedgerError> {
    let (settings, origin) = (&configuration.ledger, configuration.ledger_origin());
    let ledger = Ledger::open_before(lock, &origin, settings, witnesses, Arc::clone(clock))?;
    let mut started = Body::new(Kind::Event, LedgerAction::ServerStart);
    let in_force = [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("policy_digest", policies.digest().to_owned()),
    ];
    started
        .details
        .extend(in_force.map(|(name, value)| (name.to_owned(), value.into())));
    ledger.event(started, Durability::Disk).await?;
    Ok(ledger)
}

/// Everybody who saw the ledger before.
///
/// # Errors
/// When what somebody saw is there and cannot be read.
pub async fn witnesses(store: &Store, sinks: &Sinks) -> Result<Vec<Witness>, StartError> {
    let mut all = sinks.witnesses().await?;
    all.extend(store.witness().await?);
    Ok(all)
}
