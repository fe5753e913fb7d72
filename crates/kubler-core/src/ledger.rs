//! The ledger's arithmetic: records, the Merkle tree over them, signed checkpoints, and offline verification.
//!
//! On disk a ledger is a folder ([`layout`]). The leaf of a record is the exact bytes of its line, without the
//! line feed; whoever holds the lines, the checkpoints and the public key can check everything ([`verify`]).

pub mod checkpoint;
pub mod layout;
pub mod merkle;
pub mod notes;
pub mod record;
pub mod redact;
pub mod refusals;
pub mod verify;
