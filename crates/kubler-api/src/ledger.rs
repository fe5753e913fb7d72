//! The ledger over HTTP.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /v1/ledger/checkpoint`: the latest signed checkpoint. Any job may keep one; it says nothing but size and root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Checkpoint {
    /// The signed note in C2SP form, newlines included.
    pub note: String,
    /// Records in the tree.
    pub size: u64,
}

/// `GET /v1/ledger/records?environment=&job=&from=&limit=`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Records {
    /// Records as they stand in the ledger, oldest first.
    pub records: Vec<serde_json::Value>,
    /// Where to go on; absent: that was all.
    pub next: Option<u64>,
}
