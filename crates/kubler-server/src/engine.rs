//! What makes and destroys environments. A trait, since this is the edge of the world; one conformance suite
//! runs over every implementation.

mod api;
pub mod local;
mod manifests;
pub mod namespace;

use std::path::PathBuf;
use std::sync::Arc;

use self::namespace::drift::Drift;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use http::HeaderValue;
use jiff::Timestamp;
use kubler_core::configuration::Host;
use kubler_core::environment::{Environment, Site};
use kubler_core::host::placement::{Enforcement, Health};
use kubler_core::host::reaper::Untouched;
use kubler_core::ids::EnvironmentId;
use kubler_core::plan::Observed;
use kubler_core::profile::EngineKind;
use secrecy::{ExposeSecret as _, SecretString};

/// Makes, finds and removes what environments consist of. Every method is idempotent and about one environment.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// Which profiles it serves.
    fn kind(&self) -> EngineKind;

    /// Where in the world its environments are.
    fn site(&self) -> Site {
        Site::Here
    }

    /// How its host is, when it works on one.
    fn standing(&self) -> Option<Standing> {
        None
    }

    /// Makes what is missing of the environment; returns when it is usable and the profile's manifests are applied.
    /// Called again after a crash in the middle, it goes on or begins anew.
    async fn provision(&self, environment: &Environment) -> Result<(), EngineError>;

    /// Everything in the world that carries an environment's mark, whether anybody remembers it or not.
    async fn observe(&self) -> Result<Vec<Observed>, EngineError>;

    /// Takes away everything of the environment, looks for it, and returns only when nothing was found.
    /// Succeeds when there never was anything.
    async fn remove(&self, id: EnvironmentId) -> Result<Evidence, EngineError>;

    /// The same for an environment that is remembered: its profile may allow more.
    async fn end(&self, environment: &Environment) -> Result<Evidence, EngineError> {
        self.remove(environment.id).await
    }

    /// What of the environment was found to be another than was made, since the start, oldest first.
    fn drifts(&self, _id: EnvironmentId) -> Vec<Drift> {
        Vec::new()
    }

    /// Where the environment's API server is, once it is usable.
    fn upstream(&self, id: EnvironmentId) -> Option<Arc<Upstream>>;

    /// Resolves when something in the world changed that a new look should find, such as a process that died.
    async fn changed(&self);
}

/// How a host cluster is.
#[derive(Debug, Clone)]
pub struct Standing {
    /// What the configuration says of it.
    pub host: Arc<Host>,
    /// Whether it answers.
    pub health: Health,
    /// Whether it enforces network policies.
    pub enforcement: Enforcement,
    /// Its Kubernetes version; empty as long as it has not said it.
    pub kubernetes_version: String,
    /// Why it is sick, for operators.
    pub message: Option<String>,
    /// Requests that were sent to it since the start.
    pub calls: u64,
    /// Namespaces that look like environments', and that would not be ended if nobody remembered them.
    pub staying: Arc<[Staying]>,
}

/// A namespace that stays when nobody remembers its environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staying {
    /// Its name.
    pub namespace: String,
    /// Whose it would be; nobody's, when it is called otherwise.
    pub environment: Option<EnvironmentId>,
    /// Why it stays.
    pub why: Stays,
}

/// Why a namespace stays when nobody remembers its environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stays {
    /// It is ours, and its deadline is still to come.
    Until(Timestamp),
    /// Nothing says that it is ours.
    Untouched(Untouched),
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
    pub token: Bearer,
}

/// A bearer token. It may be replaced at any time: whoever sends it reads it for each request, so that what is open stays
/// open.
pub struct Bearer(ArcSwap<HeaderValue>);

/// A token that cannot be sent in a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the credential cannot be sent as a header")]
pub struct UnusableToken;

impl Bearer {
    /// Holds `token`.
    ///
    /// # Errors
    /// When it cannot be sent in a header.
    pub fn new(token: &SecretString) -> Result<Self, UnusableToken> {
        Ok(Self(ArcSwap::from_pointee(header(token)?)))
    }

    /// Holds another one from now on.
    ///
    /// # Errors
    /// When it cannot be sent in a header; the old one stays.
    pub fn replace(&self, token: &SecretString) -> Result<(), UnusableToken> {
        self.0.store(Arc::new(header(token)?));
        Ok(())
    }

    /// The value of `Authorization`. It does not show what it is when it is printed.
    pub fn header(&self) -> HeaderValue {
        self.0.load().as_ref().clone()
    }
}

#[cfg(test)]
impl From<&str> for Bearer {
    fn from(token: &str) -> Self {
        Self::new(&token.into()).expect("a token for a header")
    }
}

fn header(token: &SecretString) -> Result<HeaderValue, UnusableToken> {
    let text = zeroize::Zeroizing::new(format!("Bearer {}", token.expose_secret()));
    let mut header = HeaderValue::from_str(&text).map_err(|_| UnusableToken)?;
    header.set_sensitive(true);
    Ok(header)
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
    /// Something that does not get better by itself.
    pub fn permanent(error: impl std::fmt::Display) -> Self {
        Self {
            message: error.to_string(),
            class: ErrorClass::Permanent,
        }
    }

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

/// Waits for a task; one that broke is an error like any other.
async fn joined<T>(
    task: tokio::task::JoinHandle<Result<T, EngineError>>,
) -> Result<T, EngineError> {
    task.await.unwrap_or_else(|error| {
        Err(EngineError::transient(format!(
            "the work on an environment broke off: {error}"
        )))
    })
}
