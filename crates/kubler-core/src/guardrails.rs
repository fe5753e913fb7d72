//! What a profile keeps its jobs from doing inside an environment, whatever the cluster's own rights say. Decided from
//! the request as it was understood, never from its method or its text (rule V4).

pub mod approvals;
mod faults;
mod matcher;
pub mod shared;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::faults::GuardrailFault;
pub use self::matcher::Matcher;
use crate::ledger::record::KubernetesRequest;
use crate::request::{ApiRequest, Effect};

/// Most matchers in one list of a profile.
pub const MATCHERS_MAX: usize = 100;
/// Most entries in one list of a matcher.
pub const MATCHED_MAX: usize = 100;
/// Smallest bound on one object, in bytes: below it hardly one fits.
pub const OBJECT_BYTES_MIN: u64 = 256;
/// Shortest time in which an approval may be given, in seconds: nobody reads faster.
pub const APPROVAL_SECONDS_MIN: u64 = 10;
/// Longest such time, in seconds.
pub const APPROVAL_SECONDS_MAX: u64 = 86_400;
/// The time when a profile does not say, in seconds: a quarter of an hour.
pub const APPROVAL_SECONDS_DEFAULT: u64 = 900;

/// What the gateway refuses to the jobs of a profile. Each refusal is a Kubernetes `Status` of code 403 that names the
/// guardrail, and stands in the ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Guardrails {
    /// Only reads go on: no change, also none as a dry run, and no exec, attach, port-forward or proxy. What a client asks
    /// about its own rights is a read.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// What is refused.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<Matcher>,
    /// Changes that are only allowed with `dryRun=All`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dry_run: Vec<Matcher>,
    /// Bound on the bytes of one object, or of one change to it, that a request may carry.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = OBJECT_BYTES_MIN))]
    pub object_bytes_max: Option<u64>,
    /// What needs the approval of an operator, one request at a time.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub approval: Vec<Matcher>,
    /// How long an approval can be given after it was asked for, and used after it was given, in seconds. Absent: 900.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = APPROVAL_SECONDS_MIN, max = APPROVAL_SECONDS_MAX))]
    pub approval_seconds: Option<u64>,
}

/// What else must be so before a request may go on. None of it can be seen without its body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// An approval, by the `approval` matcher of this place in the profile.
    pub approval: Option<usize>,
    /// That its body asks for a dry run, by the `dry_run` matcher of this place: a deletion with a body says it there,
    /// and nowhere else.
    pub dry_run_in_body: Option<usize>,
}

impl Needs {
    /// Whether the body must be here before the request goes on.
    pub const fn body(self) -> bool {
        self.approval.is_some() || self.dry_run_in_body.is_some()
    }
}

/// Why a guardrail refuses a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The profile is read-only.
    #[error(
        "guardrail `read_only` of profile `{profile}` refuses `{what}`: only reads are allowed; a profile without it allows changes"
    )]
    ReadOnly {
        /// The profile's name.
        profile: String,
        /// What was asked for.
        what: String,
    },
    /// It is denied.
    #[error(
        "guardrail `deny[{place}]` of profile `{profile}` refuses `{what}`; it stands in the server's configuration, which operators can change"
    )]
    Denied {
        /// Which entry of the list.
        place: usize,
        /// The profile's name.
        profile: String,
        /// What was asked for.
        what: String,
    },
    /// It may only be tried.
    #[error(
        "guardrail `dry_run[{place}]` of profile `{profile}` allows `{what}` only as a dry run: repeat it with `--dry-run=server` (`dryRun=All`)"
    )]
    DryRunOnly {
        /// Which entry of the list.
        place: usize,
        /// The profile's name.
        profile: String,
        /// What was asked for.
        what: String,
    },
    /// It is too large.
    #[error(
        "guardrail `object_bytes_max` of this environment\'s profile refuses a body of more than {bytes_max} bytes; send a smaller object, or several"
    )]
    TooLarge {
        /// The bound.
        bytes_max: u64,
    },
}

impl Refusal {
    /// The stable code, for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::ReadOnly { .. } => "ReadOnly",
            Self::Denied { .. } => "DeniedByProfile",
            Self::DryRunOnly { .. } => "DryRunOnly",
            Self::TooLarge { .. } => "ObjectTooLarge",
        }
    }
}

impl Guardrails {
    /// Whether there are none, so that a profile without them is what it was before there were any.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// How long an approval can be given or used, in seconds.
    pub fn approval_seconds(&self) -> u64 {
        self.approval_seconds.unwrap_or(APPROVAL_SECONDS_DEFAULT)
    }

