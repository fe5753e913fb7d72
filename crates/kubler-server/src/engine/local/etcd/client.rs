//! Asks etcd: unary gRPC over one HTTP/2 connection, made again when it breaks. Every request made with it may
//! be repeated, so a broken connection costs one more try and nothing else.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use super::super::certificates::Pair;
use super::wire::Call;

/// How long one request may take, the connection included, in seconds.
const REQUEST_SECONDS_MAX: u64 = 5;
/// Largest answer, in bytes: lists of names, or a few values.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// Bytes before each message: not compressed, and its length.
const FRAME_HEAD_BYTES: usize = 5;

/// Why etcd did not do something.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum EtcdError {
    /// It said no.
    #[error("etcd refuses: {0}")]
    Refused(String),
    /// It could not be asked.
    #[error("etcd cannot be reached: {0}")]
    Unreachable(#[from] io::Error),
    /// The answer is larger than any that is read.
    #[error("etcd's answer is larger than {ANSWER_BYTES_MAX} bytes")]
    TooLong,
}

impl EtcdError {
    /// Whether it is a refusal with this text.
    pub(in super::super) fn says(&self, text: &str) -> bool {
        matches!(self, Self::Refused(message) if message.contains(text))
    }
}

/// A user of etcd; cheap to clone.
#[derive(Clone)]
pub(in super::super) struct Client {
    port: u16,
    tls: Arc<ClientConfig>,
    connection: Arc<Mutex<Option<SendRequest<Full<Bytes>>>>>,
}

impl Client {
    /// A user that proves itself by `user`, towards the etcd that proves itself by `authority`. Connects later.
    pub(in super::super) fn new(port: u16, authority: &str, user: &Pair) -> io::Result<Self> {
        let certificate =
            |text: &str| CertificateDer::from_pem_slice(text.as_bytes()).map_err(io::Error::other);
        let mut roots = RootCertStore::empty();
        roots
            .add(certificate(authority)?)
            .map_err(io::Error::other)?;
        let key = PrivateKeyDer::from_pem_slice(user.key.as_bytes()).map_err(io::Error::other)?;
        let mut tls = ClientConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate(&user.certificate)?], key)
        .map_err(io::Error::other)?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            port,
            tls: Arc::new(tls),
            connection: Arc::default(),
        })
    }

    /// Asks, and once more over a new connection if the one of before broke.
    pub(in super::super) async fn call<C: Call>(&self, call: &C) -> Result<C::Answer, EtcdError> {
        let asked = async {
            match self.call_once(call).await {
                Err(EtcdError::Unreachable(_)) => {
                    *self.connection.lock().await = None;
                    self.call_once(call).await
                }
                answer => answer,
            }
        };
        let limit = Duration::from_secs(REQUEST_SECONDS_MAX);
        tokio::time::timeout(limit, asked)
            .await
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
    }

    async fn call_once<C: Call>(&self, call: &C) -> Result<C::Answer, EtcdError> {
        let mut requests = self.connected().await?;
        let mut message = BytesMut::with_capacity(FRAME_HEAD_BYTES + call.encoded_len());
        message.put_u8(0);
        message.put_u32(u32::try_from(call.encoded_len()).map_err(io::Error::other)?);
        call.encode(&mut message).map_err(io::Error::other)?;
        let request = http::Request::post(format!("https://127.0.0.1:{}{}", self.port, C::PATH))
            .header(http::header::CONTENT_TYPE, "application/grpc")
            .header(http::header::TE, "trailers")
            .body(Full::new(message.freeze()))
            .map_err(io::Error::other)?;
        requests.ready().await.map_err(io::Error::other)?;
        let answer = requests
            .send_request(request)
            .await
            .map_err(io::Error::other)?;
        let status = answer.status();
        let head = answer.headers().clone();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| {
                if error.is::<LengthLimitError>() {
                    EtcdError::TooLong
                } else {
                    io::Error::other(error).into()
                }
            })?;
        // Without a message the outcome stands in the head, else behind the body.
        let outcome = body.trailers().cloned().unwrap_or(head);
        let text = |name: &str| {
            outcome
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        match text("grpc-status").as_deref() {
            Some("0") => {}
            // Unavailable: it is starting, or going.
            Some("14") => {
                return Err(io::Error::other(text("grpc-message").unwrap_or_default()).into());
            }
            Some(code) => {
                return Err(EtcdError::Refused(format!(
                    "{} (code {code})",
                    text("grpc-message").unwrap_or_default()
                )));
            }
            None => return Err(io::Error::other(format!("no gRPC, but status {status}")).into()),
        }
        let body = body.to_bytes();
        let message = body
            .get(FRAME_HEAD_BYTES..)
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        Ok(prost::Message::decode(message).map_err(io::Error::other)?)
    }

    async fn connected(&self) -> io::Result<SendRequest<Full<Bytes>>> {
        let mut connection = self.connection.lock().await;
        if let Some(requests) = connection.as_ref().filter(|requests| !requests.is_closed()) {
            return Ok(requests.clone());
        }
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("127.0.0.1").map_err(io::Error::other)?;
        let stream = tokio_rustls::TlsConnector::from(Arc::clone(&self.tls))
            .connect(name, stream)
            .await?;
        let (requests, driver) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .map_err(io::Error::other)?;
        // Ends when the last sender is dropped; its error shows at the next request.
        tokio::spawn(driver);
        *connection = Some(requests.clone());
        Ok(requests)
    }
}
