//! What a job runs: the ledger's start says which images a request brings, and the store finds an environment by them.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::header::{self, HeaderMap};
use jiff::Timestamp;
use kubler_core::artifact::{Artifact, Workload};
use kubler_core::ledger::record::KubernetesRequest;

use super::Shared;
use super::forward::Admitted;
use super::gate::Gate;
use super::status::Refused;
use crate::store::{IMAGES_PER_ENVIRONMENT_MAX, Store};

/// Bodies that are longer than this are read beside the runtime, in bytes.
const LONG_BYTES: usize = 64 << 10;

/// What is known of what one environment runs.
#[derive(Default)]
pub(super) struct Artifacts {
    /// Images that the store has as accepted.
    accepted: Mutex<HashSet<String>>,
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
pub(super) async fn artifact(
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
