//! How large a profile lets an environment become.

use kubler_core::profile::{MEMORY_BYTES_DEFAULT, Profile, STORED_BYTES_DEFAULT};
use serde::{Deserialize, Serialize};

/// How large one environment may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sizes {
    pub(super) memory_bytes_max: u64,
    pub(super) stored_bytes_max: u64,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            memory_bytes_max: MEMORY_BYTES_DEFAULT,
            stored_bytes_max: STORED_BYTES_DEFAULT,
        }
    }
}

impl From<&Profile> for Sizes {
    fn from(profile: &Profile) -> Self {
        Self {
            memory_bytes_max: profile.memory_bytes_max(),
            stored_bytes_max: profile.stored_bytes_max(),
        }
    }
}
