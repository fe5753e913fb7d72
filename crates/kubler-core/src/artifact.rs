//! What a job runs, as the bodies of its requests say it: which objects with a pod template it sent, and which images
//! they name. Bodies are read only for this, in the forms that an API server takes, and never kept.
//!
//! The reading is strict: what two readers could understand in two ways (a key that is given twice) is not understood,
//! and said to be so.

mod image;
mod protobuf;
mod text;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use self::image::{Image, ImageQuery};
use crate::ledger::record::KubernetesRequest;
use crate::ledger::redact;
use crate::text::{UntrustedText, plain};

/// Longest body that is read, in bytes: what an API server takes at most.
pub const BODY_BYTES_MAX: usize = 3 << 20;
/// Most images of one object that are recorded; the others are counted.
pub const IMAGES_MAX: usize = 64;
/// Most bytes of all images of one object that are recorded; the others are counted.
pub const IMAGES_BYTES_MAX: usize = 12 << 10;
/// Longest image that is recorded, in characters; the rest is cut.
pub const IMAGE_CHARACTERS_MAX: usize = 512;

/// An object with a pod template that a job sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// What it is, as `Deployment`.
    pub kind: String,
    /// Where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name, or the beginning of the name that it is to be given (`web-*`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What was sent of it.
    pub form: Form,
    /// SHA-256 of the body as it was sent, in hex; absent when it was too long to be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The images that it names, each once: of containers, init and ephemeral ones, and of volumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    /// How many more it names.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub images_left_out: u64,
    /// Why its images are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_understood: Option<NotUnderstood>,
}

/// What was sent of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// All of it.
    Object,
    /// What one manager wants of it.
    Apply,
    /// A change.
    Patch,
}

/// Why a body says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum NotUnderstood {
    /// In a form that is not read.
    #[error("its media type is not one that is read")]
    MediaType,
    /// Not what its media type says, or with more than one meaning.
    #[error("it does not read as what it says it is, or reads in more than one way")]
    Unreadable,
    /// Longer than [`BODY_BYTES_MAX`].
    #[error("it is longer than any that is read")]
    TooLong,
    /// A patch that takes an image from a place that the request does not show.
    #[error("it takes something from a place that the request does not show")]
    Copies,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
const fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// A kind of object with a pod template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    kind: &'static str,
    group: &'static str,
    resource: &'static str,
    /// The way to the pod's spec, by names.
    keys: &'static [&'static str],
    /// The same way by the numbers of protobuf.
    numbers: &'static [u32],
}

const fn workload(
    kind: &'static str,
    group: &'static str,
    resource: &'static str,
    keys: &'static [&'static str],
    numbers: &'static [u32],
) -> Workload {
    Workload {
        kind,
        group,
        resource,
        keys,
        numbers,
    }
}

const OF_SPEC: &[&str] = &["spec", "template", "spec"];

/// Every kind with a pod template that Kubernetes has; the numbers stand in its `generated.proto` and never change.
const WORKLOADS: [Workload; 9] = [
    workload("Pod", "", "pods", &["spec"], &[2]),
    workload(
        "PodTemplate",
        "",
        "podtemplates",
        &["template", "spec"],
        &[2, 2],
    ),
    workload(
        "ReplicationController",
        "",
        "replicationcontrollers",
        OF_SPEC,
        &[2, 3, 2],
    ),
    workload("Deployment", "apps", "deployments", OF_SPEC, &[2, 3, 2]),
    workload("StatefulSet", "apps", "statefulsets", OF_SPEC, &[2, 3, 2]),
    workload("DaemonSet", "apps", "daemonsets", OF_SPEC, &[2, 2, 2]),
    workload("ReplicaSet", "apps", "replicasets", OF_SPEC, &[2, 3, 2]),
    workload("Job", "batch", "jobs", OF_SPEC, &[2, 6, 2]),
    workload(
        "CronJob",
        "batch",
        "cronjobs",
        &["spec", "jobTemplate", "spec", "template", "spec"],
        &[2, 5, 2, 6, 2],
    ),
];

