//! Finds the programs an environment is made of: in a configured folder, else in the cache that `kube/build`
//! fills; etcd also where users of envtest have it. Paths are arguments: only the configuration reads the
//! environment.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use kubler_core::configuration::Configuration;

use crate::config::Surroundings;

/// Oldest etcd that is taken from elsewhere: the first with the fixes to its users and roles we rely on.
pub const ETCD_VERSION_MIN: (u32, u32) = (3, 5);
/// How to get what is missing.
const BUILD_HINT: &str =
    "run `kube/build`, or set `kubernetes.<version>.folder` to a folder that holds them";
/// Why what users of envtest have is not enough (decision 0008).
const STOCK_HINT: &str = "`KUBEBUILDER_ASSETS` and PATH are looked at for etcd only: a stock kube-apiserver cannot listen on a Unix socket";
/// Bytes of a program that are searched at once for its version.
const SEARCH_BYTES: usize = 1 << 20;
/// Longest version with what stands before it, in bytes: how far two searched parts overlap.
const SEARCH_OVERLAP_BYTES: usize = 128;

/// Below the cache's folder: where `kube/build` puts folders `KEY/bin`.
const BUILT: &str = "kube";

/// Every program that the configuration needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    /// By the version's name in the configuration.
    pub versions: BTreeMap<String, Programs>,
    /// The etcd under all of them; an empty path when there are none.
    pub etcd: PathBuf,
}

/// The programs of one Kubernetes version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// Exact version, such as `v1.34.4`, as it stands in the program.
    pub version: String,
    /// API server and controller manager in one.
    pub control_plane: PathBuf,
    /// What a new prefix is filled with. Absent: an environment takes a second longer.
    pub template: Option<PathBuf>,
}

/// A program that is not where it should be, or is not the right one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BinariesError {
    /// What is missing, and where it was looked for.
    message: String,
    /// What to do.
    hint: String,
}

impl BinariesError {
    /// What to do next.
    pub fn hint(&self) -> String {
        self.hint.clone()
    }
}

/// Finds what the configuration names. Relative folders count from `folder`.
///
/// # Errors
/// When a program is missing, or is of another version than its name says.
pub fn resolve_all(
    configuration: &Configuration,
    folder: &Path,
    surroundings: &Surroundings,
) -> Result<Binaries, BinariesError> {
    let mut versions = BTreeMap::new();
    let mut configured = Vec::new();
    for (wanted, version) in &configuration.kubernetes {
        let own = version.folder.as_ref().map(|own| folder.join(own));
        versions.insert(
            wanted.clone(),
            Programs::find(wanted, own.as_deref(), surroundings)?,
        );
        configured.extend(own);
    }
    let etcd = if versions.is_empty() {
        PathBuf::new()
    } else {
        find_etcd(&configured, surroundings)?
    };
    Ok(Binaries { versions, etcd })
}

impl Binaries {
    /// The exact version behind a name of the configuration.
    ///
    /// # Errors
    /// When the configuration does not name it.
    pub fn version(&self, wanted: &str) -> Result<&str, BinariesError> {
        let found = self
            .versions
            .get(wanted)
            .map(|programs| programs.version.as_str());
        found.ok_or_else(|| BinariesError {
            message: format!("there are no programs for Kubernetes `{wanted}`"),
            hint: "list it under `kubernetes` in the configuration".into(),
        })
    }
}

impl Programs {
    /// Finds the programs of a Kubernetes version: in `folder` when one is configured, else in the newest folder
    /// of the cache that has this version. `wanted` is the version's name in the configuration, such as `1.34`.
    ///
    /// # Errors
    /// When a program is missing, or none is of the version that its name says.
    pub fn find(
        wanted: &str,
        folder: Option<&Path>,
        search: &Surroundings,
    ) -> Result<Self, BinariesError> {
        let folders =
            folder.map_or_else(|| cache_folders(search), |folder| vec![folder.to_owned()]);
        let mut others = Vec::new();
        for found in &folders {
            let control_plane = found.join("kubler-control-plane");
            if !is_program(&control_plane) {
                continue;
            }
            match version_in(&control_plane) {
                Some(version) if version_fits(wanted, &version) => {
                    let template = Some(found.join("template")).filter(|it| it.is_file());
                    return Ok(Self {
                        version,
                        control_plane,
                        template,
                    });
                }
                version => others.push((control_plane, version)),
            }
        }
        if others.is_empty() {
            let what = format!("`kubler-control-plane` for Kubernetes `{wanted}`");
            return Err(BinariesError {
                hint: format!("{BUILD_HINT}; {STOCK_HINT}"),
                ..missing(&what, &folders, search)
            });
        }
        Err(of_other_versions(wanted, &others))
    }
}

