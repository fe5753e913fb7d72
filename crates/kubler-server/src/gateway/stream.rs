//! An answer on its way to the client: bytes pass as they come, and it ends with its environment.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use kubler_core::ids::RequestId;
use kubler_core::ledger::record::Outcome;
use kubler_core::request::Span;
use tokio::time::Instant;

use super::admission::Admission;
use super::body::{BodyState, Progress};
use super::framing::Framing;
use super::gate::{Gate, Room, Watched};
use super::load::Turn;
use super::status::Refused;
use super::wire::Wire;
use crate::ledger::Entry;

/// Why an open answer is ended from our side.
#[derive(Debug, Clone)]
pub(super) struct Cut {
    /// The ledger's word.
    pub(super) close_reason: &'static str,
    /// What the client is told, where its protocol has a place for it.
    pub(super) refused: Refused,
}

/// What an answer needs to go on, and to be written into the ledger when it is over.
pub(super) struct Running {
    pub(super) wire: Wire,
    pub(super) incoming: Incoming,
    pub(super) entry: Entry,
    pub(super) progress: Arc<Progress>,
    pub(super) framing: Framing,
    pub(super) status: u16,
    pub(super) started: Instant,
    pub(super) bytes_out: u64,
    /// Its share of what the API server may be asked at once; free again when this is dropped.
    pub(super) turn: Turn,
    /// Its share of what may be open at once; free again when this is dropped.
    pub(super) _room: Option<Room>,
}

impl Running {
    fn outcome(&self, close_reason: Option<&str>) -> Outcome {
        Outcome {
            status: self.status,
            bytes_in: self.progress.bytes(),
            bytes_out: self.bytes_out,
            duration_us: u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX),
            close_reason: close_reason.map(str::to_owned),
            ..Outcome::default()
        }
    }

    /// Writes the end and lets the connection go: back to the others, or closed when it cannot be used again.
    fn over(self, gate: &Gate, close_reason: Option<&str>) {
        let outcome = self.outcome(close_reason);
        self.entry.end_now(outcome);
        if self.progress.state() == BodyState::Done {
            gate.pool().give_back(self.wire);
        }
    }

    /// Writes the end and closes the connection, whatever is still on it.
    fn broken(self, close_reason: &str) {
        let outcome = self.outcome(Some(close_reason));
        self.entry.end_now(outcome);
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, hyper::Error>>> {
        let mut has_driven = false;
        loop {
            match Pin::new(&mut self.incoming).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => {
                    // Trailers are headers that nobody has checked: they end here.
                    let Ok(bytes) = frame.into_data() else {
                        continue;
                    };
                    self.bytes_out += bytes.len() as u64;
                    self.turn.answered(bytes.len() as u64);
                    self.framing.passed(&bytes);
                    return Poll::Ready(Some(Ok(bytes)));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending if has_driven => return Poll::Pending,
                Poll::Pending => {
                    self.wire.drive(context);
                    has_driven = true;
                }
            }
        }
    }
}

/// How far an answer is.
enum Flow {
    /// On its way.
    Running(Box<Running>),
    /// Ended by us; the client is to be told by these last bytes, or by breaking off when there are none.
    Cut(Option<Bytes>),
    /// Nothing is left to do.
    Over,
}

impl Flow {
    /// What runs, which then runs no more; what has ended already stays as it is.
    fn take_running(&mut self) -> Option<Box<Running>> {
        match std::mem::replace(self, Self::Over) {
            Self::Running(running) => Some(running),
            ended => {
                *self = ended;
                None
            }
        }
    }
}

struct State {
    flow: Flow,
    admission: Arc<Admission>,
    waker: Option<Waker>,
    /// Since when the client has bytes that it has not taken.
    given_at: Option<Instant>,
}

/// An answer as the gate sees it: something that can be ended at any moment, also while the client reads nothing.
pub(super) struct OpenStream {
    state: Mutex<State>,
    request_id: RequestId,
    span: Span,
}

