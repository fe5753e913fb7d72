//! The door: TCP, TLS, HTTP/1.1 and HTTP/2, bounded in number and time. Everything behind it knows who is connected.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Request, Response};
use axum::response::IntoResponse as _;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use kubler_api::paths;
use kubler_core::policy::Operator;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::bodies::Bodies;
use super::error::ApiError;
use super::{Api, Peer};

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may take to its first request, and a request's headers may take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long open requests may go on after the order to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Pings that keep a quiet HTTP/2 connection alive through load balancers.
const PING_EVERY: Duration = Duration::from_secs(20);
/// Longest header section, in bytes.
const HEADER_BYTES_MAX: usize = 64 * 1024;
/// Streams of one HTTP/2 connection at once.
const STREAMS_MAX: u32 = 250;
/// Names a request in every answer.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// PEM texts of a listener.
pub struct Certificates<'a> {
    /// The server's chain.
    pub chain: &'a [u8],
    /// Its key.
    pub key: &'a [u8],
    /// The CA of operators.
    pub operator_ca: Option<&'a [u8]>,
}

/// A certificate file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Not PEM, or not what it should be.
    #[error("the {0} is no PEM file of the kind it should be")]
    Unreadable(&'static str),
    /// TLS refuses it.
    #[error("the certificates cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
    /// The operators' CA cannot verify anybody.
    #[error("the operators' CA cannot be used: {0}")]
    OperatorCa(#[from] rustls::server::VerifierBuilderError),
}

/// TLS for callers: certificates for operators are asked for, never demanded.
///
/// # Errors
/// When a file is not what it should be.
pub fn tls(certificates: &Certificates<'_>) -> Result<Arc<rustls::ServerConfig>, CertificateError> {
    let chain = read_chain(certificates.chain, "server certificate")?;
    let key = PrivateKeyDer::from_pem_slice(certificates.key)
        .map_err(|_| CertificateError::Unreadable("server key"))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let builder = match certificates.operator_ca {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            for certificate in read_chain(pem, "operators' CA")? {
                roots.add(certificate)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
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

/// Serves until `shutdown`, then lets open requests end.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    api: Arc<Api>,
    shutdown: CancellationToken,
) {
    let door = Arc::new(Door {
        router: super::router(Arc::clone(&api)),
        bodies: Bodies::default(),
        api,
        acceptor: TlsAcceptor::from(tls),
    });
    let places = Arc::new(Semaphore::new(
        door.api.configuration.limits.connections_max as usize,
    ));
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        let Ok((stream, peer)) = accepted else {
            // Out of file descriptors: the next try would fail at once again.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        // A full house closes the new connection at once rather than letting it wait unseen.
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            continue;
        };
        let (door, watcher) = (Arc::clone(&door), graceful.watcher());
        tokio::spawn(async move {
            door.connection(stream, peer, watcher).await;
            drop(place);
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await;
}

struct Door {
    api: Arc<Api>,
    bodies: Bodies,
    router: Router,
    acceptor: TlsAcceptor,
}

impl Door {
    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, watcher: Watcher) {
        let _ = stream.set_nodelay(true);
        let Ok(Ok(stream)) =
            tokio::time::timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(stream)).await
        else {
            return;
        };
        let peer = Peer {
            address: canonical(peer.ip()),
            operator: operator(stream.get_ref().1.peer_certificates()),
        };
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(HEADER_BYTES_MAX);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(u32::try_from(HEADER_BYTES_MAX).unwrap_or(u32::MAX))
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_EVERY);
        let asked = Arc::new(Notify::new());
        let first = Arc::clone(&asked);
        let service = hyper::service::service_fn(move |request| {
            asked.notify_one();
            Arc::clone(&self).answer(request, peer.clone())
        });
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        // How a connection ends is the caller's business; what was asked on it is in the ledger.
        let mut connection = std::pin::pin!(watcher.watch(connection.into_owned()));
        tokio::select! {
            _ = &mut connection => return,
            () = first.notified() => {}
            // Whoever asks nothing keeps no place.
            () = tokio::time::sleep(HEADER_TIMEOUT) => return,
        }
        let _ = connection.await;
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: Peer,
    ) -> Result<Response<Body>, Infallible> {
        if request.uri().path().starts_with(paths::GATEWAY) {
            return Ok(self.api.gateway.handle(request, peer.address).await);
        }
        let Ok(arrival) = Api::arrival(peer) else {
            return Ok(ApiError::internal().into_response());
        };
        let request_id = arrival.request_id.to_string();
        // The body first: who calls, and when, is asked once all is there, so that nobody acts in the past.
        let mut request = match self.bodies.read(request).await {
            Ok(request) => request,
            Err(refused) => return Ok(refused.of(&arrival).into_response()),
        };
        request.extensions_mut().insert(arrival);
        // A task of its own: what has begun goes to its end, also when its caller has gone. A commit that is
        // cut off in the middle is durable, and nobody would know.
        let answered = tokio::spawn(self.router.clone().oneshot(request)).await;
        let mut response = match answered {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            Err(panicked) => {
                tracing::error!(%panicked, request_id, "an operation broke down");
                ApiError::internal().into_response()
            }
        };
        if let Ok(value) = HeaderValue::from_str(&request_id) {
            response.headers_mut().insert(REQUEST_ID, value);
        }
        Ok(response)
    }
}

/// The verified client certificate's common name. A certificate without one names nobody.
fn operator(certificates: Option<&[CertificateDer<'_>]>) -> Option<Operator> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificates?.first()?).ok()?;
    let name = certificate
        .subject()
        .iter_common_name()
        .next()?
        .as_str()
        .ok()?;
    Some(Operator {
        name: kubler_core::text::UntrustedText::new(name)
            .as_str()
            .to_owned(),
    })
}

/// `::ffff:1.2.3.4` and `1.2.3.4` are one source.
const fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}
