//! What jobs carry out of their machine: a copy of kubeconfig and session, as a careless step or a thief keeps it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kubler_testkit::agent::kube_folder;
use kubler_testkit::buildkite::Job;
use kubler_testkit::kubler::Server;
use serde_json::Value;
use tempfile::TempDir;

use crate::jobs::Way;

/// Whether a late kubectl finds the session that its job had.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keeps {
    /// The kubeconfig and the session, which has not expired.
    Session,
    /// The kubeconfig alone.
    Nothing,
}

/// The copies of all jobs.
pub(crate) struct Saved {
    folder: TempDir,
}

/// A session as it was kept.
pub(crate) struct Session {
    pub(crate) environment: String,
    pub(crate) token: String,
}

impl Saved {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("empty")).expect("a folder");
        Self { folder }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Shell: copies what this job has of its environment.
    pub(crate) fn command(&self, way: Way) -> String {
        let folder = self.jobs_folder(way);
        let folder = folder.display();
        format!(
            "mkdir -p {folder} && mkdir -m 700 {folder}/kubler-$(id -u)\ncp -pr \"${{KUBECONFIG%/*}}\" {folder}/kubler-$(id -u)/"
        )
    }

    /// The session that a job had, once it was copied.
    pub(crate) fn session(&self, way: Way, job: &Job) -> Option<Session> {
        let file = self.find(way, job, "session")?;
        let kept: Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
        Some(Session {
            environment: kept["environment"].as_str()?.to_owned(),
            token: kept["token"].as_str()?.to_owned(),
        })
    }

    /// kubectl with the job's kubeconfig, outside the job.
    pub(crate) fn late_kubectl(
        &self,
        server: &Server,
        way: Way,
        job: &Job,
        keeps: Keeps,
    ) -> Option<Output> {
        let path = std::env::join_paths([
            server.programs().folder().to_owned(),
            "/usr/bin".into(),
            "/bin".into(),
        ]);
        let kubeconfig = self.find(way, job, "kubeconfig")?;
        let jobs_folder = match keeps {
            Keeps::Session => self.jobs_folder(way),
            Keeps::Nothing => self.folder().join("empty"),
        };
        let mut command = Command::new(kube_folder().join("kubectl"));
        command
            .args(["get", "namespaces", "--kubeconfig"])
            .arg(moved(&kubeconfig, &jobs_folder)?)
            .env_clear()
            .env("HOME", self.folder())
            .env("PATH", path.unwrap_or_default())
            .env("BUILDKITE_JOB_ID", job.id().to_string());
        Some(command.output().expect("kubectl"))
    }

    fn jobs_folder(&self, way: Way) -> PathBuf {
        self.folder().join(way.name())
    }

    fn find(&self, way: Way, job: &Job, extension: &str) -> Option<PathBuf> {
        let user = fs::read_dir(self.jobs_folder(way)).ok()?.flatten().next()?;
        let files = fs::read_dir(user.path().join(job.id().to_string())).ok()?;
        let mut paths = files.flatten().map(|file| file.path());
        paths.find(|path| path.extension().is_some_and(|found| found == extension))
    }
}

/// The kubeconfig, with its session in another folder than in the job's.
fn moved(kubeconfig: &Path, jobs_folder: &Path) -> Option<PathBuf> {
    let mut content: Value = serde_json::from_slice(&fs::read(kubeconfig).ok()?).ok()?;
    let variables = content.pointer_mut("/users/0/user/exec/env")?;
    let mut variables = variables.as_array_mut()?.iter_mut();
    let folder = variables.find(|variable| variable["name"] == "KUBLER_JOBS_FOLDER")?;
    folder["value"] = jobs_folder.to_str()?.into();
    let moved = jobs_folder.join("kubeconfig");
    fs::write(&moved, content.to_string()).ok()?;
    Some(moved)
}
