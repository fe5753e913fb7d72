//! Environments that are namespaces of a real host cluster: made, used through the gateway, walled in, and ended without
//! a trace.

mod hosted;
mod life;
