//! Which servers are believed, and how an operator shows who they are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig, TlsProvider};

use crate::exit::{Failure, Outcome};
use crate::variables;

/// Where systems keep their CA certificates.
const SYSTEM_STORES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The CA to believe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// What the system believes.
    System,
    /// Only this file.
    File(PathBuf),
    /// Only these certificates, as PEM; where they come from, for messages.
    Pem {
        /// The text.
        pem: String,
        /// Whose it is.
        origin: &'static str,
    },
}

/// An operator's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// PEM file of the chain.
    pub certificate: PathBuf,
    /// PEM file of the key.
    pub key: PathBuf,
}

impl Trust {
    /// The certificates as PEM, when they are not the system's.
    pub fn pem(&self) -> Outcome<Option<String>> {
        match self {
            Self::System => Ok(None),
            Self::File(path) => read_ca(path).map(Some),
            Self::Pem { pem, .. } => Ok(Some(pem.clone())),
        }
    }

    /// Where the certificates come from, when they are not the system's.
    pub fn origin(&self) -> Option<String> {
        match self {
            Self::System => None,
            Self::File(path) => Some(format!("`{}`", path.display())),
            Self::Pem { origin, .. } => Some((*origin).to_owned()),
        }
    }

    fn certificates(&self) -> Outcome<Vec<Certificate<'static>>> {
        let (pem, origin) = match self {
            Self::System => {
                let path = system_store()?;
                (read_ca(&path)?, format!("`{}`", path.display()))
            }
            Self::File(path) => (read_ca(path)?, format!("`{}`", path.display())),
            Self::Pem { pem, origin } => (pem.clone(), (*origin).to_owned()),
        };
        let certificates = certificates(&pem).map_err(|reason| {
            Failure::usage(format!("the CA in {origin} cannot be read: {reason}"))
                .hint("give a PEM file with at least one certificate")
        })?;
        Ok(certificates
            .into_iter()
            .map(|der| Certificate::from_der(&der).to_owned())
            .collect())
    }
}

/// TLS settings for all calls.
pub fn tls(trust: &Trust, client: Option<&ClientCertificate>) -> Outcome<TlsConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = client
        .map(|files| client_certificate(files, &provider))
        .transpose()?;
    Ok(TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(provider)
        .root_certs(RootCerts::new_with_certs(&trust.certificates()?))
        .client_cert(client)
        .build())
}

/// Reads the files and checks that they belong together: the HTTP library would only find out in a panic.
fn client_certificate(
    files: &ClientCertificate,
    provider: &rustls::crypto::CryptoProvider,
) -> Outcome<ClientCert> {
    let unusable = |path: &Path, reason: String| {
        Failure::usage(format!(
            "the client certificate in `{}` cannot be used: {reason}",
            path.display()
        ))
        .hint("give the PEM files that `kubler-server init` wrote for the operator")
    };
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|error| unusable(path, error.to_string()))
    };
    let chain = certificates(&read(&files.certificate)?)
        .map_err(|reason| unusable(&files.certificate, reason))?;
    let key_pem = read(&files.key)?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
        .map_err(|error| unusable(&files.key, error.to_string()))?;
    rustls::sign::CertifiedKey::from_der(chain.clone(), key, provider).map_err(|error| {
        let reason = match error {
            rustls::Error::InconsistentKeys(_) => {
                format!("`{}` is the key of another one", files.key.display())
            }
            other => other.to_string(),
        };
        unusable(&files.certificate, reason)
    })?;
    let chain: Vec<_> = chain
        .into_iter()
        .map(|der| Certificate::from_der(&der).to_owned())
        .collect();
    let key = PrivateKey::from_pem(key_pem.as_bytes())
        .map_err(|error| unusable(&files.key, error.to_string()))?;
    Ok(ClientCert::new_with_certs(&chain, key))
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    if all.is_empty() {
        Err("there is no certificate in it".to_owned())
    } else {
        Ok(all)
    }
}

fn system_store() -> Outcome<PathBuf> {
    variables::path(variables::SSL_CERT_FILE)
        .or_else(|| {
            SYSTEM_STORES
                .iter()
                .map(PathBuf::from)
                .find(|path| path.exists())
        })
        .ok_or_else(|| {
            Failure::usage("this system has no file of CA certificates").hint(
                "install the package `ca-certificates`, or name the server's CA with `--ca FILE`",
            )
        })
}

fn read_ca(path: &Path) -> Outcome<String> {
    std::fs::read_to_string(path).map_err(|error| {
        Failure::usage(format!("cannot read the CA `{}`: {error}", path.display()))
            .hint("name a PEM file with `--ca FILE` or `KUBLER_CA`; without it the system's CAs are trusted")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_certificate_is_no_ca() {
        let trust = Trust::Pem {
            pem: "nothing here".into(),
            origin: "the kubeconfig",
        };
        let failure = tls(&trust, None).unwrap_err();
        assert!(failure.message.contains("no certificate"), "{failure:?}");
        assert!(failure.hint.is_some());
    }

    #[test]
    fn a_missing_file_is_named() {
        let failure = tls(&Trust::File("/nowhere/ca.pem".into()), None).unwrap_err();
        assert!(failure.message.contains("/nowhere/ca.pem"));
    }
}
