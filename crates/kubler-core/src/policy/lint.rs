//! What a policy may not say although the schema would let it: rules C1 to C4 as refusals at load.

use std::collections::BTreeSet;

use cedar_policy::pst::{Effect, Expr, Literal, PatternElem, Template, Var};

use super::expression::{self, Comparison, Unreadable};
use super::scope::{Scope, is};
use crate::configuration::{Configuration, canonical_organization_id};

/// What is wrong with one policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) message: String,
    pub(super) hint: String,
}

fn finding(message: impl Into<String>, hint: impl Into<String>) -> Finding {
    Finding {
        message: message.into(),
        hint: hint.into(),
    }
}

/// Names that people may change, and the immutable id each stands beside.
const SLUGS: [(&str, &str); 2] = [
    ("organization_slug", "organization_id"),
    ("pipeline_slug", "pipeline_id"),
];

/// Attributes that hold a UUID in lower case, with hyphens. (What `organization_id` may be is listed.)
const UUID_ATTRIBUTES: [&str; 5] = [
    "pipeline_id",
    "build_id",
    "job_id",
    "cluster_id",
    "queue_id",
];

/// The only attributes for which a pattern makes sense: one free text each, no ids and nothing glued together.
const PATTERN_ATTRIBUTES: [(Var, &str); 7] = [
    (Var::Principal, "branch"),
    (Var::Principal, "tag"),
    (Var::Principal, "step_key"),
    (Var::Principal, "queue_key"),
    (Var::Resource, "name"),
    (Var::Resource, "profile"),
    (Var::Resource, "kubernetes"),
];

/// The annotations that mean something.
const ANNOTATIONS: [&str; 2] = ["id", "description"];

/// Everything that is wrong with `policy`, most important first.
pub(super) fn findings(policy: &Template, configuration: &Configuration) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut seen = Vec::new();
    for clause in policy.clauses() {
        match expression::visit(expression::inside(clause), |part| seen.push(part)) {
            Ok(()) => {}
            Err(Unreadable::TooDeep) => {
                return vec![finding(
                    "its conditions are nested too deeply",
                    "split it into several policies",
                )];
            }
            Err(Unreadable::Unknown) => {
                return vec![finding(
                    "it has a condition that this version cannot judge",
                    "use comparisons, `has`, `like`, `contains`, `&&`, `||`, `!` and `if`",
                )];
            }
        }
    }
    let scope = Scope::of(policy);
    organization_findings(policy, &scope, &seen, &mut findings);
    slug_findings(policy, &seen, &mut findings);
    for part in &seen {
        pattern_findings(policy.effect, part, &mut findings);
        if let Some(compared) = expression::comparison(part) {
            comparison_findings(&compared, &scope, configuration, &mut findings);
        }
    }
    profile_findings(&scope, &seen, configuration, &mut findings);
    annotation_findings(policy, &mut findings);
    findings.dedup();
    findings
}

/// C1: the issuer signs for all of its customers, so a permit without an organization is for anybody.
fn organization_findings(
    policy: &Template,
    scope: &Scope,
    seen: &[&Expr],
    findings: &mut Vec<Finding>,
) {
    let is_safe = policy.effect == Effect::Forbid
        || !scope.admits_jobs()
        || expression::policy_binds(policy, "organization_id");
    if is_safe {
        return;
    }
    if mentions(seen, "organization_slug") {
        findings.push(finding(
            "it binds the organization by its slug alone",
            "a slug can be given up and taken by somebody else: compare `principal.organization_id` with the UUID, and the slug only beside it",
        ));
    } else {
        findings.push(finding(
            "it permits jobs without binding their organization",
            "add `principal.organization_id == \"UUID\"` to a `when` so that it must always hold, or write `principal is Operator`",
        ));
    }
}

/// C2: names can be taken over; ids cannot.
fn slug_findings(policy: &Template, seen: &[&Expr], findings: &mut Vec<Finding>) {
    for (slug, id) in SLUGS {
        if !mentions(seen, slug) {
            continue;
        }
        if policy.effect == Effect::Forbid {
            findings.push(finding(
                format!("it forbids by `{slug}`"),
                format!("a rename would lift it: use `{id}`"),
            ));
        } else if !expression::policy_binds(policy, id) && slug != "organization_slug" {
            findings.push(finding(
                format!("it uses `{slug}` without binding `{id}`"),
                format!(
                    "compare `principal.{id}` with the UUID; the slug may only stand beside it"
                ),
            ));
        }
    }
}

fn mentions(seen: &[&Expr], name: &str) -> bool {
    seen.iter().any(|part| match part {
        Expr::GetAttr { attr, .. } => attr == name,
        Expr::HasAttr { attrs, .. } => attrs.iter().any(|attr| attr == name),
        _ => false,
    })
}

