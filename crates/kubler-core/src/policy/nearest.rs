//! What a denial says: which permit came closest, on what it failed, and what to change. Computed only for a denial.

use std::collections::HashSet;

use cedar_policy::pst::{Clause, Expr, Var};

use super::attributes::Described;
use super::decide::{self, Asked, Denial, NearMiss, Refusal};
use super::expression;
use super::parse::{Effect, PolicySet, Rule};
use super::{Action, Caller, Target};

/// Permits whose conditions are looked at for one denial.
const RULES_EXPLAINED_MAX: usize = 100;
/// Near misses in one denial.
const NEAR_MISSES_MAX: usize = 3;
/// Failed conditions named per near miss.
const CONDITIONS_MAX: usize = 6;
/// Longest text of one condition, in characters.
const CONDITION_CHARACTERS_MAX: usize = 300;

/// A permit whose scope matched, and the conditions that did not hold.
struct Missed<'a> {
    rule: &'a Rule,
    failed: Vec<&'a Clause>,
}

/// Makes the denial of a refusal.
pub(super) fn denial(
    set: &PolicySet,
    refusal: Refusal,
    asked: Option<&Asked>,
    caller: &Caller,
    action: Action,
    target: &Target,
) -> Denial {
    let who = match caller {
        Caller::Job(_) => "this job",
        Caller::Operator(_) => "this operator",
    };
    let subject = format!("{who} may not {} {target}", words(action));
    let answer = |detail: String, hint: String, policies: Vec<String>| Denial {
        grounds: set.grounds(policies),
        closest: Vec::new(),
        detail,
        hint,
    };
    match (refusal, asked) {
        (Refusal::WrongTarget, _) => {
            answer(subject, format!("`{action}` cannot be about {target}"), Vec::new())
        }
        (Refusal::NotTheirs, _) => answer(
            format!("{subject}: it belongs to another job"),
            "use the environment this job made, or create it with scope `build` to share it within one build".into(),
            Vec::new(),
        ),
        (Refusal::Broken(policies), _) => answer(
            format!("{subject}: {} cannot be evaluated", list(&policies)),
            "nothing is allowed while a policy fails: the operator must correct it".into(),
            policies,
        ),
        (Refusal::Forbidden(policies), _) => answer(
            format!("{subject}: {} forbids it", list(&policies)),
            "a forbid stands above every permit: only a change of that policy lifts it".into(),
            policies,
        ),
        (Refusal::NotPermitted, Some(asked)) => not_permitted(set, asked, action, subject),
        (Refusal::NotPermitted, None) => answer(subject, String::new(), Vec::new()),
    }
}

fn not_permitted(set: &PolicySet, asked: &Asked, action: Action, subject: String) -> Denial {
    let missed = missed(set, asked, action);
    let hint = match missed.first() {
        Some(nearest) => advice(nearest, asked),
        None if set.is_empty() => "no policy is loaded, so everything is denied: put `*.cedar` files into the folder of policies".into(),
        None => no_policy(asked, action),
    };
    let closest: Vec<_> = missed
        .iter()
        .take(NEAR_MISSES_MAX)
        .map(Missed::near_miss)
        .collect();
    let detail = match closest.first() {
        Some(nearest) => format!("{subject}: no policy allows it; {nearest}"),
        None => format!("{subject}: no policy allows it"),
    };
    Denial {
        grounds: set.grounds(Vec::new()),
        closest,
        detail,
        hint,
    }
}

fn no_policy(asked: &Asked, action: Action) -> String {
    match asked.principal.value("organization_id") {
        Some(id) => format!(
            "add a permit for `{action}` that binds `principal.organization_id == \"{id}\"`"
        ),
        None => format!("add a permit for `{action}` with `principal is Operator`"),
    }
}

/// The permits whose scope matched, fewest failed conditions first, then by file and line. Policies of other
/// organizations are left out: what they say is nobody else's business.
fn missed<'a>(set: &'a PolicySet, asked: &Asked, action: Action) -> Vec<Missed<'a>> {
    let mut missed: Vec<_> = set
        .rules
        .iter()
        .filter(|rule| rule.summary.effect == Effect::Permit)
        .filter(|rule| rule.scope.covers_action(action))
        .filter(|rule| rule.scope.covers(&asked.principal, &asked.resource))
        .take(RULES_EXPLAINED_MAX)
        .map(|rule| Missed {
            rule,
            failed: failed(set, rule, asked),
        })
        .filter(|missed| {
            !missed
                .failed
                .iter()
                .any(|condition| is_of_other_organization(condition))
        })
        .collect();
    missed.sort_by_key(|missed| missed.failed.len());
    missed
}

