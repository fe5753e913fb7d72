//! What is read from the configuration and from the files that it names. Nothing is changed by reading.

use std::sync::Arc;

use kubler_core::policy::PolicySet;
use tracing_subscriber::EnvFilter;

use crate::clock::Clock;
use crate::config::{ConfigError, Loaded, Surroundings};
use crate::engine::local::binaries::{self, Binaries};
use crate::engine::local::run_excess_bytes;
use crate::http::tls::Tls;
use crate::identity::{Issuers, Verifier};
use crate::in_force::InForce;
use crate::ledger::sinks::Sinks;
use crate::policy::read_set;
use crate::start_error::StartError;

/// What a start reads, and every reload again: all of it is checked before any of it is in force.
pub struct Everything {
    /// The configuration with everything that its names stand for.
    pub in_force: InForce,
    /// Who may do what.
    pub policies: PolicySet,
    /// Who signs identities.
    pub issuers: Issuers,
    /// What is logged.
    pub log: Option<EnvFilter>,
}

impl Everything {
    /// Reads it all. Profiles may name Kubernetes versions of `binaries`; issuers that `verifier` knows keep their keys.
    ///
    /// # Errors
    /// The first thing that cannot be read, or cannot be.
    pub fn read(
        loaded: &Loaded,
        binaries: &Binaries,
        verifier: &Verifier,
    ) -> Result<Self, StartError> {
        let configuration = &loaded.configuration;
        let log = log_filter(configuration.log.as_ref())?;
        let in_force = InForce::read(loaded, binaries)?;
        let policies = read_set(&loaded.path(&configuration.policies), configuration)?;
        let issuers = verifier.prepare(configuration, &loaded.folder)?;
        Ok(Self {
            in_force,
            policies,
            issuers,
            log,
        })
    }
}

/// What only a start reads, with [`Everything`].
pub struct AtStart {
    /// What a reload reads again.
    pub everything: Everything,
    /// The programs that the configuration needs.
    pub binaries: Binaries,
    /// Trusts nobody yet.
    pub verifier: Verifier,
    /// The certificates.
    pub tls: Tls,
    /// Where the ledger's checkpoints are kept outside.
    pub sinks: Sinks,
}

impl AtStart {
    /// Reads it all.
    ///
    /// # Errors
    /// The first thing that a start stops at.
    pub fn read(
        loaded: &Loaded,
        surroundings: &Surroundings,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        check_run(loaded)?;
        let binaries = binaries::resolve_all(&loaded.configuration, &loaded.folder, surroundings)?;
        let verifier = Verifier::new(Arc::clone(clock));
        Ok(Self {
            everything: Everything::read(loaded, &binaries, &verifier)?,
            tls: Tls::read(loaded)?,
            sinks: Sinks::new(&loaded.configuration.ledger.sinks, &loaded.folder)?,
            binaries,
            verifier,
        })
    }
}

/// A folder that the operator named is used, or the server does not start: nobody looks for sockets elsewhere.
fn check_run(loaded: &Loaded) -> Result<(), StartError> {
    let Some(path) = loaded.run() else {
        return Ok(());
    };
    match run_excess_bytes(&path) {
        0 => Ok(()),
        excess_bytes => Err(StartError::RunTooLong { path, excess_bytes }),
    }
}

/// What `log` in the configuration means.
///
/// # Errors
/// When it cannot be read.
pub fn log_filter(log: Option<&String>) -> Result<Option<EnvFilter>, ConfigError> {
    let filter = |text: &String| {
        EnvFilter::try_new(text).map_err(|error| ConfigError::Log {
            text: text.clone(),
            message: error.to_string(),
        })
    };
    log.map(filter).transpose()
}
