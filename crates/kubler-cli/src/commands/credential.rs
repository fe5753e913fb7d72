//! `kubler credential`: the exec plugin of a kubeconfig. Prints a session for kubectl, or says on standard
//! error why there is none: an environment that ended says when, why, and which run it belonged to.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use jiff::Timestamp;
use kubler_api::Tombstone;
use serde::{Deserialize, Serialize};

use crate::arguments::Connection;
use crate::clock::{self, Deadline};
use crate::exit::{Exit, Failure, Outcome};
use crate::job::folder::PrivateFolder;
use crate::output;
use crate::server::connected::Connected;
use crate::server::session;
use crate::server::trust::Trust;
use crate::variables;

/// What an exec plugin speaks.
const EXEC_API_VERSION: &str = "client.authentication.k8s.io/v1";
/// Longest time for asking why an environment is no more, in seconds.
const TOMBSTONE_SECONDS_MAX: u64 = 10;

#[derive(Debug, Args)]
pub struct Arguments {
    /// The environment: `env_…`.
    #[arg(long, value_name = "ENVIRONMENT", env = variables::KUBLER_ENVIRONMENT, hide_env_values = true)]
    environment: String,
}

/// Runs the command.
pub fn run(arguments: &Arguments, connection: &Connection) -> Outcome<()> {
    let cluster = ClusterOfKubectl::from_environment();
    let connected = Connected::new(connection, cluster.server(), cluster.trust())?;
    let environment = &arguments.environment;
    let folder = PrivateFolder::of_this_job()?;
    match session::session(&connected, &folder, environment) {
        Ok(kept) => print(&ExecCredential {
            api_version: EXEC_API_VERSION,
            kind: "ExecCredential",
            status: Status {
                expiration_timestamp: kept.use_until(),
                token: &kept.token,
            },
        }),
        Err(failure) => {
            let failure = explained(&connected, environment, failure);
            if failure.exit == Exit::Ended {
                folder.remove_files(&format!("{environment}."));
                folder.remove_if_empty();
            }
            Err(failure)
        }
    }
}

fn print(credential: &ExecCredential<'_>) -> Outcome<()> {
    output::data(
        &serde_json::to_string(credential)
            .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?,
    )
}

/// Why there is no session: the end of the environment, if that is why, else `failure`.
fn explained(connected: &Connected, environment: &str, failure: Failure) -> Failure {
    let deadline = Deadline::after(Duration::from_secs(TOMBSTONE_SECONDS_MAX));
    match connected.client.tombstone(environment, deadline) {
        Ok(Some(tombstone)) => ended(&tombstone, clock::now()),
        Ok(None) | Err(_) => failure,
    }
}

fn ended(tombstone: &Tombstone, now: Timestamp) -> Failure {
    let gone = if tombstone.gone {
        "nothing of it is left"
    } else {
        "it is being removed"
    };
    Failure::new(
        Exit::Ended,
        format!(
            "environment {} ended at {}: {} (`{}`); {gone}\nrun: {}",
            tombstone.id,
            output::moment(tombstone.ended_at, now),
            output::plain(&tombstone.end.message),
            output::plain(&tombstone.end.code),
            output::plain(&tombstone.run_url)
        ),
    )
    .hint("a kubeconfig is good for one job only; ask for a new environment in a new job")
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExecCredential<'a> {
    api_version: &'a str,
    kind: &'a str,
    status: Status<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status<'a> {
    expiration_timestamp: Timestamp,
    token: &'a str,
}

/// What kubectl says about the cluster that it wants a credential for.
#[derive(Default, Deserialize)]
struct ClusterOfKubectl {
    #[serde(default)]
    spec: Spec,
}

#[derive(Default, Deserialize)]
struct Spec {
    cluster: Option<Cluster>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority_data: Option<String>,
}

impl ClusterOfKubectl {
    fn from_environment() -> Self {
        variables::get(variables::KUBERNETES_EXEC_INFO)
            .map(|text| Self::read(&text))
            .unwrap_or_default()
    }

    fn read(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    /// The kubler-server in front of the cluster.
    fn server(&self) -> Option<String> {
        let url = &self.spec.cluster.as_ref()?.server;
        url.find(kubler_api::paths::GATEWAY)
            .and_then(|end| url.get(..end))
            .map(str::to_owned)
    }

    fn trust(&self) -> Option<Trust> {
        let encoded = self
            .spec
            .cluster
            .as_ref()?
            .certificate_authority_data
            .as_ref()?;
        let pem = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
        Some(Trust::Pem {
            pem,
            origin: "the kubeconfig",
        })
    }
}

#[cfg(test)]
mod tests {
    use kubler_api::End;

    use super::*;

    #[test]
    fn the_cluster_of_kubectl_names_server_and_ca() {
        let text = r#"{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","spec":{"cluster":
            {"server":"https://kubler:8443/k8s/env_1","certificate-authority-data":"UEVN","config":null},"interactive":false}}"#;
        let cluster = ClusterOfKubectl::read(text);
        assert_eq!(cluster.server().as_deref(), Some("https://kubler:8443"));
        assert_eq!(
            cluster.trust(),
            Some(Trust::Pem {
                pem: "PEM".into(),
                origin: "the kubeconfig"
            })
        );
        assert!(ClusterOfKubectl::read("{}").server().is_none());
        assert!(ClusterOfKubectl::read("nonsense").trust().is_none());
    }

    #[test]
    fn an_end_says_when_why_and_which_run() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let tombstone = Tombstone {
            id: "env_1".into(),
            ended_at: at(1_000_000),
            gone: true,
            end: End {
                code: "released".into(),
                message: "its job released it".into(),
            },
            run_url: "https://buildkite.com/acme/app/builds/7".into(),
        };
        insta::assert_snapshot!(ended(&tombstone, at(1_000_090)).lines(), @r"
        error: environment env_1 ended at 1970-01-12T13:46:40Z (1 min 30 s ago): its job released it (`released`); nothing of it is left
        run: https://buildkite.com/acme/app/builds/7
        hint: a kubeconfig is good for one job only; ask for a new environment in a new job
        ");
    }

    #[test]
    fn kubectl_gets_what_it_reads() {
        let credential = ExecCredential {
            api_version: EXEC_API_VERSION,
            kind: "ExecCredential",
            status: Status {
                expiration_timestamp: Timestamp::from_second(0).unwrap(),
                token: "t",
            },
        };
        assert_eq!(
            serde_json::to_string(&credential).unwrap(),
            r#"{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"expirationTimestamp":"1970-01-01T00:00:00Z","token":"t"}}"#
        );
    }
}
