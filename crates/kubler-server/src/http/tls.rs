//! Certificates of the door: who we are, and who operators are. Read anew while the server runs; what cannot be used
//! is kept out, and the old certificates stay.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use kubler_core::configuration::Configuration;
use kubler_core::policy::Operator;
use kubler_core::text::UntrustedText;
use rustls::RootCertStore;
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime,
};
use sha2::{Digest as _, Sha256};

use crate::config::{self, ConfigError, Loaded};
use crate::start_error::StartError;

/// The bits of a file's mode that let others than its owner and its group in.
const OTHERS: u32 = 0o007;

/// Where the certificates are.
#[derive(Debug, Clone)]
pub struct Files {
    /// PEM of the server's chain.
    pub certificate: PathBuf,
    /// PEM of its key.
    pub key: PathBuf,
    /// PEM of the CA of operators.
    pub operator_ca: Option<PathBuf>,
    /// PEM of that CA's revocation list.
    pub operator_crl: Option<PathBuf>,
    /// PEM of the CA that callers are told to trust.
    pub ca: Option<PathBuf>,
    /// What callers call the server.
    pub host: String,
}

impl Files {
    /// As the configuration names them.
    fn of(loaded: &Loaded) -> Self {
        let Configuration { tls, url, .. } = &loaded.configuration;
        let optional = |path: &Option<String>| path.as_ref().map(|path| loaded.path(path));
        Self {
            certificate: loaded.path(&tls.certificate),
            key: loaded.path(&tls.key),
            operator_ca: optional(&tls.operator_ca),
            operator_crl: optional(&tls.operator_crl),
            ca: optional(&tls.ca),
            host: config::host(url).unwrap_or_default().to_owned(),
        }
    }

    fn fault(&self, error: CertificateError) -> StartError {
        match error {
            CertificateError::File(error) => StartError::Config(error),
            source => StartError::Certificate {
                certificate: self.certificate.clone(),
                key: self.key.clone(),
                source: Box::new(source),
            },
        }
    }

    /// Whether others than the owner and the group may read the private key. The group may, so that the files can be
    /// root's and the server's user be in their group.
    fn key_is_open(&self) -> bool {
        let found = std::fs::metadata(&self.key);
        found.is_ok_and(|found| found.mode() & OTHERS != 0)
    }

    fn warn_of_an_open_key(&self) {
        if self.key_is_open() {
            let key = self.key.display();
            tracing::warn!(%key, "everybody on this machine may read the server's private key: `chmod o= FILE`");
        }
    }
}

/// A certificate file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Not there.
    #[error(transparent)]
    File(#[from] ConfigError),
    /// Not PEM, or not what it should be.
    #[error("the {0} is no PEM file of the kind it should be")]
    Unreadable(&'static str),
    /// TLS refuses it.
    #[error("the certificates cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
    /// Callers look for another name.
    #[error("the server's certificate is not for `{host}`, which `url` names: {source}")]
    OtherName {
        /// What callers call the server.
        host: String,
        /// What TLS says.
        source: rustls::Error,
    },
    /// Callers trust another CA.
    #[error(
        "`tls.ca` did not sign the server's certificate, so nobody who trusts it can call: {0}"
    )]
    OtherCa(rustls::Error),
    /// The operators' CA cannot verify anybody.
    #[error("the operators' CA cannot be used: {0}")]
    OperatorCa(#[from] rustls::server::VerifierBuilderError),
}

/// What came of reading the files anew.
#[derive(Debug)]
pub enum Reloaded {
    /// They say what they said before.
    Same,
    /// New connections get the new ones.
    Loaded,
    /// They cannot be used; the old ones stay.
    Refused(CertificateError),
}

/// The certificates in force.
pub struct Tls {
    files: Files,
    current: ArcSwap<Current>,
    looks: Mutex<Looks>,
}

/// What the files held when they were looked at.
#[derive(Default)]
struct Looks {
    last: Option<Fingerprint>,
    refused: Option<Fingerprint>,
}

type Fingerprint = [u8; 32];

