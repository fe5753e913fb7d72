//! Private folders: one per job, found by the job's id alone, readable by its user alone. What a job leaves
//! here is removed at its end.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::exit::{Exit, Failure, Outcome};
use crate::job::abandoned;
use crate::variables;

/// Where the folders of jobs are, when `KUBLER_JOBS_FOLDER` does not say. Not the temporary folder of the job:
/// a job may change that between two hooks, and the second must find what the first left.
const JOBS_FOLDER_DEFAULT: &str = "/tmp";
/// How often a folder is made again that others take away.
const MAKE_TRIES_MAX: usize = 10;
/// The folder of what belongs to no job.
const NO_JOB: &str = "no-job";

/// A folder that only this user can look into.
#[derive(Debug, Clone)]
pub struct PrivateFolder(PathBuf);

/// A lock that is given back when it is dropped or the process ends.
#[derive(Debug)]
pub struct Locked(#[allow(dead_code, reason = "holds the lock")] File);

impl PrivateFolder {
    /// The folder of what runs here: the job that `kubler run` made, this Buildkite job, or the one for everything
    /// that is no job's; made when absent.
    pub fn of_this_job() -> Outcome<Self> {
        let job = variables::get(variables::KUBLER_JOB)
            .or_else(|| variables::get(variables::BUILDKITE_JOB_ID));
        Self::of_job(job.as_deref().unwrap_or(NO_JOB))
    }

    /// The folder of this Buildkite job, made when absent.
    pub fn of_buildkite_job() -> Outcome<Self> {
        let job = variables::get(variables::BUILDKITE_JOB_ID).ok_or_else(|| {
            Failure::usage("there is no Buildkite job here")
                .hint("this command is for the plugin's hooks")
        })?;
        Self::of_job(&job)
    }

    /// The folder of the job `job`, made when absent.
    pub fn of_job(job: &str) -> Outcome<Self> {
        let parent = variables::path(variables::KUBLER_JOBS_FOLDER)
            .unwrap_or_else(|| JOBS_FOLDER_DEFAULT.into());
        Self::below(&parent, job)
    }

    /// A folder that is there already.
    pub fn found(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The folder of `job` below `parent`.
    pub fn below(parent: &Path, job: &str) -> Outcome<Self> {
        let is_name = !job.is_empty()
            && job.len() <= 64
            && job
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !is_name {
            return Err(Failure::usage(format!(
                "`{}` is not a job's id",
                job.escape_default()
            )));
        }
        let ours = parent.join(format!("kubler-{}", rustix::process::geteuid().as_raw()));
        let folder = ours.join(job);
        // A job that ends beside this one takes the empty folder of all jobs away: then it is made again.
        let mut made = Ok(());
        for _ in 0..MAKE_TRIES_MAX {
            make_private(&ours)?;
            made = make_private(&folder);
            if made.is_ok() || ours.exists() {
                break;
            }
        }
        made.map(|()| Self(folder))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The path of a file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Replaces the file `name` as a whole, readable by this user alone. Returns where it is.
    pub fn write(&self, name: &str, content: &[u8]) -> Outcome<PathBuf> {
        let path = self.file(name);
        write_private(&path, content)
            .map_err(|error| Failure::io(&format!("write `{}`", path.display()), &error))?;
        Ok(path)
    }

    /// Replaces the file `name` by `value` as JSON.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Outcome<PathBuf> {
        let text = serde_json::to_vec(value)
            .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
        self.write(name, &text)
    }

    /// The file `name` as JSON; `None` when it is not there or says something else.
    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&std::fs::read(self.file(name)).ok()?).ok()
    }

    /// Waits until nobody else holds the lock `name`, and takes it.
    pub fn lock(&self, name: &str) -> Outcome<Locked> {
        let path = self.file(name);
        let doing = || format!("lock `{}`", path.display());
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| Failure::io(&doing(), &error))?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Locked(file)),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Failure::io(&doing(), &error.into())),
            }
        }
    }

    /// Whether there is a file whose name ends with `suffix`.
    pub fn holds(&self, suffix: &str) -> bool {
        std::fs::read_dir(&self.0).is_ok_and(|files| {
            files
                .flatten()
                .any(|file| file.file_name().to_string_lossy().ends_with(suffix))
        })
    }

    /// Removes every file whose name begins with `prefix`.
    pub fn remove_files(&self, prefix: &str) {
        let Ok(files) = std::fs::read_dir(&self.0) else {
            return;
        };
        for file in files.flatten() {
            if file
                .file_name()
                .to_string_lossy()
                .trim_start_matches('.')
                .starts_with(prefix)
            {
                let _ = std::fs::remove_file(file.path());
            }
        }
    }

    /// Removes the folder, and the one of all jobs, unless something is in them. Whose it is does not count.
    pub fn remove_if_empty(&self) {
        let is_empty = std::fs::read_dir(&self.0).is_ok_and(|files| {
            files
                .flatten()
                .all(|file| file.file_name() == abandoned::OWNER)
        });
        if is_empty {
            let _ = std::fs::remove_file(self.file(abandoned::OWNER));
        }
        if std::fs::remove_dir(&self.0).is_ok()
            && let Some(parent) = self.0.parent()
        {
            let _ = std::fs::remove_dir(parent);
        }
    }
}

