//! `kubler env`: make, look at, keep and end environments.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::arguments::{self, Connection, Existing, Format, Wanted};
use crate::clock::{self, Deadline};
use crate::commands::ASK_SECONDS_MAX;
use crate::commands::kubeconfig;
use crate::exit::{Exit, Outcome};
use crate::job::folder::PrivateFolder;
use crate::output;
use crate::server::client::{CALL_SECONDS_MAX, Filter};
use crate::server::connected::Connected;
use crate::server::creation;
use crate::variables;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask for an environment, and wait until it is usable. Repeats return the same one.
    Create(Create),
    /// List the environments of this pipeline that are not gone; an operator's, those of all.
    List(List),
    /// Show one environment.
    Show(Existing),
    /// Say what differs in two environments, alive or dead: what they are made of, and whose they are. Ends with 7 when
    /// they are not made of the same.
    Diff(Diff),
    /// Show what of an environment on a host was found to be another than was made, who changed it, and what became of
    /// it.
    Drift(Drift),
    /// Prove life: the lease counts from the moment the token was minted.
    Renew(Existing),
    /// End an environment: its credentials die at once. Repeats are harmless.
    Release(Release),
}

#[derive(Debug, Args)]
pub struct Create {
    #[command(flatten)]
    wanted: Wanted,
    /// Also write a kubeconfig to this file.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Diff {
    /// The first: `env_…`.
    #[arg(value_name = "BEFORE")]
    before: String,
    /// The second: `env_…`.
    #[arg(value_name = "AFTER")]
    after: String,
}

#[derive(Debug, Args)]
pub struct Drift {
    /// The environment: `env_…` [default: every one that is not gone].
    #[arg(value_name = "ENVIRONMENT", env = variables::KUBLER_ENVIRONMENT, hide_env_values = true)]
    environment: Option<String>,
}

#[derive(Debug, Args)]
pub struct List {
    /// Only of this pipeline (id or slug).
    #[arg(long, value_name = "PIPELINE")]
    pipeline: Option<String>,
    /// Only of this build (its number).
    #[arg(long, value_name = "NUMBER", value_parser = arguments::build_number)]
    build: Option<u64>,
    /// Only of this job.
    #[arg(long, value_name = "JOB")]
    job: Option<String>,
    /// Only of this commit.
    #[arg(long, value_name = "COMMIT")]
    commit: Option<String>,
    /// Only those that were asked to run this image: `name`, `name:tag`, `name@digest` or a digest.
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Only in this phase.
    #[arg(long, value_name = "PHASE", value_parser = ["requested", "provisioning", "ready", "failed", "releasing", "gone"])]
    phase: Option<String>,
    /// Also those that are gone.
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
pub struct Release {
    #[command(flatten)]
    existing: Existing,
    /// Longest time to wait until it is verified gone, in seconds; 0 returns as soon as its credentials are dead.
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = arguments::release_wait)]
    wait: u64,
}

/// Runs the command.
pub fn run(command: &Command, connection: &Connection, format: Format) -> Outcome<Exit> {
    let connected = Arc::new(Connected::new(connection, None, None)?);
    let deadline = Deadline::after(Duration::from_secs(ASK_SECONDS_MAX));
    let environment = match command {
        Command::Create(create) => {
            let created = creation::create(&connected, &create.wanted)?;
            if let Some(path) = &create.kubeconfig {
                kubeconfig::write(&connected, &created.environment, None, path)?;
            }
            if let Some(like) = &create.wanted.like {
                say_differences(&connected, like, &created.environment.id);
            }
            created.environment
        }
        Command::List(list) => {
            self::list(list, &connected, deadline, format)?;
            return Ok(Exit::Done);
        }
        Command::Diff(diff) => return self::diff(diff, &connected, deadline, format),
        Command::Drift(drift) => {
            self::drift(drift, &connected, deadline, format)?;
            return Ok(Exit::Done);
        }
        Command::Show(existing) => connected.client.environment(
            connected.proof(deadline)?.caller(),
            &existing.environment,
            deadline,
        )?,
        Command::Renew(existing) => {
            let token = connected.token(deadline, None)?;
            crate::server::answers::retrying(deadline, || {
                connected
                    .client
                    .renew(&token, &existing.environment, deadline)
            })?
        }
        Command::Release(release) => {
            let deadline = Deadline::after(Duration::from_secs(release.wait + CALL_SECONDS_MAX));
            let id = &release.existing.environment;
            let proof = connected.proof(deadline)?;
            let released = connected
                .client
                .release(proof.caller(), id, release.wait, deadline)?;
            forget(id);
            released
        }
    };
    match format {
        Format::Json => output::json(&environment)?,
        Format::Text => output::text(&output::environment(&environment, clock::now()))?,
    }
    Ok(Exit::Done)
}

