//! What the configuration says now. Replaced as a whole, and taken once for each request ([`Call`]), which so never sees
//! two of them.
//!
//! [`Call`]: crate::broker::Call

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use kubler_core::configuration::Configuration;
use kubler_core::profile::{EngineKind, Profile, ResolvedProfile};
use secrecy::SecretString;

use crate::config::{self, ConfigError, Loaded};
use crate::engine::local::binaries::Binaries;
use crate::engine::{local, namespace};
use crate::http::tls;
use crate::start_error::StartError;

/// What is in force, for whoever reads it often; the one who replaces it is `reload`.
pub type Shared = Arc<ArcSwap<InForce>>;

/// The secret with which one organization's webhooks are signed.
pub struct WebhookSecret {
    /// The issuer that the organization belongs to.
    pub issuer: String,
    /// The organization's id.
    pub organization_id: String,
    /// The secret.
    pub secret: SecretString,
}

/// The configuration with everything that its names stand for.
pub struct InForce {
    /// The configuration.
    pub configuration: Arc<Configuration>,
    /// Profiles with everything that their names stand for.
    pub profiles: BTreeMap<String, ResolvedProfile>,
    /// PEM of the CA that callers should trust.
    pub ca: Option<String>,
    /// Whose webhooks are believed.
    pub webhook_secrets: Vec<WebhookSecret>,
}

impl InForce {
    /// Reads the files that the configuration names.
    ///
    /// # Errors
    /// When one cannot be read, or a profile names programs that are not there.
    pub fn read(loaded: &Loaded, binaries: &Binaries) -> Result<Self, StartError> {
        Ok(Self {
            configuration: Arc::new(loaded.configuration.clone()),
            profiles: resolve_profiles(loaded, binaries)?,
            ca: read_ca(loaded)?,
            webhook_secrets: webhook_secrets(loaded)?,
        })
    }

    /// For whoever shares it.
    pub fn shared(self) -> Shared {
        Arc::new(ArcSwap::from_pointee(self))
    }
}

fn resolve_profiles(
    loaded: &Loaded,
    binaries: &Binaries,
) -> Result<BTreeMap<String, ResolvedProfile>, StartError> {
    let mut manifests = loaded.manifests()?;
    let mut resolve = |profile: &Profile| -> Result<ResolvedProfile, StartError> {
        let manifests = manifests.remove(&profile.name).unwrap_or_default();
        // As when an environment is made: what is no object there would fail every job of the profile.
        let (kubernetes_version, checked) = match profile.engine {
            EngineKind::Local => (
                binaries.version(&profile.kubernetes)?.to_owned(),
                local::check_manifests(&manifests),
            ),
            EngineKind::Namespace => (String::new(), namespace::check_manifests(&manifests)),
        };
        checked.map_err(|error| StartError::Manifest {
            profile: profile.name.clone(),
            message: error.message,
        })?;
        check_secrets(loaded, profile)?;
        Ok(ResolvedProfile {
            profile: profile.written_out(),
            kubernetes_version,
            manifests,
        })
    };
    let profiles = loaded.configuration.profiles.iter();
    profiles
        .map(|profile| Ok((profile.name.clone(), resolve(profile)?)))
        .collect()
}

/// Files of secrets are read each time an environment is made; one that is missing is said before.
fn check_secrets(loaded: &Loaded, profile: &Profile) -> Result<(), StartError> {
    let namespace = profile.namespace.iter();
    for secret in namespace.flat_map(|namespace| &namespace.secrets) {
        for file in secret.files.values() {
            let read = config::read(&loaded.path(file));
            read.map_err(|source| StartError::Secret {
                profile: profile.name.clone(),
                secret: secret.name.clone(),
                source,
            })?;
        }
    }
    Ok(())
}

/// The CA that callers should trust.
fn read_ca(loaded: &Loaded) -> Result<Option<String>, StartError> {
    let ca = loaded.configuration.tls.ca.as_ref();
    let pem = ca.map(|ca| config::read(&loaded.path(ca))).transpose()?;
    if let Some(pem) = &pem {
        tls::check_ca(loaded, pem)?;
    }
    Ok(pem.map(|pem| String::from_utf8_lossy(&pem).into_owned()))
}

fn webhook_secrets(loaded: &Loaded) -> Result<Vec<WebhookSecret>, ConfigError> {
    let mut secrets = Vec::new();
    for issuer in &loaded.configuration.issuers {
        for organization in &issuer.organizations {
            if let Some(file) = &organization.webhook_secret {
                secrets.push(WebhookSecret {
                    issuer: issuer.url.clone(),
                    organization_id: organization.id.clone(),
                    secret: loaded.secret(file)?,
                });
            }
        }
    }
    Ok(secrets)
}