struct Current {
    server: Arc<rustls::ServerConfig>,
    operators: Option<Arc<dyn ClientCertVerifier>>,
    /// Counts from 0: a connection that was opened under another one has its operator verified again.
    generation: u64,
    fingerprint: Fingerprint,
    expires_at: i64,
}

/// The bytes of the files.
struct Read {
    certificate: Vec<u8>,
    key: Vec<u8>,
    operator_ca: Option<Vec<u8>>,
    operator_crl: Option<Vec<u8>>,
    ca: Option<Vec<u8>>,
}

/// An operator's certificate, as a connection presented it.
pub(super) struct Presented {
    operator: Operator,
    chain: Vec<CertificateDer<'static>>,
    expires_at: i64,
    generation: AtomicU64,
}

impl Tls {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// When one is not what it should be.
    pub fn load(files: Files) -> Result<Self, CertificateError> {
        let current = Current::build(&Read::of(&files)?, &files.host, 0)?;
        files.warn_of_an_open_key();
        Ok(Self {
            files,
            current: ArcSwap::from_pointee(current),
            looks: Mutex::default(),
        })
    }

    /// Reads the configured files for the first time.
    ///
    /// # Errors
    /// When one is not what it should be.
    pub fn read(loaded: &Loaded) -> Result<Self, StartError> {
        let files = Files::of(loaded);
        Self::load(files.clone()).map_err(|error| files.fault(error))
    }

    /// The private key's file, when everybody may read it.
    pub fn open_key(&self) -> Option<&Path> {
        self.files.key_is_open().then_some(self.files.key.as_path())
    }

    /// Reads the files anew, at once.
    pub fn reload(&self) -> Reloaded {
        let read = match Read::of(&self.files) {
            Ok(read) => read,
            Err(error) => return Reloaded::Refused(error.into()),
        };
        self.take(&read, read.fingerprint())
    }

    /// Looks whether the files have changed and are at rest. Says so once of a change that cannot be used.
    pub fn look(&self) -> Reloaded {
        // A file that is not there is being replaced, or will be missed at the next start at the latest.
        let Ok(read) = Read::of(&self.files) else {
            return Reloaded::Same;
        };
        let fingerprint = read.fingerprint();
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let at_rest = looks.last.replace(fingerprint) == Some(fingerprint);
        let known_to_be_bad = looks.refused == Some(fingerprint);
        drop(looks);
        if at_rest && !known_to_be_bad {
            self.take(&read, fingerprint)
        } else {
            Reloaded::Same
        }
    }

    fn take(&self, read: &Read, fingerprint: Fingerprint) -> Reloaded {
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = self.current.load().generation;
        if self.current.load().fingerprint == fingerprint {
            looks.refused = None;
            return Reloaded::Same;
        }
        match Current::build(read, &self.files.host, generation.wrapping_add(1)) {
            Ok(fresh) => {
                self.files.warn_of_an_open_key();
                self.current.store(Arc::new(fresh));
                looks.refused = None;
                Reloaded::Loaded
            }
            Err(error) => {
                looks.refused = Some(fingerprint);
                Reloaded::Refused(error)
            }
        }
    }

    /// Whether the files hold something that cannot be used.
    pub fn is_refusing(&self) -> bool {
        let looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        looks.refused.is_some()
    }

    /// When the server's certificate ends, in seconds since 1970.
    pub fn expires_at(&self) -> i64 {
        self.current.load().expires_at
    }