fn diff(diff: &Diff, connected: &Connected, deadline: Deadline, format: Format) -> Outcome<Exit> {
    let proof = connected.proof(deadline)?;
    let (before, after) = (&diff.before, &diff.after);
    let found = connected
        .client
        .differences(proof.caller(), before, after, deadline)?;
    match format {
        Format::Json => output::json(&found)?,
        Format::Text => output::text(&output::differences(&found))?,
    }
    Ok(if found.same { Exit::Done } else { Exit::Found })
}

fn drift(drift: &Drift, connected: &Connected, deadline: Deadline, format: Format) -> Outcome<()> {
    let proof = connected.proof(deadline)?;
    let ids = match &drift.environment {
        Some(id) => vec![id.clone()],
        None => {
            let filter = Filter {
                remaining: true,
                ..Filter::default()
            };
            let found = connected
                .client
                .environments(proof.caller(), &filter, deadline)?;
            found.environments.into_iter().map(|it| it.id).collect()
        }
    };
    let mut all = BTreeMap::new();
    for id in ids {
        let found = connected.client.drift(proof.caller(), &id, deadline)?;
        all.insert(id, found.drifts);
    }
    if format == Format::Json {
        return output::json(&all);
    }
    if all.values().all(Vec::is_empty) {
        output::remark("all of it is as it was made");
        return Ok(());
    }
    output::text(&output::drifts(&all))
}

/// What is not the same although it was made to be. Only a remark: it is made.
fn say_differences(connected: &Connected, like: &str, made: &str) {
    let deadline = Deadline::after(Duration::from_secs(ASK_SECONDS_MAX));
    let found = connected.proof(deadline).and_then(|proof| {
        connected
            .client
            .differences(proof.caller(), like, made, deadline)
    });
    match found {
        Ok(found) if found.same => {
            output::remark(&format!("kubler: made of the same as {like}"));
        }
        Ok(found) => output::remark(&format!(
            "kubler: not made of the same as {like}:\n{}",
            output::differences(&found)
        )),
        Err(failure) => output::remark(&failure.lines()),
    }
}

fn list(list: &List, connected: &Connected, deadline: Deadline, format: Format) -> Outcome<()> {
    let filter = Filter {
        pipeline: list.pipeline.clone(),
        build: list.build,
        job: list.job.clone(),
        commit: list.commit.clone(),
        image: list.image.clone(),
        phase: list.phase.clone(),
        remaining: !list.all && list.phase.is_none(),
    };
    let found =
        connected
            .client
            .environments(connected.proof(deadline)?.caller(), &filter, deadline)?;
    if filter.remaining && found.environments.is_empty() && format == Format::Text {
        output::remark("nothing is alive; `--all` shows what has ended as well");
        return Ok(());
    }
    print(&found, format)
}

/// Removes the sessions that this machine keeps of an environment that is over. Kubeconfigs stay until the job ends, as
/// they hold no secret: without one, kubectl would turn to whatever else it finds, in a pod to the cluster around it; with
/// one it is told of the end.
fn forget(id: &str) {
    let Ok(folder) = PrivateFolder::of_this_job() else {
        return;
    };
    folder.remove_files(&format!("{id}."));
    folder.remove_if_empty();
}

/// Prints what was found.
pub fn print(found: &kubler_api::Environments, format: Format) -> Outcome<()> {
    if format == Format::Json {
        return output::json(found);
    }
    if found.environments.is_empty() {
        output::remark("nothing was found");
        return Ok(());
    }
    output::text(&output::environments(found, clock::now()))?;
    if found.truncated {
        output::remark("there are older ones; ask for less at once");
    }
    Ok(())
}
