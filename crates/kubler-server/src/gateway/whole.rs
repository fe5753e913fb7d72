//! Bodies that must be here before a request goes on: those that carry a pod template, those that a guardrail looks at,
//! and those that are approved. All others pass as they come.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use kubler_core::artifact::{Artifact, BODY_BYTES_MAX, Workload};
use kubler_core::ids::{ApprovalId, EnvironmentId};
use kubler_core::request::{ApiRequest, RequestFault};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::artifacts::artifact;
use super::body::{BodyState, BytesMax};
use super::forward::{Admitted, stopped};
use super::gate::Gate;
use super::load::Turn;
use super::refusals::Stop;
use super::status::Refused;
use super::{Arrival, Bounds, Shared};

/// What bodies of one environment may take in memory at once, in KiB: two of the longest that are read.
const KEPT_KIB_MAX: usize = 2 * BODY_BYTES_MAX / KIB;
const KIB: usize = 1024;

/// Room for the bodies of one environment.
pub(super) struct BodyRoom(Arc<Semaphore>);

impl Default for BodyRoom {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(KEPT_KIB_MAX)))
    }
}

/// A request that may go on.
pub(super) struct Whole {
    pub(super) gate: Arc<Gate>,
    pub(super) admitted: Admitted,
    pub(super) turn: Turn,
    /// What its body brings, when that is something to run.
    pub(super) artifact: Option<Box<Artifact>>,
    /// The approval that it used up.
    pub(super) approval: Option<ApprovalId>,
}

impl Shared {
    /// Lets a request through when its turn has come and, where it matters, its body is here. As that may have taken a
    /// while, it is looked at anew then.
    pub(super) async fn admit_whole(
        self: &Arc<Self>,
        arrival: &mut Arrival,
        id: Option<EnvironmentId>,
        understood: Result<ApiRequest, RequestFault>,
    ) -> Result<Whole, Box<Stop>> {
        let (gate, admitted, turn) = self.admit_in_turn(arrival, id, understood).await?;
        let workload = Workload::written_by(admitted.understood.record());
        if workload.is_none() && !admitted.needs.body() {
            return Ok(Whole {
                gate,
                admitted,
                turn,
                artifact: None,
                approval: None,
            });
        }
        let stop = |refused| Stop::of(admitted.admission.shared_session(), refused);
        let read = keep(&gate, &mut arrival.body, admitted.bytes_max).await;
        let (body, bytes) = read.map_err(stop)?;
        arrival.body = body;
        let understood = admitted.understood.clone();
        drop(admitted);
        arrival.now = self.parts.clock.now();
        let (gate, admitted) = self.admit(arrival, id, Ok(understood))?;
        let approval = match self.look_into(arrival, &admitted, bytes.as_deref()) {
            Ok(approval) => approval,
            Err(held) => return Err(self.told(held).await),
        };
        let artifact = match workload {
            None => None,
            Some(workload) => {
                let request = admitted.understood.record().clone();
                let read = artifact(workload, request, &arrival.head.headers, bytes).await;
                Some(Box::new(read))
            }
        };
        Ok(Whole {
            gate,
            admitted,
            turn,
            artifact,
            approval,
        })
    }
}

/// The body as it is to be sent on, and its bytes when it is here as a whole; `None` when it is longer than any that is
/// read.
async fn keep(
    gate: &Gate,
    body: &mut Body,
    bytes_max: BytesMax,
) -> Result<(Body, Option<Bytes>), Refused> {
    let Bounds {
        wait_max,
        answer_max,
        ..
    } = gate.bounds();
    let hint = body.size_hint();
    let wanted = usize::try_from(hint.upper().unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
    let kib = u32::try_from(wanted.min(BODY_BYTES_MAX).div_ceil(KIB).max(1)).unwrap_or(u32::MAX);
    let room = Arc::clone(&gate.body_room().0).acquire_many_owned(kib);
    let Ok(Ok(permit)) = tokio::time::timeout(wait_max, room).await else {
        let message = "more bodies of this environment are on their way than are read at once; try again in a moment";
        return Err(Refused::too_many("TooManyBodies", message, wait_max));
    };
    let read = read(body, bytes_max, gate.bounds());
    let (bytes, is_whole) = tokio::select! {
        read = tokio::time::timeout(answer_max, read) => read.unwrap_or(Err(BodyState::Silent)),
        () = gate.closed() => Err(BodyState::Broken),
    }
    .map_err(|state| {
        let closed = gate.cut().map(|cut| cut.refused.clone());
        closed
            .or_else(|| state.refused(bytes_max))
            .unwrap_or_else(stopped)
    })?;
    let kept = Kept {
        first: (!bytes.is_empty()).then(|| bytes.clone()),
        rest: (!is_whole).then(|| std::mem::take(body)),
        _permit: permit,
    };
    Ok((Body::new(kept), is_whole.then_some(bytes)))
}

/// What comes of the body until it is over, or longer than any that is read.
async fn read(
    body: &mut Body,
    bytes_max: BytesMax,
    bounds: Bounds,
) -> Result<(Bytes, bool), BodyState> {
    let mut bytes = BytesMut::new();
    loop {
        let frame = tokio::time::timeout(bounds.silence_max, body.frame()).await;
        match frame.map_err(|_| BodyState::Silent)? {
            None => return Ok((bytes.freeze(), true)),
            Some(Err(_)) => return Err(BodyState::Broken),
            Some(Ok(frame)) => bytes.extend_from_slice(&frame.into_data().unwrap_or_default()),
        }
        if bytes.len() as u64 > bytes_max.bytes() {
            return Err(BodyState::TooLarge);
        }
        if bytes.len() > BODY_BYTES_MAX {
            return Ok((bytes.freeze(), false));
        }
    }
}

/// A body whose beginning was read.
struct Kept {
    first: Option<Bytes>,
    rest: Option<Body>,
    _permit: OwnedSemaphorePermit,
}

impl http_body::Body for Kept {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        match (this.first.take(), &mut this.rest) {
            (Some(first), _) => Poll::Ready(Some(Ok(Frame::data(first)))),
            (None, Some(rest)) => Pin::new(rest).poll_frame(context),
            (None, None) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.as_ref().map_or(0, |first| first.len() as u64);
        let rest = self
            .rest
            .as_ref()
            .map_or(SizeHint::with_exact(0), Body::size_hint);
        let mut hint = SizeHint::new();
        hint.set_lower(first + rest.lower());
        if let Some(upper) = rest.upper() {
            hint.set_upper(first + upper);
        }
        hint
    }
}
