//! `kubler`: what jobs and people call. It runs in every CI job, so it starts at once and links little.

#![allow(
    unreachable_pub,
    reason = "in a program, `pub` says what a module offers to the others"
)]

mod arguments;
mod clock;
mod commands;
mod exit;
mod hook;
mod job;
mod output;
mod process;
mod renewer;
mod server;
mod variables;

use std::process::ExitCode;

use clap::Parser as _;

use crate::arguments::{Arguments, Command};
use crate::exit::{Exit, Outcome};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => code,
        Err(failure) => {
            output::remark(&failure.lines());
            ended(failure.exit)
        }
    }
}

fn run(arguments: &Arguments) -> Outcome<ExitCode> {
    let Arguments {
        connection,
        output,
        command,
    } = arguments;
    match command {
        Command::Env(command) => {
            return Ok(ended(commands::environment::run(
                command, connection, *output,
            )?));
        }
        Command::Kubeconfig(arguments) => {
            commands::kubeconfig::run(arguments, connection, *output)?
        }
        Command::Credential(arguments) => commands::credential::run(arguments, connection)?,
        Command::Run(arguments) => {
            return Ok(ExitCode::from(commands::run::run(arguments, connection)?));
        }
        Command::Trace(arguments) => commands::trace::run(arguments, connection, *output)?,
        Command::Approval(command) => commands::approval::run(command, connection, *output)?,
        Command::Policy(command) => {
            return Ok(ended(commands::policy::run(command, connection, *output)?));
        }
        Command::Ledger(command) => {
            return Ok(ended(commands::ledger::run(command, connection, *output)?));
        }
        Command::Doctor(arguments) => {
            return Ok(ended(commands::doctor::run(
                arguments, connection, *output,
            )?));
        }
        Command::Completions(arguments) => commands::completions::run(arguments)?,
        Command::Reference => commands::reference::run()?,
        Command::Hook(command) => hook::run(command)?,
        Command::Renewer(arguments) => renewer::run(arguments, connection)?,
    }
    Ok(ended(Exit::Done))
}

fn ended(exit: Exit) -> ExitCode {
    ExitCode::from(exit as u8)
}