/// What was found instead, each with its version.
fn of_other_versions(wanted: &str, others: &[(PathBuf, Option<String>)]) -> BinariesError {
    let said: Vec<_> = others
        .iter()
        .map(|(program, version)| match version {
            Some(version) => format!("`{}` is Kubernetes {version}", program.display()),
            None => format!(
                "`{}` does not say which Kubernetes it is",
                program.display()
            ),
        })
        .collect();
    let names: BTreeSet<_> = others
        .iter()
        .filter_map(|(_, version)| version.as_deref())
        .map(|version| format!("`{}`", minor_of(version)))
        .collect();
    BinariesError {
        message: format!("{}, not `{wanted}`", said.join(", ")),
        hint: if names.is_empty() {
            BUILD_HINT.into()
        } else {
            let names: Vec<_> = names.into_iter().collect();
            format!(
                "name it {} in `kubernetes`, or configure another folder",
                names.join(" or ")
            )
        },
    }
}

/// Finds etcd: in the configured folders, the cache, `KUBEBUILDER_ASSETS`, then `PATH`.
///
/// # Errors
/// When there is none, or none that is new enough.
pub fn find_etcd(configured: &[PathBuf], search: &Surroundings) -> Result<PathBuf, BinariesError> {
    let mut folders = configured.to_vec();
    folders.extend(cache_folders(search));
    // These are pinned and verified; the others are asked for their version.
    if let Some(found) = folders
        .iter()
        .map(|folder| folder.join("etcd"))
        .find(|program| is_program(program))
    {
        return Ok(found);
    }
    let elsewhere: Vec<_> = search
        .kubebuilder_assets
        .iter()
        .chain(&search.path)
        .cloned()
        .collect();
    let mut too_old = None;
    for program in elsewhere
        .iter()
        .map(|folder| folder.join("etcd"))
        .filter(|program| is_program(program))
    {
        match etcd_version(&program) {
            Some(version) if version >= ETCD_VERSION_MIN => return Ok(program),
            version => too_old = Some((program, version)),
        }
    }
    let Some((program, version)) = too_old else {
        folders.extend(elsewhere);
        return Err(missing("`etcd`", &folders, search));
    };
    let version = version.map_or_else(
        || "of unknown version".to_owned(),
        |(major, minor)| format!("version {major}.{minor}"),
    );
    let (major, minor) = ETCD_VERSION_MIN;
    Err(BinariesError {
        message: format!(
            "`{}` is {version}; {major}.{minor} or newer is needed",
            program.display()
        ),
        hint: BUILD_HINT.into(),
    })
}

fn missing(what: &str, folders: &[PathBuf], search: &Surroundings) -> BinariesError {
    let mut places: Vec<_> = folders
        .iter()
        .map(|folder| format!("`{}`", folder.display()))
        .collect();
    if places.is_empty() {
        places.extend(
            search
                .cache
                .iter()
                .map(|cache| format!("`{}/{BUILT}/*/bin`", cache.display())),
        );
    }
    places.truncate(6);
    BinariesError {
        message: format!("{what} was not found in {}", places.join(", ")),
        hint: BUILD_HINT.into(),
    }
}

/// The cache's folders of programs, newest first.
fn cache_folders(search: &Surroundings) -> Vec<PathBuf> {
    let Some(entries) = search
        .cache
        .as_ref()
        .and_then(|cache| std::fs::read_dir(cache.join(BUILT)).ok())
    else {
        return Vec::new();
    };
    let mut folders: Vec<(SystemTime, PathBuf)> = entries
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .filter_map(|folder| Some((std::fs::metadata(&folder).ok()?.modified().ok()?, folder)))
        .collect();
    folders.sort();
    folders
        .into_iter()
        .rev()
        .map(|(_, folder)| folder)
        .collect()
}

