//! What a client sends, on its way to the API server: counted, bounded, and never waited for without end.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::StatusCode;
use http_body::{Body as _, Frame, SizeHint};
use kubler_core::guardrails::Refusal;
use tokio::time::{Instant, Sleep};

use super::status::Refused;

/// A request's body.
pub(super) enum RequestBody {
    /// None.
    Empty,
    /// As it comes.
    Stream(Box<Bounded>),
}

/// A body with its bounds.
pub(super) struct Bounded {
    body: Body,
    left: u64,
    silence_max: Duration,
    silence: Option<Pin<Box<Sleep>>>,
    progress: Arc<Progress>,
}

/// How far a body has come, for those who wait for the answer.
#[derive(Debug, Default)]
pub(super) struct Progress {
    bytes: AtomicU64,
    state: AtomicU8,
}

/// How long a body may be, and by what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BytesMax {
    /// By the bound on every request.
    Request(u64),
    /// By the guardrail on objects.
    Object(u64),
}

impl BytesMax {
    /// The bound.
    pub(super) const fn bytes(self) -> u64 {
        match self {
            Self::Request(bytes) | Self::Object(bytes) => bytes,
        }
    }

    /// What the caller is told whose body is longer.
    pub(super) fn refused(self) -> Refused {
        match self {
            Self::Request(bytes) => Refused::too_large(bytes),
            Self::Object(bytes_max) => {
                let refusal = Refusal::TooLarge { bytes_max };
                Refused::forbidden(refusal.code(), refusal.to_string())
            }
        }
    }
}

/// Where a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum BodyState {
    /// Still coming.
    Coming = 0,
    /// All of it was sent on.
    Done = 1,
    /// It had more bytes than it may have.
    TooLarge = 2,
    /// Nothing came for too long.
    Silent = 3,
    /// The client went away.
    Broken = 4,
}

impl BodyState {
    /// What the caller is told whose body did not come whole; `None` when it is not the body's fault.
    pub(super) fn refused(self, bytes_max: BytesMax) -> Option<Refused> {
        match self {
            Self::TooLarge => Some(bytes_max.refused()),
            Self::Silent => Some(Refused::other(
                StatusCode::REQUEST_TIMEOUT,
                "Timeout",
                "BodyTimeout",
                "the request's body stopped coming; send it again",
            )),
            Self::Broken => Some(Refused::bad_request(
                "BodyBroken",
                "the request's body broke off",
            )),
            Self::Coming | Self::Done => None,
        }
    }
}

/// Why the rest of a body is not sent on. The reason is in [`Progress`].
#[derive(Debug, thiserror::Error)]
#[error("the request's body was cut off")]
pub(super) struct CutOff;

impl RequestBody {
    /// Bounds `body` to `bytes_max`, and every silence in the middle of it to `silence_max`.
    pub(super) fn new(body: Body, bytes_max: u64, silence_max: Duration) -> (Self, Arc<Progress>) {
        let progress = Arc::new(Progress::default());
        if body.is_end_stream() {
            progress.set(BodyState::Done);
            return (Self::Empty, progress);
        }
        let bounded = Bounded {
            body,
            left: bytes_max,
            silence_max,
            silence: None,
            progress: Arc::clone(&progress),
        };
        (Self::Stream(Box::new(bounded)), progress)
    }

    /// Whether there is none, so that the request can be made again.
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }
}

impl Progress {
    /// Bytes sent on until now.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Where it is.
    pub(super) fn state(&self) -> BodyState {
        match self.state.load(Ordering::Acquire) {
            0 => BodyState::Coming,
            1 => BodyState::Done,
            2 => BodyState::TooLarge,
            3 => BodyState::Silent,
            _ => BodyState::Broken,
        }
    }

    fn set(&self, state: BodyState) {
        self.state.store(state as u8, Ordering::Release);
    }
}

impl Bounded {
    fn fail(&self, state: BodyState) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        self.progress.set(state);
        Poll::Ready(Some(Err(CutOff)))
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        loop {
            match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => {
                    self.silence = None;
                    // Trailers are headers that nobody has checked: they end here.
                    let Ok(bytes) = frame.into_data() else {
                        continue;
                    };
                    let length = bytes.len() as u64;
                    let Some(left) = self.left.checked_sub(length) else {
                        return self.fail(BodyState::TooLarge);
                    };
                    self.left = left;
                    self.progress.bytes.fetch_add(length, Ordering::Relaxed);
                    if self.body.is_end_stream() {
                        self.progress.set(BodyState::Done);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Poll::Ready(Some(Err(_))) => return self.fail(BodyState::Broken),
                Poll::Ready(None) => {
                    self.progress.set(BodyState::Done);
                    return Poll::Ready(None);
                }
                Poll::Pending => return self.wait(context),
            }
        }
    }

    fn wait(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        let limit = self.silence_max;
        let silence = self
            .silence
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + limit)));
        match silence.as_mut().poll(context) {
            Poll::Ready(()) => self.fail(BodyState::Silent),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = CutOff;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Stream(bounded) => bounded.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Stream(bounded) => bounded.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Stream(bounded) => bounded.body.size_hint(),
        }
    }
}
