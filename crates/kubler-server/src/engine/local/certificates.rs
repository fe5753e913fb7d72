//! Keys and certificates: P-256, one authority for etcd, and one for each environment whose key is forgotten
//! as soon as it has signed what the environment needs.

use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use zeroize::Zeroizing;

/// How far other clocks may be behind, in seconds.
const BACKDATED_SECONDS: u64 = 3600;

/// When certificates are valid.
#[derive(Debug, Clone, Copy)]
pub(super) struct Validity {
    /// Now, in seconds since 1970; an hour before is valid too.
    from: u64,
    /// The last second.
    until: u64,
}

impl Validity {
    pub(super) fn new(now: Timestamp, until: Timestamp) -> Self {
        let seconds = |at: Timestamp| u64::try_from(at.as_second()).unwrap_or_default();
        Self {
            from: seconds(now).saturating_sub(BACKDATED_SECONDS),
            until: seconds(until),
        }
    }
}

/// A certificate and its key, both PEM.
pub(super) struct Pair {
    pub(super) certificate: String,
    pub(super) key: Zeroizing<String>,
}

/// Something that signs certificates.
pub(super) struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
    validity: Validity,
}

impl Authority {
    pub(super) fn new(name: &str, validity: Validity) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = params(name, validity);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self {
            certificate,
            issuer: Issuer::new(params, key),
            validity,
        })
    }

    /// An authority that was kept in files.
    pub(super) fn load(pair: &Pair, validity: Validity) -> Result<Self, rcgen::Error> {
        let key = KeyPair::from_pem(&pair.key)?;
        let issuer = Issuer::from_ca_cert_pem(&pair.certificate, key)?;
        Ok(Self {
            certificate: pair.certificate.clone(),
            issuer,
            validity,
        })
    }

    /// Its certificate, PEM.
    pub(super) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// To keep it in files.
    pub(super) fn pair(&self) -> Pair {
        Pair {
            certificate: self.certificate.clone(),
            key: Zeroizing::new(self.issuer.key().serialize_pem()),
        }
    }

    /// A server's certificate for these names and addresses.
    pub(super) fn server(&self, name: &str, alternatives: &[&str]) -> Result<Pair, rcgen::Error> {
        let mut wanted = params(name, self.validity);
        wanted.subject_alt_names = CertificateParams::new(
            alternatives
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>(),
        )?
        .subject_alt_names;
        self.sign(wanted, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client's certificate; its common name is who it is.
    pub(super) fn client(&self, name: &str, validity: Validity) -> Result<Pair, rcgen::Error> {
        self.sign(params(name, validity), ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(
        &self,
        mut wanted: CertificateParams,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<Pair, rcgen::Error> {
        wanted.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        wanted.extended_key_usages = vec![usage];
        wanted.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = wanted.signed_by(&key, &self.issuer)?.pem();
        Ok(Pair {
            certificate,
            key: Zeroizing::new(key.serialize_pem()),
        })
    }
}

/// A key alone for signing service account tokens, and its public half, PEM: the API server reads private keys
/// of this form only for signing, and looks in the same file for what checks.
pub(super) fn signing_key() -> Result<Zeroizing<String>, rcgen::Error> {
    let key = KeyPair::generate()?;
    let private = Zeroizing::new(key.serialize_pem());
    Ok(Zeroizing::new(format!(
        "{}\n{}",
        private.trim_end(),
        key.public_key_pem()
    )))
}

fn params(name: &str, validity: Validity) -> CertificateParams {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = epoch + Duration::from_secs(validity.from);
    params.not_after = epoch + Duration::from_secs(validity.until);
    params
}
