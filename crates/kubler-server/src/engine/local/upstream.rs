//! How the gateway, and this engine itself, reach an environment's API server: its socket, its authority, and
//! one token each. All of it is read from the environment's folder, so that a later server can do the same.

use std::io;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use secrecy::SecretString;
use zeroize::Zeroizing;

use super::folder::{EnvironmentFolder, names};
use crate::engine::{Bearer, Upstream, UpstreamAddress};

/// The name in every environment's serving certificate.
pub(super) const SERVER_NAME: &str = "kubernetes.default.svc";
/// What the server itself is called inside.
pub(super) const OWN_USER: &str = "kubler";
/// What comes before the job's id in the job's name inside.
pub(super) const JOB_USER_PREFIX: &str = "kubler:job:";

/// One line of the token file.
fn token_line(token: &str, user: &str) -> String {
    // Names are made of ids; a quote in one could only come from a broken issuer.
    let user = user.replace(['"', ',', '\n', '\r'], "-");
    format!("{token},\"{user}\",\"{user}\",\"system:masters\"\n")
}

/// The token file: the server's own user, then the job's.
pub(super) fn token_file(own: &str, job: &str, job_id: &str) -> Zeroizing<String> {
    Zeroizing::new(
        token_line(own, OWN_USER) + &token_line(job, &format!("{JOB_USER_PREFIX}{job_id}")),
    )
}

/// The upstream of the job's user.
pub(super) fn read(folder: &EnvironmentFolder) -> io::Result<Upstream> {
    read_for(folder, |user| user.starts_with(JOB_USER_PREFIX))
}

/// The upstream of the server's own user.
pub(super) fn read_own(folder: &EnvironmentFolder) -> io::Result<Upstream> {
    read_for(folder, |user| user == OWN_USER)
}

fn read_for(folder: &EnvironmentFolder, wanted: impl Fn(&str) -> bool) -> io::Result<Upstream> {
    let tokens = Zeroizing::new(folder.read(names::TOKENS)?);
    let token = tokens.lines().find_map(|line| {
        let (token, rest) = line.split_once(',')?;
        wanted(rest.split(',').next()?.trim_matches('"')).then(|| SecretString::from(token))
    });
    let lacking = || io::Error::new(io::ErrorKind::InvalidData, "the token file lacks a user");
    let token = token.ok_or_else(lacking)?;
    Ok(Upstream {
        address: UpstreamAddress::Unix(folder.api_socket()),
        tls: Arc::new(tls(&folder.read(names::AUTHORITY)?)?),
        server_name: ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?,
        token: Bearer::new(&token).map_err(io::Error::other)?,
    })
}

/// Trust in nothing but the environment's own authority.
fn tls(authority: &str) -> io::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(authority.as_bytes()).map_err(io::Error::other)?)
        .map_err(io::Error::other)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
