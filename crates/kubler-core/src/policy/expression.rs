//! Reading conditions: what they look at, what they bind, and into which parts they fall.
//!
//! What this version does not understand is refused, never passed over.

use std::sync::Arc;

use cedar_policy::pst::{BinaryOp, Clause, Expr, Literal, Template, UnaryOp, Var};

/// Deepest nesting of a condition.
pub(super) const EXPRESSION_DEPTH_MAX: usize = 400;

/// Why a condition cannot be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreadable {
    TooDeep,
    Unknown,
}

fn children(expression: &Expr) -> Result<Vec<&Expr>, Unreadable> {
    Ok(match expression {
        Expr::Literal(_) | Expr::Var(_) => Vec::new(),
        Expr::UnaryOp { expr, .. }
        | Expr::GetAttr { expr, .. }
        | Expr::HasAttr { expr, .. }
        | Expr::Like { expr, .. } => vec![expr],
        Expr::BinaryOp { left, right, .. } => vec![left, right],
        Expr::Is { expr, in_expr, .. } => std::iter::once(expr.as_ref())
            .chain(in_expr.as_deref())
            .collect(),
        Expr::IfThenElse {
            cond,
            then_expr,
            else_expr,
        } => vec![cond, then_expr, else_expr],
        Expr::Set(members) => members.iter().map(Arc::as_ref).collect(),
        Expr::Record(fields) => fields.values().map(Arc::as_ref).collect(),
        _ => return Err(Unreadable::Unknown),
    })
}

/// The expression of a clause.
pub(super) fn inside(clause: &Clause) -> &Expr {
    match clause {
        Clause::When(expression) | Clause::Unless(expression) => expression,
    }
}

/// Shows every part of `root` to `see`, without recursion: depth is the author's.
pub(super) fn visit<'a>(root: &'a Expr, mut see: impl FnMut(&'a Expr)) -> Result<(), Unreadable> {
    let mut open = vec![(root, 1)];
    while let Some((expression, depth)) = open.pop() {
        if depth > EXPRESSION_DEPTH_MAX {
            return Err(Unreadable::TooDeep);
        }
        see(expression);
        open.extend(
            children(expression)?
                .into_iter()
                .map(|child| (child, depth + 1)),
        );
    }
    Ok(())
}

/// Whether `expression` is `variable.name`, exactly.
pub(super) fn is_attribute(expression: &Expr, variable: &Var, name: &str) -> bool {
    attribute(expression).is_some_and(|(of, attr)| of == variable && attr == name)
}

/// The variable and the name, when `expression` is `variable.name`.
pub(super) fn attribute(expression: &Expr) -> Option<(&Var, &str)> {
    match expression {
        Expr::GetAttr { expr, attr } => match expr.as_ref() {
            Expr::Var(variable) => Some((variable, attr.as_str())),
            _ => None,
        },
        _ => None,
    }
}

/// The text, when `expression` is one.
pub(super) fn text(expression: &Expr) -> Option<&str> {
    match expression {
        Expr::Literal(Literal::String(text)) => Some(text.as_str()),
        _ => None,
    }
}

/// The texts, when `expression` is a set of nothing else.
fn texts(expression: &Expr) -> Option<Vec<&str>> {
    match expression {
        Expr::Set(members) => members.iter().map(|member| text(member)).collect(),
        _ => None,
    }
}

/// A comparison of an attribute with texts written in the policy.
pub(super) struct Comparison<'a> {
    pub(super) variable: &'a Var,
    pub(super) attribute: &'a str,
    pub(super) texts: Vec<&'a str>,
    pub(super) holds_when: HoldsWhen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HoldsWhen {
    Equal,
    Different,
}

/// `x.a == "t"`, `"t" == x.a`, `!=` likewise, and `["t", "u"].contains(x.a)`.
pub(super) fn comparison(expression: &Expr) -> Option<Comparison<'_>> {
    let Expr::BinaryOp { op, left, right } = expression else {
        return None;
    };
    let holds_when = match op {
        BinaryOp::Eq | BinaryOp::Contains => HoldsWhen::Equal,
        BinaryOp::NotEq => HoldsWhen::Different,
        _ => return None,
    };
    let (side, texts) = match op {
        BinaryOp::Contains => (right, texts(left)?),
        _ => match (text(left), text(right)) {
            (None, Some(literal)) => (left, vec![literal]),
            (Some(literal), None) => (right, vec![literal]),
            _ => return None,
        },
    };
    let (variable, attribute) = attribute(side)?;
    Some(Comparison {
        variable,
        attribute,
        texts,
        holds_when,
    })
}

/// Whether `expression` can hold only for callers whose attribute `name` equals a text in the policy.
/// Depth is bounded by [`visit`], which runs first.
pub(super) fn binds(expression: &Expr, name: &str) -> bool {
    match expression {
        Expr::Literal(Literal::Bool(false)) => true,
        Expr::BinaryOp {
            op: BinaryOp::And,
            left,
            right,
        } => binds(left, name) || binds(right, name),
        Expr::BinaryOp {
            op: BinaryOp::Or,
            left,
            right,
        } => binds(left, name) && binds(right, name),
        Expr::IfThenElse {
            cond,
            then_expr,
            else_expr,
        } => (binds(cond, name) || binds(then_expr, name)) && binds(else_expr, name),
        other => comparison(other).is_some_and(|found| {
            found.holds_when == HoldsWhen::Equal
                && found.attribute == name
                && *found.variable == Var::Principal
        }),
    }
}

/// Whether the policy as a whole binds the attribute `name` of the caller.
pub(super) fn policy_binds(policy: &Template, name: &str) -> bool {
    policy.clauses().iter().any(|clause| match clause {
        Clause::When(expression) => binds(expression, name),
        Clause::Unless(_) => false,
    })
}

/// The parts that all must hold: `when` falls apart at `&&`, and `unless` at `||`, from left to right.
pub(super) fn conditions(policy: &Template) -> Vec<Clause> {
    policy.clauses().iter().flat_map(parts).collect()
}

fn parts(clause: &Clause) -> Vec<Clause> {
    let (root, splits_at) = match clause {
        Clause::When(expression) => (expression, BinaryOp::And),
        Clause::Unless(expression) => (expression, BinaryOp::Or),
    };
    let mut open = vec![root];
    let mut found = Vec::new();
    while let Some(expression) = open.pop() {
        match expression.as_ref() {
            Expr::BinaryOp { op, left, right } if *op == splits_at => open.extend([right, left]),
            _ => found.push(match clause {
                Clause::When(_) => Clause::When(Arc::clone(expression)),
                Clause::Unless(_) => Clause::Unless(Arc::clone(expression)),
            }),
        }
    }
    found
}

/// How people read a condition: what must hold.
pub(super) fn sentence(clause: &Clause) -> String {
    match clause {
        Clause::When(expression) => expression.to_string(),
        Clause::Unless(expression) => match expression.as_ref() {
            Expr::UnaryOp {
                op: UnaryOp::Not,
                expr,
            } => expr.to_string(),
            other => format!("not ({other})"),
        },
    }
}
