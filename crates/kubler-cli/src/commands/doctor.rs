//! `kubler doctor`: one thing after the other that must hold before a job gets its environment, and what to do
//! about each that does not.

mod findings;
mod identity;
mod usable;

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;
use jiff::{SignedDuration, Timestamp};
use kubler_api::Health;
use secrecy::ExposeSecret as _;
use serde_json::Value;

use crate::arguments::{Connection, Format};
use crate::clock::{self, Deadline};
use crate::commands::doctor::findings::Findings;
use crate::exit::{Exit, Failure, Outcome};
use crate::job::agent_api::JobApi;
use crate::job::folder::PrivateFolder;
use crate::job::token::CLAIMS;
use crate::output;
use crate::server::client::Caller;
use crate::server::connected::Connected;
use crate::variables;

/// Difference between two clocks from which tokens may be refused, in seconds.
const SKEW_SECONDS_MAX: i64 = 30;
/// Longest time for one look, in seconds.
const LOOK_SECONDS_MAX: u64 = 20;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Also say whether this profile may be used: an environment of it is asked for and ended at once, unless
    /// this job has one.
    #[arg(long, value_name = "PROFILE", env = variables::KUBLER_PROFILE, hide_env_values = true)]
    profile: Option<String>,
    /// Also look into this environment for pods that stay Pending: `env_…`.
    #[arg(value_name = "ENVIRONMENT", env = variables::KUBLER_ENVIRONMENT, hide_env_values = true)]
    environment: Option<String>,
}

/// Runs the command. Returns how to end.
pub fn run(arguments: &Arguments, connection: &Connection, format: Format) -> Outcome<Exit> {
    let mut findings = Findings::default();
    job(&mut findings);
    match Connected::new(connection, None, None) {
        Err(failure) => findings.wrong("server", &failure),
        Ok(connected) => {
            if server(&connected, &mut findings) && identity(&connected, &mut findings) {
                usable::look(arguments, &connected, &mut findings);
            }
        }
    }
    findings.print(format)?;
    Ok(if findings.are_well() {
        Exit::Done
    } else {
        Exit::Found
    })
}

/// What the agent gives a job.
fn job(findings: &mut Findings) {
    let Some(job) = variables::get(variables::BUILDKITE_JOB_ID) else {
        findings.note("job", "this is not a Buildkite job: tokens come from `--token-file` or an operator's certificate is used");
        return;
    };
    findings.ok("job", job);
    match JobApi::of_this_job().map(|api| api.hold()) {
        Some(Ok(_)) => findings.ok("job API", "answers: secrets are hidden from the log"),
        Some(Err(error)) => findings.wrong(
            "job API",
            &Failure::io("reach the job's API", &error).hint("in a container, mount its socket"),
        ),
        None => findings.note(
            "job API",
            "there is none: secrets that a command prints are not hidden from the log",
        ),
    }
    match PrivateFolder::of_this_job() {
        Ok(folder) => {
            findings.ok("private folder", folder.path().display().to_string());
            folder.remove_if_empty();
        }
        Err(failure) => findings.wrong("private folder", &failure),
    }
}

/// Whether the server can be asked anything.
fn server(connected: &Connected, findings: &mut Findings) -> bool {
    let begun = Instant::now();
    let health = match connected
        .client
        .health(Deadline::after(Duration::from_secs(LOOK_SECONDS_MAX)))
    {
        Ok(health) => health,
        Err(failure) => {
            findings.wrong("server", &failure);
            return false;
        }
    };
    let took = begun.elapsed();
    findings.ok(
        "server",
        format!(
            "{} answers in {} ms, its certificate is trusted",
            connected.client.server(),
            took.as_millis()
        ),
    );
    version(&health, findings);
    let halfway = SignedDuration::try_from(took / 2).unwrap_or_default();
    let skew = clock::now().duration_since(health.now) - halfway;
    if skew.as_secs().abs() > SKEW_SECONDS_MAX {
        let direction = if skew.is_negative() {
            "behind"
        } else {
            "ahead of"
        };
        let message = format!(
            "this machine's clock is {} {direction} the server's",
            output::span(skew.abs())
        );
        findings.wrong(
            "clock",
            &Failure::new(Exit::Found, message)
                .hint("set the clocks by NTP; tokens are judged by the server's"),
        );
    } else {
        findings.ok(
            "clock",
            format!("within {} s of the server's", skew.as_secs().abs() + 1),
        );
    }
    for (what, state) in health
        .checks
        .iter()
        .filter(|(_, state)| state.as_str() != "ok")
    {
        findings.wrong(
            "readiness",
            &Failure::new(Exit::Found, format!("{what}: {state}"))
                .hint("the operator finds more in the server's log"),
        );
    }
    true
}

