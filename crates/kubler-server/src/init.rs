//! `kubler-server init`: a folder with everything a first environment needs, and what to paste where.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use kubler_core::configuration::{Issuer, canonical_organization_id, is_organization_slug};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};

use crate::config::host;
use crate::files;

/// How long the certificates of `init` live, in days. Replace them with your own before that.
const CERTIFICATE_DAYS: i64 = 365;
/// Versions that `kube/build` makes programs of.
const KUBERNETES_MADE: &[&str] = &["1.34"];
/// The port of an `https` URL that names none.
const HTTPS_PORT: u16 = 443;
/// The golden cases to begin with.
const CASES_FILE: &str = "cases.yaml";
/// The file to start the server with.
pub const CONFIGURATION_FILE: &str = "kubler.yaml";

/// What `init` is told.
#[derive(Debug, Clone)]
pub struct Init {
    /// The folder to make.
    pub folder: PathBuf,
    /// The Buildkite organization's UUID.
    pub organization_id: String,
    /// Its slug.
    pub organization_slug: String,
    /// What callers call the server: `https://name:port`.
    pub url: String,
    /// Where it listens.
    pub listen: String,
    /// Kubernetes versions to offer; the first is the default.
    pub kubernetes: String,
    /// Another issuer than Buildkite's own, for trying things out.
    pub issuer: Option<TrialIssuer>,
}

/// An issuer inside the network.
#[derive(Debug, Clone)]
pub struct TrialIssuer {
    /// Its URL.
    pub url: String,
    /// PEM file of the CA to trust for it.
    pub ca: Option<PathBuf>,
}

/// Why the folder could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// There is something already.
    #[error("`{0}` exists already")]
    Exists(PathBuf),
    /// Not a UUID.
    #[error("`{0}` is not the UUID of an organization")]
    NotAnOrganization(String),
    /// Not what an organization can be called.
    #[error("`{0}` is not the slug of an organization")]
    NotASlug(String),
    /// No address and port.
    #[error("`{0}` is not `address:port`")]
    NotAnAddress(String),
    /// A version that nobody makes programs of.
    #[error("there are no programs for Kubernetes `{0}`")]
    NotOffered(String),
    /// The URL has no host.
    #[error("`{0}` is not `https://name:port`")]
    NotAUrl(String),
    /// A file could not be written.
    #[error("`{path}` cannot be written: {source}")]
    Unwritable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that was named could not be read.
    #[error("`{path}` cannot be read: {source}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No certificate could be made.
    #[error("no certificate could be made: {0}")]
    Certificate(#[from] rcgen::Error),
}

impl InitError {
    /// What to do next.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Exists(_) => "choose another folder; nothing was changed",
            Self::NotAnOrganization(_) => {
                "find it in Buildkite under Organization Settings → Settings (GraphQL API integration shows it too), or decode a token made with `buildkite-agent oidc request-token --claim organization_id`"
            }
            Self::NotASlug(_) => {
                "it is what stands in buildkite.com/SLUG: lower-case letters, digits and `-`"
            }
            Self::NotAnAddress(_) => {
                "such as `127.0.0.1:8443`, or `0.0.0.0:8443` for every address of this machine"
            }
            Self::NotOffered(_) => {
                "`kube/build` makes those of 1.34; leave `--kubernetes` out, and name programs of your own with `folder` in the configuration"
            }
            Self::NotAUrl(_) => {
                "kubectl sends no credentials over plain http; give a name that the jobs can resolve"
            }
            Self::Unwritable { .. } => {
                "check the folder's owner and the free space; a folder that was begun has to be removed first"
            }
            Self::Unreadable { .. } => "check the path and who may read it; nothing was written",
            Self::Certificate(_) => "this is a fault of the server; please report it",
        }
    }
}

