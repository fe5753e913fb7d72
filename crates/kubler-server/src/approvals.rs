//! What operators said to single requests: the gateway asks, and they answer through the API.

use std::sync::{Mutex, PoisonError};

use kubler_core::guardrails::approvals::Approvals as All;

/// The approvals of this server.
#[derive(Debug, Default)]
pub struct Approvals(Mutex<All>);

impl Approvals {
    /// Looks at them, or changes them.
    pub fn with<T>(&self, look: impl FnOnce(&mut All) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
