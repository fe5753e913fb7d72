//! Environments that are namespaces of a real host cluster: made, used through the gateway, walled in, and ended without
//! a trace.

mod drift;
mod ending;
pub(crate) mod hosted;
mod hosts;
mod killed;
mod life;
mod reaper;
mod walls;
