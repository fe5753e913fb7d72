//! A connection whose protocol was changed: bytes pass in both directions as they come, each direction as slow as
//! its reader, and both end with the environment.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use http::StatusCode;
use kubler_core::frames::websocket::Sender;
use kubler_core::ids::RequestId;
use kubler_core::ledger::record::{Outcome, Upgraded as UpgradeRecord};
use kubler_core::request::upgrade::Agreed;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::admission::Admission;
use super::direction::{Direction, Stopped};
use super::gate::{Gate, Room};
use super::load::Turn;
use super::protocol::{Frames, Notes, last_words};
use super::status::Refused;
use super::stream::Cut;
use crate::ledger::Entry;

/// How long the last of what the API server said may take: the rest of a frame, and the words that say why.
const LAST_WORDS_MAX: Duration = Duration::from_millis(400);
/// How long a client has to read why before its connection ends.
const READ_WHY_MAX: Duration = Duration::from_millis(100);
/// How long all of its end may take behind those words.
const FAREWELL_MAX: Duration = Duration::from_millis(400);

/// How long one direction may go on when the other is closed.
const HALF_CLOSED_MAX: Duration = Duration::from_secs(30);

/// A changed connection as the gate sees it.
pub(super) struct OpenTunnel {
    admission: Mutex<Arc<Admission>>,
    cut: OnceLock<Cut>,
    is_cut: CancellationToken,
}

impl OpenTunnel {
    /// One that begins.
    pub(super) fn new(admission: Arc<Admission>) -> Arc<Self> {
        Arc::new(Self {
            admission: Mutex::new(admission),
            cut: OnceLock::new(),
            is_cut: CancellationToken::new(),
        })
    }

    /// On what ground it is open.
    pub(super) fn admission(&self) -> Arc<Admission> {
        Arc::clone(
            &self
                .admission
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// It was allowed again.
    pub(super) fn readmit(&self, admission: Arc<Admission>) {
        *self
            .admission
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = admission;
    }

    /// Ends it, and lets its task say why.
    pub(super) fn cut(&self, cut: &Cut) {
        // Whoever came first says why.
        let _ = self.cut.set(cut.clone());
        self.is_cut.cancel();
    }
}

/// What a tunnel needs to be carried, and to be written into the ledger when it is over.
pub(super) struct Tunnel {
    pub(super) open: Arc<OpenTunnel>,
    pub(super) gate: Arc<Gate>,
    pub(super) place: u64,
    pub(super) agreed: Agreed,
    pub(super) request_id: RequestId,
    pub(super) entry: Entry,
    pub(super) started: Instant,
    /// Its share of what may be open at once, and of what may be asked; free again when this is dropped.
    pub(super) shares: (Turn, Option<Room>),
}

/// What passed, and why no more does.
struct Carried {
    bytes_in: u64,
    bytes_out: u64,
    close_reason: &'static str,
    exit_code: Option<i32>,
}

impl Tunnel {
    /// Carries bytes until one side or we have had enough; `early` is what the API server said already.
    pub(super) async fn run<C, U>(self, client: C, upstream: U, early: &[u8])
    where
        C: AsyncRead + AsyncWrite,
        U: AsyncRead + AsyncWrite,
    {
        let carried = self.carry(client, upstream, early).await;
        self.over(carried);
    }

    /// There never was a client at the other end.
    pub(super) fn nobody_came(self) {
        let close_reason = self.cut_reason().unwrap_or("client");
        self.over(Carried {
            bytes_in: 0,
            bytes_out: 0,
            close_reason,
            exit_code: None,
        });
    }

    fn cut_reason(&self) -> Option<&'static str> {
        self.open.cut.get().map(|cut| cut.close_reason)
    }

    async fn carry<C, U>(&self, client: C, upstream: U, early: &[u8]) -> Carried
    where
        C: AsyncRead + AsyncWrite,
        U: AsyncRead + AsyncWrite,
    {
        let (from_client, to_client) = tokio::io::split(client);
        let (from_upstream, to_upstream) = tokio::io::split(upstream);
        let (notes, patience) = (Notes::default(), self.gate.bounds().patience);
        let frames = |sender| Frames::new(&self.agreed, sender);
        let (up, down) = (frames(Sender::Client), frames(Sender::Server));
        let mut up = Direction::new(from_client, to_upstream, up, notes.clone(), patience);
        let mut down = Direction::new(from_upstream, to_client, down, notes.clone(), patience);
        down.begin_with(early);
        let ended = tokio::select! {
            biased;
            () = self.open.is_cut.cancelled() => "shutdown",
            ended = carry_both(&mut up, &mut down) => ended,
        };
        let bytes_in = up.bytes();
        // What the client says from here on goes nowhere.
        let from_client = up.into_source();
        let refused = self.open.cut.get().map(|cut| cut.refused.clone());
        let words = refused
            .or_else(|| told_of(ended))
            .map(|refused| last_words(&self.agreed, &notes, &refused, self.request_id));
        let mut can_end = true;
        if let Some(words) = &words {
            let said = tokio::time::timeout(LAST_WORDS_MAX, down.end_with(&words.why)).await;
            can_end = said.unwrap_or(false);
        }
        let bytes_out = down.bytes();
        if let (Some(words), true) = (words, can_end) {
            let goodbye = farewell(from_client, down.into_sink(), &words.end);
            let _ = tokio::time::timeout(FAREWELL_MAX, goodbye).await;
        }
        Carried {
            bytes_in,
            bytes_out,
            close_reason: self.cut_reason().unwrap_or(ended),
            exit_code: notes.exit_code(),
        }
    }

    fn over(self, carried: Carried) {
        self.gate.leave(self.place);
        let outcome = Outcome {
            status: 101,
            bytes_in: carried.bytes_in,
            bytes_out: carried.bytes_out,
            duration_us: u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX),
            close_reason: Some(carried.close_reason.to_owned()),
            upgraded: Some(UpgradeRecord {
                protocol: self.agreed.protocol.as_str().to_owned(),
                subprotocol: self.agreed.subprotocol.clone(),
                exit_code: carried.exit_code,
            }),
            ..Outcome::default()
        };
        self.entry.end_now(outcome);
        drop(self.shares);
    }
}

