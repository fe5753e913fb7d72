//! The private folder of one environment: what its control plane reads, and what a later server needs to find
//! and use it again.

use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use kubler_core::ids::EnvironmentId;
use serde::{Deserialize, Serialize};

use super::process::ProcessRecord;
use super::sizes::Sizes;
use crate::files::{self, PRIVATE};

/// Longest path of a Unix socket, in bytes.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// How much of the log's end is shown when a start fails, in bytes.
const LOG_TAIL_BYTES: u64 = 2048;

/// Names of the files, as the control plane knows them.
pub(super) mod names {
    pub(in super::super) const SERVING_CERTIFICATE: &str = "serving.crt";
    pub(in super::super) const SERVING_KEY: &str = "serving.key";
    pub(in super::super) const AUTHORITY: &str = "ca.crt";
    pub(in super::super) const TOKENS: &str = "tokens.csv";
    pub(in super::super) const SERVICE_ACCOUNT_KEY: &str = "service-account.key";
    pub(in super::super) const ETCD_AUTHORITY: &str = "etcd-ca.crt";
    pub(in super::super) const ETCD_CERTIFICATE: &str = "etcd-client.crt";
    pub(in super::super) const ETCD_KEY: &str = "etcd-client.key";
    pub(super) const API_SOCKET: &str = "api.sock";
    pub(super) const EGRESS_SOCKET: &str = "egress.sock";
    pub(super) const LOG: &str = "control-plane.log";
    /// Ours alone.
    pub(super) const RECORD: &str = "record.json";
}

/// What is kept of an environment beside the files of its control plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EnvironmentRecord {
    /// Its control plane.
    pub(super) process: ProcessRecord,
    /// The etcd it was started with.
    pub(super) etcd: String,
    /// What its profile lets out.
    pub(super) egress: Vec<String>,
    /// How large its profile lets it become.
    #[serde(default)]
    pub(super) sizes: Sizes,
    /// Whether everything was made and applied.
    pub(super) ready: bool,
}

/// The folder that holds every environment's folder. Only its owner may enter.
#[derive(Debug, Clone)]
pub(super) struct RunFolder(PathBuf);

/// How many bytes too long `run` is for the sockets of environments below it.
pub(super) fn excess_bytes(run: &Path) -> usize {
    let longest = RunFolder(run.to_owned())
        .environment(EnvironmentId::from_random([0; 16]))
        .egress_socket();
    let bytes = longest.as_os_str().len();
    bytes.saturating_sub(SOCKET_PATH_BYTES_MAX)
}

impl RunFolder {
    /// Opens the folder at `path`, made if need be; or at `short` when sockets below `path` would have no path.
    ///
    /// # Errors
    /// When it cannot be made, or is open to others.
    pub(super) fn open(path: &Path, short: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let chosen = match excess_bytes(&path) {
            0 => &path,
            excess => {
                tracing::info!(folder = %short.display(), excess, "sockets below the data folder would have too long a path: they are in this folder");
                short
            }
        };
        files::make_closed_folder(chosen)?;
        Ok(Self(chosen.to_owned()))
    }

    /// Takes the folder away once no environment is left in it.
    pub(super) fn destroy(&self) -> io::Result<()> {
        fs::remove_dir(&self.0)
    }

    pub(super) fn environment(&self, id: EnvironmentId) -> EnvironmentFolder {
        EnvironmentFolder(self.0.join(id.to_string()))
    }

    /// Every environment that has a folder.
    pub(super) fn environments(&self) -> io::Result<Vec<EnvironmentId>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            found.extend(
                entry?
                    .file_name()
                    .to_str()
                    .and_then(|name| EnvironmentId::from_str(name).ok()),
            );
        }
        Ok(found)
    }
}

/// The folder of one environment.
#[derive(Debug, Clone)]
pub(super) struct EnvironmentFolder(PathBuf);

impl EnvironmentFolder {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn api_socket(&self) -> PathBuf {
        self.0.join(names::API_SOCKET)
    }

    pub(super) fn egress_socket(&self) -> PathBuf {
        self.0.join(names::EGRESS_SOCKET)
    }

    pub(super) fn exists(&self) -> bool {
        fs::symlink_metadata(&self.0).is_ok()
    }

    /// Makes it; it must not exist.
    pub(super) fn create(&self) -> io::Result<()> {
        files::create_private_folder(&self.0)
    }

    /// Writes an input of the control plane, readable for its owner only.
    pub(super) fn write(&self, name: &str, text: &str) -> io::Result<()> {
        files::write_private(&self.0.join(name), text.as_bytes())
    }

    pub(super) fn read(&self, name: &str) -> io::Result<String> {
        fs::read_to_string(self.0.join(name))
    }

    /// Replaces the record: a reader sees the old or the new one. No process that it names outlives the machine, so the
    /// disk is not waited for.
    pub(super) fn write_record(&self, record: &EnvironmentRecord) -> io::Result<()> {
        let text = serde_json::to_string(record).map_err(io::Error::other)?;
        files::replace_for_readers(&self.0.join(names::RECORD), PRIVATE, text.as_bytes())
    }

    /// The record, when there is a whole one.
    pub(super) fn record(&self) -> Option<EnvironmentRecord> {
        serde_json::from_str(&self.read(names::RECORD).ok()?).ok()
    }

    /// The end of the control plane's log, without control characters.
    pub(super) fn log_tail(&self) -> String {
        let tail = || -> io::Result<String> {
            let mut file = fs::File::open(self.0.join(names::LOG))?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = tail().unwrap_or_default();
        let lines: Vec<_> = text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        let last = lines
            .get(lines.len().saturating_sub(4)..)
            .unwrap_or_default()
            .join(" | ");
        last.chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect()
    }

    /// Takes the folder away with all that is in it. Succeeds when there is none.
    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_run_folder_that_others_may_enter_is_refused_and_one_that_is_too_deep_is_replaced() {
        let place = tempfile::tempdir().unwrap();
        let open = place.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        let short = place.path().join("short");
        assert!(
            RunFolder::open(&open, &short)
                .unwrap_err()
                .to_string()
                .contains("open to others")
        );
        let deep = place.path().join("d".repeat(SOCKET_PATH_BYTES_MAX));
        let opened = RunFolder::open(&deep, &short).unwrap();
        assert!(
            opened
                .environment(EnvironmentId::from_random([1; 16]))
                .path()
                .starts_with(&short)
        );
        assert!(!deep.exists());
    }

    #[test]
    fn environments_are_found_by_their_folders_and_files_are_private() {
        let place = tempfile::tempdir().unwrap();
        let run = RunFolder::open(&place.path().join("run"), place.path()).unwrap();
        let id = EnvironmentId::from_random([7; 16]);
        let folder = run.environment(id);
        folder.create().unwrap();
        folder.write(names::TOKENS, "secret").unwrap();
        fs::create_dir(place.path().join("run/other")).unwrap();
        assert_eq!(run.environments().unwrap(), [id]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (
                mode(folder.path()),
                mode(&folder.path().join(names::TOKENS))
            ),
            (0o700, 0o600)
        );
        folder.remove().unwrap();
        folder.remove().unwrap();
        assert!(!folder.exists());
    }
}
