//! The door: TCP, TLS, HTTP/1.1 and HTTP/2, bounded in number and time. Everything behind it knows who is connected.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::header::UPGRADE;
use axum::http::{HeaderName, HeaderValue, Request, Response};
use axum::response::IntoResponse as _;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use kubler_api::paths;
use kubler_core::ledger::refusals::RefusalBeforeVerification;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::bodies::Bodies;
use super::connection::{OpenRequest, Patience, Requests, drive};
use super::error::ApiError;
use super::tls::Presented;
use super::{Api, Arrival, Certificate, Peer};
use crate::gateway::{Held, RefusedHere};

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request's headers may take over HTTP/1.1, and the first of them over any.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long connections may be without a request.
const PATIENCE: Patience = Patience {
    first: HEADER_TIMEOUT,
    rest: Duration::from_secs(30),
    goodbye: Duration::from_secs(5),
};
/// How long open requests may go on after the order to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Pings that keep a quiet HTTP/2 connection alive through load balancers.
const PING_EVERY: Duration = Duration::from_secs(20);
/// How long bytes may wait for a caller that says nothing, not even that it is busy.
const GONE_AFTER: Duration = Duration::from_secs(330);
/// Longest header section, in bytes: twice the longest token.
const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Streams of one HTTP/2 connection at once: each costs memory before anybody is known to call. As many as an API
/// server allows.
const STREAMS_MAX: u32 = 100;
/// Requests of one connection that are worked on at once. A stream that its caller gives up is over; what has begun
/// for it is not.
const WORKED_ON_MAX: usize = STREAMS_MAX as usize;
/// What one HTTP/2 connection and one of its streams may send before it is read, in bytes.
const CONNECTION_WINDOW_BYTES: u32 = 512 * 1024;
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// Names a request in every answer.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Serves until `shutdown`, then lets open requests end.
pub async fn serve(listener: TcpListener, api: Arc<Api>, shutdown: CancellationToken) {
    let door = Arc::new(Door {
        router: super::router(Arc::clone(&api)),
        bodies: Bodies::default(),
        api,
        stop: shutdown.clone(),
    });
    let connections = TaskTracker::new();
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
        let place = match door.api.places.take(peer.ip()) {
            Ok(place) => place,
            Err(full) => {
                door.api.broker.ledger.refuse(RefusalBeforeVerification {
                    peer: canonical(peer.ip()),
                    reason: full.as_str(),
                });
                continue;
            }
        };
        let door = Arc::clone(&door);
        connections.spawn(async move {
            door.connection(stream, peer).await;
            drop(place);
        });
    }
    drop(listener);
    connections.close();
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, connections.wait()).await;
}

struct Door {
    api: Arc<Api>,
    bodies: Bodies,
    router: Router,
    stop: CancellationToken,
}

/// The other side of a connection.
struct Caller {
    address: IpAddr,
    /// Room for what is worked on.
    work: Arc<Semaphore>,
    presented: Option<Presented>,
}

impl Door {
    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let _ = stream.set_nodelay(true);
        keep_alive(&stream);
        let handshake = TlsAcceptor::from(self.api.tls.server()).accept(stream);
        let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake);
        let Some(Ok(Ok(stream))) = self.stop.run_until_cancelled(shaken).await else {
            return;
        };
        let caller = Arc::new(Caller {
            address: canonical(peer.ip()),
            work: Arc::new(Semaphore::new(WORKED_ON_MAX)),
            presented: self
                .api
                .tls
                .presented(stream.get_ref().1.peer_certificates()),
        });
        let requests = Requests::default();
        let stop = self.stop.clone();
        let service = {
            let requests = requests.clone();
            hyper::service::service_fn(move |request| {
                Arc::clone(&self).answer(request, Arc::clone(&caller), requests.open())
            })
        };
        let builder = protocols();
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let leave = auto::UpgradeableConnection::graceful_shutdown;
        drive(connection, leave, &requests, PATIENCE, &stop).await;
        // A connection whose protocol was changed keeps its place until that is over, too.
        requests.over().await;
    }

    async fn answer(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        caller: Arc<Caller>,
        open: OpenRequest,
    ) -> Result<Response<Body>, Infallible> {
        if request.uri().path().starts_with(paths::GATEWAY) {
            if request.headers().contains_key(UPGRADE) {
                request
                    .extensions_mut()
                    .insert(Held(Arc::new(open.another())));
            }
            let answer = self.api.gateway.handle(request, caller.address).await;
            // Who was refused has no place here until they deign to take the answer.
            return Ok(match answer.extensions().get::<RefusedHere>() {
                Some(RefusedHere) => answer,
                None => answer.map(|body| open.until_taken(body)),
            });
        }
        // Cancelled when hyper drops this future, which it does when the connection is gone.
        let gone = CancellationToken::new();
        let _gone = gone.clone().drop_guard();
        let Ok(arrival) = Arrival::new(self.peer(&caller), gone) else {
            return Ok(ApiError::internal().into_response());
        };
        let request_id = arrival.request_id.to_string();
        // The body first: who calls, and when, is asked once all is there, so that nobody acts in the past.
        let mut request = match self.bodies.read(request, caller.address).await {
            Ok(request) => request,
            Err(refused) => return Ok(refused.of(&arrival).into_response()),
        };
        request.extensions_mut().insert(arrival);
        let Ok(work) = Arc::clone(&caller.work).acquire_owned().await else {
            return Ok(ApiError::internal().into_response());
        };
        // A task of its own: what has begun goes to its end, also when its caller has gone. A commit that is
        // cut off in the middle is durable, and nobody would know.
        let answering = Arc::clone(&self.api.answering);
        let answer = self.router.clone().oneshot(request);
        let answered = tokio::spawn(async move {
            let (_answering, _work) = (answering, work);
            answer.await
        });
        let mut response = match answered.await {
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
        // Answers of the API are short: while one is taken, the connection rests.
        drop(open);
        Ok(response)
    }

    fn peer(&self, caller: &Caller) -> Peer {
        let still = |presented| self.api.tls.operator(presented, self.api.clock.now());
        Peer {
            address: caller.address,
            certificate: match &caller.presented {
                None => Certificate::Absent,
                Some(presented) => {
                    still(presented).map_or(Certificate::Over, Certificate::Operator)
                }
            },
        }
    }
}

pub(super) fn protocols() -> auto::Builder<TokioExecutor> {
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
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .max_header_list_size(u32::try_from(HEADER_BYTES_MAX).unwrap_or(u32::MAX))
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY);
    builder
}

/// Lets the system ask whether a quiet caller is still there: over HTTP/1.1 nobody else can. And one who is gone
/// without a word is not waited for as long as the system would.
fn keep_alive(stream: &TcpStream) {
    use rustix::net::sockopt;
    let gone = u32::try_from(GONE_AFTER.as_millis()).unwrap_or(u32::MAX);
    // Where the system does not know them, connections end later.
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, PING_EVERY);
    let _ = sockopt::set_tcp_keepintvl(stream, PING_EVERY);
    let _ = sockopt::set_tcp_user_timeout(stream, gone);
}

/// `::ffff:1.2.3.4` and `1.2.3.4` are one source.
const fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}
