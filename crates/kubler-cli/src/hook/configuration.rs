//! The plugin's configuration, as the agent hands it over: JSON in one variable.

use std::path::PathBuf;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::arguments::{Connection, ScopeArgument, Wanted};
use crate::commands::{WAIT_SECONDS_DEFAULT, WAIT_SECONDS_MAX};
use crate::exit::{Failure, Outcome};
use crate::hook::Phase;
use crate::job;
use crate::variables;

/// So many letters of a key may have one wrong, missing, swapped or too many before it is taken for another.
const LETTERS_PER_SLIP: usize = 3;

/// What a pipeline's author wrote below the plugin's name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Configuration {
    /// The server's URL; `KUBLER_SERVER` when absent.
    pub server: Option<String>,
    /// Audience of identity tokens; the server's URL when absent.
    pub audience: Option<String>,
    /// PEM file of the CA to trust; `KUBLER_CA`, then the system's store, when absent.
    pub ca: Option<PathBuf>,
    /// The profile; `KUBLER_PROFILE` when absent.
    pub profile: Option<String>,
    /// The environment's name within the job or build.
    #[serde(default = "name_default")]
    pub name: String,
    /// Who may use it.
    #[serde(default)]
    pub scope: ScopeArgument,
    /// Make nothing: use what an earlier step of the build has made.
    #[serde(default)]
    pub attach: bool,
    /// With the scope `build`: the environment ends with this job.
    #[serde(default)]
    pub release: bool,
    /// When it is made.
    #[serde(default)]
    pub hook: Phase,
    /// Longest time to wait until it is usable, in seconds.
    #[serde(default = "wait_default", deserialize_with = "seconds")]
    pub wait: u64,
    /// Whether the job's page says which environment it had.
    #[serde(default)]
    pub annotation: Annotation,
    /// Where the hooks get this program when it is not on PATH: they read it before it runs.
    #[serde(rename = "download")]
    _download: Option<String>,
    /// The digest that it must have, likewise.
    #[serde(rename = "sha256")]
    _sha256: Option<String>,
}

/// Whether there is an annotation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "bool")]
pub enum Annotation {
    /// Yes.
    #[default]
    Shown,
    /// No.
    Hidden,
}

impl From<bool> for Annotation {
    fn from(shown: bool) -> Self {
        if shown { Self::Shown } else { Self::Hidden }
    }
}

fn name_default() -> String {
    kubler_api::NAME_DEFAULT.to_owned()
}

const fn wait_default() -> u64 {
    WAIT_SECONDS_DEFAULT
}

fn seconds<'de, D: Deserializer<'de>>(value: D) -> Result<u64, D::Error> {
    let value = serde_json::Value::deserialize(value)?;
    value.as_u64().ok_or_else(|| {
        D::Error::custom(format!(
            "`wait` is {value}, which is no number of seconds; write `wait: {WAIT_SECONDS_DEFAULT}`, without a unit"
        ))
    })
}

/// The key that was meant, from what serde says of an unknown one: it, and then all that are known, in backticks.
fn meant(error: &str) -> Option<&str> {
    let mut quoted = error
        .strip_prefix("unknown field ")?
        .split('`')
        .skip(1)
        .step_by(2);
    let wrong = quoted.next()?;
    let nearest = quoted.min_by_key(|known| strsim::osa_distance(known, wrong))?;
    (strsim::osa_distance(nearest, wrong) <= wrong.len() / LETTERS_PER_SLIP).then_some(nearest)
}

impl Configuration {
    /// The configuration of this hook.
    pub fn of_this_hook() -> Outcome<Self> {
        Self::read(
            &variables::get(variables::BUILDKITE_PLUGIN_CONFIGURATION)
                .unwrap_or_else(|| "{}".to_owned()),
        )
    }

    fn read(text: &str) -> Outcome<Self> {
        // A plugin without any configuration is `null`.
        let text = if text.trim() == "null" { "{}" } else { text };
        let configuration: Self = serde_json::from_str(text).map_err(|error| {
            let error = error.to_string();
            let hint = match meant(&error) {
                Some(known) => {
                    format!("did you mean `{known}`? The keys are listed in the plugin's README")
                }
                None => "its keys are listed in the plugin's README".to_owned(),
            };
            Failure::usage(format!(
                "the plugin's configuration cannot be used: {error}"
            ))
            .hint(hint)
        })?;
        job::checked_name(&configuration.name)?;
        for (key, is_given) in [
            ("attach", configuration.attach),
            ("release", configuration.release),
        ] {
            if is_given && configuration.scope != ScopeArgument::Build {
                return Err(Failure::usage(format!(
                    "the plugin's configuration cannot be used: `{key}` without `scope: build`"
                ))
                .hint("only an environment of the whole build is attached to, and ended by another job than its maker"));
            }
        }
        if configuration.wait > WAIT_SECONDS_MAX {
            return Err(Failure::usage(format!(
                "the plugin's configuration cannot be used: `wait` is {}",
                configuration.wait
            ))
            .hint(format!("give at most {WAIT_SECONDS_MAX} seconds")));
        }
        Ok(configuration)
    }

