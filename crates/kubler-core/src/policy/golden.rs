//! Golden cases: what policies are expected to say, in a file beside them.
//!
//! ```yaml
//! job:                          # every case stands on this; left out: a person's build of `main`
//!   pipeline_id: 0194…
//! cases:
//!   - name: a fork gets no full profile
//!     job: {build_source: webhook, branch: "someone:main"}
//!     action: create_environment
//!     profile: ci-small
//!     expect: deny
//!     policy: acme/create       # optional: the policy that decides, or the one that comes closest
//!   - name: operators read the ledger
//!     operator: alice
//!     action: read_ledger
//!     expect: allow
//! ```
//! A caller is `job` (as policies see it), `claims` (as the issuer writes them) or `operator`; an environment is
//! `environment: {profile, scope, name, job}`, made by the caller unless `job` says otherwise.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::example::{self, ExampleEnvironment, ExampleJob};
use super::parse::PolicySet;
use super::{Action, Caller, Operator, Target, TargetKind};
use crate::configuration::Configuration;
use crate::identity::Identity;

/// Most cases in one file.
pub const CASES_MAX: usize = 10_000;

/// A file of cases that cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {message}")]
pub struct TestFault {
    /// The file.
    pub file: String,
    /// What is wrong, with its line where there is one.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// What came of one case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CaseOutcome {
    /// The case's name.
    pub name: String,
    /// Absent when it held; what was answered instead when it did not.
    pub failure: Option<String>,
}

/// What came of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TestReport {
    /// The file.
    pub file: String,
    /// Every case, in order.
    pub cases: Vec<CaseOutcome>,
}

impl TestReport {
    /// Whether every case held.
    pub fn passed(&self) -> bool {
        self.failures() == 0
    }

    /// How many did not.
    pub fn failures(&self) -> usize {
        self.cases
            .iter()
            .filter(|case| case.failure.is_some())
            .count()
    }
}

impl fmt::Display for TestReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for case in &self.cases {
            match &case.failure {
                None => writeln!(f, "ok    {}", case.name)?,
                Some(failure) => writeln!(f, "FAIL  {}\n      {failure}", case.name)?,
            }
        }
        write!(
            f,
            "{}: {} cases, {} failed",
            self.file,
            self.cases.len(),
            self.failures()
        )
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    job: ExampleJob,
    cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    job: Option<ExampleJob>,
    claims: Option<serde_json::Map<String, serde_json::Value>>,
    operator: Option<String>,
    action: Action,
    profile: Option<String>,
    environment: Option<ExampleEnvironment>,
    expect: Expected,
    policy: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Expected {
    Allow,
    Deny,
}

/// Runs the cases of one file.
///
/// # Errors
/// When the text is no such file, has no case, or a case asks something that cannot be asked. A case that does
/// not hold is no error: see [`TestReport::passed`].
pub fn test(
    set: &PolicySet,
    configuration: &Configuration,
    file: &str,
    text: &str,
) -> Result<TestReport, TestFault> {
    let fault = |message: String, hint: &str| TestFault {
        file: file.to_owned(),
        message,
        hint: hint.to_owned(),
    };
    let read: File = serde_saphyr::from_str(text).map_err(|error| {
        fault(
            error.to_string(),
            "the policy guide shows the format of golden cases",
        )
    })?;
    if read.cases.is_empty() || read.cases.len() > CASES_MAX {
        return Err(fault(
            format!("it has {} cases", read.cases.len()),
            "a file without cases tests nothing; split one that has too many",
        ));
    }
    let base = read.job.on(example::base(configuration));
    let mut cases = Vec::new();
    for case in &read.cases {
        let failure = case.run(set, configuration, &base).map_err(|message| {
            fault(
                format!("case `{}`: {message}", case.name),
                "correct the case",
            )
        })?;
        cases.push(CaseOutcome {
            name: case.name.clone(),
            failure,
        });
    }
    Ok(TestReport {
        file: file.to_owned(),
        cases,
    })
}

impl Case {
    /// What was answered instead, when the case does not hold.
    fn run(
        &self,
        set: &PolicySet,
        configuration: &Configuration,
        base: &Identity,
    ) -> Result<Option<String>, String> {
        let caller = self.caller(configuration, base)?;
        let target = self.target(configuration, &caller, base)?;
        let answer = set.decide(&caller, self.action, target);
        Ok(match (self.expect, answer) {
            (Expected::Allow, Ok(permit)) => {
                let by = &permit.grounds().policies;
                self.misnamed(by)
                    .map(|policy| format!("allowed by {}, not by `{policy}`", by.join(", ")))
            }
            (Expected::Allow, Err(denial)) => Some(format!("denied: {denial}; {}", denial.hint)),
            (Expected::Deny, Ok(permit)) => Some(format!(
                "allowed by {}",
                permit.grounds().policies.join(", ")
            )),
            (Expected::Deny, Err(denial)) => {
                let nearest = denial
                    .closest
                    .iter()
                    .take(1)
                    .map(|missed| missed.policy.clone());
                let by: Vec<_> = denial
                    .grounds
                    .policies
                    .iter()
                    .cloned()
                    .chain(nearest)
                    .collect();
                self.misnamed(&by)
                    .map(|policy| format!("denied, but not by or close to `{policy}`: {denial}"))
            }
        })
    }

    fn misnamed(&self, by: &[String]) -> Option<&String> {
        self.policy.as_ref().filter(|policy| !by.contains(policy))
    }

    fn caller(&self, configuration: &Configuration, base: &Identity) -> Result<Caller, String> {
        match (&self.job, &self.claims, &self.operator) {
            (job, None, None) => {
                let identity = job
                    .as_ref()
                    .map_or_else(|| base.clone(), |job| job.on(base.clone()));
                Ok(Caller::Job(Box::new(identity)))
            }
            (None, Some(claims), None) => {
                let issuer = example::issuer(configuration, claims)?;
                let identity =
                    example::identity(issuer, claims).map_err(|error| error.to_string())?;
                Ok(Caller::Job(Box::new(identity)))
            }
            (None, None, Some(name)) => Ok(Caller::Operator(Operator { name: name.clone() })),
            _ => Err("give one of `job`, `claims` and `operator`".into()),
        }
    }

    fn target(
        &self,
        configuration: &Configuration,
        caller: &Caller,
        base: &Identity,
    ) -> Result<Target, String> {
        let unknown = |name: String| format!("there is no profile `{name}`");
        match (self.action.target(), &self.profile, &self.environment) {
            (TargetKind::Profile, Some(name), None) => {
                let resolved = example::profile(configuration, Some(name)).map_err(unknown)?;
                Ok(Target::Profile(Box::new(resolved)))
            }
            (TargetKind::Environment, None, described) => {
                let owner = match caller {
                    Caller::Job(identity) => identity.as_ref().clone(),
                    Caller::Operator(_) => base.clone(),
                };
                let own = ExampleEnvironment::default();
                described
                    .as_ref()
                    .unwrap_or(&own)
                    .target(configuration, owner)
                    .map_err(unknown)
            }
            (TargetKind::Server, None, None) => Ok(Target::Server),
            (TargetKind::Profile, _, _) => Err(format!(
                "`{}` needs `profile` and no `environment`",
                self.action
            )),
            (TargetKind::Environment, _, _) => Err(format!(
                "`{}` takes `environment`, not `profile`",
                self.action
            )),
            (TargetKind::Server, _, _) => Err(format!(
                "`{}` takes neither `profile` nor `environment`",
                self.action
            )),
        }
    }
}
