//! Kubeconfigs with client certificates.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Pair;

/// A kubeconfig for the server at `url`, trusted by `ca` (PEM), for the user of a client certificate.
pub fn kubeconfig(url: &str, ca: &str, user: &Pair) -> String {
    let [ca, certificate, key] = [ca, &user.certificate, &user.key].map(|pem| STANDARD.encode(pem));
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: host
  cluster:
    server: {url}
    certificate-authority-data: {ca}
users:
- name: user
  user:
    client-certificate-data: {certificate}
    client-key-data: {key}
contexts:
- name: host
  context:
    cluster: host
    user: user
current-context: host
"
    )
}