fn is_program(path: &Path) -> bool {
    std::fs::metadata(path)
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

fn minor_of(version: &str) -> String {
    version
        .trim_start_matches('v')
        .split('.')
        .take(2)
        .collect::<Vec<_>>()
        .join(".")
}

/// Whether `1.34`, `1.34.4` or `v1.34.4` names `v1.34.4`. A name that is no version fits everything.
fn version_fits(wanted: &str, version: &str) -> bool {
    let wanted = wanted.trim_start_matches('v');
    let is_version = wanted.contains('.')
        && wanted
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.');
    let version = version.trim_start_matches('v');
    !is_version
        || version == wanted
        || version
            .strip_prefix(wanted)
            .is_some_and(|rest| rest.starts_with('.'))
}

/// The version of `k8s.io/kubernetes` in what Go writes into every program about its modules. The program is
/// not run.
fn version_in(program: &Path) -> Option<String> {
    let pattern = regex::bytes::Regex::new(
        "dep\tk8s\\.io/kubernetes\t(v[0-9]{1,5}\\.[0-9]{1,5}\\.[0-9A-Za-z.+-]{1,40})[\t\n]",
    )
    .ok()?;
    let mut file = File::open(program).ok()?;
    let mut part = Vec::with_capacity(SEARCH_BYTES + SEARCH_OVERLAP_BYTES);
    loop {
        let read = file
            .by_ref()
            .take(SEARCH_BYTES as u64)
            .read_to_end(&mut part)
            .ok()?;
        if let Some(version) = pattern.captures(&part).and_then(|found| found.get(1)) {
            return String::from_utf8(version.as_bytes().to_vec()).ok();
        }
        if read == 0 {
            return None;
        }
        part.drain(..part.len().saturating_sub(SEARCH_OVERLAP_BYTES));
    }
}

fn etcd_version(program: &Path) -> Option<(u32, u32)> {
    let said = Command::new(program)
        .arg("--version")
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("etcd Version: "))?;
    let mut numbers = version
        .trim()
        .split('.')
        .map_while(|number| number.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn program(path: &Path, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn control_plane(folder: &Path, version: &str) {
        // The text lies across the border of two searched parts.
        let before = "x".repeat(SEARCH_BYTES - 20);
        program(
            &folder.join("kubler-control-plane"),
            &format!("{before}\ndep\tk8s.io/kubernetes\t{version}\th1:abc=\n"),
        );
    }

    #[test]
    fn programs_come_from_the_configured_folder_else_from_the_cache() {
        let place = tempfile::tempdir().unwrap();
        let (folder, cache) = (place.path().join("own"), place.path().join("cache"));
        control_plane(&folder, "v1.33.1");
        control_plane(&cache.join("kube/key/bin"), "v1.34.4");
        std::fs::write(cache.join("kube/key/bin/template"), "").unwrap();
        let search = Surroundings {
            cache: Some(cache),
            ..Surroundings::default()
        };
        let configured = Programs::find("1.33", Some(&folder), &search).unwrap();
        assert_eq!(
            (configured.version.as_str(), configured.template),
            ("v1.33.1", None)
        );
        let cached = Programs::find("1.34", None, &search).unwrap();
        assert_eq!(cached.version, "v1.34.4");
        assert!(cached.template.is_some());
    }

    #[test]
    fn what_is_missing_or_of_another_version_is_said_with_a_way_out() {
        let place = tempfile::tempdir().unwrap();
        let search = Surroundings {
            cache: Some(place.path().join("nothing")),
            ..Surroundings::default()
        };
        let error = Programs::find("1.34", None, &search).unwrap_err();
        assert!(
            error.message.contains("kubler-control-plane")
                && error.message.contains("nothing/kube/*/bin"),
            "{error}"
        );
        assert!(error.hint.contains("kube/build"));
        assert!(
            error
                .hint
                .contains("`KUBEBUILDER_ASSETS` and PATH are looked at for etcd only"),
            "{}",
            error.hint
        );
        control_plane(&place.path().join("own"), "v1.34.4");
        let error = Programs::find("1.3", Some(&place.path().join("own")), &search).unwrap_err();
        assert!(error.message.contains("v1.34.4, not `1.3`"), "{error}");
    }

    #[test]
    fn several_versions_live_in_one_cache_and_each_profile_gets_its_own() {
        let place = tempfile::tempdir().unwrap();
        let built = place.path().join("kube");
        for (age_seconds, version) in [(20, "v1.33.7"), (10, "v1.34.4"), (0, "v1.35.0")] {
            let folder = built.join(version).join("bin");
            control_plane(&folder, version);
            let made = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 - age_seconds);
            File::open(&folder).unwrap().set_modified(made).unwrap();
        }
        let search = Surroundings {
            cache: Some(place.path().to_owned()),
            ..Surroundings::default()
        };
        for (wanted, version) in [
            ("1.33", "v1.33.7"),
            ("1.34", "v1.34.4"),
            ("v1.35.0", "v1.35.0"),
            ("newest", "v1.35.0"),
        ] {
            let found = Programs::find(wanted, None, &search).unwrap();
            assert_eq!(found.version, version, "{wanted}");
            assert!(
                found.control_plane.starts_with(built.join(version)),
                "{found:?}"
            );
        }
        let error = Programs::find("1.36", None, &search).unwrap_err();
        for version in ["v1.33.7", "v1.34.4", "v1.35.0"] {
            assert!(error.message.contains(version), "{error}");
        }
        assert!(
            error.hint.contains("`1.33` or `1.34` or `1.35`"),
            "{}",
            error.hint
        );
    }

    #[test]
    fn etcd_from_elsewhere_must_be_new_enough() {
        let place = tempfile::tempdir().unwrap();
        let (old, new) = (place.path().join("old"), place.path().join("new"));
        program(&old.join("etcd"), "#!/bin/sh\necho etcd Version: 3.4.30\n");
        program(&new.join("etcd"), "#!/bin/sh\necho etcd Version: 3.6.16\n");
        let search = |assets: &Path, path: &[&Path]| Surroundings {
            kubebuilder_assets: Some(assets.to_owned()),
            path: path.iter().map(|path| (*path).to_owned()).collect(),
            ..Surroundings::default()
        };
        assert_eq!(
            find_etcd(&[], &search(&old, &[&new])).unwrap(),
            new.join("etcd")
        );
        let error = find_etcd(&[], &search(&old, &[])).unwrap_err();
        assert!(
            error.message.contains("version 3.4; 3.5 or newer"),
            "{error}"
        );
        assert_eq!(
            find_etcd(std::slice::from_ref(&old), &search(&new, &[])).unwrap(),
            old.join("etcd")
        );
        assert!(
            find_etcd(&[], &Surroundings::default())
                .unwrap_err()
                .message
                .contains("`etcd` was not found")
        );
    }
}
