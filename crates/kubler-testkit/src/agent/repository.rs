//! Small local git repositories: for plugins and for the code that a job checks out.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

const TAG: &str = "v1.0.0";

/// A git repository with one commit, tagged `v1.0.0`. It is removed with this value.
pub struct GitRepository {
    _parent: TempDir,
    folder: PathBuf,
}

impl GitRepository {
    /// From files by path. Those below `hooks/` are made executable, as are those that start with `#!`.
    pub fn from_files(name: &str, files: &[(&str, &str)]) -> Self {
        Self::make(name, |folder| {
            for (path, text) in files {
                let path = folder.join(path);
                fs::create_dir_all(path.parent().expect("a file in the folder")).expect("a folder");
                fs::write(&path, text).expect("a file");
                if text.starts_with("#!")
                    || path
                        .parent()
                        .is_some_and(|parent| parent.ends_with("hooks"))
                {
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
                }
            }
        })
    }

    /// From a copy of a folder. A plugin's `name` must end in `-buildkite-plugin`.
    pub fn from_folder(name: &str, source: &Path) -> Self {
        Self::make(name, |folder| copy(source, folder))
    }

    fn make(name: &str, fill: impl FnOnce(&Path)) -> Self {
        let parent = tempfile::Builder::new()
            .prefix("kr")
            .tempdir()
            .expect("a folder");
        let folder = parent.path().join(name);
        fs::create_dir(&folder).expect("a folder");
        fill(&folder);
        git(&folder, &["init", "--quiet", "--initial-branch=main"]);
        git(&folder, &["add", "--all", "--force"]);
        git(
            &folder,
            &["commit", "--quiet", "--allow-empty", "--message", "one"],
        );
        git(&folder, &["tag", TAG]);
        Self {
            _parent: parent,
            folder,
        }
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// For `BUILDKITE_REPO`.
    pub fn url(&self) -> String {
        format!("file://{}", self.folder.display())
    }

    /// For a step's `plugins`: `file:///…/NAME#v1.0.0`.
    pub fn plugin_reference(&self) -> String {
        format!("{}#{TAG}", self.url())
    }

    /// The commit, 40 digits.
    pub fn commit(&self) -> String {
        git(&self.folder, &["rev-parse", "HEAD"])
    }
}

fn copy(source: &Path, target: &Path) {
    fs::create_dir_all(target).expect("a folder");
    for entry in fs::read_dir(source).expect("the folder to copy").flatten() {
        let path = entry.path();
        if path.is_dir() {
            copy(&path, &target.join(entry.file_name()));
        } else {
            fs::copy(&path, target.join(entry.file_name())).expect("a copy");
        }
    }
}

fn git(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .arg("-C")
        .arg(folder)
        .args([
            "-c",
            "user.name=test",
            "-c",
            "user.email=test@example.org",
            "-c",
            "commit.gpgsign=false",
        ])
        .args(arguments)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .output()
        .expect("git is installed");
    assert!(
        output.status.success(),
        "git {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
