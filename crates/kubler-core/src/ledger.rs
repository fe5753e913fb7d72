//! The ledger's arithmetic: records, the Merkle tree over them, signed checkpoints, and offline verification.

pub mod record;
