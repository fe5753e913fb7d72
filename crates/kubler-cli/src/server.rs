//! What `kubler` asks of a server: environments, sessions, their ends.

pub mod answers;
pub mod client;
pub mod connected;
pub mod creation;
pub mod ending;
pub mod session;
pub mod trust;