/// Makes the folder, or checks that the one that is there is ours alone: somebody else may have been faster.
fn make_private(folder: &Path) -> Outcome<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => {
            return Err(
                Failure::io(&format!("make the folder `{}`", folder.display()), &error)
                    .hint("name another place with `KUBLER_JOBS_FOLDER`"),
            );
        }
    }
    let found = std::fs::symlink_metadata(folder)
        .map_err(|error| Failure::io(&format!("look at `{}`", folder.display()), &error))?;
    let is_ours = found.is_dir()
        && found.uid() == rustix::process::geteuid().as_raw()
        && found.mode() & 0o077 == 0;
    if is_ours {
        Ok(())
    } else {
        Err(Failure::new(
            Exit::Failed,
            format!("`{}` is not a folder of this user alone", folder.display()),
        )
        .hint("remove it, or name another place with `KUBLER_JOBS_FOLDER`"))
    }
}

/// Replaces a file as a whole: nobody ever reads half of it, and nobody but its user reads it.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let fresh = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let _ = std::fs::remove_file(&fresh);
    let written = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&fresh)
        .and_then(|mut file| file.write_all(content))
        .and_then(|()| std::fs::rename(&fresh, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&fresh);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn only_its_user_looks_into_it() {
        let parent = tempfile::tempdir().unwrap();
        let folder = PrivateFolder::below(parent.path(), "job-1").unwrap();
        let file = folder.write("a", b"x").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(folder.path()), mode(&file)), (0o700, 0o600));
        assert_eq!(
            PrivateFolder::below(parent.path(), "job-1").unwrap().path(),
            folder.path()
        );
        folder.remove_if_empty();
        assert!(file.exists());
        folder.remove_files("a");
        folder.remove_if_empty();
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_others_may_look_into_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let folder = PrivateFolder::below(parent.path(), "job-1").unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(PrivateFolder::below(parent.path(), "job-1").is_err());
    }

    #[test]
    fn a_link_that_somebody_planted_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::fs::set_permissions(elsewhere.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let ours = parent
            .path()
            .join(format!("kubler-{}", rustix::process::geteuid().as_raw()));
        std::os::unix::fs::symlink(elsewhere.path(), ours).unwrap();
        assert!(PrivateFolder::below(parent.path(), "job-1").is_err());
    }

    #[test]
    fn a_job_id_is_no_path() {
        let parent = tempfile::tempdir().unwrap();
        for job in ["", "..", "a/b", "/etc", "a\0b"] {
            assert!(PrivateFolder::below(parent.path(), job).is_err(), "{job:?}");
        }
    }
}
