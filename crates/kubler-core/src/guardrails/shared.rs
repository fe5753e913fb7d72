//! What an environment on a cluster that it shares with others never asks for, whatever its role there says: rules V1
//! to V4. Nothing here can be granted by a profile. On a cluster of its own, a job may do all of it.

use http::header::HeaderMap;

use super::{asks_about_itself, verb, what};
use crate::ledger::record::KubernetesRequest;
use crate::request::headers::looks_like_impersonation;

/// Why a request is refused on a shared cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SharedFault {
    /// Somewhere else than in its own namespace.
    #[error(
        "`{what}` is outside of namespace `{namespace}`, which is all that this environment has of its cluster; name it, as in `kubectl --namespace {namespace}`"
    )]
    Elsewhere {
        /// What was asked for.
        what: String,
        /// The environment's namespace.
        namespace: String,
    },
    /// What no job has on a cluster that others use as well.
    #[error("`{what}` is never allowed on a cluster that environments share: {why}")]
    Never {
        /// What was asked for.
        what: String,
        /// What it would lead to.
        why: &'static str,
    },
}

impl SharedFault {
    /// The stable code, for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Elsewhere { .. } => "OutsideNamespace",
            Self::Never { .. } => "NeverOnSharedCluster",
        }
    }
}

/// Whether a request of an environment that has only `namespace` of its cluster may go on.
///
/// # Errors
/// When it reaches further, or would give the job more than its role.
pub fn check(
    namespace: &str,
    request: &KubernetesRequest,
    headers: &HeaderMap,
) -> Result<(), SharedFault> {
    let never = |why| {
        let what = what(request);
        Err(SharedFault::Never { what, why })
    };
    if headers
        .keys()
        .any(|name| looks_like_impersonation(name.as_str()))
    {
        return never("it would be asked as somebody else");
    }
    if verb(request) == "proxy" {
        return never("a proxy sends whatever it is told, past all that is decided here");
    }
    let (Some(group), Some(resource)) = (&request.group, &request.resource) else {
        return if is_discovery(request) {
            Ok(())
        } else {
            elsewhere(namespace, request)
        };
    };
    if let Some(why) = forbidden(group, resource, request) {
        return never(why);
    }
    let is_own = request.namespace.as_deref() == Some(namespace);
    if resource == "namespaces" && group.is_empty() {
        let is_look = request.verb == "get" && request.subresource.is_none();
        return if is_own && is_look {
            Ok(())
        } else {
            elsewhere(namespace, request)
        };
    }
    if is_own || asks_about_itself(request) {
        Ok(())
    } else {
        elsewhere(namespace, request)
    }
}

fn elsewhere(namespace: &str, request: &KubernetesRequest) -> Result<(), SharedFault> {
    Err(SharedFault::Elsewhere {
        what: what(request),
        namespace: namespace.to_owned(),
    })
}

/// What gives a job more than its role, or more than its namespace, wherever it is asked for (rules V2 and V3).
fn forbidden(group: &str, resource: &str, request: &KubernetesRequest) -> Option<&'static str> {
    let changes = !matches!(request.verb.as_str(), "get" | "list" | "watch");
    match (group, resource, request.subresource.as_deref()) {
        ("", "nodes", _) => Some("nodes belong to everybody on the cluster"),
        ("", "serviceaccounts", Some("token")) => {
            Some("it would be a credential that Kubler does not know of")
        }
        ("", "pods", Some("ephemeralcontainers")) => {
            Some("it would put a container into a pod past its admission")
        }
        ("certificates.k8s.io", _, _) => {
            Some("it would be a credential that Kubler does not know of")
        }
        ("admissionregistration.k8s.io", _, _) => Some("it would see and change what others send"),
        // The only way by which `bind` and `escalate` are used.
        ("rbac.authorization.k8s.io", _, _) if changes => {
            Some("rights come from the profile, and are given by nobody else")
        }
        _ => None,
    }
}

/// What every client reads to know which resources there are, and of which version the cluster is.
fn is_discovery(request: &KubernetesRequest) -> bool {
    if request.verb != "get" {
        return false;
    }
    let path = request.path.as_deref().unwrap_or_default();
    let mut parts = path.split('/').skip(1).filter(|part| !part.is_empty());
    let (first, depth) = (parts.next().unwrap_or_default(), parts.count());
    match first {
        "version" => depth == 0,
        "api" => depth <= 1,
        "apis" => depth <= 2,
        "openapi" => true,
        _ => false,
    }
}
