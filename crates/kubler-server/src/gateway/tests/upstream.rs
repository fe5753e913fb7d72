//! An API server that does what a test says and remembers what came.

use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::engine::{Upstream, UpstreamAddress};

/// How a client asks for a watch in protobuf, and how the answer says so.
pub(super) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf;stream=watch";
pub(super) const NAME: &str = "kubernetes.default.svc";

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Arrived {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// Records in the ledger at that moment.
    pub(super) records: usize,
}

#[derive(Default)]
pub(super) struct Seen {
    pub(super) arrived: Mutex<Vec<Arrived>>,
    pub(super) connections: AtomicUsize,
    pub(super) open: AtomicUsize,
    events: Mutex<Vec<mpsc::UnboundedSender<Result<Bytes, Infallible>>>>,
    tunnels: Mutex<Vec<mpsc::UnboundedSender<Switched>>>,
}

/// The API server's side of a connection whose protocol was changed.
pub(super) type Switched = TokioIo<hyper::upgrade::Upgraded>;

pub(super) struct TestUpstream {
    pub(super) seen: Arc<Seen>,
    pub(super) upstream: Arc<Upstream>,
    hang_up: Arc<tokio::sync::Notify>,
    stop: CancellationToken,
}

struct OpenConnection(Arc<Seen>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl TestUpstream {
    pub(super) fn start(
        folder: &Path,
        count_records: impl Fn() -> usize + Send + Sync + 'static,
    ) -> Self {
        let path = folder.join("api.sock");
        let (server, certificate) = certificate();
        let mut server = Arc::unwrap_or_clone(server);
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();

        let listener = UnixListener::bind(&path).unwrap();
        let (seen, stop, hang_up) = (
            Arc::new(Seen::default()),
            CancellationToken::new(),
            Arc::new(tokio::sync::Notify::new()),
        );
        let accepting = Accepting {
            acceptor: TlsAcceptor::from(Arc::new(server)),
            seen: Arc::clone(&seen),
            hang_up: Arc::clone(&hang_up),
            count: Arc::new(count_records),
        };
        tokio::spawn(
            stop.clone()
                .run_until_cancelled_owned(accepting.run(listener)),
        );
        let upstream = Arc::new(Upstream {
            address: UpstreamAddress::Unix(path),
            tls: Arc::new(client),
            server_name: ServerName::try_from(NAME).unwrap(),
            token: "upstream-secret".into(),
        });
        Self {
            seen,
            upstream,
            hang_up,
            stop,
        }
    }

    /// Everything that came.
    pub(super) fn arrived(&self) -> Vec<Arrived> {
        self.seen.arrived.lock().unwrap().clone()
    }

    /// Sends text on every open watch.
    pub(super) fn send(&self, text: &'static str) {
        self.send_bytes(text.as_bytes());
    }

    /// Sends bytes on every open watch.
    pub(super) fn send_bytes(&self, bytes: &'static [u8]) {
        self.seen
            .events
            .lock()
            .unwrap()
            .retain(|watch| watch.send(Ok(Bytes::from_static(bytes))).is_ok());
    }

    /// Ends every open watch as a server does that has had enough.
    pub(super) fn end_watches(&self) {
        self.seen.events.lock().unwrap().clear();
    }

    /// From now on, the connections whose protocol is changed.
    pub(super) fn tunnels(&self) -> mpsc::UnboundedReceiver<Switched> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.seen.tunnels.lock().unwrap().push(sender);
        receiver
    }

    /// Closes every connection.
    pub(super) fn hang_up(&self) {
        self.hang_up.notify_waiters();
    }
}

impl Drop for TestUpstream {
    fn drop(&mut self) {
        self.stop.cancel();
        self.hang_up.notify_waiters();
    }
}

struct Accepting {
    acceptor: TlsAcceptor,
    seen: Arc<Seen>,
    hang_up: Arc<tokio::sync::Notify>,
    count: Arc<dyn Fn() -> usize + Send + Sync>,
}

