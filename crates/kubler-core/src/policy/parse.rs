//! From texts to a set that can decide, or to every fault that stands in the way.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use cedar_policy as cedar;
use cedar_policy::pst;
use miette::Diagnostic;
use sha2::{Digest as _, Sha256};

use super::scope::Scope;
use super::statements::{self, Statement};
use super::{Action, POLICIES_MAX, POLICY_FILE_BYTES_MAX, POLICY_FILES_MAX, SCHEMA};
use super::{expression, lint};
use crate::configuration::Configuration;

/// Longest `@id`, in bytes.
pub const POLICY_ID_BYTES_MAX: usize = 128;

/// Something in a policy file that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{file}:{line}: {message}")]
pub struct PolicyFault {
    /// The file, as it was named.
    pub file: String,
    /// The line, from 1; 0 when the file as a whole is meant.
    pub line: usize,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// A checked set of policies. An empty one is allowed and denies everything.
#[derive(Debug)]
pub struct PolicySet {
    pub(super) engine: Engine,
    pub(super) rules: Vec<Rule>,
    /// One set per action: a policy about another action can neither allow nor forbid this one.
    pub(super) by_action: BTreeMap<Action, cedar::PolicySet>,
    /// Issuer and id of the organizations whose fork branches are prefixed.
    pub(super) prefixed: BTreeSet<(String, String)>,
    digest: String,
}

/// One policy, and what an explanation needs of it.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) summary: PolicySummary,
    pub(super) scope: Scope,
    /// What must hold, part by part; empty for a forbid, which never comes close to allowing.
    pub(super) conditions: Vec<pst::Clause>,
    /// Each condition as a policy of its own, named by its position.
    pub(super) single: cedar::PolicySet,
}

/// One policy, for lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicySummary {
    /// `@id`, or `file:line`.
    pub id: String,
    /// Whether it forbids.
    pub effect: Effect,
    /// Its file.
    pub file: String,
    /// Its first line.
    pub line: usize,
}

/// What a policy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Allows, unless another forbids.
    Permit,
    /// Forbids, whatever another allows.
    Forbid,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Permit => "permit",
            Self::Forbid => "forbid",
        })
    }
}

/// The names that every question needs, read once.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) authorizer: cedar::Authorizer,
    pub(super) types: BTreeMap<&'static str, cedar::EntityTypeName>,
    pub(super) actions: BTreeMap<Action, cedar::EntityUid>,
}

impl Engine {
    fn new() -> Result<Self, String> {
        let type_name = |name: &str| {
            name.parse::<cedar::EntityTypeName>()
                .map_err(|error| error.to_string())
        };
        let mut types = BTreeMap::new();
        for name in ["Job", "Operator", "Profile", "Environment", "Server"] {
            types.insert(name, type_name(name)?);
        }
        let action = type_name("Action")?;
        let actions = Action::ALL.iter().map(|known| {
            let id = cedar::EntityId::new(known.as_str());
            (
                *known,
                cedar::EntityUid::from_type_name_and_id(action.clone(), id),
            )
        });
        Ok(Self {
            authorizer: cedar::Authorizer::new(),
            types,
            actions: actions.collect(),
        })
    }
}

/// A set that passed, and what is in it: what `kubler policy check` shows.
#[derive(Debug)]
pub struct Checked {
    /// The set.
    pub set: PolicySet,
    /// Its policies, by file and line.
    pub policies: Vec<PolicySummary>,
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for policy in &self.policies {
            writeln!(
                f,
                "{}:{}: {} `{}`",
                policy.file, policy.line, policy.effect, policy.id
            )?;
        }
        if self.policies.is_empty() {
            writeln!(f, "no policy: everything is denied")?;
        }
        write!(
            f,
            "{} policies, digest {}",
            self.policies.len(),
            self.set.digest()
        )
    }
}

/// Checks `files` (text by name) against the schema, the rules and the configuration.
///
/// # Errors
/// Every fault, by file and line.
pub fn check(
    files: &BTreeMap<String, String>,
    configuration: &Configuration,
) -> Result<Checked, Vec<PolicyFault>> {
    let set = PolicySet::parse(files, configuration)?;
    let policies = set.rules.iter().map(|rule| rule.summary.clone()).collect();
    Ok(Checked { set, policies })
}

impl PolicySet {
    /// Reads `files` (text by name), in the order of their names.
    ///
    /// # Errors
    /// Every fault, by file and line: what Cedar cannot read, what does not fit the schema, and what the
    /// rules refuse (a permit for jobs that binds no organization, a pattern on an id, and the like).
    pub fn parse(
        files: &BTreeMap<String, String>,
        configuration: &Configuration,
    ) -> Result<Self, Vec<PolicyFault>> {
        let engine = Engine::new().map_err(|error| vec![broken(&error)])?;
        let mut reading = Reading::default();
        reading.bound_findings(files);
        if reading.faults.is_empty() {
            for (file, text) in files {
                for statement in statements::statements(text) {
                    reading.take(file, statement, configuration);
                }
            }
        }
        reading.validate();
        if !reading.faults.is_empty() {
            reading.faults.sort();
            reading.faults.dedup();
            return Err(reading.faults);
        }
        let by_action = reading.by_action().map_err(|error| vec![broken(&error)])?;
        Ok(Self {
            engine,
            rules: reading.rules,
            by_action,
            prefixed: prefixed(configuration),
            digest: digest(files),
        })
    }

