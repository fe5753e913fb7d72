//! A bare TLS connection, for tests that speak another HTTP than clients do.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A bare connection.
pub type Stream = TlsStream<TcpStream>;

/// Connects to `address` (`host:port`), trusting only `ca` (PEM). Offers no protocol of its own.
///
/// # Panics
/// When there is no such connection.
pub async fn connect(address: &str, ca: &[u8]) -> Stream {
    let stream = TcpStream::connect(address).await.expect("a connection");
    over(stream, ca).await
}

/// The same over a connection that is there: its other side is known by its address.
///
/// # Panics
/// When the other side does not speak TLS, or `ca` did not sign it.
pub async fn over(stream: TcpStream, ca: &[u8]) -> Stream {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca) {
        roots
            .add(certificate.expect("a certificate"))
            .expect("a CA");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions of TLS")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let host = stream.peer_addr().expect("its address").ip();
    let connector = TlsConnector::from(Arc::new(config));
    let connected = connector.connect(ServerName::from(host), stream).await;
    connected.expect("TLS")
}
