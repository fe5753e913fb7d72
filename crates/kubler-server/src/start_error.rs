//! Why the server cannot start, or cannot take over what it was told to load.

use std::path::PathBuf;

use crate::config::ConfigError;
use crate::engine::EngineError;
use crate::engine::local::binaries::BinariesError;
use crate::engine::namespace::connection::HostError;
use crate::http::tls::CertificateError;
use crate::identity::IdentityError;
use crate::ledger::LedgerError;
use crate::ledger::sinks::SinkError;
use crate::policy::PolicyLoadError;
use crate::session::SessionError;
use crate::store::StoreError;
use crate::tasks::restored::RestoreError;

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration, or a file it names.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Policies.
    #[error(transparent)]
    Policy(#[from] PolicyLoadError),
    /// Issuers.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Session keys.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A sink of the ledger.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The engine, or programs it needs.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Programs of a Kubernetes version.
    #[error(transparent)]
    Binaries(#[from] BinariesError),
    /// A host cluster.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The key that signs the marks of namespaces.
    #[error("the key of marks `{path}` cannot be used: {source}")]
    MarkKey {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Environments live where the configuration does not reach any more.
    #[error("{environments} of the environments that are not gone live on {site}: {message}")]
    SiteInUse {
        /// Where.
        site: String,
        /// How many.
        environments: usize,
        /// What is the matter with it.
        message: &'static str,
    },
    /// A secret of a profile.
    #[error("profile `{profile}`, secret `{secret}`: {source}")]
    Secret {
        /// Whose.
        profile: String,
        /// Which.
        secret: String,
        /// What is wrong with its file.
        source: ConfigError,
    },
    /// A profile's manifests.
    #[error("profile `{profile}`: {message}")]
    Manifest {
        /// Whose.
        profile: String,
        /// Where and what.
        message: String,
    },
    /// `run` is too long a path.
    #[error(
        "`run` is `{path}`, which is {excess_bytes} bytes too long: sockets below it would have no path"
    )]
    RunTooLong {
        /// Which.
        path: PathBuf,
        /// By how much.
        excess_bytes: usize,
    },
    /// TLS.
    #[error("{source} (`certificate` is `{certificate}`, `key` is `{key}`)")]
    Certificate {
        /// The file of the chain.
        certificate: PathBuf,
        /// The file of its key.
        key: PathBuf,
        /// What is wrong.
        source: Box<CertificateError>,
    },
    /// The data folder.
    #[error("`{path}` cannot be made: {source}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The address.
    #[error("cannot listen on `{address}`: {source}")]
    Listen {
        /// Which.
        address: String,
        /// Why.
        source: std::io::Error,
    },
}

impl From<RestoreError> for StartError {
    fn from(error: RestoreError) -> Self {
        match error {
            RestoreError::Ledger(error) => Self::Ledger(error),
            RestoreError::Store(error) => Self::Store(error),
        }
    }
}

impl StartError {
    /// What to do next.
    pub fn hint(&self) -> String {
        match self {
            Self::Config(error) => error.hint(),
            Self::Policy(_) => "`kubler policy check` shows every fault with its line".into(),
            Self::Binaries(error) => error.hint(),
            Self::Listen { address, source } => listen_hint(address, source),
            Self::Ledger(error) => error.hint(),
            Self::Sink(_) => "a sink that is there must be readable: mend it, or take it out of `ledger.sinks`".into(),
            Self::Store(error) if error.is_damage() => "put a back-up into an empty data folder with `kubler-server restore`; without the file another store begins, and what lives is ended as belonging to nothing".into(),
            Self::Session(SessionError::Keys { path, .. }) => format!("`rm {}`: other keys are made, and kubectl gets new sessions by itself", path.display()),
            Self::Folder { .. } | Self::Store(_) | Self::Session(_) => "check the data folder's owner and the free space".into(),
            Self::Certificate { source, .. } if matches!(**source, CertificateError::OtherName { .. }) => "`openssl x509 -noout -ext subjectAltName -in FILE` shows the names that it is for: have one made for the name in `url`, or put one of these into `url`".into(),
            Self::Certificate { source, .. } if matches!(**source, CertificateError::OtherCa(_)) => "`tls.ca` is the CA that jobs are told to trust: name the one that signed `certificate`, which must hold what stands between the two as well; without `ca` they trust what their system trusts".into(),
            Self::Host(_) => "`hosts` in the configuration names a kubeconfig for each: `kubectl --kubeconfig FILE get --raw /readyz` tries it".into(),
            Self::MarkKey { .. } => "put it back from a back-up: without it nobody can tell which namespaces on the hosts are this server's".into(),
            Self::SiteInUse { .. } => "put it back into the configuration as it was until they are gone; `kubler env list` shows them".into(),
            Self::Secret { source, .. } => source.hint(),
            Self::Manifest { .. } => "each document of a manifest is one Kubernetes object with `apiVersion`, `kind` and `metadata.name`; `kubectl apply --dry-run=client -f FILE` reads it too".into(),
            Self::RunTooLong { .. } => "name a shorter folder, such as `/run/kubler`; without `run`, one in the data folder or in `/tmp` is used".into(),
            Self::Certificate { .. } => "`tls` in the configuration names the files: each must be PEM, `key` the private key that belongs to `certificate`; they are easily swapped".into(),
            Self::Identity(_) | Self::Engine(_) => "`kubler-server check` reads everything without starting".into(),
        }
    }
}

/// What to do about an address that cannot be had.
fn listen_hint(address: &str, error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::AddrInUse => "another server may be running; `listen` in the configuration chooses another address".into(),
        ErrorKind::PermissionDenied => "ports below 1024 need a privilege: `AmbientCapabilities=CAP_NET_BIND_SERVICE` in the service's unit, or a port from 1024 on in `listen`".into(),
        ErrorKind::AddrNotAvailable => "`listen` is an address of this machine: `0.0.0.0` stands for all of them".into(),
        _ => format!("`listen` is `{address}`: an address of this machine and a port, such as `0.0.0.0:8443`"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use super::*;

    #[test]
    fn an_address_that_cannot_be_had_has_the_hint_of_its_cause() {
        for (kind, says) in [
            (ErrorKind::AddrInUse, "another server may be running"),
            (ErrorKind::PermissionDenied, "ports below 1024"),
            (ErrorKind::AddrNotAvailable, "an address of this machine"),
            (ErrorKind::InvalidInput, "such as `0.0.0.0:8443`"),
        ] {
            let error = StartError::Listen {
                address: "x:443".into(),
                source: Error::from(kind),
            };
            assert!(error.hint().contains(says), "{kind}: {}", error.hint());
        }
    }
}
