//! What a job runs: bodies that carry a pod template are read before they go on, so that the ledger's start says which
//! images they name, and the store finds an environment by them. All other bodies pass as they come.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use kubler_core::artifact::{Artifact, BODY_BYTES_MAX, Workload};
use kubler_core::ids::EnvironmentId;
use kubler_core::ledger::record::KubernetesRequest;
use kubler_core::request::{ApiRequest, RequestFault};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::body::BodyState;
use super::forward::Admitted;
use super::gate::Gate;
use super::load::Turn;
use super::refusals::Stop;
use super::status::Refused;
use super::{Arrival, Bounds, Shared};
use crate::store::{IMAGES_PER_ENVIRONMENT_MAX, Store};

/// What bodies of one environment may take in memory at once, in KiB: two of the longest that are read.
const KEPT_KIB_MAX: usize = 2 * BODY_BYTES_MAX / KIB;
const KIB: usize = 1024;
/// Bodies that are longer than this are read beside the runtime, in bytes.
const LONG_BYTES: usize = 64 << 10;

/// A request that may go on, with what its body says it brings.
pub(super) type Whole = (Arc<Gate>, Admitted, Turn, Option<Box<Artifact>>);

/// What is known of what one environment runs.
pub(super) struct Artifacts {
    /// Room for bodies, in KiB.
    room: Arc<Semaphore>,
    /// Images that the store has as accepted.
    accepted: Mutex<HashSet<String>>,
}

impl Default for Artifacts {
    fn default() -> Self {
        Self {
            room: Arc::new(Semaphore::new(KEPT_KIB_MAX)),
            accepted: Mutex::default(),
        }
    }
}

impl Artifacts {
    /// Those of `images` that the store does not have yet.
    fn unknown(&self, images: Vec<String>) -> Vec<String> {
        let accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        let unknown = images.into_iter();
        unknown.filter(|image| !accepted.contains(image)).collect()
    }

    fn accept(&self, images: &[String]) {
        let mut accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        let max = usize::try_from(IMAGES_PER_ENVIRONMENT_MAX).unwrap_or(usize::MAX);
        let room = max.saturating_sub(accepted.len());
        accepted.extend(images.iter().take(room).cloned());
    }
}

impl Shared {
    /// Lets a request through when its turn has come and, where it carries a pod template, its body is here. As that
    /// may have taken a while, it is looked at anew then.
    pub(super) async fn admit_whole(
        self: &Arc<Self>,
        arrival: &mut Arrival,
        id: Option<EnvironmentId>,
        understood: Result<ApiRequest, RequestFault>,
    ) -> Result<Whole, Box<Stop>> {
        let (gate, admitted, turn) = self.admit_in_turn(arrival, id, understood).await?;
        let Some(workload) = Workload::written_by(admitted.understood.record()) else {
            return Ok((gate, admitted, turn, None));
        };
        let stop = |refused| Stop::of(admitted.admission.shared_session(), refused);
        let read = keep(&gate, &mut arrival.body, admitted.bytes_max).await;
        let (body, bytes) = read.map_err(stop)?;
        arrival.body = body;
        let request = admitted.understood.record().clone();
        let artifact = artifact(workload, request, &arrival.head.headers, bytes).await;
        let understood = admitted.understood.clone();
        drop(admitted);
        arrival.now = self.parts.clock.now();
        let (gate, admitted) = self.admit(arrival, id, Ok(understood))?;
        Ok((gate, admitted, turn, Some(Box::new(artifact))))
    }

    /// Notes the images of a request that is about to go on, so that none runs of which nobody knows.
    pub(super) async fn named(
        &self,
        gate: &Arc<Gate>,
        admitted: &Admitted,
        artifact: Artifact,
        now: Timestamp,
    ) -> Result<Noted, Refused> {
        let images = if admitted.understood.record().dry_run {
            Vec::new()
        } else {
            gate.artifacts().unknown(artifact.images)
        };
        if !images.is_empty() {
            let named = self.parts.store.images_named(gate.id(), &images, now).await;
            named.map_err(|error| {
                tracing::error!(%error, "a request was refused because its images could not be noted");
                Refused::unavailable("NotRecorded", "the request's images could not be recorded, so it was not sent on; try again in a moment")
            })?;
        }
        Ok(Noted {
            store: Arc::clone(&self.parts.store),
            gate: Arc::clone(gate),
            images,
            now,
        })
    }
}

/// Images that were noted before they were accepted.
pub(super) struct Noted {
    store: Arc<Store>,
    gate: Arc<Gate>,
    images: Vec<String>,
    now: Timestamp,
}

impl Noted {
    /// Notes how the request was answered. Nobody waits for it: until then they are found all the same.
    pub(super) fn answered(self, accepted: bool) {
        if self.images.is_empty() {
            return;
        }
        if accepted {
            self.gate.artifacts().accept(&self.images);
        }
        tokio::spawn(async move {
            let (id, now) = (self.gate.id(), self.now);
            let noted = self.store.images_answered(id, &self.images, accepted, now);
            if let Err(error) = noted.await {
                tracing::warn!(%error, environment = %id, "it could not be noted how images were answered");
            }
        });
    }
}

/// What the body says. Reading a long one takes milliseconds, in which the runtime would serve nobody.
async fn artifact(
    workload: &'static Workload,
    request: KubernetesRequest,
    headers: &HeaderMap,
    bytes: Option<Bytes>,
) -> Artifact {
    let media_type = headers.get(header::CONTENT_TYPE);
    let media_type = media_type
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    let is_long = bytes.as_ref().is_some_and(|bytes| bytes.len() > LONG_BYTES);
    let read = move || Artifact::read(workload, &request, media_type.as_deref(), bytes.as_deref());
    if is_long && let Ok(read) = tokio::task::spawn_blocking(read.clone()).await {
        return read;
    }
    read()
}

/// The body as it is to be sent on, and its bytes when it is here as a whole; `None` when it is longer than any that is
/// read.
async fn keep(
    gate: &Gate,
    body: &mut Body,
    bytes_max: u64,
) -> Result<(Body, Option<Bytes>), Refused> {
    let Bounds {
        wait_max,
        answer_max,
        ..
    } = gate.bounds();
    let hint = body.size_hint();
    let wanted = usize::try_from(hint.upper().unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
    let kib = u32::try_from(wanted.min(BODY_BYTES_MAX).div_ceil(KIB).max(1)).unwrap_or(u32::MAX);
    let room = Arc::clone(&gate.artifacts().room).acquire_many_owned(kib);
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
            .unwrap_or_else(super::forward::stopped)
    })?;
    let kept = Kept {
        first: (!bytes.is_empty()).then(|| bytes.clone()),
        rest: (!is_whole).then(|| std::mem::take(body)),
        _permit: permit,
    };
    Ok((Body::new(kept), is_whole.then_some(bytes)))
}

/// What comes of the body until it is over, or longer than any that is read.
async fn read(body: &mut Body, bytes_max: u64, bounds: Bounds) -> Result<(Bytes, bool), BodyState> {
    let mut bytes = BytesMut::new();
    loop {
        let frame = tokio::time::timeout(bounds.silence_max, body.frame()).await;
        match frame.map_err(|_| BodyState::Silent)? {
            None => return Ok((bytes.freeze(), true)),
            Some(Err(_)) => return Err(BodyState::Broken),
            Some(Ok(frame)) => bytes.extend_from_slice(&frame.into_data().unwrap_or_default()),
        }
        if bytes.len() as u64 > bytes_max {
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
