//! The one place that asks the machine for randomness.

use kubler_core::ids::{ApprovalId, EnvironmentId, ID_BYTES, RequestId, SessionId};

/// The machine has no randomness to give: nothing safe can be made.
#[derive(Debug, thiserror::Error)]
#[error("the operating system gives no random bytes")]
pub struct NoEntropy;

/// Random bytes from the operating system.
///
/// # Errors
/// When there are none; then no identifier or secret may be made.
pub fn random_bytes<const N: usize>() -> Result<[u8; N], NoEntropy> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| NoEntropy)?;
    Ok(bytes)
}

/// A new environment's id.
///
/// # Errors
/// Without randomness.
pub fn environment_id() -> Result<EnvironmentId, NoEntropy> {
    random_bytes::<ID_BYTES>().map(EnvironmentId::from_random)
}

/// A new session's id.
///
/// # Errors
/// Without randomness.
pub fn session_id() -> Result<SessionId, NoEntropy> {
    random_bytes::<ID_BYTES>().map(SessionId::from_random)
}

/// A new request's id.
///
/// # Errors
/// Without randomness.
pub fn request_id() -> Result<RequestId, NoEntropy> {
    random_bytes::<ID_BYTES>().map(RequestId::from_random)
}

/// A new approval's id.
///
/// # Errors
/// Without randomness.
pub fn approval_id() -> Result<ApprovalId, NoEntropy> {
    random_bytes::<ID_BYTES>().map(ApprovalId::from_random)
}