    /// Where the server is. A job's identity is its agent's: nothing else is taken from the environment.
    pub fn connection(&self) -> Outcome<Connection> {
        let ca = self
            .ca
            .clone()
            .or_else(|| variables::path(variables::KUBLER_CA));
        let ca = ca
            .map(std::path::absolute)
            .transpose()
            .map_err(|error| Failure::io("find the CA's file", &error))?;
        Ok(Connection {
            server: self
                .server
                .clone()
                .or_else(|| variables::get(variables::KUBLER_SERVER)),
            audience: self
                .audience
                .clone()
                .or_else(|| variables::get(variables::KUBLER_AUDIENCE)),
            ca,
            ..Connection::default()
        })
    }

    /// What to ask for.
    pub fn wanted(&self) -> Outcome<Wanted> {
        let profile = self
            .profile
            .clone()
            .or_else(|| variables::get(variables::KUBLER_PROFILE))
            .ok_or_else(|| {
                Failure::usage("no profile is named")
                    .hint("give the plugin a `profile`, or set `KUBLER_PROFILE` for the agent")
            })?;
        Ok(Wanted {
            profile: Some(profile),
            like: None,
            despite_differences: false,
            name: self.name.clone(),
            scope: self.scope,
            attach: self.attach,
            wait: self.wait.max(1),
        })
    }
}

#[cfg(test)]
mod tests {
    use kubler_core::environment::NAME_BYTES_MAX;

    use super::*;

    #[test]
    fn what_is_left_out_has_a_default() {
        let configuration =
            Configuration::read(r#"{"server":"https://s","profile":"ci-small"}"#).unwrap();
        assert_eq!(configuration.name, "main");
        assert_eq!(configuration.hook, Phase::PreCommand);
        assert_eq!(configuration.scope, ScopeArgument::Job);
        assert_eq!(configuration.wait, WAIT_SECONDS_DEFAULT);
        assert!(Configuration::read("null").is_ok());
    }

    #[test]
    fn everything_can_be_said() {
        let text = r#"{"server":"https://s","audience":"a","ca":"/ca.pem","profile":"p","name":"db","scope":"build",
            "attach":true,"release":true,"hook":"environment","wait":5,"annotation":false,"download":"https://d","sha256":"00"}"#;
        let configuration = Configuration::read(text).unwrap();
        assert_eq!(configuration.hook, Phase::Environment);
        assert_eq!(configuration.annotation, Annotation::Hidden);
        assert_eq!(configuration.wanted().unwrap().wait, 5);
    }

    #[test]
    fn what_only_a_build_can_do_needs_its_scope() {
        for key in ["attach", "release"] {
            let failure = Configuration::read(&format!(r#"{{"{key}":true}}"#)).unwrap_err();
            assert!(failure.message.contains(key), "{failure:?}");
            assert!(Configuration::read(&format!(r#"{{"{key}":true,"scope":"build"}}"#)).is_ok());
        }
    }

    #[test]
    fn nobody_waits_for_ever() {
        assert!(Configuration::read(r#"{"wait":900}"#).is_ok());
        let failure = Configuration::read(r#"{"wait":18446744073709551615}"#).unwrap_err();
        assert!(failure.message.contains("`wait`"), "{failure:?}");
    }

    #[test]
    fn a_wrong_key_is_named() {
        let failure = Configuration::read(r#"{"profil":"x"}"#).unwrap_err();
        assert!(failure.message.contains("profil"), "{failure:?}");
        let hint = failure.hint.unwrap();
        assert!(hint.contains("did you mean `profile`?"), "{hint}");
        let failure = Configuration::read(r#"{"colour":"x"}"#).unwrap_err();
        let hint = failure.hint.unwrap();
        assert!(!hint.contains("did you mean"), "{hint}");
    }

    #[test]
    fn a_number_with_a_unit_says_how_it_is_written() {
        for wrong in [r#""1800s""#, "-1", "1.5", "true"] {
            let failure = Configuration::read(&format!(r#"{{"wait":{wrong}}}"#)).unwrap_err();
            assert!(
                failure.message.contains(wrong) && failure.message.contains("`wait: 120`"),
                "{failure:?}"
            );
        }
    }

    #[test]
    fn a_name_is_as_long_as_the_server_takes_it() {
        let named = |length: usize| {
            let name = "a".repeat(length);
            Configuration::read(&serde_json::json!({ "name": name }).to_string())
        };
        assert!(named(NAME_BYTES_MAX).is_ok());
        let failure = named(NAME_BYTES_MAX + 1).unwrap_err();
        assert!(failure.hint.unwrap().contains("at most 40"));
    }

    #[test]
    fn a_name_is_no_path() {
        for name in ["../x", "", "a.b", "A", "-a"] {
            assert!(
                Configuration::read(&serde_json::json!({ "name": name }).to_string()).is_err(),
                "{name}"
            );
        }
    }
}