    /// Whether a request of a job may go on, as far as its body does not matter; `bytes_min` is what its body has at
    /// least.
    ///
    /// # Errors
    /// The first guardrail that refuses it.
    pub fn check(
        &self,
        profile: &str,
        request: &ApiRequest,
        bytes_min: u64,
    ) -> Result<Needs, Refusal> {
        let record = request.record();
        let named = || (profile.to_owned(), what(record));
        if self.read_only && request.effect() != Effect::Read && !asks_about_itself(record) {
            let (profile, what) = named();
            return Err(Refusal::ReadOnly { profile, what });
        }
        if let Some(place) = matched(&self.deny, record) {
            let (profile, what) = named();
            return Err(Refusal::Denied {
                place,
                profile,
                what,
            });
        }
        let mut needs = Needs::default();
        if let Some(place) = matched(&self.dry_run, record) {
            if record.verb.starts_with("delete") {
                needs.dry_run_in_body = Some(place);
            } else if !record.dry_run {
                return Err(self.dry_run_only(place, profile, request));
            }
        }
        if let Some(refusal) = self.too_large(request, bytes_min) {
            return Err(refusal);
        }
        needs.approval = matched(&self.approval, record);
        Ok(needs)
    }

    /// The refusal of a body with so many bytes, if it is one.
    fn too_large(&self, request: &ApiRequest, bytes: u64) -> Option<Refusal> {
        let bytes_max = self.object_bytes_of(request)?;
        (bytes > bytes_max).then_some(Refusal::TooLarge { bytes_max })
    }

    /// The bound on the object that a request carries, when it may carry one.
    pub fn object_bytes_of(&self, request: &ApiRequest) -> Option<u64> {
        self.object_bytes_max
            .filter(|_| request.effect() == Effect::Change)
    }

    /// The refusal of a change that is no dry run.
    pub fn dry_run_only(&self, place: usize, profile: &str, request: &ApiRequest) -> Refusal {
        Refusal::DryRunOnly {
            place,
            profile: profile.to_owned(),
            what: what(request.record()),
        }
    }
}

fn matched(matchers: &[Matcher], record: &KubernetesRequest) -> Option<usize> {
    matchers.iter().position(|matcher| matcher.matches(record))
}

/// Whether a deletion is only tried. Where it has a body, the API server takes all options from there and looks at no
/// parameter.
pub fn is_dry_deletion(request: &ApiRequest, body: &[u8]) -> bool {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Options {
        #[serde(default)]
        dry_run: Option<Vec<String>>,
    }
    if body.is_empty() {
        return request.record().dry_run;
    }
    // In protobuf it is refused: kubectl writes JSON, and what is not understood is no dry run.
    let options = serde_json::from_slice::<Options>(body).ok();
    let asked = options.and_then(|options| options.dry_run);
    asked.is_some_and(|asked| !asked.is_empty() && asked.iter().all(|word| word == "All"))
}

/// Questions of a client about itself, which are asked by `create` and leave nothing behind.
fn asks_about_itself(record: &KubernetesRequest) -> bool {
    let group = record.group.as_deref().unwrap_or_default();
    let resource = record.resource.as_deref().unwrap_or_default();
    record.verb == "create"
        && record.subresource.is_none()
        && matches!(
            (group, resource),
            (
                "authorization.k8s.io",
                "selfsubjectaccessreviews" | "selfsubjectrulesreviews"
            ) | ("authentication.k8s.io", "selfsubjectreviews")
        )
}

/// The verb as guardrails know it: `proxy` is one of its own (rule V2), and `connect` is exec, attach and port-forward,
/// whatever method opens them (rule V1).
pub fn verb(record: &KubernetesRequest) -> &str {
    let leads_into_a_pod = matches!(
        record.subresource.as_deref(),
        Some("exec" | "attach" | "portforward")
    );
    if record.verb == "connect" && !leads_into_a_pod {
        "proxy"
    } else {
        &record.verb
    }
}

/// A request in one line for people, as `delete pods "web" in namespace "default"`.
pub fn what(record: &KubernetesRequest) -> String {
    let mut text = verb(record).to_owned();
    let Some(resource) = &record.resource else {
        text.extend([" ", record.path.as_deref().unwrap_or_default()]);
        return bounded(&text);
    };
    text.extend([" ", resource.as_str()]);
    let group = record.group.as_deref().filter(|group| !group.is_empty());
    text.extend(group.into_iter().flat_map(|group| [".", group]));
    text.extend(
        record
            .subresource
            .iter()
            .flat_map(|part| ["/", part.as_str()]),
    );
    text.extend(record.name.iter().flat_map(|name| [" ", name.as_str()]));
    let namespace = record.namespace.as_deref();
    text.extend(namespace.into_iter().flat_map(|it| [" in namespace ", it]));
    bounded(&text)
}

fn bounded(text: &str) -> String {
    crate::text::UntrustedText::new(text).as_str().to_owned()
}

#[cfg(test)]
mod tests;
