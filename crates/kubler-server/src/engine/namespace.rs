//! The `namespace` engine: an environment is a namespace of a host cluster, with walls around it, and one engine works
//! on one host.
//!
//! `provision` makes one, `remove` ends one and looks, `observe` finds what exists. Everything is named by the
//! environment's id, and what it consists of is decided in `kubler_core::host`. The tenant's credential is in memory
//! only (`tenant`); a server that starts anew asks for another.

mod client;
pub mod connection;
pub mod drift;
mod health;
pub(crate) mod key;
mod observe;
mod provision;
mod remove;
#[cfg(test)]
mod rights;
mod stuck;
mod tenant;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use ed25519_dalek::SigningKey;
use kubler_core::configuration::Host;
use kubler_core::environment::{Environment, Site};
use kubler_core::host::names;
use kubler_core::host::placement::Enforcement;
use kubler_core::ids::EnvironmentId;
use kubler_core::plan::Observed;
use kubler_core::profile::EngineKind;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::connection::Connection;
use self::drift::Drift;
use self::health::Pulse;
use self::tenant::Tenant;
use super::{Engine, EngineError, Evidence, Standing, Upstream, joined, manifests};
use crate::clock::Clock;
use crate::ledger::Ledger;

/// What the engine works with.
pub struct NamespaceSettings {
    /// The host.
    pub host: Host,
    /// How it is reached.
    pub connection: Connection,
    /// Signs the marks of namespaces.
    pub key: SigningKey,
    /// Where the files of profiles' secrets are.
    pub folder: PathBuf,
    /// Where it is written down when a finalizer is taken away.
    pub ledger: Ledger,
}

/// The engine of one host. Dropped, it leaves environments alive.
pub struct NamespaceEngine {
    inner: Arc<Inner>,
    _working: [AbortOnDropHandle<()>; 2],
}

/// What the work on every environment shares.
struct Inner {
    host: Arc<Host>,
    connection: Connection,
    key: SigningKey,
    folder: PathBuf,
    clock: Arc<dyn Clock>,
    ledger: Ledger,
    slots: Mutex<HashMap<EnvironmentId, Arc<Slot>>>,
    pulse: Pulse,
    changes: Notify,
    /// Requests that were sent.
    calls: AtomicU64,
}

/// One environment as this server knows it.
#[derive(Default)]
struct Slot {
    /// Whoever holds it is the only one to change the environment's part of the world.
    work: Arc<tokio::sync::Mutex<()>>,
    /// Asks whoever is making it to stop.
    cancelled: Mutex<CancellationToken>,
    tenant: Mutex<Option<Tenant>>,
    /// What was found to be another than was made.
    drifts: drift::Drifts,
}

impl NamespaceEngine {
    /// Begins to work on a host; it may be sick.
    pub fn start(settings: NamespaceSettings, clock: Arc<dyn Clock>) -> Arc<Self> {
        let inner = Arc::new(Inner {
            host: Arc::new(settings.host),
            connection: settings.connection,
            key: settings.key,
            folder: settings.folder,
            ledger: settings.ledger,
            clock,
            slots: Mutex::default(),
            pulse: Pulse::default(),
            changes: Notify::new(),
            calls: AtomicU64::new(0),
        });
        let working = [
            tokio::spawn(health::watch(Arc::clone(&inner))),
            tokio::spawn(tenant::refresh(Arc::clone(&inner))),
        ];
        Arc::new(Self {
            inner,
            _working: working.map(AbortOnDropHandle::new),
        })
    }

    /// Whether the host enforces network policies, as a probe saw it.
    pub fn set_enforcement(&self, enforcement: Enforcement) {
        self.inner.pulse.set_enforcement(enforcement);
    }
}

impl NamespaceEngine {
    async fn take_away(
        &self,
        id: EnvironmentId,
        environment: Option<Environment>,
    ) -> Result<Evidence, EngineError> {
        let slot = self.inner.slot(id);
        slot.cancel();
        let guard = Arc::clone(&slot.work).lock_owned().await;
        // A task of its own: a caller that goes away must not leave a request on its way that is done later.
        let inner = Arc::clone(&self.inner);
        joined(tokio::spawn(async move {
            remove::remove(&inner, id, environment.as_ref(), &slot, &guard).await
        }))
        .await
    }
}

#[async_trait]
impl Engine for NamespaceEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Namespace
    }

    fn site(&self) -> Site {
        Site::Host(self.inner.host.name.clone())
    }

    fn standing(&self) -> Option<Standing> {
        let known = self.inner.pulse.known();
        Some(Standing {
            host: Arc::clone(&self.inner.host),
            health: known.health,
            enforcement: known.enforcement,
            kubernetes_version: known.version,
            message: known.message,
            calls: self.inner.calls.load(Ordering::Relaxed),
            staying: known.staying,
        })
    }

    async fn provision(&self, environment: &Environment) -> Result<(), EngineError> {
        provision::provision(&self.inner, environment).await
    }

    async fn observe(&self) -> Result<Vec<Observed>, EngineError> {
        observe::observe(&self.inner).await
    }

    async fn remove(&self, id: EnvironmentId) -> Result<Evidence, EngineError> {
        self.take_away(id, None).await
    }

    async fn end(&self, environment: &Environment) -> Result<Evidence, EngineError> {
        let id = environment.id;
        self.take_away(id, Some(environment.clone())).await
    }

    fn drifts(&self, id: EnvironmentId) -> Vec<Drift> {
        let slots = self
            .inner
            .slots
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(slot) = slots.get(&id) else {
            return Vec::new();
        };
        let drifts = slot.drifts.lock().unwrap_or_else(PoisonError::into_inner);
        drifts.iter().cloned().collect()
    }

    fn upstream(&self, id: EnvironmentId) -> Option<Arc<Upstream>> {
        let now = self.inner.clock.now();
        let slot = self
            .inner
            .slots
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .cloned();
        let upstream = slot.and_then(|slot| {
            let tenant = slot.tenant();
            let tenant = tenant.as_ref().filter(|tenant| tenant.is_good(now))?;
            Some(Arc::clone(&tenant.upstream))
        });
        if upstream.is_none() {
            // Of an earlier server, or the host was away for long.
            self.inner.adopt(id);
        }
        upstream
    }

    async fn changed(&self) {
        self.inner.changes.notified().await;
    }
}

impl Inner {
    /// The name of an environment's namespace, and of its tenant's account.
    fn namespace(&self, id: EnvironmentId) -> String {
        names::namespace(&self.host.namespace_prefix, id)
    }

    fn slot(&self, id: EnvironmentId) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(id).or_default())
    }

    fn slots(&self) -> Vec<(EnvironmentId, Arc<Slot>)> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots
            .iter()
            .map(|(id, slot)| (*id, Arc::clone(slot)))
            .collect()
    }

    /// Forgets an environment that is gone.
    fn forget(&self, id: EnvironmentId) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.remove(&id);
    }
}

impl Slot {
    fn tenant(&self) -> std::sync::MutexGuard<'_, Option<Tenant>> {
        self.tenant.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cancel(&self) {
        self.cancelled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .cancel();
    }

    /// A fresh token for the next making; for whoever holds the work.
    fn begin(&self) -> CancellationToken {
        let token = CancellationToken::new();
        *self
            .cancelled
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = token.clone();
        token
    }
}

/// Reads manifests as the making of an environment does.
///
/// # Errors
/// When a document is no YAML, no Kubernetes object with a name, or cannot be in a namespace.
pub fn check_manifests(files: &BTreeMap<String, String>) -> Result<(), EngineError> {
    manifests::read_for_namespace(files).map(drop)
}
