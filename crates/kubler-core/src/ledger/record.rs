//! What one line of the ledger says. Secrets, bodies and tokens never get here; tokens only as digests.

use std::io::Write as _;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::artifact::Artifact;
use crate::environment::Phase;
use crate::identity::Identity;
use crate::ids::{EnvironmentId, RequestId, SessionId};
use crate::policy::Grounds;
use crate::text::is_unsafe;

/// Beginning, end, or a thing that just happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Written before something is done.
    Start,
    /// Written after it was done or refused; `start` says which start it closes.
    End,
    /// Something that happened without a beginning of ours.
    Event,
}

macro_rules! actions {
    ($(#[doc = $doc:literal] $name:ident = $word:literal;)+) => {
        /// Every action the ledger knows. The reference page is generated from this list.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum LedgerAction {
            $(#[doc = $doc] #[serde(rename = $word)] $name,)+
        }

        impl LedgerAction {
            /// Every action.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The word in records.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)+ }
            }

            /// What it says, in one sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => $doc,)+ }
            }
        }
    };
}

actions! {
    /// The server started.
    ServerStart = "server.start";
    /// The server stopped on purpose.
    ServerStop = "server.stop";
    /// The ledger was put in order: after a crash by itself, otherwise by an operator who said why.
    LedgerRecover = "ledger.recover";
    /// The store was older than the ledger: what only the ledger knew is ended, what it tells gone stays so.
    StoreBehind = "store.behind";
    /// Policies were loaded, or a bad change was kept out.
    PolicyLoad = "policy.load";
    /// Certificates were loaded, or a bad change was kept out.
    CertificateLoad = "certificate.load";
    /// The configuration was loaded anew, or a bad change was kept out.
    ConfigurationLoad = "configuration.load";
    /// A token or certificate was refused.
    CallerRefuse = "caller.refuse";
    /// Several refusals of one source and reason, counted.
    CallerRefuseMany = "caller.refuse_many";
    /// An environment was asked for.
    EnvironmentCreate = "environment.create";
    /// An environment was looked at.
    EnvironmentRead = "environment.read";
    /// A lease was renewed.
    EnvironmentRenew = "environment.renew";
    /// An end was asked for.
    EnvironmentRelease = "environment.release";
    /// A phase changed.
    EnvironmentPhase = "environment.phase";
    /// Something that belonged to nothing was taken away.
    EnvironmentOrphan = "environment.orphan";
    /// A finalizer is taken away from an object on a host that keeps an environment from ending.
    EnvironmentFinalizer = "environment.finalizer";
    /// Something of an environment on a host is not as it was made: who changed it, and what becomes of it.
    EnvironmentDrift = "environment.drift";
    /// A credential was issued.
    SessionIssue = "session.issue";
    /// A request to an environment's Kubernetes API.
    KubernetesRequest = "kubernetes.request";
    /// A request was stopped until an operator approves it.
    ApprovalAsk = "approval.ask";
    /// An operator approved or refused a request.
    ApprovalAnswer = "approval.answer";
    /// Approvals were listed.
    ApprovalRead = "approval.read";
    /// A connection out of an environment was refused or allowed.
    EnvironmentEgress = "environment.egress";
    /// A webhook came in.
    WebhookReceive = "webhook.receive";
    /// Environments were searched.
    TraceRead = "trace.read";
    /// The ledger was read.
    LedgerRead = "ledger.read";
    /// Metrics were read.
    MetricsRead = "metrics.read";
}

/// One record: one line of canonical JSON, one leaf of the tree. Absent fields do not apply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Counts from 0 without gaps.
    pub sequence: u64,
    /// When it was written.
    pub at: Timestamp,
    /// What it says.
    #[serde(flatten)]
    pub body: Body,
}

/// A record before it has its place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Body {
    /// Beginning, end or event.
    pub kind: Kind,
    /// What it is about.
    pub action: LedgerAction,
    /// For an end: the sequence of its start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<u64>,
    /// The request it belongs to; also sent on as the Kubernetes Audit-ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// The environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment_id: Option<EnvironmentId>,
    /// The session used or issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<SessionId>,
    /// SHA-256 of the identity token, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_sha256: Option<String>,
    /// The token's `jti`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_id: Option<String>,
    /// By how many seconds the issuer's clock and ours were seen to differ (rule T6): positive when the token came
    /// from our future, negative when it was over already. Absent when both can be right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_skew_seconds: Option<i64>,
    /// The job, when the caller is one or the environment belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Box<Identity>>,
    /// For an end: the job of its start, which says the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<String>,
    /// The operator, when the caller is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
    /// Address of the other side, without its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// What policy said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// The Kubernetes request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<KubernetesRequest>,
    /// The object with a pod template that the request carries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<Box<Artifact>>,
    /// The change of phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<PhaseChange>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// What else matters for this action, by name.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub details: serde_json::Map<String, serde_json::Value>,
}