/// Writes the folder.
///
/// # Errors
/// When it exists already, or something cannot be written; a folder that was begun is left for a look.
pub fn init(init: &Init, now: Timestamp) -> Result<(), InitError> {
    let organization_id = canonical_organization_id(&init.organization_id)
        .ok_or_else(|| InitError::NotAnOrganization(init.organization_id.clone()))?;
    let init = &Init {
        organization_id,
        ..init.clone()
    };
    let host = host(&init.url).ok_or_else(|| InitError::NotAUrl(init.url.clone()))?;
    if !is_organization_slug(&init.organization_slug) {
        return Err(InitError::NotASlug(init.organization_slug.clone()));
    }
    if !is_address(&init.listen) {
        return Err(InitError::NotAnAddress(init.listen.clone()));
    }
    if !KUBERNETES_MADE.contains(&init.kubernetes.as_str()) {
        return Err(InitError::NotOffered(init.kubernetes.clone()));
    }
    if init.folder.join(CONFIGURATION_FILE).exists() {
        return Err(InitError::Exists(init.folder.join(CONFIGURATION_FILE)));
    }
    // Read before anything is written, so that a mistake leaves nothing behind.
    let issuer_ca = init.issuer.as_ref().and_then(|issuer| issuer.ca.as_ref());
    let issuer_ca = issuer_ca
        .map(|path| {
            std::fs::read(path).map_err(|source| InitError::Unreadable {
                path: path.clone(),
                source,
            })
        })
        .transpose()?;
    for folder in ["", "tls", "policies", "manifests", "secrets"] {
        create_private_folder(&init.folder.join(folder))?;
    }
    certificates(&init.folder.join("tls"), host, now)?;
    for (name, text) in kubler_core::policy::starter(&init.organization_id, &init.organization_slug)
    {
        write(&init.folder.join("policies").join(name), text.as_bytes())?;
    }
    let cases = kubler_core::policy::starter_cases(&init.organization_slug);
    write(&init.folder.join(CASES_FILE), cases.as_bytes())?;
    if let Some(pem) = issuer_ca {
        write(&init.folder.join("tls/issuer-ca.pem"), &pem)?;
    }
    write(
        &init.folder.join(CONFIGURATION_FILE),
        configuration(init).as_bytes(),
    )
}

fn is_address(text: &str) -> bool {
    text.rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

/// Where a server listens that is called by `url`: on the URL's port, on every address unless its name stands for this
/// machine alone.
pub fn listen_for(url: &str) -> String {
    let host = host(url).unwrap_or_default();
    let is_loopback = host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    let port = url.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    let port = port.unwrap_or(HTTPS_PORT);
    match (host, is_loopback) {
        ("::1", _) => format!("[::1]:{port}"),
        (_, true) => format!("127.0.0.1:{port}"),
        (_, false) => format!("0.0.0.0:{port}"),
    }
}

/// The configuration, commented for whoever edits it next.
fn configuration(init: &Init) -> String {
    let issuer = match &init.issuer {
        None => format!("    url: {}\n", Issuer::BUILDKITE_URL),
        Some(trial) => {
            let ca = trial
                .ca
                .as_ref()
                .map_or("", |_| "    ca: tls/issuer-ca.pem\n");
            format!(
                "    url: {}\n{ca}    allow_private_addresses: true\n",
                trial.url
            )
        }
    };
    let Init {
        organization_id,
        organization_slug,
        url,
        listen,
        kubernetes,
        ..
    } = init;
    format!(
        r#"# Kubler's configuration. Relative paths count from this folder.
# `kubler-server schema` prints every key; `kubler-server check` reads this file without starting.

listen: "{listen}"
url: "{url}"        # what jobs call; also the audience of their tokens
data: data

issuers:
  - kind: buildkite
{issuer}    audience: "{url}"
    organizations:          # the issuer signs for all of its customers: only these may call
      - id: "{organization_id}"
        slug: "{organization_slug}"
        # State it only when every pipeline has "Prefix third-party fork branch names" switched on; the second case of
        # {CASES_FILE} expects `allow` then:
        fork_branches_are_prefixed: false
        # webhook_secret: secrets/buildkite-webhook   # ends environments a little faster

kubernetes:
  "{kubernetes}": {{}}            # programs from `kube/build`; or `folder: /path/to/programs`

profiles:
  - name: ci-small
    description: a cluster of its own for one job
    kubernetes: "{kubernetes}"
  - name: untrusted
    description: for builds that a webhook started, such as pull requests of forks
    kubernetes: "{kubernetes}"
    restricted: true
    deadline_seconds: 1800
    environments_max: 10

policies: policies
"#
    )
}

fn certificates(folder: &Path, host: &str, now: Timestamp) -> Result<(), InitError> {
    let ca = authority("Kubler CA", now)?;
    let mut server = leaf("Kubler", ExtendedKeyUsagePurpose::ServerAuth, now)?;
    let mut names = vec![san(host)?];
    for local in ["localhost", "127.0.0.1", "::1"] {
        if local != host {
            names.push(san(local)?);
        }
    }
    server.subject_alt_names = names;
    let server_key = KeyPair::generate()?;
    let server = server.signed_by(&server_key, &ca)?;
    write(&folder.join("ca.pem"), ca.pem().as_bytes())?;
    write(&folder.join("ca.key"), ca.key().serialize_pem().as_bytes())?;
    write(&folder.join("server.pem"), server.pem().as_bytes())?;
    write(
        &folder.join("server.key"),
        server_key.serialize_pem().as_bytes(),
    )?;

    let operators = authority("Kubler operators", now)?;
    let operator_key = KeyPair::generate()?;
    let operator = leaf("operator", ExtendedKeyUsagePurpose::ClientAuth, now)?
        .signed_by(&operator_key, &operators)?;
    write(&folder.join("operator-ca.pem"), operators.pem().as_bytes())?;
    write(
        &folder.join("operator-ca.key"),
        operators.key().serialize_pem().as_bytes(),
    )?;
    write(&folder.join("operator.pem"), operator.pem().as_bytes())?;
    write(
        &folder.join("operator.key"),
        operator_key.serialize_pem().as_bytes(),
    )
}

fn authority(
    name: &str,
    now: Timestamp,
) -> Result<CertifiedIssuer<'static, KeyPair>, rcgen::Error> {
    let mut params = params(name, now)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate()?)
}

