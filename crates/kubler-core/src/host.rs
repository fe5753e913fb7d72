//! Environments on a host cluster: what may stand in one, and what Kubler itself may do there. Pure: the engine
//! carries it out.

pub mod drift;
pub mod grants;
pub mod mark;
pub mod names;
pub mod network;
pub mod objects;
pub mod placement;
pub mod quantity;
pub mod rbac;
pub mod reaper;
pub mod stuck;

/// What the name of every role for tenants begins with. Kubler may bind these roles and no other.
pub const TENANT_ROLE_PREFIX: &str = "kubler:tenant:";
/// Carries an environment's id: on its namespace as label, and on everything that is made for it.
pub const ENVIRONMENT_LABEL: &str = "kubler.dev/environment";