/// What policy said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "effect", rename_all = "snake_case")]
pub enum Decision {
    /// Allowed.
    Allow {
        /// By which policies.
        #[serde(flatten)]
        grounds: Grounds,
    },
    /// Denied.
    Deny {
        /// By which policies; none when nothing permitted it.
        #[serde(flatten)]
        grounds: Grounds,
        /// The permit that came closest and the conditions it failed, for people.
        closest: Vec<String>,
    },
}

/// A Kubernetes request as it was understood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubernetesRequest {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; `connect` for
    /// exec, attach and port-forward, `proxy` for what is proxied, both whatever the method (rules V1, V2);
    /// or the lower-case HTTP method when it is about no resource.
    pub verb: String,
    /// The path, when it is about no resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// API group; empty for the core group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// API version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// Subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subresource: Option<String>,
    /// Namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Which objects of a list or watch, by their labels; bounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_selector: Option<String>,
    /// Likewise, by their fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field_selector: Option<String>,
    /// Whether nothing is to be kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// The client's name for itself, bounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
}

/// A change of phase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseChange {
    /// Before; absent for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Phase>,
    /// After.
    pub to: Phase,
    /// Why, as a stable code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// How something ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// HTTP status that the caller saw; 0 when the caller was gone before.
    pub status: u16,
    /// Stable code of a refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Bytes from the caller.
    #[serde(default)]
    pub bytes_in: u64,
    /// Bytes to the caller.
    #[serde(default)]
    pub bytes_out: u64,
    /// From start to end, in microseconds.
    #[serde(default)]
    pub duration_us: u64,
    /// Why a stream ended: `client`, `upstream`, `lease_end`, `deadline`, `released`, `session_expired`, `policy`, `shutdown`,
    /// `slow_reader`, `slow_upstream`, `client_garbage`, `upstream_garbage`;
    /// or why something else has no other end: `client` (the caller was gone), `crash`, `not_durable`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close_reason: Option<String>,
    /// What was spoken, when the protocol was changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgraded: Option<Upgraded>,
}

/// A connection that spoke no HTTP after its beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgraded {
    /// `websocket` or `SPDY/3.1`.
    pub protocol: String,
    /// What was spoken inside, when both sides said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subprotocol: Option<String>,
    /// How the command ended, when its API server said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

/// The one control character that JSON does not escape and that is ASCII.
const DELETE: u8 = 0x7f;
/// Longest record, in bytes.
pub const RECORD_BYTES_MAX: usize = 32 * 1024;
/// Longest text for people in a record that would be too long, in characters.
pub const SHORTENED_CHARACTERS_MAX: usize = 256;

/// Why a line is not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotARecord {
    /// Not what a record looks like.
    #[error("it does not read as a record: {0}")]
    Unreadable(String),
    /// It reads as a record, but is not how the ledger writes that record.
    #[error("it is not written as the ledger writes this record")]
    NotCanonical,
}

/// Why a body cannot become a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a record of {bytes} bytes is longer than {RECORD_BYTES_MAX}, also without what it could do without"
)]
pub struct TooLong {
    /// How long it would be.
    pub bytes: usize,
}

/// A body in its written form: bounded, one line, without anything that looks like a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed(Vec<u8>);

impl Sealed {
    /// Bytes that the line needs at most, line feed included.
    pub fn line_bytes_max(&self) -> u64 {
        const PREFIX_BYTES_MAX: u64 = 90;
        u64::try_from(self.0.len())
            .unwrap_or(u64::MAX)
            .saturating_add(PREFIX_BYTES_MAX)
    }

    /// Appends the line of the record, without its line feed: exactly what serialising a [`Record`] gives.
    pub fn write_line(&self, sequence: u64, at: Timestamp, line: &mut Vec<u8>) {
        // Writing to memory cannot fail.
        let _ = write!(line, "{{\"sequence\":{sequence},\"at\":\"{at}\",");
        line.extend_from_slice(self.0.get(1..).unwrap_or_default());
    }
}

impl Record {
    /// Reads a line, without its line feed. Only the one way in which the ledger writes a record is accepted.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn from_line(line: &[u8]) -> Result<Self, NotARecord> {
        let record: Self = serde_json::from_slice(line)
            .map_err(|error| NotARecord::Unreadable(error.to_string()))?;
        let canonical = serde_json::to_vec(&record)
            .map_err(|error| NotARecord::Unreadable(error.to_string()))?;
        if canonical == line {
            Ok(record)
        } else {
            Err(NotARecord::NotCanonical)
        }
    }
}