impl OpenStream {
    /// An answer that begins.
    pub(super) fn new(
        running: Running,
        admission: Arc<Admission>,
        request_id: RequestId,
        span: Span,
    ) -> Arc<Self> {
        let state = State {
            flow: Flow::Running(Box::new(running)),
            admission,
            waker: None,
            given_at: None,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            request_id,
            span,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// On what ground it is open.
    pub(super) fn admission(&self) -> Arc<Admission> {
        Arc::clone(&self.state().admission)
    }

    /// It was allowed again.
    pub(super) fn readmit(&self, admission: Arc<Admission>) {
        self.state().admission = admission;
    }

    /// Whether the client has taken nothing of what it was given for so long.
    pub(super) fn is_stalled(&self, stall_max: Duration) -> bool {
        let given_at = self.state().given_at;
        given_at.is_some_and(|at| at.elapsed() > stall_max)
    }

    /// Ends it: the way to the API server is closed before this returns, and the client learns of it at once
    /// unless it has stopped reading.
    pub(super) fn cut(&self, cut: &Cut) {
        let mut state = self.state();
        let Some(running) = state.flow.take_running() else {
            return;
        };
        let last = running.framing.last(&cut.refused, self.request_id);
        running.broken(cut.close_reason);
        state.flow = Flow::Cut(last);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
}

/// The client was cut off in the middle of an answer that cannot be ended early.
#[derive(Debug, thiserror::Error)]
#[error("the answer was broken off")]
pub(super) struct BrokenOff;

/// The body of an answer.
pub(super) struct AnswerBody {
    stream: Arc<OpenStream>,
    gate: Arc<Gate>,
    place: Option<u64>,
    length: Option<u64>,
    is_over: bool,
}

impl AnswerBody {
    /// The body of `stream`, under watch from the beginning: a client that does not read must not keep it open.
    pub(super) fn new(stream: Arc<OpenStream>, gate: Arc<Gate>, length: Option<u64>) -> Self {
        let place = Some(gate.enter(Watched::Answer(Arc::clone(&stream))));
        Self {
            stream,
            gate,
            place,
            length,
            is_over: false,
        }
    }

    fn leave(&mut self) {
        self.is_over = true;
        if let Some(place) = self.place.take() {
            self.gate.leave(place);
        }
    }

    /// The next bytes; `None` when there are no more.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, BrokenOff>>> {
        if let Some(cut) = self.gate.cut() {
            self.stream.cut(cut);
        }
        let mut state = self.stream.state();
        state.given_at = None;
        let polled = match &mut state.flow {
            Flow::Running(running) => running.poll(context),
            Flow::Cut(last) => {
                let last = last.take();
                state.flow = Flow::Over;
                return Poll::Ready(last.map_or(Some(Err(BrokenOff)), |bytes| {
                    (!bytes.is_empty()).then_some(Ok(bytes))
                }));
            }
            Flow::Over => return Poll::Ready(None),
        };
        match polled {
            Poll::Pending => {
                match &mut state.waker {
                    Some(waker) => waker.clone_from(context.waker()),
                    none => *none = Some(context.waker().clone()),
                }
                Poll::Pending
            }
            Poll::Ready(Some(Ok(bytes))) => {
                state.given_at = Some(Instant::now());
                let is_last = matches!(&state.flow, Flow::Running(running) if running.incoming.is_end_stream());
                if is_last {
                    finish(&mut state, &self.gate, self.stream.span);
                    self.is_over = true;
                }
                Poll::Ready(Some(Ok(bytes)))
            }
            Poll::Ready(None) => {
                finish(&mut state, &self.gate, self.stream.span);
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(_))) => {
                if let Some(running) = state.flow.take_running() {
                    running.broken("upstream");
                }
                Poll::Ready(Some(Err(BrokenOff)))
            }
        }
    }
}

fn finish(state: &mut State, gate: &Gate, span: Span) {
    if let Some(running) = state.flow.take_running() {
        // Being over is what a short answer is for; whoever follows wants to know why it stopped.
        running.over(gate, (span != Span::Short).then_some("upstream"));
    }
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let this = self.get_mut();
        if this.is_over {
            return Poll::Ready(None);
        }
        let polled = this.poll(context);
        match &polled {
            Poll::Ready(Some(Ok(bytes))) => {
                this.length = this
                    .length
                    .map(|left| left.saturating_sub(bytes.len() as u64));
            }
            Poll::Ready(None | Some(Err(_))) => this.leave(),
            Poll::Pending => {}
        }
        if this.is_over {
            this.leave();
        }
        polled.map(|next| next.map(|result| result.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }

    fn size_hint(&self) -> SizeHint {
        self.length
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        self.leave();
        let mut state = self.stream.state();
        if let Some(running) = state.flow.take_running() {
            running.broken("client");
        }
    }
}
