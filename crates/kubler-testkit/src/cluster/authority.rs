//! The cluster's own authority and what it signs.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// A certificate with its key, PEM.
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The key.
    pub key: String,
}

/// Signs serving and client certificates.
pub struct Authority {
    certificate: String,
    key: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(super) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params
            .distinguished_name
            .push(DnType::CommonName, "kubernetes-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).expect("a certificate").pem();
        Self {
            certificate,
            key: key.serialize_pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// One that was made before, from its own certificate and key.
    pub(super) fn of(certificate: &str, key: &str) -> Self {
        let pair = KeyPair::from_pem(key).expect("a key");
        Self {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            issuer: Issuer::from_ca_cert_pem(certificate, pair).expect("a certificate"),
        }
    }

    /// Its own certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its own key, PEM: the controllers sign requests for certificates with it.
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// For a server with these names and addresses.
    ///
    /// # Panics
    /// When a name cannot be in a certificate.
    pub fn serving(&self, name: &str, names: &[&str]) -> Pair {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params)
    }

    /// For a user in these groups.
    ///
    /// # Panics
    /// When a name cannot be in a certificate.
    pub fn client(&self, user: &str, groups: &[&str]) -> Pair {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, user);
        // The library keeps one value of each kind; a kind by its number is another kind to it.
        let kinds = [
            DnType::OrganizationName,
            DnType::CustomDnType(vec![2, 5, 4, 10]),
        ];
        assert!(
            groups.len() <= kinds.len(),
            "a certificate names two groups at most here"
        );
        for (kind, group) in kinds.into_iter().zip(groups) {
            params.distinguished_name.push(kind, *group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    fn sign(&self, mut params: CertificateParams) -> Pair {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().expect("a key");
        let signed = params.signed_by(&key, &self.issuer);
        Pair {
            certificate: signed.expect("a certificate").pem(),
            key: key.serialize_pem(),
        }
    }
}
