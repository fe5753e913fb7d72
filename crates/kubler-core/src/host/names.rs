//! What everything is called that Kubler makes on a host cluster.

use crate::environment::{Environment, Placement};
use crate::host::grants::Role;
use crate::host::rbac::{profile_role, tenant_role};
use crate::ids::{EnvironmentId, ID_BYTES};
use crate::profile::Profile;

/// Who owns the fields that we apply.
pub const FIELD_MANAGER: &str = "kubler";
/// The name of the quota, the limits, the network policy and the role binding in an environment's namespace.
pub const WALLS: &str = "kubler";
/// Carries the deadline on a namespace, for people.
pub const DEADLINE_ANNOTATION: &str = "kubler.dev/deadline";
/// Carries the job on a namespace, for people.
pub const JOB_ANNOTATION: &str = "kubler.dev/job-url";

/// Characters of a namespace's name behind the prefix.
pub(crate) const NAMESPACE_DIGITS: usize = ID_BYTES * 2;

/// The name of an environment's namespace, and of the tenant's service account.
pub fn namespace(prefix: &str, id: EnvironmentId) -> String {
    format!("{prefix}{}", id.digits())
}

/// Where the tenant's token stands for, as the host's API server names it.
pub fn tenant(placement: &Placement) -> String {
    format!(
        "system:serviceaccount:{}:{}",
        placement.accounts_namespace, placement.namespace
    )
}

/// The ClusterRole that a profile's tenants get, in their namespace.
pub fn role(profile: &Profile) -> String {
    let namespace = profile.namespace.as_ref();
    match namespace {
        Some(namespace) if !namespace.rules.is_empty() => profile_role(&profile.name),
        Some(namespace) => tenant_role(namespace.role.unwrap_or_default()),
        None => tenant_role(Role::default()),
    }
}

/// The placement of `environment` on a host.
pub fn placement(
    environment: &Environment,
    host: &crate::configuration::Host,
    kubernetes_version: String,
) -> Placement {
    Placement {
        host: host.name.clone(),
        namespace: namespace(&host.namespace_prefix, environment.id),
        accounts_namespace: host.accounts_namespace.clone(),
        kubernetes_version,
    }
}

/// Whether a text can name a namespace, or anything else that Kubernetes calls a DNS label.
pub(crate) fn is_dns_label(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let edges = [text.bytes().next(), text.bytes().last()];
    text.len() <= 63
        && edges.into_iter().all(|edge| edge.is_some_and(is_plain))
        && text.bytes().all(|byte| is_plain(byte) || byte == b'-')
}
