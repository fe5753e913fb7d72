//! What makes and destroys environments. A trait, since this is the edge of the world; one conformance suite
//! runs over every implementation.

pub mod local;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use kubler_core::environment::Environment;
use kubler_core::ids::EnvironmentId;
use kubler_core::plan::Observed;
use kubler_core::profile::EngineKind;
use secrecy::SecretString;

/// Makes, finds and removes what environments consist of. Every method is idempotent and about one environment.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// Which profiles it serves.
    fn kind(&self) -> EngineKind;

    /// Makes what is missing of the environment; returns when it is usable and the profile's manifests are applied.
    /// Called again after a crash in the middle, it goes on or begins anew.
    async fn provision(&self, environment: &Environment) -> Result<(), EngineError>;

    /// Everything in the world that carries an environment's mark, whether anybody remembers it or not.
    async fn observe(&self) -> Result<Vec<Observed>, EngineError>;

    /// Takes away everything of the environment, looks for it, and returns only when nothing was found.
    /// Succeeds when there never was anything.
    async fn remove(&self, id: EnvironmentId) -> Result<Evidence, EngineError>;

    /// Where the environment's API server is, once it is usable.
    fn upstream(&self, id: EnvironmentId) -> Option<Arc<Upstream>>;

    /// All that the environment has of a cluster that others use as well. The gateway lets nothing else through then.
    fn namespace(&self, _id: EnvironmentId) -> Option<String> {
        None
    }

    /// Resolves when something in the world changed that a new look should find, such as a process that died.
    async fn changed(&self);
}

/// What was looked for after an end, and how long each part took. Goes into the ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Evidence {
    /// What was looked for and not found, as `process`, `socket`, `key`, `user`, `file`.
    pub looked_for: Vec<String>,
    /// Milliseconds of each step, by name.
    pub milliseconds: std::collections::BTreeMap<String, u64>,
}

/// An environment's API server as the gateway reaches it.
pub struct Upstream {
    /// Where to connect.
    pub address: UpstreamAddress,
    /// How to make sure that it is the right one.
    pub tls: Arc<rustls::ClientConfig>,
    /// The name its certificate carries.
    pub server_name: rustls_pki_types::ServerName<'static>,
    /// The bearer token of the job's user inside the environment. Never leaves the server.
    pub token: SecretString,
}

/// Where an API server listens.
#[derive(Debug, Clone)]
pub enum UpstreamAddress {
    /// A socket in a private folder.
    Unix(PathBuf),
    /// Host and port.
    Tcp(String, u16),
}

/// Why an engine could not do its work.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct EngineError {
    /// What happened, for people.
    pub message: String,
    /// Whether trying again can help.
    pub class: ErrorClass,
}

impl EngineError {
    /// Something that may be better in a moment.
    pub fn transient(error: impl std::fmt::Display) -> Self {
        Self {
            message: error.to_string(),
            class: ErrorClass::Transient,
        }
    }
}

/// Whether trying again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// Soon: something was busy or not there yet.
    Transient,
    /// Not by itself: a program is missing, a manifest is wrong.
    Permanent,
}
