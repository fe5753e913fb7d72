//! One connection: how long it may stay when nothing is asked on it, and how it is told to go.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long a connection may be without an open request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Patience {
    /// Before its first one.
    pub(super) first: Duration,
    /// Between two. Pings are none.
    pub(super) rest: Duration,
    /// After it was told to go.
    pub(super) goodbye: Duration,
}

/// How many requests of one connection are open.
#[derive(Debug, Clone, Default)]
pub(super) struct Requests(Arc<watch::Sender<usize>>);

/// One open request. Dropped, it is over.
#[derive(Debug)]
pub(super) struct OpenRequest(Requests);

impl Requests {
    /// Resolves once none is open.
    pub(super) async fn over(&self) {
        // The sender lives as long as this does.
        let _ = self.0.subscribe().wait_for(|open| *open == 0).await;
    }

    pub(super) fn open(&self) -> OpenRequest {
        self.0.send_modify(|open| *open = open.saturating_add(1));
        OpenRequest(self.clone())
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.0.send_modify(|open| *open = open.saturating_sub(1));
    }
}

impl OpenRequest {
    /// One more on the same connection: for what goes on behind the answer.
    pub(super) fn another(&self) -> Self {
        self.0.open()
    }

    /// The request stays open until its answer is taken: for answers that go on, such as watches.
    pub(super) fn until_taken(self, body: Body) -> Body {
        Body::new(Kept { body, _open: self })
    }
}

struct Kept {
    body: Body,
    _open: OpenRequest,
}

impl HttpBody for Kept {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Drives a connection to its end. One that rests too long, or is in the way of a stop, is told to go: what is open
/// is answered, and nothing new is begun. One that does not go although nothing is open is dropped. `leave` tells it
/// to go. A connection whose protocol was changed is over, as far as HTTP goes: what is spoken on it now stays open.
pub(super) async fn drive<C: Future>(
    connection: C,
    leave: impl FnOnce(Pin<&mut C>),
    requests: &Requests,
    patience: Patience,
    stop: &CancellationToken,
) {
    let mut connection = std::pin::pin!(connection);
    let mut open = requests.0.subscribe();
    tokio::select! {
        // How a connection ends is the caller's business; what was asked on it is in the ledger.
        _ = &mut connection => return,
        () = rested(&mut open, patience.first, patience.rest) => {}
        () = stop.cancelled() => {}
    }
    leave(connection.as_mut());
    tokio::select! {
        _ = &mut connection => {}
        () = rested(&mut open, patience.goodbye, patience.goodbye) => {}
    }
}

/// Resolves once no request has been open for `first`, or for `then` after there was one.
async fn rested(open: &mut watch::Receiver<usize>, first: Duration, then: Duration) {
    let mut bound = first;
    loop {
        let changed = if *open.borrow_and_update() == 0 {
            match tokio::time::timeout(bound, open.changed()).await {
                Err(_) => return,
                Ok(changed) => changed,
            }
        } else {
            open.changed().await
        };
        if changed.is_err() {
            return;
        }
        bound = then;
    }
}

#[cfg(test)]
mod tests;
