//! `make schemathesis`: asks a real server everything that its OpenAPI document allows, and much that it does not, as
//! nobody, as a job and as an operator. Fails on an answer that the document does not describe, and on any 5xx.
//!
//!     schemathesis ST [EXAMPLES]     ST: the program; EXAMPLES: cases of each operation and caller
#![allow(
    clippy::print_stdout,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a check talks, and stops at the first thing that does not hold"
)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kubler_testkit::buildkite::{Buildkite, Job};
use kubler_testkit::kubler::Server;
use tokio::process::Command;

/// Identity tokens live for five minutes; a run lasts longer.
const TOKEN_EVERY: Duration = Duration::from_secs(60);
/// Cases of each operation and caller.
const EXAMPLES: &str = "100";
/// The same cases in each run: what is found is found again.
const SEED: &str = "1";
/// What is run inside of schemathesis: real ids among the invented ones, and fresh tokens.
const HOOKS: &str = include_str!("hooks.py");

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    Nobody,
    Job,
    Operator,
}

impl Caller {
    /// Checks that take for granted what is not so here. To ask again by the same name gives the same environment, also
    /// when it has ended; and to make one or to renew it is for jobs, so that an operator's valid request is refused.
    const fn not_checked(self) -> &'static str {
        match self {
            Self::Nobody | Self::Job => "ensure_resource_availability",
            Self::Operator => "ensure_resource_availability,positive_data_acceptance",
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(program) = arguments.next() else {
        println!("usage: schemathesis ST [EXAMPLES]");
        return ExitCode::FAILURE;
    };
    let examples = arguments.next().unwrap_or_else(|| EXAMPLES.to_owned());
    let folder = tempfile::tempdir().expect("a folder");
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).log_filter("info").start().await;
    let mut failed = Vec::new();
    for caller in [Caller::Nobody, Caller::Job, Caller::Operator] {
        // A job of its own for each run, with an environment that it may look at, renew and end.
        let job = buildkite.build("app").start().job("fuzz").run();
        let environment = server.create(&job, "main").await;
        let id = environment["id"].as_str().expect("an id").to_owned();
        let began = Instant::now();
        let mut run = Run {
            program: &program,
            examples: &examples,
            folder: folder.path(),
            server: &server,
            job: &job,
            id,
        };
        let well = run.of(caller).await;
        println!(
            "schemathesis: as {caller:?}: {} after {:.0} s",
            if well { "all well" } else { "FINDINGS" },
            began.elapsed().as_secs_f64()
        );
        if !well {
            failed.push(caller);
        }
    }
    let log = server.log();
    let broke_down = log.lines().filter(|line| line.contains("broke down"));
    let broke_down: Vec<_> = broke_down.collect();
    if failed.is_empty() && broke_down.is_empty() {
        println!("schemathesis: no 5xx, no answer outside of the document");
        ExitCode::SUCCESS
    } else {
        println!("schemathesis: findings as {failed:?}; panics: {broke_down:#?}");
        ExitCode::FAILURE
    }
}

struct Run<'a> {
    program: &'a str,
    examples: &'a str,
    folder: &'a Path,
    server: &'a Server,
    job: &'a Job,
    id: String,
}

impl Run<'_> {
    async fn of(&mut self, caller: Caller) -> bool {
        let hooks = self.folder.join("kubler_hooks.py");
        std::fs::write(&hooks, HOOKS).expect("the hooks");
        let token = self.folder.join("token");
        self.mint(&token);
        let mut child = self
            .command(caller, &token)
            .spawn()
            .expect("schemathesis starts");
        loop {
            tokio::select! {
                status = child.wait() => return status.expect("its status").success(),
                () = tokio::time::sleep(TOKEN_EVERY) => self.mint(&token),
            }
        }
    }

    fn mint(&self, token: &Path) {
        let fresh = token.with_extension("new");
        std::fs::write(&fresh, self.server.token(self.job)).expect("a token");
        std::fs::rename(&fresh, token).expect("a token");
    }

    fn command(&self, caller: Caller, token: &Path) -> Command {
        let tls = self.server.folder().join("tls");
        let mut command = Command::new(self.program);
        command
            .current_dir(self.folder)
            .arg("run")
            .arg(format!("{}/openapi.json", self.server.url()))
            .arg("--tls-verify")
            .arg(self.server.ca())
            .args(["--max-examples", self.examples, "--seed", SEED])
            .args(["--request-timeout", "90", "--suppress-health-check", "all"])
            .args(["--continue-on-failure", "--warnings", "off", "--no-color"])
            .env("SCHEMATHESIS_HOOKS", "kubler_hooks")
            .env("PYTHONPATH", self.folder)
            .env("KUBLER_ENVIRONMENT", &self.id)
            .kill_on_drop(true);
        command.arg("--exclude-checks").arg(caller.not_checked());
        match caller {
            Caller::Nobody => {}
            Caller::Job => {
                command.env("KUBLER_TOKEN_FILE", token);
            }
            Caller::Operator => {
                let operator = self.operator(&tls);
                command.arg("--request-cert").arg(operator);
            }
        }
        command
    }

    /// Certificate and key in one file.
    fn operator(&self, tls: &Path) -> PathBuf {
        let mut pem = std::fs::read(tls.join("operator.pem")).expect("the operator");
        pem.extend(std::fs::read(tls.join("operator.key")).expect("the operator's key"));
        let file = self.folder.join("operator.pem");
        std::fs::write(&file, pem).expect("the operator");
        file
    }
}
