//! Loading configuration and policies anew while requests come in. Everything is read and checked before anything is
//! replaced: one fault anywhere, and all of the old stays in force.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kubler_core::ledger::record::{Body, Kind, LedgerAction};
use tracing_subscriber::EnvFilter;

use crate::config;
use crate::engine::local::binaries::Binaries;
use crate::engines;
use crate::http::Api;
use crate::ledger::Durability;
use crate::policy::Reloaded;
use crate::reading::Everything;
use crate::start_error::StartError;
use crate::tasks::certificates::Certificates;

/// Changes what is logged.
pub type SetLog = Box<dyn Fn(EnvFilter) + Send + Sync>;

/// Loads anew what a running server can take over.
pub struct Reload {
    /// What is replaced.
    pub api: Arc<Api>,
    /// The file that the server was started with.
    pub file: PathBuf,
    /// What was found at the start: profiles name Kubernetes versions of these only.
    pub binaries: Arc<Binaries>,
    /// The certificates are loaded on the same occasion, each for itself.
    pub certificates: Certificates,
    /// What is logged.
    pub set_log: SetLog,
}

impl Reload {
    /// Reads everything, replaces what is in force or says why not, and writes it down.
    pub async fn run(&self) {
        self.certificates.reload().await;
        let mut configuration = Body::new(Kind::Event, LedgerAction::ConfigurationLoad);
        let mut policies = Body::new(Kind::Event, LedgerAction::PolicyLoad);
        let read = {
            let (api, file) = (Arc::clone(&self.api), self.file.clone());
            let binaries = Arc::clone(&self.binaries);
            // Files are read and policies are parsed: other requests go on meanwhile.
            tokio::task::spawn_blocking(move || read(&api, &file, &binaries)).await
        };
        let is_bad = match read {
            Ok(Ok((everything, needs_restart))) => {
                let restart = needs_restart.join(", ");
                if !restart.is_empty() {
                    tracing::warn!(
                        keys = restart,
                        "these keys have changed and need a restart; the rest is loaded"
                    );
                    configuration
                        .details
                        .insert("needs_restart".into(), restart.into());
                }
                self.install(everything);
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
    fn install(&self, everything: Everything) {
        let Everything {
            in_force,
            policies,
            issuers,
            log,
        } = everything;
        let broker = &self.api.broker;
        let limits = &in_force.configuration.limits;
        broker.store.set_limits(limits.clone());
        self.api.places.set_limits(limits);
        self.api.in_force.store(Arc::new(in_force));
        match broker.policies.replace(policies) {
            Reloaded::Unchanged { digest } => {
                tracing::info!(digest, "the configuration is loaded; policies are the same")
            }
            Reloaded::Changed { after, .. } => tracing::info!(
                digest = after,
                "the configuration is loaded, with other policies"
            ),
        }
        if let Some(log) = log {
            (self.set_log)(log);
        }
        self.api.verifier.install(issuers);
        // An issuer that is new has no keys yet: its first job should not wait for them.
        let verifier = self.api.verifier.clone();
        tokio::spawn(async move { verifier.prefetch().await });
        broker.wake.wake();
    }
}

/// Reads and checks all of it; changes nothing. Gives also the keys that have changed and stay as they were.
fn read(
    api: &Api,
    file: &Path,
    binaries: &Binaries,
) -> Result<(Everything, Vec<&'static str>), StartError> {
    let mut loaded = config::load(file)?;
    let old = Arc::clone(&api.in_force.load().configuration);
    // Not left for the next start to find out.
    engines::check_sites(&api.broker.directory, &loaded.configuration)?;
    let (taken_over, needs_restart) = old.taking_over(loaded.configuration);
    loaded.configuration = taken_over;
    let everything = Everything::read(&loaded, binaries, &api.verifier)?;
    Ok((everything, needs_restart))
}