    /// SHA-256 over the names and texts of all files and the schema, in hex.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// How many policies there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there is none, so that everything is denied.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

impl PolicySet {
    /// Whether both decide alike: the same texts, under the same statements of the operator.
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.digest == other.digest && self.prefixed == other.prefixed
    }
}

fn prefixed(configuration: &Configuration) -> BTreeSet<(String, String)> {
    let stated = configuration.issuers.iter().flat_map(|issuer| {
        let organizations = issuer.organizations.iter();
        organizations
            .filter(|organization| organization.fork_branches_are_prefixed)
            .map(|organization| (issuer.url.clone(), organization.id.clone()))
    });
    stated.collect()
}

fn digest(files: &BTreeMap<String, String>) -> String {
    let mut hash = Sha256::new();
    for part in
        std::iter::once(SCHEMA).chain(files.iter().flat_map(|(name, text)| [name.as_str(), text]))
    {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hex::encode(hash.finalize())
}

fn broken(error: &str) -> PolicyFault {
    PolicyFault {
        file: "schema".into(),
        line: 0,
        message: format!("the policy engine cannot be set up: {error}"),
        hint: "this is a fault of the program: report it".into(),
    }
}

#[derive(Default)]
struct Reading {
    faults: Vec<PolicyFault>,
    rules: Vec<Rule>,
    policies: Vec<(cedar::Policy, String)>,
}

impl Reading {
    fn fault(
        &mut self,
        file: &str,
        line: usize,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        let (message, hint) = (message.into(), hint.into());
        self.faults.push(PolicyFault {
            file: file.to_owned(),
            line,
            message,
            hint,
        });
    }

    fn bound_findings(&mut self, files: &BTreeMap<String, String>) {
        if files.len() > POLICY_FILES_MAX {
            let message = format!(
                "there are {} policy files, at most {POLICY_FILES_MAX} are read",
                files.len()
            );
            self.fault("", 0, message, "put several policies into one file");
        }
        for (file, text) in files {
            if text.len() > POLICY_FILE_BYTES_MAX {
                let message = format!(
                    "it has {} bytes, at most {POLICY_FILE_BYTES_MAX} are read",
                    text.len()
                );
                self.fault(file, 0, message, "split it into several files");
            }
        }
    }

    /// Takes one policy, or notes why not.
    fn take(&mut self, file: &str, statement: Statement<'_>, configuration: &Configuration) {
        let Statement { line, text } = statement;
        if self.rules.len() >= POLICIES_MAX {
            self.fault(
                file,
                line,
                format!("there are more than {POLICIES_MAX} policies"),
                "join those that differ only in ids: `[…].contains(…)`",
            );
            return;
        }
        if let Some(excess) = statements::excess(text) {
            self.fault(
                file,
                line,
                excess,
                "split it into several policies; a set of ids may be as long as it must",
            );
            return;
        }
        let parsed = cedar::Policy::parse(None, text)
            .map_err(|errors| self.syntax(file, statement, &errors))
            .and_then(|policy| {
                policy.to_pst().map(|tree| (policy, tree)).map_err(|error| {
                    self.fault(file, line, error.to_string(), "write it in plainer terms");
                })
            });
        let Ok((policy, tree)) = parsed else { return };
        let body = tree.body();
        for found in lint::findings(body, configuration) {
            self.fault(file, line, found.message, found.hint);
        }
        let id = match policy.annotation("id") {
            Some(id) => id.to_owned(),
            None => format!("{file}:{line}"),
        };
        if let Some(known) = self.rules.iter().find(|rule| rule.summary.id == id) {
            let message = format!(
                "`{id}` is the id of another policy, at {}:{}",
                known.summary.file, known.summary.line
            );
            self.fault(file, line, message, "give each policy an id of its own");
            return;
        }
        if id.is_empty()
            || id.len() > POLICY_ID_BYTES_MAX
            || !id.bytes().all(|byte| byte.is_ascii_graphic())
        {
            let message = format!(
                "`{}` is not an id",
                id.escape_default().take(80).collect::<String>()
            );
            self.fault(
                file,
                line,
                message,
                format!("use 1 to {POLICY_ID_BYTES_MAX} printable characters without blanks"),
            );
            return;
        }
        let summary = PolicySummary {
            id: id.clone(),
            effect: match body.effect {
                pst::Effect::Permit => Effect::Permit,
                pst::Effect::Forbid => Effect::Forbid,
            },
            file: file.to_owned(),
            line,
        };
        match Rule::new(summary, body) {
            Ok(rule) => {
                self.rules.push(rule);
                self.policies
                    .push((policy.new_id(cedar::PolicyId::new(&id)), text.to_owned()));
            }
            Err(error) => self.fault(file, line, error, "write it in plainer terms"),
        }
    }

    fn syntax(&mut self, file: &str, statement: Statement<'_>, errors: &cedar::ParseErrors) {
        for error in errors.iter() {
            let line = position(error, statement);
            let hint = error.help().map_or_else(
                || "see the schema and the Cedar language reference".to_owned(),
                |help| help.to_string(),
            );
            self.fault(file, line, error.to_string(), hint);
        }
    }

    /// Checks all that could be read against the schema; a warning is a fault too.
    fn validate(&mut self) {
        let schema = match cedar::Schema::from_cedarschema_str(SCHEMA) {
            Ok((schema, _)) => schema,
            Err(error) => return self.faults.push(broken(&error.to_string())),
        };
        let set = match cedar::PolicySet::from_policies(
            self.policies.iter().map(|(policy, _)| policy.clone()),
        ) {
            Ok(set) => set,
            Err(error) => return self.faults.push(broken(&error.to_string())),
        };
        let result = cedar::Validator::new(schema).validate(&set, cedar::ValidationMode::Strict);
        let mut faulty = BTreeSet::new();
        for error in result.validation_errors() {
            // Follows from an unknown action or type, which is told by itself.
            let follows = matches!(error, cedar::ValidationError::InvalidActionApplication(_));
            if !(follows && faulty.contains(error.policy_id())) {
                self.invalid(error.policy_id(), error);
            }
            faulty.insert(error.policy_id());
        }
        for warning in result.validation_warnings() {
            if !faulty.contains(warning.policy_id()) {
                self.invalid(warning.policy_id(), warning);
            }
        }
    }

    fn invalid(&mut self, id: &cedar::PolicyId, error: &dyn Diagnostic) {
        let id: &str = id.as_ref();
        let rule = self.rules.iter().find(|rule| rule.summary.id == id);
        let text = self
            .policies
            .iter()
            .find(|(policy, _)| policy.id().as_ref() as &str == id);
        let (Some(rule), Some((_, text))) = (rule, text) else {
            return self.faults.push(broken(&error.to_string()));
        };
        let (file, first) = (rule.summary.file.clone(), rule.summary.line);
        let line = position(error, Statement { line: first, text });
        let message = error.to_string();
        let prefix = format!("for policy `{id}`, ");
        let message = message.strip_prefix(&prefix).unwrap_or(&message).to_owned();
        let hint = error.help().map_or_else(
            || "see the schema for the attributes and actions there are".to_owned(),
            |help| help.to_string(),
        );
        self.fault(&file, line, message, hint);
    }

    fn by_action(&self) -> Result<BTreeMap<Action, cedar::PolicySet>, String> {
        let mut by_action = BTreeMap::new();
        for action in Action::ALL {
            let about = self.rules.iter().zip(&self.policies);
            let about = about.filter(|(rule, _)| rule.scope.covers_action(*action));
            let set = cedar::PolicySet::from_policies(about.map(|(_, (policy, _))| policy.clone()))
                .map_err(|error| error.to_string())?;
            by_action.insert(*action, set);
        }
        Ok(by_action)
    }
}

/// The line that an error points at.
fn position(error: &dyn Diagnostic, statement: Statement<'_>) -> usize {
    let label = error.labels().and_then(|mut labels| labels.next());
    label.map_or(statement.line, |label| {
        statements::line_of(statement.text, label.offset(), statement.line)
    })
}

impl Rule {
    fn new(summary: PolicySummary, body: &pst::Template) -> Result<Self, String> {
        let conditions = match summary.effect {
            Effect::Permit => expression::conditions(body),
            Effect::Forbid => Vec::new(),
        };
        let mut single = cedar::PolicySet::new();
        for (nth, condition) in conditions.iter().enumerate() {
            let id = nth.to_string();
            let policy = pst::Template::new(
                id.as_str(),
                pst::Effect::Permit,
                pst::PrincipalConstraint::Any,
                pst::ActionConstraint::Any,
                pst::ResourceConstraint::Any,
            )
            .try_with_clauses([condition.clone()])
            .and_then(|template| Ok(pst::StaticPolicy::try_from(template)?))
            .and_then(|body| cedar::Policy::from_pst(pst::Policy::Static(body)))
            .map_err(|error| error.to_string())?;
            single.add(policy).map_err(|error| error.to_string())?;
        }
        Ok(Self {
            summary,
            scope: Scope::of(body),
            conditions,
            single,
        })
    }
}