impl Accepting {
    async fn run(self, listener: UnixListener) {
        while let Ok((stream, _)) = listener.accept().await {
            self.seen.connections.fetch_add(1, Ordering::SeqCst);
            self.seen.open.fetch_add(1, Ordering::SeqCst);
            let open = OpenConnection(Arc::clone(&self.seen));
            let (acceptor, hang_up, count) = (
                self.acceptor.clone(),
                Arc::clone(&self.hang_up),
                Arc::clone(&self.count),
            );
            tokio::spawn(async move {
                let seen = Arc::clone(&open.0);
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service = hyper::service::service_fn(move |request| {
                    answer(request, Arc::clone(&seen), Arc::clone(&count))
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades();
                tokio::select! {
                    _ = connection => {}
                    () = hang_up.notified() => {}
                }
                drop(open);
            });
        }
    }
}

async fn answer(
    mut request: Request<Incoming>,
    seen: Arc<Seen>,
    count: Arc<dyn Fn() -> usize + Send + Sync>,
) -> Result<Response<Body>, Infallible> {
    let records = count();
    let is_switched =
        request.headers().contains_key("upgrade") && !request.uri().path().contains("/refused/");
    let switching = is_switched.then(|| hyper::upgrade::on(&mut request));
    let (head, body) = request.into_parts();
    let body = body
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();
    let target = head.uri.to_string();
    let wants_protobuf = head
        .headers
        .get("accept")
        .is_some_and(|value| value.as_bytes().starts_with(PROTOBUF.as_bytes()));
    let switched = switching.map(|switching| switch(&head, switching, &seen));
    seen.arrived.lock().unwrap().push(Arrived {
        method: head.method.to_string(),
        target: target.clone(),
        headers: head.headers,
        body,
        records,
    });
    let json = Response::builder()
        .header("content-type", "application/json")
        .header("audit-id", "theirs")
        .header("set-cookie", "a=b")
        .header("x-kubernetes-pf-flowschema-uid", "flow");
    let response = if let Some(switched) = switched {
        Ok(switched)
    } else if let Some(discovery) = discovery(&target) {
        json.body(Body::from(discovery.to_string()))
    } else if target.contains("watch=1") {
        let (sender, receiver) = mpsc::unbounded_channel();
        seen.events.lock().unwrap().push(sender);
        let content_type = if wants_protobuf {
            PROTOBUF
        } else {
            "application/json"
        };
        Response::builder()
            .header("content-type", content_type)
            .body(Body::from_stream(
                tokio_stream::wrappers::UnboundedReceiverStream::new(receiver),
            ))
    } else if target.contains("/log") {
        let (sender, receiver) = mpsc::unbounded_channel();
        seen.events.lock().unwrap().push(sender);
        Response::builder()
            .header("content-type", "text/plain")
            .body(Body::from_stream(
                tokio_stream::wrappers::UnboundedReceiverStream::new(receiver),
            ))
    } else if target.ends_with("/never") {
        tokio::time::sleep(Duration::from_secs(600)).await;
        json.body(Body::empty())
    } else if target.ends_with("/endless") {
        let chunk = Bytes::from(vec![b'x'; 64 * 1024]);
        json.body(Body::from_stream(tokio_stream::iter(
            std::iter::repeat_with(move || Ok::<_, Infallible>(chunk.clone())),
        )))
    } else if target.ends_with("/unauthorized") {
        json.status(StatusCode::UNAUTHORIZED).body(Body::from("{}"))
    } else if target.ends_with("/moved") {
        json.status(StatusCode::MOVED_PERMANENTLY)
            .header("location", "/api/v1/there")
            .body(Body::empty())
    } else if let Some((_, away)) = target.split_once("/moved/") {
        let location = match away {
            "host" => "//elsewhere.example/api",
            "url" => "https://elsewhere.example/api",
            _ => "elsewhere",
        };
        json.status(StatusCode::MOVED_PERMANENTLY)
            .header("location", location)
            .body(Body::empty())
    } else if target.ends_with("/switched") {
        Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header("upgrade", "websocket")
            .header("connection", "upgrade")
            .body(Body::empty())
    } else if target.ends_with("/missing") {
        json.status(StatusCode::NOT_FOUND)
            .body(Body::from(r#"{"kind":"Status"}"#))
    } else {
        json.body(Body::from(r#"{"kind":"ConfigMap"}"#))
    };
    Ok(response.unwrap())
}

/// Changes the protocol as it was asked to, with the first thing that was offered, and gives the connection to the
/// test. A path with `/junk/` in it makes it do that wrongly.
fn switch(
    head: &http::request::Parts,
    switching: hyper::upgrade::OnUpgrade,
    seen: &Arc<Seen>,
) -> Response<Body> {
    let header = |name: &str| {
        head.headers
            .get(name)
            .map(|value| value.to_str().unwrap().to_owned())
    };
    let protocol = header("upgrade").unwrap();
    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header("connection", "Upgrade")
        .header("set-cookie", "a=b")
        .header("upgrade", &protocol);
    if let Some(key) = header("sec-websocket-key") {
        let key = if head.uri.path().contains("/junk/") {
            "AAAAAAAAAAAAAAAAAAAAAA==".to_owned()
        } else {
            key
        };
        response = response.header(
            "sec-websocket-accept",
            kubler_core::frames::websocket::accept(key.as_bytes()),
        );
    }
    for name in ["sec-websocket-protocol", "x-stream-protocol-version"] {
        if let Some(offered) = header(name) {
            response = response.header(name, offered.split(", ").next().unwrap());
        }
    }
    let tunnel = seen.tunnels.lock().unwrap().last().cloned();
    let open = OpenConnection(Arc::clone(seen));
    seen.open.fetch_add(1, Ordering::SeqCst);
    tokio::spawn(async move {
        if let (Ok(upgraded), Some(tunnel)) = (switching.await, tunnel) {
            let _ = tunnel.send(TokioIo::new(upgraded));
        }
        drop(open);
    });
    response.body(Body::empty()).unwrap()
}

/// So much as kubectl wants to know before it opens a pod.
fn discovery(target: &str) -> Option<serde_json::Value> {
    use serde_json::json;
    Some(match target.split('?').next().unwrap_or_default() {
        "/api" => json!({ "kind": "APIVersions", "versions": ["v1"] }),
        "/apis" => json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [] }),
        "/api/v1" => json!({
            "kind": "APIResourceList", "groupVersion": "v1",
            "resources": [{ "name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "verbs": ["get", "list"] }],
        }),
        "/api/v1/namespaces/default/pods/web" => json!({
            "kind": "Pod", "apiVersion": "v1", "metadata": { "name": "web", "namespace": "default" },
            "spec": { "containers": [{ "name": "main", "image": "busybox", "ports": [{ "containerPort": 80 }] }] },
            "status": { "phase": "Running" },
        }),
        _ => return None,
    })
}

/// What a server shows, and how it is known.
pub(super) fn certificate() -> (Arc<rustls::ServerConfig>, CertificateDer<'static>) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).unwrap();
    let certificate = CertificateDer::from(made.cert.der().to_vec());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    (Arc::new(server), certificate)
}
