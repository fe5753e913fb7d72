//! The only way out of an environment: its API server asks here, on a socket in its folder, for every
//! connection that a user can aim. Denied unless the profile lists it; never this machine; written down.

pub(super) mod rules;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use kubler_core::ids::EnvironmentId;
use kubler_core::ledger::record::{Body, Kind, LedgerAction, Outcome};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use rules::{Allowed, Refusal, Target};

/// Connections of one environment at once.
const CONNECTIONS_MAX: usize = 64;
/// Longest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 4096;
/// How long a request's head may take.
const HEAD_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a connection may take to be made, in seconds.
const CONNECT_SECONDS_MAX: u64 = 10;
/// Repeats of the same target within this time are counted instead of written down one by one, in seconds.
const WINDOW_SECONDS: u64 = 60;
/// Refusals of different targets of one environment that are written down within one such time; the rest is counted.
const REFUSED_PER_WINDOW_MAX: usize = 32;

/// Where connections are written down: gives false when that was not possible.
pub(super) type Recorder = Arc<dyn Fn(Body) -> BoxFuture<'static, bool> + Send + Sync>;

/// The way out of one environment, open until this is dropped.
pub(super) struct Serving {
    over: CancellationToken,
    written: CancellationToken,
}

impl Serving {
    /// Closes the way out, with all that goes through it, a moment later.
    pub(super) fn close(&self) {
        self.over.cancel();
    }

    /// Closes it, and waits until what was only counted is written down.
    pub(super) async fn end(&self) {
        self.close();
        self.written.cancelled().await;
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.close();
    }
}

/// Serves the socket at `path` for one environment.
///
/// # Errors
/// When the socket cannot be bound.
pub(super) fn serve(
    path: &Path,
    id: EnvironmentId,
    listed: &[String],
    recorder: Recorder,
) -> io::Result<Serving> {
    open(path, Gate::new(id, listed, recorder))
}

fn open(path: &Path, gate: Gate) -> io::Result<Serving> {
    // One of a server before; nobody listens there any more.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    let (over, written) = (CancellationToken::new(), CancellationToken::new());
    let serving = Serving {
        over: over.clone(),
        written: written.clone(),
    };
    tokio::spawn(async move {
        // Also when the task breaks off, or whoever ends the environment would wait for ever.
        let _written = written.drop_guard();
        let gate = Arc::new(gate);
        accept(listener, Arc::clone(&gate), &over).await;
        gate.log.turn_over().await;
    });
    Ok(serving)
}

struct Gate {
    allowed: Allowed,
    log: Log,
    /// How long a request's head may take.
    head_time_max: Duration,
}

/// Lets connections in until it is over; closes all of them then.
async fn accept(listener: UnixListener, gate: Arc<Gate>, over: &CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Dropped with this task, and all connections with it.
    let mut connections = JoinSet::new();
    let window = Duration::from_secs(WINDOW_SECONDS);
    let mut window = tokio::time::interval_at(tokio::time::Instant::now() + window, window);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    // Past the bound the connection is closed, which the API server takes for a refusal.
                    let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
                    let gate = Arc::clone(&gate);
                    connections.spawn(async move {
                        let _slot = slot;
                        if let Err(error) = gate.serve_one(stream).await {
                            tracing::debug!(environment = %gate.log.id, %error, "an egress connection ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(environment = %gate.log.id, %error, "egress socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            _ = window.tick() => gate.log.turn_over().await,
            () = over.cancelled() => break,
        }
    }
    drop(listener);
    connections.shutdown().await;
}

impl Gate {
    fn new(id: EnvironmentId, listed: &[String], recorder: Recorder) -> Self {
        Self {
            allowed: Allowed::new(listed),
            log: Log {
                id,
                recorder,
                allowed: tokio::sync::Mutex::default(),
                refused: Mutex::default(),
            },
            head_time_max: HEAD_TIME_MAX,
        }
    }

    async fn serve_one(&self, mut stream: UnixStream) -> io::Result<()> {
        let head = tokio::time::timeout(self.head_time_max, read_head(&mut stream)).await??;
        let Some(target) = Target::of_request(&head) else {
            return refuse(&mut stream, "400 Bad Request").await;
        };
        match self.open(&target).await {
            Ok(mut outside) => {
                stream
                    .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    .await?;
                tokio::io::copy_bidirectional(&mut stream, &mut outside).await?;
                Ok(())
            }
            Err(refusal) => {
                // The caller learns no more than this: the answer must not tell what exists out here.
                self.log.refused(&target, refusal).await;
                refuse(&mut stream, "403 Forbidden").await
            }
        }
    }

    async fn open(&self, target: &Target) -> Result<TcpStream, Refusal> {
        if !self.allowed.lists(target) {
            return Err(Refusal::NotListed);
        }
        let within = Duration::from_secs(CONNECT_SECONDS_MAX);
        let addresses = tokio::time::timeout(
            within,
            tokio::net::lookup_host((target.host.as_str(), target.port)),
        );
        let addresses: Vec<_> = addresses
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or(Refusal::Unreachable)?
            .collect();
        self.dial(target, addresses).await
    }

    /// Connects with a listed target, which its name has led to these addresses.
    async fn dial(
        &self,
        target: &Target,
        addresses: Vec<SocketAddr>,
    ) -> Result<TcpStream, Refusal> {
        let within = Duration::from_secs(CONNECT_SECONDS_MAX);
        let mut open = Vec::new();
        for address in addresses {
            if !rules::is_forbidden(address.ip()) && !is_own(address).await {
                open.push(address);
            }
        }
        // The address that was checked is the one that is dialled: a name may change its mind in between.
        let Some(address) = open.first().copied() else {
            return Err(Refusal::ForbiddenAddress);
        };
        if !self.log.allowed(target, address.ip()).await {
            return Err(Refusal::NotRecorded);
        }
        match tokio::time::timeout(within, TcpStream::connect(&*open)).await {
            Ok(Ok(outside)) => Ok(outside),
            _ => Err(Refusal::Unreachable),
        }
    }
}

/// Whether the address is one of this machine: then the way to it begins at itself. Nothing is sent.
async fn is_own(address: SocketAddr) -> bool {
    let any: SocketAddr = if address.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0_u16; 8], 0).into()
    };
    let own = async {
        let socket = UdpSocket::bind(any).await?;
        socket.connect(address).await?;
        socket.local_addr()
    };
    // No way there: then dialling would fail as well.
    own.await
        .is_ok_and(|own: SocketAddr| own.ip() == address.ip())
}