impl Body {
    /// Whether it says that something ended: such a record may use the room that is kept for a full disk. A start never
    /// may, or whoever asks for ends without end would use the room up: an end that finds no room for its start goes on
    /// without it, and its change of phase is recorded here.
    pub const fn is_ending(&self) -> bool {
        match self.kind {
            Kind::Start => false,
            Kind::End => true,
            Kind::Event => matches!(
                self.action,
                LedgerAction::ServerStart
                    | LedgerAction::ServerStop
                    | LedgerAction::LedgerRecover
                    | LedgerAction::StoreBehind
                    | LedgerAction::EnvironmentPhase
                    | LedgerAction::EnvironmentOrphan
            ),
        }
    }

    /// Brings it into its written form. What looks like a token or a private key is replaced (rule L1), fractions
    /// become text (they have no single written form), and a body that is too long loses what it can do without.
    ///
    /// # Errors
    /// When it is still too long then.
    pub fn seal(mut self) -> Result<Sealed, TooLong> {
        for value in self.details.values_mut() {
            fractions_to_text(value);
        }
        let mut bytes = self.to_json();
        if bytes.len() > RECORD_BYTES_MAX {
            self.shorten();
            bytes = self.to_json();
        }
        if crate::ledger::redact::is_suspect(&bytes) {
            bytes = crate::ledger::redact::redact(&bytes);
        }
        if bytes.len() > RECORD_BYTES_MAX {
            Err(TooLong { bytes: bytes.len() })
        } else {
            Ok(Sealed(bytes))
        }
    }

    fn to_json(&self) -> Vec<u8> {
        // Most records fit, so that memory is asked for once.
        const USUAL_BYTES: usize = 2048;
        let mut bytes = Vec::with_capacity(USUAL_BYTES);
        // Fails only for maps whose keys are not text, of which there are none.
        if serde_json::to_writer(&mut bytes, self).is_err() {
            bytes.clear();
        }
        escape_unsafe(bytes)
    }

    fn shorten(&mut self) {
        self.details = serde_json::Map::from_iter([("shortened".to_owned(), Value::Bool(true))]);
        if let Some(Decision::Deny { closest, .. }) = &mut self.decision {
            closest.clear();
        }
        if let Some(artifact) = &mut self.artifact {
            artifact.shorten();
        }
        let request = self.request.as_mut();
        let texts = request
            .map(|r| {
                [
                    &mut r.path,
                    &mut r.user_agent,
                    &mut r.name,
                    &mut r.namespace,
                    &mut r.label_selector,
                    &mut r.field_selector,
                ]
            })
            .into_iter()
            .flatten();
        let messages = self
            .outcome
            .as_mut()
            .map(|outcome| &mut outcome.message)
            .into_iter();
        let phases = self
            .phase
            .as_mut()
            .map(|phase| &mut phase.message)
            .into_iter();
        for text in texts.chain(messages).chain(phases).flatten() {
            *text = text.chars().take(SHORTENED_CHARACTERS_MAX).collect();
        }
    }

    /// Notes by how much the clocks were seen to differ; 0 says nothing.
    pub fn note_clock_skew(&mut self, seconds: i64) {
        self.clock_skew_seconds = (seconds != 0).then_some(seconds);
    }

    /// A record with nothing but its kind and action.
    pub fn new(kind: Kind, action: LedgerAction) -> Self {
        Self {
            kind,
            action,
            start: None,
            request_id: None,
            environment_id: None,
            session_id: None,
            token_sha256: None,
            token_id: None,
            clock_skew_seconds: None,
            identity: None,
            job_id: None,
            operator: None,
            peer: None,
            decision: None,
            request: None,
            artifact: None,
            phase: None,
            outcome: None,
            details: serde_json::Map::new(),
        }
    }
}

/// Spells out what is not seen or changes direction, as in `\u{202e}`: nobody who looks at the ledger, in whatever
/// program, sees something else than what is there. In JSON such characters stand within texts only, and there
/// whatever is below U+0020 is escaped already.
fn escape_unsafe(json: Vec<u8>) -> Vec<u8> {
    let is_unsafe = |c: char| is_unsafe(c) && c >= ' ';
    if json.iter().all(|byte| byte.is_ascii() && *byte != DELETE) {
        return json;
    }
    match std::str::from_utf8(&json) {
        Ok(text) if text.chars().any(is_unsafe) => {
            let mut escaped = String::with_capacity(json.len() + 64);
            for c in text.chars() {
                if is_unsafe(c) {
                    escaped.push('\\');
                    escaped.extend(c.escape_unicode());
                } else {
                    escaped.push(c);
                }
            }
            escaped.into_bytes()
        }
        _ => json,
    }
}

fn fractions_to_text(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => *value = Value::String(number.to_string()),
        Value::Array(values) => values.iter_mut().for_each(fractions_to_text),
        Value::Object(fields) => fields.values_mut().for_each(fractions_to_text),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