    /// For the next connection.
    pub(super) fn server(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.current.load().server)
    }

    /// What a connection presented. `None` without a certificate, or with one that names nobody.
    pub(super) fn presented(&self, chain: Option<&[CertificateDer<'_>]>) -> Option<Presented> {
        let chain = chain?;
        let (_, certificate) = x509_parser::parse_x509_certificate(chain.first()?).ok()?;
        let name = certificate.subject().iter_common_name().next()?;
        Some(Presented {
            operator: Operator {
                name: UntrustedText::new(name.as_str().ok()?).as_str().to_owned(),
            },
            chain: chain.iter().map(|part| part.clone().into_owned()).collect(),
            expires_at: certificate.validity().not_after.timestamp(),
            // The handshake may have begun before the last change: the first request asks again.
            generation: AtomicU64::new(u64::MAX),
        })
    }

    /// The operator of a connection, when its certificate is still good at `now`: connections outlive certificates,
    /// and the trust in those who signed them.
    pub(super) fn operator(&self, presented: &Presented, now: Timestamp) -> Option<Operator> {
        if now.as_second() > presented.expires_at {
            return None;
        }
        let current = self.current.load();
        if presented.generation.load(Ordering::Relaxed) != current.generation {
            let (leaf, above) = presented.chain.split_first()?;
            let since_1970 = Duration::from_secs(u64::try_from(now.as_second()).ok()?);
            let at = UnixTime::since_unix_epoch(since_1970);
            let operators = current.operators.as_ref()?;
            operators.verify_client_cert(leaf, above, at).ok()?;
            presented
                .generation
                .store(current.generation, Ordering::Relaxed);
        }
        Some(presented.operator.clone())
    }
}

impl Read {
    fn of(files: &Files) -> Result<Self, ConfigError> {
        let optional = |path: &Option<PathBuf>| path.as_deref().map(config::read).transpose();
        Ok(Self {
            certificate: config::read(&files.certificate)?,
            key: config::read(&files.key)?,
            operator_ca: optional(&files.operator_ca)?,
            operator_crl: optional(&files.operator_crl)?,
            ca: optional(&files.ca)?,
        })
    }

    fn fingerprint(&self) -> Fingerprint {
        let parts = [
            Some(&self.certificate),
            Some(&self.key),
            self.operator_ca.as_ref(),
            self.operator_crl.as_ref(),
            self.ca.as_ref(),
        ];
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(Sha256::digest(part.map_or(&[][..], Vec::as_slice)));
        }
        hash.finalize().into()
    }
}

impl Current {
    /// TLS 1.2 and 1.3, which is all that the library knows. Certificates of operators are asked for, never demanded.
    fn build(read: &Read, host: &str, generation: u64) -> Result<Self, CertificateError> {
        let chain = read_chain(&read.certificate, "server certificate")?;
        let key = PrivateKeyDer::from_pem_slice(&read.key)
            .map_err(|_| CertificateError::Unreadable("server key"))?;
        let expires_at = chain
            .first()
            .and_then(|leaf| x509_parser::parse_x509_certificate(leaf).ok())
            .map(|(_, leaf)| leaf.validity().not_after.timestamp())
            .ok_or(CertificateError::Unreadable("server certificate"))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        check_callers_can_trust(&chain, read.ca.as_deref(), host, &provider)?;
        let operators = operators(read, &provider)?;
        let builder = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?;
        let builder = match &operators {
            None => builder.with_no_client_auth(),
            Some(verifier) => builder.with_client_cert_verifier(Arc::clone(verifier)),
        };
        let mut server = builder.with_single_cert(chain, key)?;
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self {
            server: Arc::new(server),
            operators,
            generation,
            fingerprint: read.fingerprint(),
            expires_at,
        })
    }
}

