//! The broker: verifies who calls, decides, makes and ends environments, keeps the gate and the ledger.
//!
//! `broker` is the file to read first.

pub mod app;
pub mod approvals;
mod bearer;
pub mod broker;
pub mod clock;
pub mod config;
pub mod crash;
pub mod data_folder;
pub mod directory;
pub mod engine;
pub mod engines;
pub mod entropy;
mod files;
pub mod gateway;
pub mod http;
pub mod identity;
pub mod in_force;
pub mod init;
pub mod ledger;
pub mod maintenance;
pub mod metrics;
pub mod opening;
mod outgoing;
pub mod policy;
pub mod reading;
pub mod reference;
pub mod reload;
pub mod session;
pub mod start_error;
pub mod store;
pub mod tasks;
