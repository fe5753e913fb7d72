//! Loading configuration and policies anew while requests come in. Everything is read and checked before anything is
//! replaced: one fault anywhere, and all of the old stays in force.

use std::path::PathBuf;
use std::sync::Arc;

use kubler_core::ledger::record::{Body, Kind, LedgerAction};
use kubler_core::policy::PolicySet;
use tracing_subscriber::EnvFilter;

use crate::app::StartError;
use crate::config::{self, ConfigError};
use crate::engine::local::binaries::Binaries;
use crate::http::Api;
use crate::identity::Issuers;
use crate::in_force::InForce;
use crate::ledger::Durability;
use crate::policy::{Reloaded, read_set};

/// Changes what is logged.
pub type SetLog = Box<dyn Fn(EnvFilter) + Send + Sync>;

/// Loads anew what a running server can take over.
pub struct Reload {
    api: Arc<Api>,
    file: PathBuf,
    /// What was found at the start: profiles name Kubernetes versions of these only.
    binaries: Arc<Binaries>,
    set_log: SetLog,
}

/// All that was read, and checked.
struct Read {
    in_force: InForce,
    policies: PolicySet,
    issuers: Issuers,
    log: Option<EnvFilter>,
    /// Keys that have changed and stay as they were.
    needs_restart: Vec<&'static str>,
}

impl Reload {
    /// Reads `file`, the one that the server was started with.
    pub const fn new(
        api: Arc<Api>,
        file: PathBuf,
        binaries: Arc<Binaries>,
        set_log: SetLog,
    ) -> Self {
        Self {
            api,
            file,
            binaries,
            set_log,
        }
    }

    /// Reads everything, replaces what is in force or says why not, and writes it down.
    pub async fn run(&self) {
        self.api.reload_certificates().await;
        let mut configuration = Body::new(Kind::Event, LedgerAction::ConfigurationLoad);
        let mut policies = Body::new(Kind::Event, LedgerAction::PolicyLoad);
        let read = {
            let (api, file) = (Arc::clone(&self.api), self.file.clone());
            let binaries = Arc::clone(&self.binaries);
            // Files are read and policies are parsed: other requests go on meanwhile.
            tokio::task::spawn_blocking(move || read(&api, &file, &binaries)).await
        };
        let is_bad = match read {
            Ok(Ok(read)) => {
                let restart = read.needs_restart.join(", ");
                if !restart.is_empty() {
                    tracing::warn!(
                        keys = restart,
                        "these keys have changed and need a restart; the rest is loaded"
                    );
                    configuration
                        .details
                        .insert("needs_restart".into(), restart.into());
                }
                self.install(read);
                false
            }
            Ok(Err(error)) => {
                let (said, hint) = (error.to_string(), error.hint());
                tracing::error!(
                    error = said,
                    hint,
                    "the configuration cannot be loaded; all of the old one stays in force"
                );
                for body in [&mut configuration, &mut policies] {
                    body.details.insert("refused".into(), said.clone().into());
                }
                true
            }
            Err(panicked) => {
                tracing::error!(%panicked, "loading the configuration broke down; the old one stays in force");
                true
            }
        };
        self.api.gauges.set_configuration_bad(is_bad);
        let digest = self.api.broker.policies.current().digest().to_owned();
        policies
            .details
            .insert("policy_digest".into(), digest.into());
        for body in [configuration, policies] {
            if let Err(error) = self.api.broker.ledger.event(body, Durability::Disk).await {
                tracing::error!(%error, "the load could not be recorded");
            }
        }
    }

    /// Cannot fail: nothing is half replaced. Who may call comes last, so that whoever is let in finds the rest there.
    fn install(&self, read: Read) {
        let broker = &self.api.broker;
        let limits = &read.in_force.configuration.limits;
        broker.store.set_limits(limits.clone());
        self.api.places.set_limits(limits);
        self.api.in_force.store(Arc::new(read.in_force));
        match broker.policies.replace(read.policies) {
            Reloaded::Unchanged { digest } => {
                tracing::info!(digest, "the configuration is loaded; policies are the same")
            }
            Reloaded::Changed { after, .. } => tracing::info!(
                digest = after,
                "the configuration is loaded, with other policies"
            ),
        }
        if let Some(log) = read.log {
            (self.set_log)(log);
        }
        self.api.verifier.install(read.issuers);
        // An issuer that is new has no keys yet: its first job should not wait for them.
        let verifier = self.api.verifier.clone();
        tokio::spawn(async move { verifier.prefetch().await });
        broker.wake.wake();
    }
}

/// Reads and checks all of it; changes nothing.
fn read(api: &Api, file: &std::path::Path, binaries: &Binaries) -> Result<Read, StartError> {
    let mut loaded = config::load(file)?;
    let old = Arc::clone(&api.in_force.load().configuration);
    let (taken_over, needs_restart) = old.taking_over(loaded.configuration);
    loaded.configuration = taken_over;
    let log = log_filter(loaded.configuration.log.as_ref())?;
    let in_force = InForce::read(&loaded, binaries)?;
    let folder = loaded.path(&loaded.configuration.policies);
    Ok(Read {
        policies: read_set(&folder, &loaded.configuration)?,
        issuers: api
            .verifier
            .prepare(&loaded.configuration, &loaded.folder)?,
        in_force,
        log,
        needs_restart,
    })
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