/// Whether the CA in `ca` is one by which callers know the configured certificate, when that can be read.
///
/// # Errors
/// When it did not sign that certificate.
pub fn check_ca(loaded: &Loaded, ca: &[u8]) -> Result<(), StartError> {
    let files = Files::of(loaded);
    let chain = config::read(&files.certificate).ok();
    let chain = chain.and_then(|pem| read_chain(&pem, "server certificate").ok());
    let Some(chain) = chain else {
        // Whoever reads certificates says so.
        return Ok(());
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    check_callers_can_trust(&chain, Some(ca), &files.host, &provider)
        .map_err(|error| files.fault(error))
}

/// Whether callers who trust `ca` take the certificate for that of `host`. Not whether it is valid now: whoever watches
/// `expires_at` knows that, and an old certificate must not keep a server from its start.
fn check_callers_can_trust(
    chain: &[CertificateDer<'_>],
    ca: Option<&[u8]>,
    host: &str,
    provider: &rustls::crypto::CryptoProvider,
) -> Result<(), CertificateError> {
    let (leaf, above) = chain
        .split_first()
        .ok_or(CertificateError::Unreadable("server certificate"))?;
    let parsed = ParsedCertificate::try_from(leaf)?;
    let other_name = |source| CertificateError::OtherName {
        host: host.to_owned(),
        source,
    };
    let name = ServerName::try_from(host)
        .map_err(|_| other_name(rustls::CertificateError::NotValidForName.into()))?;
    verify_server_name(&parsed, &name).map_err(other_name)?;
    let Some(ca) = ca else {
        return Ok(());
    };
    let mut roots = RootCertStore::empty();
    for certificate in read_chain(ca, "CA of `tls.ca`")? {
        roots.add(certificate)?;
    }
    let (_, read) = x509_parser::parse_x509_certificate(leaf)
        .map_err(|_| CertificateError::Unreadable("server certificate"))?;
    let algorithms = provider.signature_verification_algorithms.all;
    // At one end of its life or at the other: what stands between may be younger than it, or older.
    let validity = read.validity();
    let mut verified = Ok(());
    for moment in [validity.not_before, validity.not_after] {
        let since_1970 = u64::try_from(moment.timestamp()).unwrap_or_default();
        let at = UnixTime::since_unix_epoch(Duration::from_secs(since_1970));
        verified =
            verify_server_cert_signed_by_trust_anchor(&parsed, &roots, above, at, algorithms);
        if verified.is_ok() {
            break;
        }
    }
    verified.map_err(CertificateError::OtherCa)
}

fn operators(
    read: &Read,
    provider: &Arc<rustls::crypto::CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, CertificateError> {
    let Some(pem) = &read.operator_ca else {
        return Ok(None);
    };
    let mut roots = RootCertStore::empty();
    for certificate in read_chain(pem, "operators' CA")? {
        roots.add(certificate)?;
    }
    let revoked: Vec<_> = match &read.operator_crl {
        None => Vec::new(),
        Some(pem) => CertificateRevocationListDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .ok()
            .filter(|lists: &Vec<_>| !lists.is_empty())
            .ok_or(CertificateError::Unreadable("operators' revocation list"))?,
    };
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
            .with_crls(revoked)
            .allow_unauthenticated()
            .build()?;
    Ok(Some(verifier))
}

fn read_chain(
    pem: &[u8],
    what: &'static str,
) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    chain
        .ok()
        .filter(|chain| !chain.is_empty())
        .ok_or(CertificateError::Unreadable(what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::{Init, init};

    #[test]
    fn an_operator_is_none_any_more_once_the_certificate_of_an_open_connection_is_over() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("kubler");
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let wanted = Init {
            folder: folder.clone(),
            organization_id: "01234567-89ab-4cde-8f01-23456789abcd".into(),
            organization_slug: "acme".into(),
            url: "https://127.0.0.1:8443".into(),
            listen: "127.0.0.1:8443".into(),
            kubernetes: "1.34".into(),
            issuer: None,
        };
        init(&wanted, now).unwrap();
        let file = |name: &str| folder.join("tls").join(name);
        let tls = Tls::load(Files {
            certificate: file("server.pem"),
            key: file("server.key"),
            operator_ca: Some(file("operator-ca.pem")),
            operator_crl: None,
            ca: None,
            host: "127.0.0.1".into(),
        });
        let tls = tls.unwrap();
        let pem = std::fs::read(file("operator.pem")).unwrap();
        let chain = read_chain(&pem, "operator").unwrap();
        let presented = tls.presented(Some(&chain)).unwrap();
        assert_eq!(tls.operator(&presented, now).unwrap().name, "operator");
        let end = Timestamp::from_second(presented.expires_at).unwrap();
        let at = |seconds| end + jiff::SignedDuration::from_secs(seconds);
        assert!(tls.operator(&presented, at(0)).is_some());
        assert!(tls.operator(&presented, at(1)).is_none());
    }
}