async fn read_head(stream: &mut UnixStream) -> io::Result<String> {
    let mut head = Vec::with_capacity(256);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= HEAD_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // Byte by byte: what follows the head belongs to the tunnel.
        head.push(stream.read_u8().await?);
    }
    String::from_utf8(head).map_err(|_| io::ErrorKind::InvalidData.into())
}

async fn refuse(stream: &mut UnixStream, status: &str) -> io::Result<()> {
    stream
        .write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes())
        .await
}

/// Writes connections down: the first of each kind at once, repeats as a count.
struct Log {
    id: EnvironmentId,
    recorder: Recorder,
    /// Repeats for each listed target since it was written down: as many as the profile lists. Held while one is
    /// written, so that nobody goes on behind somebody whose record is not made yet.
    allowed: tokio::sync::Mutex<BTreeMap<Target, u64>>,
    refused: Mutex<Refused>,
}

#[derive(Default)]
struct Refused {
    /// Repeats since the one that was written down.
    repeats: HashMap<(String, &'static str), u64>,
    /// Refusals past the bound.
    others: u64,
}

impl Log {
    /// Gives false when it could not be written down: then nothing may be dialled. However much was refused.
    async fn allowed(&self, target: &Target, address: IpAddr) -> bool {
        let mut allowed = self.allowed.lock().await;
        if let Some(repeats) = allowed.get_mut(target) {
            *repeats += 1;
            return true;
        }
        let mut body = self.body("allowed", &text(target), 1);
        body.details
            .insert("address".into(), address.to_string().into());
        let recorded = (self.recorder)(body).await;
        if recorded {
            allowed.insert(target.clone(), 0);
        }
        recorded
    }

    async fn refused(&self, target: &Target, refusal: Refusal) {
        let key = (text(target), refusal.code());
        {
            let mut refused = self.seen();
            if let Some(repeats) = refused.repeats.get_mut(&key) {
                *repeats += 1;
                return;
            }
            if refused.repeats.len() >= REFUSED_PER_WINDOW_MAX {
                refused.others += 1;
                return;
            }
            refused.repeats.insert(key.clone(), 0);
        }
        // Marked as seen before it is: whoever comes meanwhile is counted.
        let body = self.body(key.1, &key.0, 1);
        if !(self.recorder)(body).await {
            self.seen().repeats.remove(&key);
        }
    }

    fn seen(&self) -> MutexGuard<'_, Refused> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the counts down and begins a new window.
    async fn turn_over(&self) {
        let allowed = std::mem::take(&mut *self.allowed.lock().await);
        let refused = std::mem::take(&mut *self.seen());
        let allowed = allowed
            .into_iter()
            .map(|(target, repeats)| ("allowed", text(&target), repeats));
        let repeats = refused
            .repeats
            .into_iter()
            .map(|((target, code), repeats)| (code, target, repeats));
        let others = ("counted", "others".to_owned(), refused.others);
        let counts = allowed.chain(repeats).chain([others]);
        for (code, target, count) in counts.filter(|(_, _, count)| *count > 0) {
            (self.recorder)(self.body(code, &target, count)).await;
        }
    }

    fn body(&self, code: &str, target: &str, count: u64) -> Body {
        let mut body = Body::new(Kind::Event, LedgerAction::EnvironmentEgress);
        body.environment_id = Some(self.id);
        let status = if code == "allowed" { 200 } else { 403 };
        body.outcome = Some(Outcome {
            status,
            code: Some(code.to_owned()),
            ..Outcome::default()
        });
        body.details.insert("target".into(), target.into());
        body.details.insert("count".into(), count.into());
        body
    }
}

/// A target as it is written down. It was read by [`Target::parse`], so that there is nothing unsafe in it.
fn text(target: &Target) -> String {
    format!("{}:{}", target.host, target.port)
}

#[cfg(test)]
mod tests;
