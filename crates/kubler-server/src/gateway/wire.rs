//! One HTTP/1.1 connection to an API server, driven by whoever uses it.
//!
//! There is no task behind it: the request's own task writes, reads and waits, so that an answer takes no
//! detour through another thread, and a reader that is slow makes the API server slow and nothing else.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::body::RequestBody;
use crate::engine::{Upstream, UpstreamAddress};

/// Longest wait for a connection and its TLS handshake, in seconds.
const CONNECT_SECONDS_MAX: u64 = 5;
/// After so long without a byte, and then as often, the system asks whether an API server is still there.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(20);
/// Most bytes that one connection holds of an answer that nobody reads yet.
const BUFFER_BYTES_MAX: usize = 128 * 1024;

pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

type Connection = http1::Connection<TokioIo<TlsStream<Box<dyn Socket>>>, RequestBody>;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    /// Nobody answers there.
    #[error("the API server cannot be reached: {0}")]
    Unreachable(std::io::Error),
    /// Somebody answers, but not in time.
    #[error("the API server did not answer within {CONNECT_SECONDS_MAX} s")]
    Slow,
    /// It is not the right one, or does not speak HTTP/1.1.
    #[error("the connection to the API server could not be made: {0}")]
    Handshake(std::io::Error),
}

/// Why a request has no answer.
pub(super) enum SendError {
    /// Not one byte of it was sent: it may be tried again as it is.
    Unsent(Box<Request<RequestBody>>),
    /// It may or may not have been done.
    Unknown(hyper::Error),
}

/// One connection.
pub(super) struct Wire {
    sender: SendRequest<RequestBody>,
    connection: Pin<Box<Connection>>,
    is_over: bool,
    /// Since when nobody uses it.
    pub(super) idle_since: Instant,
}

impl Wire {
    /// Connects, and makes sure that it is the right API server.
    pub(super) async fn connect(
        upstream: &Upstream,
        tls: Arc<rustls::ClientConfig>,
    ) -> Result<Self, ConnectError> {
        let limit = Duration::from_secs(CONNECT_SECONDS_MAX);
        tokio::time::timeout(limit, Self::connect_now(upstream, tls))
            .await
            .unwrap_or(Err(ConnectError::Slow))
    }

    async fn connect_now(
        upstream: &Upstream,
        tls: Arc<rustls::ClientConfig>,
    ) -> Result<Self, ConnectError> {
        let socket = open(&upstream.address)
            .await
            .map_err(ConnectError::Unreachable)?;
        let stream = TlsConnector::from(tls)
            .connect(upstream.server_name.clone(), socket)
            .await
            .map_err(ConnectError::Handshake)?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(BUFFER_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| ConnectError::Handshake(std::io::Error::other(error)))?;
        Ok(Self {
            sender,
            connection: Box::pin(connection),
            is_over: false,
            idle_since: Instant::now(),
        })
    }

    /// The connection itself, when it speaks no HTTP any more, and what came on it already.
    pub(super) fn into_parts(self) -> (TlsStream<Box<dyn Socket>>, bytes::Bytes) {
        let parts = Pin::into_inner(self.connection).into_parts();
        (parts.io.into_inner(), parts.read_buf)
    }

    /// Moves bytes as far as they go now.
    pub(super) fn drive(&mut self, context: &mut Context<'_>) {
        if !self.is_over && self.connection.as_mut().poll(context).is_ready() {
            self.is_over = true;
        }
    }

    /// Whether it can take a request now. A connection that the other side has closed cannot.
    pub(super) fn is_free(&mut self, context: &mut Context<'_>) -> bool {
        self.drive(context);
        !self.is_over && matches!(self.sender.poll_ready(context), Poll::Ready(Ok(())))
    }

    /// Sends a request and waits for the head of its answer.
    pub(super) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, SendError> {
        let mut answer = std::pin::pin!(self.sender.try_send_request(request));
        let (connection, is_over) = (&mut self.connection, &mut self.is_over);
        let answered = std::future::poll_fn(|context| {
            if !*is_over && connection.as_mut().poll(context).is_ready() {
                *is_over = true;
            }
            Poll::Ready(ready!(answer.as_mut().poll(context)))
        });
        answered
            .await
            .map_err(|mut error| match error.take_message() {
                Some(request) => SendError::Unsent(Box::new(request)),
                None => SendError::Unknown(error.into_error()),
            })
    }
}

/// Lets the system ask whether the other side is still there, also where nothing is said for long.
fn keep_alive(stream: &TcpStream) -> std::io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEP_ALIVE_EVERY)?;
    sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE_EVERY)?;
    Ok(())
}

async fn open(address: &UpstreamAddress) -> std::io::Result<Box<dyn Socket>> {
    Ok(match address {
        UpstreamAddress::Unix(path) => Box::new(UnixStream::connect(path).await?),
        UpstreamAddress::Tcp(host, port) => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.set_nodelay(true)?;
            keep_alive(&stream)?;
            Box::new(stream)
        }
    })
}
