//! Answers "would this token be allowed, and why?" offline. Nothing is verified: neither signature nor times.

use std::fmt;

use serde::Serialize;

use super::attributes;
use super::decide::NearMiss;
use super::example::{self, ExampleEnvironment};
use super::parse::PolicySet;
use super::{Action, Caller, Operator, Target, TargetKind};
use crate::configuration::Configuration;
use crate::identity::Identity;
use crate::identity::claims::Claims;
use crate::identity::json;
use crate::identity::token::{TOKEN_BYTES_MAX, UnverifiedToken};

/// Who is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A token, or the JSON of its claims. A token is read, not verified.
    Claims(String),
    /// The operator of this name.
    Operator(String),
    /// A job that was verified before, as the ledger has it.
    Job(Box<Identity>),
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The action.
    pub action: Action,
    /// For an action on a profile: which.
    pub profile: Option<String>,
    /// For an action on an environment: which; left out: one that the caller made itself.
    pub environment: Option<ExampleEnvironment>,
}

/// A question that cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ExplainFault {
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Whether it would be allowed, if what was given is true.
    pub allowed: bool,
    /// The question's action.
    pub action: Action,
    /// The question's target, in words.
    pub target: String,
    /// What policies see of the caller, by name.
    pub caller: Vec<(String, String)>,
    /// What policies see of the target, by name.
    pub resource: Vec<(String, String)>,
    /// The policies that allowed or forbade it.
    pub policies: Vec<String>,
    /// For a denial: what was denied, and by what.
    pub detail: Option<String>,
    /// For a denial: the permits that came closest.
    pub closest: Vec<NearMiss>,
    /// For a denial: what to do.
    pub hint: Option<String>,
    /// What the reader must know before believing the answer.
    pub caveats: Vec<String>,
    /// Digest of the policies that answered.
    pub policy_digest: String,
}

/// The profiles of which this subject could create an environment, by name.
pub fn offered_to(
    set: &PolicySet,
    configuration: &Configuration,
    subject: &Subject,
) -> Vec<String> {
    let names = configuration.profiles.iter().map(|it| it.name.clone());
    names
        .filter(|name| {
            let question = Question {
                action: Action::CreateEnvironment,
                profile: Some(name.clone()),
                environment: None,
            };
            explain(set, configuration, subject, &question).is_ok_and(|answer| answer.allowed)
        })
        .collect()
}

fn fault(message: impl Into<String>, hint: impl Into<String>) -> ExplainFault {
    ExplainFault {
        message: message.into(),
        hint: hint.into(),
    }
}

/// Answers one question.
///
/// # Errors
/// When the text holds no claims, the claims make no identity of a configured issuer, or the question names a
/// profile that does not exist. A denial is an answer, not an error.
pub fn explain(
    set: &PolicySet,
    configuration: &Configuration,
    subject: &Subject,
    question: &Question,
) -> Result<Explanation, ExplainFault> {
    let mut caveats = Vec::new();
    let caller = match subject {
        Subject::Operator(name) => {
            caveats.push("no certificate was looked at".into());
            Caller::Operator(Operator { name: name.clone() })
        }
        Subject::Job(identity) => Caller::Job(identity.clone()),
        Subject::Claims(text) => job(configuration, text, &mut caveats)?,
    };
    let target = question.target(configuration, &caller)?;
    let principal = attributes::principal(&caller, set.forks(&caller));
    let resource = attributes::resource(&target);
    let listed = |attributes: &attributes::Attributes| {
        attributes
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.to_string()))
            .collect()
    };
    let described = match &target {
        Target::Environment(_) => "an environment".to_owned(),
        Target::Profile(_) | Target::Server => target.to_string(),
    };
    let mut explanation = Explanation {
        allowed: false,
        action: question.action,
        target: described,
        caller: listed(&principal.attributes),
        resource: listed(&resource.attributes),
        policies: Vec::new(),
        detail: None,
        closest: Vec::new(),
        hint: None,
        caveats,
        policy_digest: set.digest().to_owned(),
    };
    match set.decide(&caller, question.action, target) {
        Ok(permit) => {
            explanation.allowed = true;
            explanation.policies.clone_from(&permit.grounds().policies);
        }
        Err(denial) => {
            explanation.detail = Some(denial.detail);
            explanation.policies = denial.grounds.policies;
            explanation.closest = denial.closest;
            explanation.hint = Some(denial.hint);
        }
    }
    Ok(explanation)
}