fn leaf(
    name: &str,
    usage: ExtendedKeyUsagePurpose,
    now: Timestamp,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = params(name, now)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn params(name: &str, now: Timestamp) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name.push(DnType::CommonName, name);
    let at = |days: i64| {
        let moment = now
            .checked_add(SignedDuration::from_hours(24 * days))
            .unwrap_or(now);
        time::OffsetDateTime::from_unix_timestamp(moment.as_second())
            .unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
    };
    // A day of room, so that clocks which run behind accept it at once.
    params.not_before = at(-1);
    params.not_after = at(CERTIFICATE_DAYS);
    Ok(params)
}

fn san(host: &str) -> Result<SanType, rcgen::Error> {
    Ok(match host.parse() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName(host.try_into()?),
    })
}

fn create_private_folder(folder: &Path) -> Result<(), InitError> {
    let unwritable = |source| InitError::Unwritable {
        path: folder.to_owned(),
        source,
    };
    files::make_private_folder(folder).map_err(unwritable)
}

/// Keys and all else alike: only their owner reads what `init` writes.
fn write(path: &Path, bytes: &[u8]) -> Result<(), InitError> {
    let unwritable = |source| InitError::Unwritable {
        path: path.to_owned(),
        source,
    };
    let mut file = files::create_private(path).map_err(unwritable)?;
    file.write_all(bytes).map_err(unwritable)
}

/// What to paste into a pipeline, and what to do first.
pub fn next_steps(init: &Init) -> String {
    let folder = init.folder.display();
    let Init { url, .. } = init;
    format!(
        r#"Written to {folder}: {CONFIGURATION_FILE}, tls/ (CA, server, operator), policies/ (start here to change who may do what), {CASES_FILE} (what they are expected to say: `kubler policy test`).

1. Start the server, as a user of its own or on a machine of its own: whatever else this user runs is inside the walls
   between jobs. `kubler-server check` says what the system holds each environment to; control groups need root, or a
   part of the tree that systemd delegates (docs/operations.md).
     kubler-server serve --config {folder}/{CONFIGURATION_FILE}
2. Put the CA where your agents can read it (it is public):
     install -D -m 644 {folder}/tls/ca.pem /etc/kubler/ca.pem
3. Paste into a pipeline:

     steps:
       - label: "tests with a cluster of their own"
         command: kubectl create namespace hello && kubectl get namespaces
         plugins:
           - kubler/kubler#v0.1.0:
               server: {url}
               profile: ci-small
               ca: /etc/kubler/ca.pem

   Builds that a push or a pull request starts (`webhook`) get the profile `untrusted` only, since the fork of a
   stranger may be behind them. If every pipeline prefixes branches of third-party forks, say so with
   `fork_branches_are_prefixed: true` in {CONFIGURATION_FILE}, and they may use `ci-small` too; the second case of
   {CASES_FILE} (`expect: deny`) expects `allow` then.

4. Look around as an operator:
     export KUBLER_SERVER={url} KUBLER_CA={folder}/tls/ca.pem
     export KUBLER_CLIENT_CERTIFICATE={folder}/tls/operator.pem KUBLER_CLIENT_KEY={folder}/tls/operator.key
     kubler env list
5. Stop it: SIGTERM leaves environments alive for the next start. To end them all:
     kubler-server serve --config {folder}/{CONFIGURATION_FILE} --on-stop end   (and then SIGTERM)
"#
    )
}
