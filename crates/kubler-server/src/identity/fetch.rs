//! The one way out of the identity module: an issuer's discovery document and its keys.
//!
//! Only configured issuers are ever asked. Names are resolved by us, and the connection goes to the very
//! addresses that were checked; redirects are not followed, proxies are not used, and answers are bounded.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kubler_core::configuration::Issuer;
use kubler_core::identity::json;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Certificate, Client, StatusCode, Url};
use serde_json::Value;

use super::IdentityError;
use super::address::Reach;
use super::jwks::KeySet;
use crate::outgoing;

/// Longest answer of an issuer, in bytes.
pub(super) const DOCUMENT_BYTES_MAX: usize = 100 * 1024;
/// Longest time for one document, from resolving the name to the last byte, in seconds.
const DOCUMENT_SECONDS_MAX: u64 = 5;

/// Why an issuer's keys could not be fetched. Keys that are known stay known.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error(
        "its address is private: `allow_private_addresses` permits that for an issuer of your own"
    )]
    ForbiddenAddress,
    #[error("it cannot be reached")]
    Unreachable(#[source] reqwest::Error),
    #[error("it did not answer in time")]
    TooSlow,
    #[error("it answered with status {0}")]
    Status(StatusCode),
    #[error("its answer is longer than {DOCUMENT_BYTES_MAX} bytes")]
    TooLarge,
    #[error("its answer is malformed")]
    Malformed,
    #[error("its discovery document is of another issuer")]
    OtherIssuer,
    #[error("its discovery document leads to another origin")]
    OtherOrigin,
    #[error("it publishes no key that can be used")]
    NoUsableKey,
}

/// Fetches the keys of one issuer.
pub(super) struct Fetcher {
    issuer: String,
    origin: Url,
    discovery: Url,
    client: Client,
    reach: Reach,
}

impl Fetcher {
    pub(super) fn new(settings: &Issuer, folder: &Path) -> Result<Self, IdentityError> {
        Self::with_timeout(settings, folder, Duration::from_secs(DOCUMENT_SECONDS_MAX))
    }

    pub(super) fn with_timeout(
        settings: &Issuer,
        folder: &Path,
        timeout: Duration,
    ) -> Result<Self, IdentityError> {
        let issuer = settings.url.clone();
        let invalid = || IdentityError::Url {
            issuer: issuer.clone(),
        };
        let origin = Url::parse(&settings.url)
            .ok()
            .filter(is_plain_https)
            .ok_or_else(invalid)?;
        let path = "/.well-known/openid-configuration";
        let discovery = Url::parse(&format!("{}{path}", settings.url.trim_end_matches('/')))
            .map_err(|_| invalid())?;
        let reach = if settings.allow_private_addresses {
            Reach::Private
        } else {
            Reach::Public
        };

        let mut builder = outgoing::client(timeout).dns_resolver(Arc::new(CheckedResolver(reach)));
        if let Some(ca) = &settings.ca {
            builder = builder.tls_certs_only(read_ca(settings, &folder.join(ca))?);
        }
        let client = builder.build().map_err(|source| IdentityError::Client {
            issuer: issuer.clone(),
            source,
        })?;
        Ok(Self {
            issuer,
            origin,
            discovery,
            client,
            reach,
        })
    }

    pub(super) fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The issuer's keys, as it publishes them now.
    pub(super) async fn keys(&self, algorithms: &[&str]) -> Result<KeySet, FetchError> {
        let discovery = self.document(self.discovery.clone()).await?;
        let discovery =
            json::object(&discovery, DOCUMENT_BYTES_MAX).map_err(|_| FetchError::Malformed)?;
        if discovery.get("issuer").and_then(Value::as_str) != Some(&self.issuer) {
            return Err(FetchError::OtherIssuer);
        }
        let keys = discovery
            .get("jwks_uri")
            .and_then(Value::as_str)
            .ok_or(FetchError::Malformed)?;
        let keys = Url::parse(keys).map_err(|_| FetchError::Malformed)?;
        if keys.origin() != self.origin.origin() || !is_plain_https(&keys) {
            return Err(FetchError::OtherOrigin);
        }
        KeySet::parse(&self.document(keys).await?, algorithms)
    }

    async fn document(&self, url: Url) -> Result<Vec<u8>, FetchError> {
        // The resolver is only asked about names; an address that stands in the URL is checked here.
        if literal_address(&url).is_some_and(|address| !self.reach.allows(address)) {
            return Err(FetchError::ForbiddenAddress);
        }
        let mut answer = self
            .client
            .get(url)
            .header("accept", "application/json")
            .send()
            .await
            .map_err(failed)?;
        if answer.status() != StatusCode::OK {
            return Err(FetchError::Status(answer.status()));
        }
        let mut document = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if document.len() + chunk.len() > DOCUMENT_BYTES_MAX {
                return Err(FetchError::TooLarge);
            }
            document.extend_from_slice(&chunk);
        }
        Ok(document)
    }
}

fn failed(error: reqwest::Error) -> FetchError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        if current.is::<ForbiddenAddress>() {
            return FetchError::ForbiddenAddress;
        }
        cause = current.source();
    }
    if error.is_timeout() {
        FetchError::TooSlow
    } else {
        FetchError::Unreachable(error.without_url())
    }
}

/// `https://host[:port][/path]` and nothing else: no user, no query, no fragment.
fn is_plain_https(url: &Url) -> bool {
    url.scheme() == "https"
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none()
}

fn literal_address(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    host.trim_start_matches('[')
        .trim_end_matches(']')
        .parse()
        .ok()
}

fn read_ca(settings: &Issuer, path: &Path) -> Result<Vec<Certificate>, IdentityError> {
    let unusable = |source: Box<dyn std::error::Error + Send + Sync>| IdentityError::Ca {
        issuer: settings.url.clone(),
        path: path.to_owned(),
        source,
    };
    let pem = std::fs::read(path).map_err(|error| unusable(error.into()))?;
    let certificates =
        Certificate::from_pem_bundle(&pem).map_err(|error| unusable(error.into()))?;
    if certificates.is_empty() {
        Err(unusable("it has no certificate".into()))
    } else {
        Ok(certificates)
    }
}

/// Resolves names and refuses those that lead where keys may not come from. The connection is made to the
/// addresses given back here, so nothing can change in between.
struct CheckedResolver(Reach);

#[derive(Debug, thiserror::Error)]
#[error("the name leads to an address that is not allowed")]
struct ForbiddenAddress;

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let Self(reach) = *self;
        Box::pin(async move {
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            // One bad address among good ones is how rebinding begins: all or nothing.
            if found.iter().all(|address| reach.allows(address.ip())) {
                Ok(Box::new(found.into_iter()) as Addrs)
            } else {
                Err(ForbiddenAddress.into())
            }
        })
    }
}
