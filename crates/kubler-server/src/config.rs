//! Reads the configuration file and what it names. The only place that reads the environment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kubler_core::configuration::{Configuration, ConfigurationFault};
use secrecy::SecretString;

/// Longest configuration or manifest file, in bytes.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// How unlike a known key a wrong one may be to be taken for a slip: one edit for so many letters.
const LETTERS_PER_SLIP: usize = 3;

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
    /// The configuration itself cannot be read.
    #[error("`{path}` cannot be read: {source}")]
    NoConfiguration {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that it names cannot be read.
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
    /// `log` cannot be read.
    #[error("`log` is `{text}`, which says nothing that can be logged: {message}")]
    Log {
        /// What it says.
        text: String,
        /// Why.
        message: String,
    },
    /// Well-formed, but it cannot be.
    #[error("`{path}` has {}:\n{}", counted(.faults.len()), listed(.faults))]
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
            Self::Unreadable { path, source } => unreadable_hint(path, source),
            Self::NoConfiguration { path, source } => match source.kind() {
                std::io::ErrorKind::NotFound => "`kubler-server init FOLDER` writes a configuration to start from; `--config` names another file".into(),
                std::io::ErrorKind::IsADirectory => format!("it is a folder: name the file in it, such as `--config {}`", path.join("kubler.yaml").display()),
                _ => unreadable_hint(path, source),
            },
            Self::Log { .. } => "such as `info`, or `info,kubler_server=debug`".into(),
            Self::TooLong { .. } => "check that it is the right file".into(),
            Self::Malformed { message, .. } => suggestion(message).unwrap_or_else(|| "`kubler-server schema` prints the keys as a JSON Schema".into()),
            Self::Faulty { .. } => "`kubler-server check` reads the configuration without starting".into(),
        }
    }
}

/// What to do about a file that the configuration names.
fn unreadable_hint(path: &Path, error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "the configuration names it, and relative paths count from the configuration's folder: put it there, or take its key out".into(),
        std::io::ErrorKind::PermissionDenied => format!(
            "let the server's user read it: `chown` it, or `chmod u+r {}`",
            path.display()
        ),
        _ => "check that it is a file, and who owns it".into(),
    }
}