/// The conditions of `rule` that do not hold. One that cannot be evaluated alone (it relies on a `has` before
/// it) counts only when no other failed.
fn failed<'a>(set: &PolicySet, rule: &'a Rule, asked: &Asked) -> Vec<&'a Clause> {
    let response =
        set.engine
            .authorizer
            .is_authorized(&asked.request, &rule.single, &asked.entities);
    let held: HashSet<String> = response.diagnostics().reason().map(decide::name).collect();
    let errors = response.diagnostics().errors().map(|error| match error {
        cedar_policy::AuthorizationError::PolicyEvaluationError(error) => {
            decide::name(error.policy_id())
        }
    });
    let errors: HashSet<String> = errors.collect();
    let by_position = || {
        rule.conditions
            .iter()
            .enumerate()
            .map(|(nth, clause)| (nth.to_string(), clause))
    };
    let plain: Vec<_> = by_position()
        .filter(|(nth, _)| !held.contains(nth) && !errors.contains(nth))
        .map(|(_, clause)| clause)
        .collect();
    if plain.is_empty() {
        by_position()
            .filter(|(nth, _)| errors.contains(nth))
            .map(|(_, clause)| clause)
            .collect()
    } else {
        plain
    }
}

fn is_of_other_organization(condition: &Clause) -> bool {
    match condition {
        Clause::When(expression) => expression::binds(expression, "organization_id"),
        Clause::Unless(_) => false,
    }
}

impl Missed<'_> {
    fn near_miss(&self) -> NearMiss {
        let failed = self
            .failed
            .iter()
            .take(CONDITIONS_MAX)
            .map(|clause| text(clause));
        NearMiss {
            policy: self.rule.summary.id.clone(),
            failed: failed.collect(),
        }
    }
}

fn text(clause: &Clause) -> String {
    let sentence = expression::sentence(clause);
    if sentence.chars().count() <= CONDITION_CHARACTERS_MAX {
        return sentence;
    }
    let mut cut: String = sentence.chars().take(CONDITION_CHARACTERS_MAX).collect();
    cut.push('…');
    cut
}

/// What to change so that the nearest permit allows it. Names the caller's own values, never the target's.
fn advice(nearest: &Missed<'_>, asked: &Asked) -> String {
    let mut looked_at = Vec::new();
    for clause in &nearest.failed {
        // Read before, when the policy was loaded.
        let _ = expression::visit(expression::inside(clause), |part| {
            looked_at.extend(name(part))
        });
    }
    let id = &nearest.rule.summary.id;
    let values: Vec<_> = own_values(&looked_at, &asked.principal);
    let about = |name: &str| looked_at.iter().any(|(_, known)| *known == name);
    let remedy = if about("fork_branches_are_prefixed")
        || about("build_source")
        || about("branch_is_of_a_fork")
        || about("restricted")
    {
        "ask for a profile with `restricted: true`; builds that anybody may have triggered get no other until the configuration states `fork_branches_are_prefixed: true` and the branch is not a fork's"
    } else if about("pipeline_id") && asked.resource.kind == "Environment" {
        "it belongs to another pipeline, or the policy names other pipelines"
    } else if about("pipeline_id") || about("pipeline_slug") {
        "add this pipeline's id to the policy"
    } else if about("job_id") || about("build_id") || about("scope") {
        "it belongs to another job: create it with scope `build` to share it within one build"
    } else {
        "change the policy, or run the job so that it holds"
    };
    if values.is_empty() {
        format!("nearest is `{id}`: {remedy}")
    } else {
        format!(
            "nearest is `{id}`, and this job has {}: {remedy}",
            values.join(", ")
        )
    }
}

fn name(part: &Expr) -> Option<(&Var, &str)> {
    match part {
        Expr::HasAttr { expr, attrs } => match expr.as_ref() {
            Expr::Var(variable) => Some((variable, attrs.first().as_str())),
            _ => None,
        },
        other => expression::attribute(other),
    }
}

fn own_values(looked_at: &[(&Var, &str)], principal: &Described) -> Vec<String> {
    let mut values = Vec::new();
    for (variable, name) in looked_at {
        if **variable != Var::Principal {
            continue;
        }
        let value = match principal.value(name) {
            Some(value) => format!("{name} `{value}`"),
            None => format!("no {name}"),
        };
        if !values.contains(&value) {
            values.push(value);
        }
    }
    values
}

fn list(policies: &[String]) -> String {
    policies
        .iter()
        .map(|policy| format!("`{policy}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// The action as people say it, followed by its target.
const fn words(action: Action) -> &'static str {
    match action {
        Action::CreateEnvironment => "create an environment of",
        Action::ReadEnvironment => "see",
        Action::RenewEnvironment => "renew",
        Action::ReleaseEnvironment => "release",
        Action::IssueSession => "get a session for",
        Action::UseKubernetes => "use the Kubernetes API of",
        Action::ReadTrace => "search environments on",
        Action::ReadLedger => "read the ledger of",
        Action::ReadCheckpoint => "read the ledger's checkpoint of",
        Action::ReadMetrics => "read the metrics of",
        Action::ReadApprovals => "see what waits for an approval on",
        Action::AnswerApproval => "answer approvals of",
    }
}