/// C3 and C4: patterns only on one free text, with something in them, and anchored where it matters.
fn pattern_findings(effect: Effect, part: &Expr, findings: &mut Vec<Finding>) {
    let Expr::Like { expr, pattern } = part else {
        return;
    };
    let allowed = PATTERN_ATTRIBUTES
        .iter()
        .find(|(variable, name)| expression::is_attribute(expr, variable, name));
    let Some((variable, name)) = allowed else {
        let usable = PATTERN_ATTRIBUTES
            .map(|(_, name)| format!("`{name}`"))
            .join(", ");
        findings.push(finding(
            format!("`like` on `{expr}`"),
            format!(
                "ids, slugs and everything but {usable} are compared with `==` or `[…].contains(…)`"
            ),
        ));
        return;
    };
    if pattern
        .iter()
        .all(|element| *element == PatternElem::Wildcard)
    {
        findings.push(finding(
            format!("the pattern on `{name}` matches everything"),
            "leave the condition out, or name what must be there",
        ));
    } else if effect == Effect::Permit
        && *variable == Var::Principal
        && pattern.first() == Some(&PatternElem::Wildcard)
    {
        findings.push(finding(
            format!("the pattern on `{name}` begins with `*`"),
            "anybody can put anything before the rest (a fork's branch is `user:branch`): begin with what must be there",
        ));
    }
}

fn comparison_findings(
    compared: &Comparison<'_>,
    scope: &Scope,
    configuration: &Configuration,
    findings: &mut Vec<Finding>,
) {
    let Comparison {
        variable,
        attribute,
        texts,
        ..
    } = compared;
    for text in texts {
        if text.contains('*') {
            findings.push(finding(
                format!(
                    "`{text}` is compared as it stands: `*` means nothing in `==` and `contains`"
                ),
                "use `like` for a pattern, on one free text such as `branch`",
            ));
        }
        if *attribute == "organization_id" {
            findings.extend(unlisted_organization(text, configuration));
        } else if UUID_ATTRIBUTES.contains(attribute) {
            findings.extend(no_uuid(attribute, text));
        }
        let names_a_profile = **variable == Var::Resource
            && (*attribute == "profile" || (*attribute == "name" && scope.is_about_profiles()));
        if names_a_profile {
            findings.extend(unlisted_profile(text, configuration));
        }
    }
}

/// An id that no token can have: names of people stand elsewhere, and ids are compared letter by letter.
fn no_uuid(attribute: &str, text: &str) -> Option<Finding> {
    let canonical = canonical_organization_id(text);
    if canonical.as_deref() == Some(text) {
        return None;
    }
    let hint = match canonical {
        Some(canonical) => format!("write `{canonical}`: ids are in lower case, with hyphens"),
        None => {
            "it is a UUID in lower case: `kubler policy explain TOKEN` shows a job's own".into()
        }
    };
    Some(finding(format!("no `{attribute}` is ever `{text}`"), hint))
}

fn unlisted_organization(id: &str, configuration: &Configuration) -> Option<Finding> {
    let mut listed = configuration
        .issuers
        .iter()
        .flat_map(|issuer| &issuer.organizations);
    let known: Vec<_> = listed
        .clone()
        .map(|organization| format!("`{}`", organization.id))
        .collect();
    if listed.clone().any(|organization| organization.id == id) {
        return None;
    }
    Some(match listed.find(|organization| organization.slug == id) {
        Some(organization) => finding(
            format!("`{id}` is the organization's slug, not its id"),
            format!("write `{}`", organization.id),
        ),
        None => finding(
            format!("no issuer lists the organization `{id}`, so this can never hold"),
            format!("listed in the configuration: {}", known.join(", ")),
        ),
    })
}

fn profile_findings(
    scope: &Scope,
    seen: &[&Expr],
    configuration: &Configuration,
    findings: &mut Vec<Finding>,
) {
    let in_conditions = seen.iter().filter_map(|part| match part {
        Expr::Literal(Literal::EntityUID(uid)) => Some(uid),
        _ => None,
    });
    for uid in scope.named_resource().into_iter().chain(in_conditions) {
        if is(&uid.ty, "Profile") {
            findings.extend(unlisted_profile(&uid.eid, configuration));
        }
    }
}

fn unlisted_profile(name: &str, configuration: &Configuration) -> Option<Finding> {
    if configuration.profile(name).is_some() {
        return None;
    }
    let known: BTreeSet<_> = configuration
        .profiles
        .iter()
        .map(|profile| format!("`{}`", profile.name))
        .collect();
    Some(finding(
        format!("there is no profile `{name}`, so this can never hold"),
        format!(
            "profiles of the configuration: {}",
            Vec::from_iter(known).join(", ")
        ),
    ))
}

/// T9: an annotation that means nothing is somebody's mistake.
fn annotation_findings(policy: &Template, findings: &mut Vec<Finding>) {
    for name in policy.annotations.keys() {
        if !ANNOTATIONS.contains(&name.as_str()) {
            findings.push(finding(
                format!("the annotation `@{name}` means nothing"),
                "only `@id` and `@description` are known",
            ));
        }
    }
}