/// Gives a client a moment to read why, says the end, and closes so that it is read as well: a socket that is closed
/// with unread bytes takes back what it has not delivered. Whoever goes by themselves is not held.
async fn farewell(
    mut from_client: impl AsyncRead + Unpin,
    mut to_client: impl AsyncWrite + Unpin,
    end: &[u8],
) {
    let mut nowhere = tokio::io::sink();
    let mut heard = std::pin::pin!(tokio::io::copy(&mut from_client, &mut nowhere));
    if tokio::time::timeout(READ_WHY_MAX, &mut heard).await.is_ok() {
        return;
    }
    if to_client.write_all(end).await.is_ok() && to_client.shutdown().await.is_ok() {
        let _ = heard.await;
    }
}

/// Carries both directions to their ends; gives the ledger's word for why.
async fn carry_both<A, B, C, D>(
    up: &mut Direction<A, B>,
    down: &mut Direction<C, D>,
) -> &'static str
where
    A: AsyncRead + Unpin,
    B: AsyncWrite + Unpin,
    C: AsyncRead + Unpin,
    D: AsyncWrite + Unpin,
{
    let mut carrying_up = std::pin::pin!(up.carry());
    let mut carrying_down = std::pin::pin!(down.carry());
    tokio::select! {
        ended = &mut carrying_up => match ended {
            // The client has said all it will; it may still listen.
            Stopped::Finished => match rest_of(carrying_down).await {
                // However the API server goes then, the client went first.
                Stopped::Finished | Stopped::SourceBroke => "client",
                stopped => reason_down(stopped),
            },
            stopped => reason_up(stopped),
        },
        ended = &mut carrying_down => match ended {
            Stopped::Finished => {
                let _ = rest_of(carrying_up).await;
                "upstream"
            }
            stopped => reason_down(stopped),
        },
    }
}

/// What a client is told of an end that nobody told it of.
fn told_of(reason: &'static str) -> Option<Refused> {
    let message = match reason {
        "upstream_garbage" => {
            "the environment's API server sent something that is not of the protocol that it agreed to"
        }
        "client_garbage" => "what was sent is not of the protocol that was agreed on",
        _ => return None,
    };
    let status = StatusCode::BAD_GATEWAY;
    let refused = Refused::other(status, "InternalError", "ProtocolBroken", message);
    Some(refused)
}

/// The other direction, when one has come to its end. Nobody is waited for without end who may have gone as well.
async fn rest_of(carrying: impl Future<Output = Stopped>) -> Stopped {
    let rest = tokio::time::timeout(HALF_CLOSED_MAX, carrying).await;
    rest.unwrap_or(Stopped::Finished)
}

const fn reason_up(stopped: Stopped) -> &'static str {
    match stopped {
        Stopped::Finished | Stopped::SourceBroke => "client",
        Stopped::SinkBroke => "upstream",
        Stopped::Garbage => "client_garbage",
        Stopped::Stalled => "slow_upstream",
    }
}

const fn reason_down(stopped: Stopped) -> &'static str {
    match stopped {
        Stopped::Finished | Stopped::SourceBroke => "upstream",
        Stopped::SinkBroke => "client",
        Stopped::Garbage => "upstream_garbage",
        Stopped::Stalled => "slow_reader",
    }
}
