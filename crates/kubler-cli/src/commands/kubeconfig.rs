//! `kubler kubeconfig`: a kubeconfig that names the gateway and this command, and holds no secret.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use kubler_api::Environment;
use serde_json::{Value, json};

use crate::arguments::{Connection, Existing, Format};
use crate::clock::Deadline;
use crate::commands::ASK_SECONDS_MAX;
use crate::exit::{Exit, Failure, Outcome};
use crate::job::abandoned;
use crate::job::folder::{self, PrivateFolder};
use crate::output;
use crate::server::connected::Connected;
use crate::server::creation;
use crate::server::session;
use crate::variables;

/// How the names of kubeconfigs begin that have no other place than a private folder.
pub const PREFIX: &str = "kubeconfig-";

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    existing: Existing,
    /// Where to write it [default: the job's private folder].
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Runs the command.
pub fn run(arguments: &Arguments, connection: &Connection, format: Format) -> Outcome<()> {
    let connected = Connected::new(connection, None, None)?;
    let deadline = Deadline::after(Duration::from_secs(ASK_SECONDS_MAX));
    let environment = connected.client.environment(
        connected.proof(deadline)?.caller(),
        &arguments.existing.environment,
        deadline,
    )?;
    if creation::is_settled(&environment)? {
        may_be_used(&connected, &environment.id)?;
    }
    let path = match &arguments.file {
        Some(path) => path.clone(),
        None => {
            let folder = PrivateFolder::of_this_job()?;
            abandoned::belongs_to_this_job(&folder);
            folder.file(&format!("{PREFIX}{}", environment.id))
        }
    };
    write(&connected, &environment, None, &path)?;
    match format {
        Format::Json => {
            output::json(&serde_json::json!({ "environment": environment.id, "kubeconfig": path }))
        }
        Format::Text => output::data(&path.display().to_string()),
    }
}

/// What the server says when kubectl will ask it for a session: that is kept for the first kubectl. Only a refusal counts:
/// whatever else goes wrong now may be well by then.
fn may_be_used(connected: &Connected, environment: &str) -> Outcome<()> {
    let folder = PrivateFolder::of_this_job()?;
    match session::session(connected, &folder, environment) {
        Err(failure) if matches!(failure.exit, Exit::Denied | Exit::Ended) => {
            folder.remove_files(&format!("{environment}."));
            folder.remove_if_empty();
            Err(failure)
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Writes the kubeconfig of `environment` to `path`, readable by this user alone. `job` names the private folder
/// that its sessions are kept in, when it is another than that of the Buildkite job.
pub fn write(
    connected: &Connected,
    environment: &Environment,
    job: Option<&str>,
    path: &Path,
) -> Outcome<()> {
    folder::write_private(path, text(connected, environment, job)?.as_bytes())
        .map_err(|error| Failure::io(&format!("write `{}`", path.display()), &error))
}

/// The server's kubeconfig with what only this machine knows: where this program is (`PATH` may be another one
/// where kubectl runs), which file holds the token, and which CA was trusted when the server named none.
fn text(connected: &Connected, environment: &Environment, job: Option<&str>) -> Outcome<String> {
    let own_ca = if environment.gateway.ca.is_none() {
        connected.trust.pem()?
    } else {
        None
    };
    let command = std::env::current_exe()
        .ok()
        .and_then(|path| path.to_str().map(str::to_owned));
    let variables = [
        (variables::KUBLER_TOKEN_FILE, connected.token_file()),
        (
            variables::KUBLER_JOBS_FOLDER,
            variables::path(variables::KUBLER_JOBS_FOLDER),
        ),
        (variables::KUBLER_JOB, job.map(PathBuf::from)),
    ];
    let variables = variables
        .into_iter()
        .filter_map(|(name, value)| Some(json!({ "name": name, "value": value?.to_str()? })))
        .collect();
    completed(
        &environment.kubeconfig,
        command,
        variables,
        own_ca.as_deref(),
    )
    .ok_or_else(|| {
        Failure::new(
            Exit::Failed,
            "the server sent a kubeconfig that cannot be read",
        )
        .hint("`kubler doctor` compares versions")
    })
}

fn completed(
    kubeconfig: &str,
    command: Option<String>,
    variables: Vec<Value>,
    ca: Option<&str>,
) -> Option<String> {
    let mut kubeconfig: Value = serde_saphyr::from_str(kubeconfig).ok()?;
    let exec = kubeconfig
        .pointer_mut("/users/0/user/exec")?
        .as_object_mut()?;
    if let Some(command) = command {
        exec.insert("command".to_owned(), command.into());
    }
    exec.insert("env".to_owned(), variables.into());
    if let Some(ca) = ca {
        let cluster = kubeconfig
            .pointer_mut("/clusters/0/cluster")?
            .as_object_mut()?;
        cluster.insert(
            "certificate-authority-data".to_owned(),
            STANDARD.encode(ca).into(),
        );
    }
    serde_json::to_string_pretty(&kubeconfig).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBECONFIG: &str = r#"{"clusters":[{"name":"kubler","cluster":{"server":"https://s/k8s/env_1"}}],
        "users":[{"name":"kubler","user":{"exec":{"command":"kubler","args":["credential","--environment","env_1"]}}}]}"#;

    #[test]
    fn it_names_this_program_and_what_it_needs() {
        let variables = vec![json!({ "name": "KUBLER_TOKEN_FILE", "value": "/run/token" })];
        let text = completed(
            KUBECONFIG,
            Some("/opt/kubler".into()),
            variables,
            Some("PEM"),
        )
        .unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        let exec = &value["users"][0]["user"]["exec"];
        assert_eq!(exec["command"], "/opt/kubler");
        assert_eq!(exec["args"][2], "env_1");
        assert_eq!(exec["env"][0]["value"], "/run/token");
        assert_eq!(
            value["clusters"][0]["cluster"]["certificate-authority-data"],
            "UEVN"
        );
    }

    #[test]
    fn something_else_is_no_kubeconfig() {
        assert!(completed("a: b", None, vec![], None).is_none());
    }
}