impl Workload {
    /// What kind of object with a pod template the request writes, if any.
    pub fn written_by(request: &KubernetesRequest) -> Option<&'static Self> {
        if !matches!(request.verb.as_str(), "create" | "update" | "patch") {
            return None;
        }
        let (group, resource) = (request.group.as_deref()?, request.resource.as_deref()?);
        let is_part = match request.subresource.as_deref() {
            None => true,
            // The only one through which a container is added.
            Some("ephemeralcontainers") => resource == "pods",
            Some(_) => false,
        };
        WORKLOADS
            .iter()
            .find(|known| is_part && known.group == group && known.resource == resource)
    }
}

/// What one reading found.
#[derive(Debug, Default)]
struct Found {
    name: Option<String>,
    generate_name: Option<String>,
    images: Vec<String>,
}

impl Artifact {
    /// What the body of a request says; `None` for `body` when it is longer than [`BODY_BYTES_MAX`].
    pub fn read(
        workload: &Workload,
        request: &KubernetesRequest,
        media_type: Option<&str>,
        body: Option<&[u8]>,
    ) -> Self {
        let media_type = media_type.unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim();
        let form = match (request.verb.as_str(), media_type) {
            ("patch", "application/apply-patch+yaml" | "application/apply-patch+cbor") => {
                Form::Apply
            }
            ("patch", _) => Form::Patch,
            _ => Form::Object,
        };
        let read = match body {
            None => Err(NotUnderstood::TooLong),
            Some(body) => found_in(workload, form, media_type, body),
        };
        let (found, not_understood) = match read {
            Ok(found) => (found, None),
            Err(fault) => (Found::default(), Some(fault)),
        };
        let beginning = found.generate_name.map(|text| format!("{text}*"));
        let name = request.name.clone().or(found.name).or(beginning);
        let (images, images_left_out) = bounded(found.images);
        Self {
            kind: workload.kind.to_owned(),
            namespace: request.namespace.clone(),
            name: name
                .filter(|text| !text.is_empty())
                .map(|text| clean(UntrustedText::new(&text).as_str())),
            form,
            sha256: body.map(|body| hex::encode(Sha256::digest(body))),
            images,
            images_left_out,
            not_understood,
        }
    }

    /// Leaves the images out of a record that would be too long.
    pub(crate) fn shorten(&mut self) {
        let left_out = u64::try_from(self.images.len()).unwrap_or(u64::MAX);
        self.images_left_out = self.images_left_out.saturating_add(left_out);
        self.images.clear();
    }
}

fn found_in(
    workload: &Workload,
    form: Form,
    media_type: &str,
    body: &[u8],
) -> Result<Found, NotUnderstood> {
    match (form, media_type) {
        (Form::Object, "" | "application/json") => text::json(workload, body),
        (
            Form::Patch,
            "application/merge-patch+json" | "application/strategic-merge-patch+json",
        ) => text::json(workload, body),
        (Form::Object, "application/yaml") | (Form::Apply, "application/apply-patch+yaml") => {
            text::yaml(workload, body)
        }
        (Form::Patch, "application/json-patch+json") => text::operations(workload, body),
        (Form::Object, "application/vnd.kubernetes.protobuf") => protobuf::read(workload, body),
        _ => Err(NotUnderstood::MediaType),
    }
}

/// Each image once, cleaned, as many as fit; and how many did not.
fn bounded(images: Vec<String>) -> (Vec<String>, u64) {
    let mut seen = std::collections::HashSet::new();
    let (mut kept, mut bytes, mut left_out) = (Vec::new(), 0, 0);
    for image in images.into_iter().filter(|image| !image.is_empty()) {
        let image = clean(&plain(image.chars().take(IMAGE_CHARACTERS_MAX)).collect::<String>());
        if !seen.insert(image.clone()) {
            continue;
        }
        if kept.len() < IMAGES_MAX && bytes + image.len() <= IMAGES_BYTES_MAX {
            bytes += image.len();
            kept.push(image);
        } else {
            left_out += 1;
        }
    }
    (kept, left_out)
}

/// As the ledger would write it, so that whatever else keeps it has the same.
fn clean(text: &str) -> String {
    redact::redact_text(text).unwrap_or_else(|| text.to_owned())
}

#[cfg(test)]
mod tests;
