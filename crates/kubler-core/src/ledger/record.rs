//! What one line of the ledger says. Secrets, bodies and tokens never get here; tokens only as digests.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::environment::Phase;
use crate::identity::Identity;
use crate::ids::{EnvironmentId, RequestId, SessionId};
use crate::policy::Grounds;

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

/// Every action the ledger knows. The reference page is generated from this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LedgerAction {
    /// The server started or stopped serving.
    #[serde(rename = "server.start")]
    ServerStart,
    /// The server stopped on purpose.
    #[serde(rename = "server.stop")]
    ServerStop,
    /// Policies were loaded, or a bad change was kept out.
    #[serde(rename = "policy.load")]
    PolicyLoad,
    /// A token or certificate was refused.
    #[serde(rename = "caller.refuse")]
    CallerRefuse,
    /// Several refusals of one source and reason, counted.
    #[serde(rename = "caller.refuse_many")]
    CallerRefuseMany,
    /// An environment was asked for.
    #[serde(rename = "environment.create")]
    EnvironmentCreate,
    /// An environment was looked at.
    #[serde(rename = "environment.read")]
    EnvironmentRead,
    /// A lease was renewed.
    #[serde(rename = "environment.renew")]
    EnvironmentRenew,
    /// An end was asked for.
    #[serde(rename = "environment.release")]
    EnvironmentRelease,
    /// A phase changed.
    #[serde(rename = "environment.phase")]
    EnvironmentPhase,
    /// Something that belonged to nothing was taken away.
    #[serde(rename = "environment.orphan")]
    EnvironmentOrphan,
    /// A credential was issued.
    #[serde(rename = "session.issue")]
    SessionIssue,
    /// A request to an environment's Kubernetes API.
    #[serde(rename = "kubernetes.request")]
    KubernetesRequest,
    /// A connection out of an environment was refused or allowed.
    #[serde(rename = "environment.egress")]
    EnvironmentEgress,
    /// A webhook came in.
    #[serde(rename = "webhook.receive")]
    WebhookReceive,
    /// Environments were searched.
    #[serde(rename = "trace.read")]
    TraceRead,
    /// The ledger was read.
    #[serde(rename = "ledger.read")]
    LedgerRead,
    /// Metrics were read.
    #[serde(rename = "metrics.read")]
    MetricsRead,
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
    /// The job, when the caller is one or the environment belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Box<Identity>>,
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
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, `connect`,
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
    /// Why a stream ended: `client`, `upstream`, `lease_end`, `deadline`, `released`, `session_expired`, `policy`, `shutdown`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close_reason: Option<String>,
}

impl Body {
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
            identity: None,
            operator: None,
            peer: None,
            decision: None,
            request: None,
            phase: None,
            outcome: None,
            details: serde_json::Map::new(),
        }
    }
}
