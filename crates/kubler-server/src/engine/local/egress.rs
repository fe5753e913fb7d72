//! The only way out of an environment: its API server asks here, on a socket in its folder, for every
//! connection that a user can aim. Denied unless the profile lists it; never this machine; written down.

pub(super) mod rules;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use kubler_core::ids::EnvironmentId;
use kubler_core::ledger::record::{Body, Kind, LedgerAction, Outcome};
use kubler_core::text::UntrustedText;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use rules::{Allowed, Refusal, Target};

/// Connections of one environment at once.
const CONNECTIONS_MAX: usize = 64;
/// Longest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 4096;
/// How long a request's head may take, in seconds.
const HEAD_SECONDS_MAX: u64 = 5;
/// How long a connection may take to be made, in seconds.
const CONNECT_SECONDS_MAX: u64 = 10;
/// Repeats of the same target within this time are counted instead of written down one by one, in seconds.
const WINDOW_SECONDS: u64 = 60;
/// Different targets of one environment that are written down within one such time; the rest is counted.
const TARGETS_PER_WINDOW_MAX: usize = 32;

/// Where connections are written down: gives false when that was not possible.
pub(super) type Recorder = Arc<dyn Fn(Body) -> BoxFuture<'static, bool> + Send + Sync>;

/// Serves the socket at `path` for one environment until the handle is dropped.
///
/// # Errors
/// When the socket cannot be bound.
pub(super) fn serve(
    path: &Path,
    id: EnvironmentId,
    listed: &[String],
    recorder: Recorder,
) -> io::Result<AbortOnDropHandle<()>> {
    // One of a server before; nobody listens there any more.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    let gate = Arc::new(Gate {
        allowed: Allowed::new(listed),
        log: Log {
            id,
            recorder,
            seen: Mutex::default(),
        },
    });
    Ok(AbortOnDropHandle::new(tokio::spawn(accept(listener, gate))))
}

struct Gate {
    allowed: Allowed,
    log: Log,
}

async fn accept(listener: UnixListener, gate: Arc<Gate>) {
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
        }
    }
}

impl Gate {
    async fn serve_one(&self, mut stream: UnixStream) -> io::Result<()> {
        let head = tokio::time::timeout(
            Duration::from_secs(HEAD_SECONDS_MAX),
            read_head(&mut stream),
        )
        .await??;
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
                let _ = self.log.write(&target, Err(refusal)).await;
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
        if !self.log.write(target, Ok(address.ip())).await {
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
    seen: Mutex<Window>,
}

#[derive(Default)]
struct Window {
    /// Repeats since the one that was written down.
    repeats: HashMap<(String, &'static str), u64>,
    /// Connections to targets past the bound.
    others: u64,
}

impl Log {
    /// Gives false when it could not be written down.
    async fn write(&self, target: &Target, verdict: Result<IpAddr, Refusal>) -> bool {
        let text = UntrustedText::new(&format!("{}:{}", target.host, target.port))
            .as_str()
            .to_owned();
        let code = verdict.map_or_else(Refusal::code, |_| "allowed");
        {
            let mut window = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let key = (text.clone(), code);
            if let Some(repeats) = window.repeats.get_mut(&key) {
                *repeats += 1;
                return true;
            }
            if window.repeats.len() >= TARGETS_PER_WINDOW_MAX {
                window.others += 1;
                return true;
            }
            window.repeats.insert(key, 0);
        }
        // Marked as seen before it is: whoever comes meanwhile is counted.
        let mut body = self.body(code, &text, 1);
        if let Ok(address) = verdict {
            body.details
                .insert("address".into(), address.to_string().into());
        }
        let recorded = (self.recorder)(body).await;
        if !recorded {
            self.seen
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .repeats
                .remove(&(text, code));
        }
        recorded
    }

    /// Writes the counts down and begins a new window.
    async fn turn_over(&self) {
        let window = std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner));
        for ((target, code), repeats) in window
            .repeats
            .into_iter()
            .filter(|(_, repeats)| *repeats > 0)
        {
            (self.recorder)(self.body(code, &target, repeats)).await;
        }
        if window.others > 0 {
            (self.recorder)(self.body("counted", "others", window.others)).await;
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

#[cfg(test)]
mod tests;
