//! What a job's hooks and its renewer know of each environment: in the job's private folder, found by the job's
//! id alone, since what a failed hook exported is lost.

pub mod abandoned;
pub mod agent_api;
pub mod folder;
pub mod token;

use std::path::PathBuf;

use kubler_api::error::ErrorCode;
use kubler_api::{Environment, Scope};
use kubler_core::environment::{NAME_BYTES_MAX, is_name};
use serde::{Deserialize, Serialize};

use crate::commands::kubeconfig;
use crate::exit::{Exit, Failure, Outcome};
use crate::job::folder::PrivateFolder;
use crate::variables;

/// How the files end that say what a job has.
const ENVIRONMENT_SUFFIX: &str = ".environment";

/// One environment of this job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobEnvironment {
    /// Its name within the job.
    pub name: String,
    /// `env_…`.
    pub environment: String,
    /// The profile it is made of.
    pub profile: String,
    /// Who may use it. What the jobs of a build share ends with none of them, but with its lease, once none renews it.
    pub scope: Scope,
    /// It ends with this job although others of the build used it.
    #[serde(default)]
    pub release: bool,
    /// The server.
    pub server: String,
    /// Audience of identity tokens.
    pub audience: String,
    /// The CA's file, when one was named.
    pub ca: Option<PathBuf>,
}

impl JobEnvironment {
    /// Whether other jobs of the build go on using it after this one.
    pub fn is_left_to_the_build(&self) -> bool {
        self.scope == Scope::Build && !self.release
    }

    /// What is known of the environment `name`.
    pub fn read(folder: &PrivateFolder, name: &str) -> Option<Self> {
        folder.read_json(&file_name(name))
    }

    /// Keeps it for later hooks.
    pub fn write(&self, folder: &PrivateFolder) -> Outcome<()> {
        folder.write_json(&file_name(&self.name), self).map(drop)
    }

    /// The variables that mean this environment to `kubler`. No secrets.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        let mut all = vec![
            (variables::KUBLER_ENVIRONMENT, self.environment.clone()),
            (variables::KUBLER_SERVER, self.server.clone()),
            (variables::KUBLER_AUDIENCE, self.audience.clone()),
        ];
        all.extend(
            self.ca
                .as_ref()
                .map(|ca| (variables::KUBLER_CA, ca.display().to_string())),
        );
        all
    }

    /// The file name of its kubeconfig.
    pub fn kubeconfig(&self) -> String {
        format!("{}.kubeconfig", self.name)
    }

    /// Removes its credential.
    pub fn forget_session(&self, folder: &PrivateFolder) {
        folder.remove_files(&format!("{}.", self.environment));
    }

    /// Removes what hooks keep of it. Kubeconfigs stay, for hooks that come later: without one, kubectl would turn to
    /// whatever else it finds.
    pub fn forget_but_kubeconfigs(&self, folder: &PrivateFolder) {
        self.forget_session(folder);
        for kept in ["environment", "renewer", "report"] {
            folder.remove_files(&format!("{}.{kept}", self.name));
        }
    }

    /// Removes all that is kept of it, and the folder with it when nothing else is in there.
    pub fn forget(&self, folder: &PrivateFolder) {
        self.forget_session(folder);
        folder.remove_files(&format!("{}.", self.name));
        if !folder.holds(ENVIRONMENT_SUFFIX) {
            // The last one takes along what the job's commands have written.
            folder.remove_files(kubeconfig::PREFIX);
        }
        folder.remove_if_empty();
    }
}

/// Whether the server knows that the environment is to end.
pub fn is_released(answer: Result<&Environment, &Failure>) -> bool {
    match answer {
        Ok(_) => true,
        Err(failure) => failure.code == Some(ErrorCode::EnvironmentEnded),
    }
}

/// A name that is a name, by the server's own rule: here it also becomes part of file names.
pub fn checked_name(name: &str) -> Outcome<()> {
    if is_name(name) {
        Ok(())
    } else {
        Err(Failure::new(
            Exit::Usage,
            format!("`{}` is not an environment's name", name.escape_default()),
        )
        .hint(format!(
            "use lower-case letters, digits and `-` between them, at most {NAME_BYTES_MAX}"
        )))
    }
}

fn file_name(name: &str) -> String {
    format!("{name}{ENVIRONMENT_SUFFIX}")
}
