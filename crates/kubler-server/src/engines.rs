//! The engines that the configuration asks for: one of this machine, where a Kubernetes version is named, and one for each
//! host.

use std::path::PathBuf;
use std::sync::Arc;

use kubler_core::configuration::{Configuration, Host};
use kubler_core::environment::{Environment, Site};
use kubler_core::host::names;

use crate::clock::Clock;
use crate::config::Loaded;
use crate::data_folder::DataFolder;
use crate::directory::Directory;
use crate::engine::Engine;
use crate::engine::local::binaries::Binaries;
use crate::engine::local::{LocalEngine, LocalSettings, StopMode};
use crate::engine::namespace::connection::{Connection, HostError};
use crate::engine::namespace::{NamespaceEngine, NamespaceSettings, key};
use crate::ledger::Ledger;
use crate::start_error::StartError;

/// All of them.
pub struct Engines {
    /// The one of this machine.
    pub local: Option<Arc<LocalEngine>>,
    /// One for each host.
    pub hosts: Vec<Arc<NamespaceEngine>>,
}

/// How each host is reached, in the order of the configuration.
///
/// # Errors
/// The first that cannot be reached as it is configured. Whether it answers is not asked.
pub async fn connections(loaded: &Loaded) -> Result<Vec<(Host, Connection)>, HostError> {
    let mut all = Vec::new();
    for host in &loaded.configuration.hosts {
        let connection = Connection::read(host, &loaded.folder).await?;
        all.push((host.clone(), connection));
    }
    Ok(all)
}

/// Where the key is that signs the marks of namespaces.
pub fn mark_key(loaded: &Loaded, data: &DataFolder) -> PathBuf {
    let configured = loaded.configuration.mark_key.as_deref();
    configured.map_or_else(|| data.mark_key(), |path| loaded.path(path))
}

impl Engines {
    /// Starts them all. A host that does not answer keeps none from starting.
    ///
    /// # Errors
    /// When the engine of this machine does not start, or the key of marks cannot be used.
    pub async fn start(
        loaded: &Loaded,
        data: &DataFolder,
        binaries: &Binaries,
        connections: Vec<(Host, Connection)>,
        clock: &Arc<dyn Clock>,
        ledger: &Ledger,
    ) -> Result<Self, StartError> {
        let local = if loaded.configuration.kubernetes.is_empty() {
            None
        } else {
            let mut settings = LocalSettings::new(&data.local(), binaries.clone());
            settings.run = loaded.run().unwrap_or(settings.run);
            Some(LocalEngine::start(settings, Arc::clone(clock), ledger.clone()).await?)
        };
        let mut hosts = Vec::new();
        for (host, connection) in connections {
            let path = mark_key(loaded, data);
            let settings = NamespaceSettings {
                host,
                connection,
                key: key::open(&path).map_err(|source| StartError::MarkKey { path, source })?,
                folder: loaded.folder.clone(),
                ledger: ledger.clone(),
            };
            hosts.push(NamespaceEngine::start(settings, Arc::clone(clock)));
        }
        Ok(Self { local, hosts })
    }

    /// All of them as what they have in common.
    pub fn all(&self) -> Vec<Arc<dyn Engine>> {
        let local = self
            .local
            .iter()
            .map(|it| Arc::clone(it) as Arc<dyn Engine>);
        let hosts = self
            .hosts
            .iter()
            .map(|it| Arc::clone(it) as Arc<dyn Engine>);
        local.chain(hosts).collect()
    }

    /// Ends their work. What lives on hosts lives on, and is known by the store.
    pub async fn stop(&self, mode: StopMode) {
        if let Some(local) = &self.local
            && let Err(error) = local.stop(mode).await
        {
            tracing::error!(%error, "something was left alive");
        }
    }
}

/// Whether every environment that is not gone can be ended: a part of the world that the configuration does not have any
/// more would keep it for ever.
///
/// # Errors
/// The first that cannot.
pub fn check_sites(directory: &Directory, configuration: &Configuration) -> Result<(), StartError> {
    let mut remaining = directory.remaining();
    remaining.sort_by_key(|environment| environment.id);
    for environment in &remaining {
        let Some(site) = environment.site() else {
            continue;
        };
        if let Some(message) = obstacle(environment, &site, configuration) {
            let alike = remaining
                .iter()
                .filter(|it| it.site().as_ref() == Some(&site));
            return Err(StartError::SiteInUse {
                site: site.to_string(),
                environments: alike.count(),
                message,
            });
        }
    }
    Ok(())
}

fn obstacle(
    environment: &Environment,
    site: &Site,
    configuration: &Configuration,
) -> Option<&'static str> {
    match (site, &environment.placement) {
        (Site::Here, _) => configuration
            .kubernetes
            .is_empty()
            .then_some("the configuration names no Kubernetes version any more"),
        (Site::Host(_), None) => None,
        (Site::Host(name), Some(placement)) => match configuration.host(name) {
            None => Some("the configuration does not have it any more"),
            Some(host) => {
                let namespace = names::namespace(&host.namespace_prefix, environment.id);
                let is_same = placement.namespace == namespace
                    && placement.accounts_namespace == host.accounts_namespace;
                (!is_same)
                    .then_some("its `namespace_prefix` or `accounts_namespace` is another one now")
            }
        },
    }
}
