//! A whole real cluster with one real node, on this machine, as root: until standard input closes or a signal comes.
//!
//! This program is three: the supervisor, which anybody starts; the first process of a world of its own (mounts,
//! network, process ids), which reaps what is orphaned there; and what brings up the cluster inside that world. When
//! the supervisor dies, however it dies, the kernel ends that world as a whole.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a fixture that breaks stops, and what it prints is its interface"
)]

mod files;
mod images;
mod inside;
mod place;
mod supervisor;

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => supervisor::run().await,
        ["sweep"] => {
            place::Place::sweep_free();
            ExitCode::SUCCESS
        }
        ["first", number] => inside::first(number),
        ["inside", number] => inside::run(number.parse().expect("a number")).await,
        _ => {
            eprintln!("usage: lab [sweep]");
            ExitCode::FAILURE
        }
    }
}
