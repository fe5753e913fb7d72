//! The OIDC issuer: HTTPS on loopback under a certificate authority made for the test.

use std::io;
use std::net::TcpListener as BoundListener;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use http::{StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::faults::IssuerFault;
use super::shared::Shared;

/// Longest time for which a held answer is held.
const HOLD_MAX: Duration = Duration::from_mins(10);

/// Longest life of a connection.
const CONNECTION_MAX: Duration = Duration::from_hours(24);

/// The issuer's certificate, and the authority that signed it.
pub(crate) struct IssuerTls {
    pub(crate) ca_pem: String,
    config: Arc<ServerConfig>,
}

impl IssuerTls {
    pub(crate) fn generate() -> Self {
        let ca_key = KeyPair::generate().expect("a key");
        let mut ca = CertificateParams::new(Vec::new()).expect("parameters");
        ca.distinguished_name
            .push(DnType::CommonName, "stand-in Buildkite CA");
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca_certificate = ca.self_signed(&ca_key).expect("a certificate");
        let ca_issuer = Issuer::new(ca, ca_key);

        let key = KeyPair::generate().expect("a key");
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let leaf = CertificateParams::new(names).expect("parameters");
        let leaf = leaf.signed_by(&key, &ca_issuer).expect("a certificate");
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider);
        let builder = builder
            .with_safe_default_protocol_versions()
            .expect("protocol versions")
            .with_no_client_auth();
        let mut config = builder
            .with_single_cert(vec![leaf.der().clone()], private)
            .expect("a certificate that fits");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Self {
            ca_pem: ca_certificate.pem(),
            config: Arc::new(config),
        }
    }

    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }
}

/// Serves both documents until the runtime ends.
pub(crate) async fn serve(
    listener: BoundListener,
    tls: Arc<ServerConfig>,
    shared: Shared,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let router = Router::new()
        .route("/.well-known/openid-configuration", get(discovery))
        .route("/.well-known/jwks", get(jwks))
        .with_state(shared.clone());
    let acceptor = TlsAcceptor::from(tls);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        if shared.look(|world| world.faults.issuer == IssuerFault::Down) {
            continue;
        }
        tokio::spawn(serve_until_down(
            stream,
            acceptor.clone(),
            router.clone(),
            shared.clone(),
        ));
    }
}

/// Ends open connections too when the issuer is told to be down: clients keep them for long.
async fn serve_until_down(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    shared: Shared,
) {
    let is_down =
        |world: &super::world::World| (world.faults.issuer == IssuerFault::Down).then_some(());
    tokio::select! {
        () = serve_connection(stream, acceptor, router) => {}
        _ = shared.wait(CONNECTION_MAX, is_down) => {}
    }
}

async fn serve_connection(stream: TcpStream, acceptor: TlsAcceptor, router: Router) {
    // A client that gives up, or does not trust the authority, is its own test's business.
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let service = TowerToHyperService::new(router);
    let _ = auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn discovery(State(shared): State<Shared>) -> Response {
    let (issuer, fault) = shared.change(|world, _| {
        world.discovery_requests += 1;
        (world.issuer_url.clone(), world.faults.issuer.clone())
    });
    let honest = json!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}/.well-known/jwks"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "claims_supported": ["sub", "aud", "exp", "iat", "iss", "nbf", "jti"],
    });
    match fault {
        IssuerFault::Discovery(text) => {
            ([(header::CONTENT_TYPE, "application/json")], text).into_response()
        }
        fault => answer(&shared, fault, honest).await,
    }
}

async fn jwks(State(shared): State<Shared>) -> Response {
    let (keys, fault) = shared.change(|world, _| {
        world.jwks_requests += 1;
        (world.keys.jwks(), world.faults.issuer.clone())
    });
    let json = [(header::CONTENT_TYPE, "application/json")];
    match fault {
        IssuerFault::Jwks(text) => (json, text).into_response(),
        IssuerFault::Padded(bytes) => {
            (json, format!("{keys}{}", " ".repeat(bytes))).into_response()
        }
        fault => answer(&shared, fault, keys).await,
    }
}

async fn answer(shared: &Shared, fault: IssuerFault, honest: Value) -> Response {
    match fault {
        IssuerFault::Hold => {
            let freed = shared
                .wait(HOLD_MAX, |world| {
                    (world.faults.issuer != IssuerFault::Hold).then_some(())
                })
                .await;
            let status = freed.map_or(StatusCode::GATEWAY_TIMEOUT, |()| StatusCode::OK);
            (status, axum::Json(honest)).into_response()
        }
        IssuerFault::Status(status) => {
            let status = StatusCode::from_u16(status).expect("a status");
            (status, "the issuer is not well").into_response()
        }
        IssuerFault::Redirect(url) => Redirect::temporary(&url).into_response(),
        _ => axum::Json(honest).into_response(),
    }
}
