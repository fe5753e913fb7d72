//! Reads the configuration file and what it names. The only place that reads the environment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kubler_core::configuration::{Configuration, ConfigurationFault};
use secrecy::SecretString;

/// Longest configuration or manifest file, in bytes.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// How unlike a known key a wrong one may be to be taken for a slip, in edits.
const SLIP_EDITS_MAX: usize = 3;

/// The configuration and the folder its relative paths count from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What it says.
    pub configuration: Configuration,
    /// The file's folder.
    pub folder: PathBuf,
}

/// Why the server cannot start as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("`{path}` cannot be read: {source}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is too large to be what it should be.
    #[error("`{path}` is longer than {FILE_BYTES_MAX} bytes")]
    TooLong {
        /// Which.
        path: PathBuf,
    },
    /// Not YAML, or not ours.
    #[error("`{path}`: {message}")]
    Malformed {
        /// Which.
        path: PathBuf,
        /// Where and what.
        message: String,
    },
    /// Well-formed, but it cannot be.
    #[error("`{path}` has {} faults:\n{}", .faults.len(), listed(.faults))]
    Faulty {
        /// Which.
        path: PathBuf,
        /// All of them.
        faults: Vec<ConfigurationFault>,
    },
}

impl ConfigError {
    /// What to do next.
    pub fn hint(&self) -> String {
        match self {
            Self::Unreadable { .. } => "`kubler-server init FOLDER` writes a configuration to start from; `--config` names another file".into(),
            Self::TooLong { .. } => "check that it is the right file".into(),
            Self::Malformed { message, .. } => suggestion(message).unwrap_or_else(|| "`kubler-server schema` prints the keys as a JSON Schema".into()),
            Self::Faulty { .. } => "`kubler-server check` reads the configuration without starting".into(),
        }
    }
}

fn listed(faults: &[ConfigurationFault]) -> String {
    let lines: Vec<_> = faults
        .iter()
        .map(|fault| format!("  {fault}\n    hint: {}", fault.hint))
        .collect();
    lines.join("\n")
}

/// Reads and checks the file.
///
/// # Errors
/// The first thing that keeps the server from starting, with its line where there is one.
pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
    let text = read(path)?;
    let malformed = |message: String| ConfigError::Malformed {
        path: path.to_owned(),
        message,
    };
    let text = std::str::from_utf8(&text).map_err(|_| malformed("it is not UTF-8 text".into()))?;
    let configuration: Configuration =
        serde_saphyr::from_str(text).map_err(|error| malformed(error.to_string()))?;
    let faults = configuration.faults();
    if !faults.is_empty() {
        return Err(ConfigError::Faulty {
            path: path.to_owned(),
            faults,
        });
    }
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let folder = folder
        .canonicalize()
        .map_err(|source| ConfigError::Unreadable {
            path: folder.to_owned(),
            source,
        })?;
    Ok(Loaded {
        configuration,
        folder,
    })
}

/// Reads a bounded file.
///
/// # Errors
/// When it cannot be read, or is too long.
pub fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    };
    if std::fs::metadata(path).map_err(unreadable)?.len() > FILE_BYTES_MAX {
        return Err(ConfigError::TooLong {
            path: path.to_owned(),
        });
    }
    std::fs::read(path).map_err(unreadable)
}

impl Loaded {
    /// A path of the configuration, made absolute.
    pub fn path(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    /// The files that each profile names, by profile and then by the name the profile gives them.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn manifests(&self) -> Result<BTreeMap<String, BTreeMap<String, String>>, ConfigError> {
        let mut all = BTreeMap::new();
        for profile in &self.configuration.profiles {
            let mut of_profile = BTreeMap::new();
            for name in &profile.manifests {
                let path = self.path(name);
                let text = String::from_utf8(read(&path)?).map_err(|_| ConfigError::Malformed {
                    path,
                    message: "it is not UTF-8 text".into(),
                })?;
                of_profile.insert(name.clone(), text);
            }
            all.insert(profile.name.clone(), of_profile);
        }
        Ok(all)
    }

    /// A file that holds one secret; white space around it does not count.
    ///
    /// # Errors
    /// When it cannot be read or is empty.
    pub fn secret(&self, path: &str) -> Result<SecretString, ConfigError> {
        let path = self.path(path);
        let text = String::from_utf8(read(&path)?).ok();
        match text.as_deref().map(str::trim) {
            Some(secret) if !secret.is_empty() => Ok(SecretString::from(secret)),
            _ => Err(ConfigError::Malformed {
                path,
                message: "it holds no secret".into(),
            }),
        }
    }
}

/// The known key that somebody meant, from serde's "unknown field `x`, expected one of `y`, `z`".
fn suggestion(message: &str) -> Option<String> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    if !message.contains("unknown field") {
        return None;
    }
    let wrong = quoted.next()?;
    let known: Vec<_> = quoted
        .take_while(|word| {
            word.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        })
        .collect();
    let nearest = known
        .iter()
        .min_by_key(|known| strsim::levenshtein(known, wrong))?;
    if strsim::levenshtein(nearest, wrong) <= SLIP_EDITS_MAX {
        return Some(format!("did you mean `{nearest}`?"));
    }
    Some(format!("known here: {}", known.join(", ")))
}

/// Where programs may be, from the environment, read once.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Kubler's cache: `kube/build` puts what it makes below it.
    pub cache: Option<PathBuf>,
    /// What envtest users have, for etcd.
    pub kubebuilder_assets: Option<PathBuf>,
    /// The folders of `PATH`, for etcd.
    pub path: Vec<PathBuf>,
}

impl Surroundings {
    /// Reads `KUBLER_CACHE`, `XDG_CACHE_HOME`, `HOME`, `KUBEBUILDER_ASSETS` and `PATH`.
    #[allow(clippy::disallowed_methods)] // this is the place
    pub fn read() -> Self {
        let folder = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let cache = folder("KUBLER_CACHE").or_else(|| {
            let home =
                folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")));
            home.map(|home| home.join("kubler"))
        });
        let path = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect());
        Self {
            cache,
            kubebuilder_assets: folder("KUBEBUILDER_ASSETS"),
            path: path.unwrap_or_default(),
        }
    }
}