fn version(health: &Health, findings: &mut Findings) {
    let own = env!("CARGO_PKG_VERSION");
    if health.version == own {
        findings.ok("version", own);
    } else {
        findings.note(
            "version",
            format!("server {}, this command {own}", health.version),
        );
    }
}

/// Who this is. Whether there is somebody whom the server believes.
fn identity(connected: &Connected, findings: &mut Findings) -> bool {
    let deadline = Deadline::after(Duration::from_secs(LOOK_SECONDS_MAX));
    let proof = match connected.proof(deadline) {
        Ok(proof) => proof,
        Err(failure) => {
            findings.wrong("identity", &failure);
            return false;
        }
    };
    match proof.caller() {
        Caller::Connection => {
            findings.ok("identity", "an operator, by client certificate");
            bounds(connected, findings, deadline);
            true
        }
        Caller::Token(token) => {
            let claims = claims(token.expose_secret());
            match &claims {
                Some(claims) => say_claims(claims, connected, findings),
                None => findings.wrong(
                    "token",
                    &Failure::new(Exit::Found, "the token's claims cannot be read")
                        .hint("give a token of the CI that signs for this job"),
                ),
            }
            identity::is_believed(connected, &proof, &claims.unwrap_or_default(), findings)
        }
    }
}

/// What the server's system holds each environment to: for operators, since it says how to get past it.
fn bounds(connected: &Connected, findings: &mut Findings, deadline: Deadline) {
    match connected.client.metrics(deadline) {
        Ok(metrics) => {
            let mut names = bounds_in_force(&metrics).collect::<Vec<_>>();
            names.sort_unstable();
            findings.ok("bounds", format!("by the system: {}", names.join(", ")));
        }
        Err(failure) => findings.wrong("bounds", &failure),
    }
}

/// The bounds that `metrics`, in OpenMetrics, say are in force.
fn bounds_in_force(metrics: &str) -> impl Iterator<Item = &str> {
    metrics.lines().filter_map(|line| {
        line.strip_prefix("kubler_environment_bounds{bound=\"")?
            .strip_suffix("\"} 1")
    })
}

fn claims(token: &str) -> Option<Value> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?).ok()
}

/// What the token says of itself. Whether that is believed, only the server knows.
fn say_claims(claims: &Value, connected: &Connected, findings: &mut Findings) {
    let claim = |name: &str| claims.get(name).and_then(Value::as_str).unwrap_or("absent");
    let message = format!(
        "{} for {}/{}, job {}",
        claim("iss"),
        claim("organization_slug"),
        claim("pipeline_slug"),
        claim("job_id")
    );
    let now = clock::now();
    let end = claims.get("exp").and_then(Value::as_i64);
    match end.and_then(|end| Timestamp::from_second(end).ok()) {
        Some(end) if end <= now => findings.wrong(
            "token",
            &Failure::new(
                Exit::Found,
                format!("{message}: it expired at {}", output::moment(end, now)),
            )
            .hint("get a fresh one; a file that holds a token must be kept fresh"),
        ),
        _ => findings.ok("token", message),
    }
    say_audience(claim("aud"), connected, findings);
    let missing: Vec<_> = CLAIMS
        .split(',')
        .filter(|name| claims.get(*name).is_none_or(Value::is_null))
        .collect();
    if missing.is_empty() {
        findings.ok("claims", CLAIMS);
    } else {
        findings.note(
            "claims",
            format!(
                "absent: {} (`--claim {CLAIMS}` asks for them)",
                missing.join(", ")
            ),
        );
    }
}

fn say_audience(found: &str, connected: &Connected, findings: &mut Findings) {
    let (audience, url) = (&connected.audience, connected.client.server());
    if found != audience {
        let message = format!("the token is for `{found}`, and `{audience}` was meant");
        let failure = Failure::new(Exit::Found, message);
        findings.wrong(
            "audience",
            &failure.hint("give the server's audience with `--audience`"),
        );
    } else if found == url {
        findings.ok("audience", found);
    } else {
        findings.note(
            "audience",
            format!("`{found}` is not the server's URL `{url}`, which is the usual audience"),
        );
    }
}