fn counted(faults: usize) -> String {
    let s = if faults == 1 { "" } else { "s" };
    format!("{faults} fault{s}")
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
    let text = read(path).map_err(|error| match error {
        ConfigError::Unreadable { path, source } => ConfigError::NoConfiguration { path, source },
        other => other,
    })?;
    let malformed = |message: String| ConfigError::Malformed {
        path: path.to_owned(),
        message,
    };
    let text = std::str::from_utf8(&text).map_err(|_| malformed("it is not UTF-8 text".into()))?;
    let configuration: Configuration = serde_saphyr::from_str(text)
        .map_err(|error| malformed(without_prefix(&error.to_string())))?;
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

/// The reader's message, with its own word for an error taken off: ours stands before it already.
pub(crate) fn without_prefix(message: &str) -> String {
    message.trim_start_matches("error: ").trim_end().to_owned()
}

/// The host of `https://host:port`. `None` when it is no such URL.
pub(crate) fn host(url: &str) -> Option<&str> {
    let authority = url.strip_prefix("https://")?;
    let host = authority.strip_prefix('[').map_or_else(
        || authority.split(':').next(),
        |rest| rest.split(']').next(),
    )?;
    (!host.is_empty() && !authority.contains('/')).then_some(host)
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

    /// The configured folder for sockets and keys of living environments.
    pub fn run(&self) -> Option<PathBuf> {
        let run = self.configuration.run.as_ref();
        run.map(|run| self.path(run))
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

/// The known word that somebody meant, from "unknown field `x`, expected one of y, z" on one line.
fn suggestion(message: &str) -> Option<String> {
    let start = ["unknown field `", "unknown variant `"]
        .iter()
        .find_map(|start| Some(message.find(start)? + start.len()))?;
    let (wrong, rest) = message.get(start..)?.lines().next()?.split_once('`')?;
    let (_, known) = rest.split_once("expected ")?;
    let known: Vec<_> = known
        .trim_start_matches("one of ")
        .split(", ")
        .map(|word| word.trim_matches('`'))
        .collect();
    let nearest = known
        .iter()
        .min_by_key(|known| strsim::osa_distance(known, wrong))?;
    if strsim::osa_distance(nearest, wrong) <= wrong.len() / LETTERS_PER_SLIP {
        return Some(format!("did you mean `{nearest}`?"));
    }
    Some(format!("known here: {}", known.join(", ")))
}

macro_rules! variables {
    ($(#[doc = $doc:literal] $name:ident;)+) => {
        $(#[doc = $doc] pub const $name: &str = stringify!($name);)+

        /// Every environment variable that `kubler-server` reads, with its meaning.
        pub const VARIABLES: &[(&str, &str)] = &[$(($name, $doc),)+];
    };
}

variables! {
    /// The configuration file, when `--config` is not given.
    KUBLER_CONFIG;
    /// What is logged, such as `info,kubler_server=debug`; `info` when absent.
    KUBLER_LOG;
    /// Folder of the cache that `kube/build` fills; `kubler` in `XDG_CACHE_HOME` when absent.
    KUBLER_CACHE;
    /// Folder of caches; `.cache` in `HOME` when absent.
    XDG_CACHE_HOME;
    /// The user's home.
    HOME;
    /// Folder of envtest's programs: looked at for etcd only.
    KUBEBUILDER_ASSETS;
    /// Folders of programs: looked at for etcd only, last of all.
    PATH;
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
        let cache = folder(KUBLER_CACHE).or_else(|| {
            let home =
                folder(XDG_CACHE_HOME).or_else(|| folder(HOME).map(|home| home.join(".cache")));
            home.map(|home| home.join("kubler"))
        });
        let path = std::env::var_os(PATH).map(|path| std::env::split_paths(&path).collect());
        Self {
            cache,
            kubebuilder_assets: folder(KUBEBUILDER_ASSETS),
            path: path.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"url: https://kubler.test:8443
issuers:
  - kind: buildkite
    audience: kubler
    organizations:
      - id: "01945ecf-0000-4000-8000-00000000000A"
        slug: acme
kubernetes:
  "1.34": {}
profiles:
  - name: ci-small
    kubernetes: "1.34"
    egress: []
tls: {}
limits: {}
ledger: {}
"#;

    fn load_text(text: &str) -> Result<Loaded, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kubler.yaml");
        std::fs::write(&path, text).unwrap();
        load(&path)
    }

    #[test]
    fn a_good_file_is_read_and_ids_are_canonical() {
        let loaded = load_text(GOOD).unwrap();
        let issuer = &loaded.configuration.issuers[0];
        assert_eq!(
            issuer.organizations[0].id,
            "01945ecf-0000-4000-8000-00000000000a"
        );
    }

    #[test]
    fn t9_an_unknown_key_is_an_error_with_its_line_and_a_suggestion_on_every_level() {
        let cases = [
            ("url: https", "lissen: x\nurl: https", 1, "listen"),
            (
                "    audience:",
                "    audiance: kubler\n    audience:",
                4,
                "audience",
            ),
            (
                "        slug:",
                "        webhook_secrets: x\n        slug:",
                7,
                "webhook_secret",
            ),
            ("\"1.34\": {}", "\"1.34\": {foldr: x}", 9, "folder"),
            (
                "    egress:",
                "    lease_second: 5\n    egress:",
                13,
                "lease_seconds",
            ),
            ("tls: {}", "tls: {certificat: x}", 14, "certificate"),
            ("limits: {}", "limits: {queue: 1}", 15, "queue_max"),
            ("ledger: {}", "ledger: {orign: x}", 16, "origin"),
        ];
        for (from, to, line, meant) in cases {
            let error = load_text(&GOOD.replacen(from, to, 1)).unwrap_err();
            let said = error.to_string();
            assert!(said.contains(&format!("line {line}")), "{to}: {said}");
            assert!(
                error.hint().contains(&format!("`{meant}`")) || meant == "queue_max",
                "{to}: {}",
                error.hint()
            );
        }
        for far in ["nothing_like_it", "foo", "day", "uri2"] {
            let error = load_text(&GOOD.replacen("tls:", &format!("{far}: 1\ntls:"), 1));
            let hint = error.unwrap_err().hint();
            assert!(hint.starts_with("known here: listen, url"), "{far}: {hint}");
        }
    }

    #[test]
    fn a_misspelt_value_is_an_error_with_a_suggestion() {
        let engine = GOOD.replacen("    egress:", "    engine: locla\n    egress:", 1);
        assert_eq!(
            load_text(&engine).unwrap_err().hint(),
            "did you mean `local`?"
        );
    }

    #[test]
    fn what_is_not_a_configuration_says_where() {
        for (text, says) in [
            (GOOD.replacen("https", "[https", 1), "line"),
            (format!("{GOOD}url: https://other.test\n"), "url"),
            (
                GOOD.replacen("    kubernetes: \"1.34\"\n", "", 1),
                "kubernetes",
            ),
            (
                GOOD.replacen("limits: {}", "limits: {queue_max: many}", 1),
                "line 15",
            ),
            (
                GOOD.replacen("limits: {}", "limits: {queue_max: -1}", 1),
                "line 15",
            ),
            (String::new(), "line 1"),
        ] {
            let error = load_text(&text).unwrap_err();
            assert!(error.to_string().contains(says), "{says}: {error}");
            assert!(!error.hint().is_empty());
        }
        let long = format!("{GOOD}#{}", "x".repeat(4 * 1024 * 1024));
        assert!(matches!(load_text(&long), Err(ConfigError::TooLong { .. })));
    }

    #[test]
    fn t9_faults_are_listed_with_key_and_hint() {
        let text = GOOD.replacen("egress: []", "egress: [\"localhost:1\", \"no port\"]", 1);
        let error = load_text(&text).unwrap_err();
        let said = error.to_string();
        for part in [
            "has 2 faults",
            "`profiles[0].egress[0]`: `localhost:1` can never be reached",
            "`profiles[0].egress[1]`: `no port` is not `name:port`",
            "hint: ",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}