fn job(
    configuration: &Configuration,
    text: &str,
    caveats: &mut Vec<String>,
) -> Result<Caller, ExplainFault> {
    let claims = claims(text.trim())?;
    let issuer = example::issuer(configuration, &claims).map_err(|message| {
        fault(
            message,
            "list the issuer in the configuration, or add its `iss` to the claims",
        )
    })?;
    let identity = example::identity(issuer, &claims).map_err(|error| {
        fault(
            format!("the server would refuse it before policy: {error}"),
            error.hint(),
        )
    })?;
    caveats.push("signature and times were not verified: the server does that first".into());
    if !has_audience(&claims, &issuer.audience) {
        caveats.push(format!(
            "the audience is not `{}`: the server would refuse it before policy",
            issuer.audience
        ));
    }
    Ok(Caller::Job(Box::new(identity)))
}

fn has_audience(claims: &Claims, audience: &str) -> bool {
    claims.get("aud").and_then(serde_json::Value::as_str) == Some(audience)
}

fn claims(text: &str) -> Result<Claims, ExplainFault> {
    if text.starts_with('{') {
        return json::object(text.as_bytes(), TOKEN_BYTES_MAX).map_err(|error| {
            fault(
                format!("the claims cannot be read: {error}"),
                "give one JSON object",
            )
        });
    }
    // The error names a kind of fault and nothing of the token.
    let token = UnverifiedToken::parse(text).map_err(|error| {
        fault(
            format!("the token cannot be read: {error}"),
            "give a token, or the JSON of its claims",
        )
    })?;
    Ok(token.claims)
}

impl Question {
    fn target(
        &self,
        configuration: &Configuration,
        caller: &Caller,
    ) -> Result<Target, ExplainFault> {
        let unknown = |name: String| {
            let known: Vec<_> = configuration
                .profiles
                .iter()
                .map(|profile| profile.name.as_str())
                .collect();
            fault(
                format!("there is no profile `{name}`"),
                format!("profiles of the configuration: {}", known.join(", ")),
            )
        };
        match self.action.target() {
            TargetKind::Profile => {
                let resolved =
                    example::profile(configuration, self.profile.as_deref()).map_err(unknown)?;
                Ok(Target::Profile(Box::new(resolved)))
            }
            TargetKind::Environment => {
                let owner = match caller {
                    Caller::Job(identity) => identity.as_ref().clone(),
                    Caller::Operator(_) => example::base(configuration),
                };
                let mut described = self.environment.clone().unwrap_or_default();
                described.profile = described.profile.or_else(|| self.profile.clone());
                described.target(configuration, owner).map_err(unknown)
            }
            TargetKind::Server => Ok(Target::Server),
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let answer = if self.allowed { "allowed" } else { "denied" };
        writeln!(f, "{answer}: {} on {}", self.action, self.target)?;
        for policy in &self.policies {
            writeln!(
                f,
                "  {} `{policy}`",
                if self.allowed { "by" } else { "because of" }
            )?;
        }
        if let Some(detail) = &self.detail {
            writeln!(f, "  {detail}")?;
        }
        for missed in self.closest.iter().skip(1) {
            writeln!(f, "  also {missed}")?;
        }
        if let Some(hint) = &self.hint {
            writeln!(f, "hint: {hint}")?;
        }
        writeln!(f, "caller, as policies see it:")?;
        for (name, value) in &self.caller {
            writeln!(f, "  {name} = {value}")?;
        }
        if !self.resource.is_empty() {
            writeln!(f, "target, as policies see it:")?;
            for (name, value) in &self.resource {
                writeln!(f, "  {name} = {value}")?;
            }
        }
        for caveat in &self.caveats {
            writeln!(f, "note: {caveat}")?;
        }
        write!(f, "policies {}", self.policy_digest)
    }
}
