//! The broker: verifies who calls, decides, makes and ends environments, keeps the gate and the ledger.
//!
//! `broker` is the file to read first.

pub mod clock;
pub mod config;
pub mod directory;
pub mod engine;
pub mod entropy;
pub mod gateway;
pub mod identity;
pub mod ledger;
pub mod policy;
pub mod session;
