//! A Kubernetes request, read once: what it asks for, and the exact bytes that are sent on.
//!
//! The reading follows the API server's own (`RequestInfo`), so that what policy and ledger see is what the
//! API server will do. A path that two readers could take differently is refused, never repaired: the bytes
//! that were authorised are the bytes that are forwarded (rules H7 and V4).

pub mod headers;
mod path;
mod query;
pub mod upgrade;

use http::Method;
use http::uri::PathAndQuery;

use crate::ledger::record::KubernetesRequest;
use crate::text::UntrustedText;

pub use path::PathFault;

/// Longest path with its query, in bytes. Field selectors and continue tokens are far shorter.
pub const TARGET_BYTES_MAX: usize = 16 * 1024;

/// What a request can do to the environment. Decides how durable its record must be before it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Changes nothing.
    Read,
    /// May change something.
    Change,
    /// Opens a way to something behind the API server: exec, attach, port-forward, proxy.
    Connect,
}

/// Whether a request is over when its answer is complete, or goes on until somebody ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// Asked and answered.
    Short,
    /// A watch, whose answer is a row of events.
    Watch,
    /// A followed log, or a connection.
    Long,
}

/// A request that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiRequest {
    target: PathAndQuery,
    record: KubernetesRequest,
    effect: Effect,
    span: Span,
}

/// Why a request is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestFault {
    /// Path and query are longer than [`TARGET_BYTES_MAX`].
    #[error("the path and query have {bytes} bytes, which is more than {TARGET_BYTES_MAX}")]
    TooLong {
        /// How long they are.
        bytes: usize,
    },
    /// The path can be read in more than one way.
    #[error("the path is not in its normal form: {0}")]
    Path(#[from] PathFault),
    /// The query can be read in more than one way.
    #[error("the query cannot be read in exactly one way: {0}")]
    Query(&'static str),
    /// A method that means nothing here.
    #[error("`{method}` is not a method of the Kubernetes API")]
    Method {
        /// The method, cut to 16 characters.
        method: String,
    },
}

/// Subresources that lead to something behind the API server (rules V1 and V2).
const CONNECTING: [&str; 4] = ["exec", "attach", "portforward", "proxy"];

impl ApiRequest {
    /// Reads `target`, which is the path below the environment with its query, beginning with `/`.
    ///
    /// # Errors
    /// When it is too long, can be read in more than one way, or the method means nothing.
    pub fn parse(method: &Method, target: &str) -> Result<Self, RequestFault> {
        if target.len() > TARGET_BYTES_MAX {
            return Err(RequestFault::TooLong {
                bytes: target.len(),
            });
        }
        let (path, query) = target
            .split_once('?')
            .map_or((target, ""), |(path, query)| (path, query));
        let decoded = path::read(path)?;
        query::check(query).map_err(RequestFault::Query)?;
        // What was checked is what is sent; a parser that would change one byte of it is not used.
        let forwarded = PathAndQuery::try_from(target)
            .ok()
            .filter(|forwarded| forwarded.as_str() == target);
        let forwarded = forwarded.ok_or(PathFault::Character)?;

        let (mut record, path_verb) = path::understand(&decoded);
        let effect = resolve_verb(&mut record, path_verb, method, query)?;
        record.dry_run =
            effect == Effect::Change && query::values(query, "dryRun").any(|value| value == "All");
        record.label_selector = selector(query, "labelSelector");
        record.field_selector = selector(query, "fieldSelector");
        let span = span_of(&record, query);
        Ok(Self {
            target: forwarded,
            record,
            effect,
            span,
        })
    }

    /// The bytes that were authorised, to be sent on as they are.
    pub fn target(&self) -> &PathAndQuery {
        &self.target
    }

    /// What it asks for.
    pub fn record(&self) -> &KubernetesRequest {
        &self.record
    }

    /// What it can do.
    pub fn effect(&self) -> Effect {
        self.effect
    }

    /// How long it goes on.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Notes the client's name for itself.
    #[must_use]
    pub fn by(mut self, user_agent: Option<&str>) -> Self {
        self.record.user_agent =
            user_agent.map(|text| UntrustedText::new(text).as_str().to_owned());
        self
    }

    /// The recorded form, at the end of its life here.
    pub fn into_record(self) -> KubernetesRequest {
        self.record
    }
}

/// A selector for the ledger: bounded, the first one, as the API server reads it.
fn selector(query: &str, key: &str) -> Option<String> {
    let text = query::values(query, key).next()?;
    (!text.is_empty()).then(|| UntrustedText::new(&text).as_str().to_owned())
}

/// Writes the verb into `record`: from the path when it says one, else from method and query.
fn resolve_verb(
    record: &mut KubernetesRequest,
    path_verb: Option<&'static str>,
    method: &Method,
    query: &str,
) -> Result<Effect, RequestFault> {
    let known = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
    ];
    let subresource = record.subresource.as_deref();
    let connects = path_verb == Some("proxy")
        || (record.resource.is_some()
            && subresource.is_some_and(|word| CONNECTING.contains(&word)));
    // A proxied server may want to be asked for its options; the API server itself has none.
    if !known.contains(method) && !(connects && method == Method::OPTIONS) {
        return Err(RequestFault::Method {
            method: method.as_str().chars().take(16).collect(),
        });
    }
    if connects {
        let is_proxy = path_verb == Some("proxy") || subresource == Some("proxy");
        let verb = if is_proxy { "proxy" } else { "connect" };
        verb.clone_into(&mut record.verb);
        return Ok(Effect::Connect);
    }
    let changes = ![Method::GET, Method::HEAD].contains(method);
    let effect = if changes {
        Effect::Change
    } else {
        Effect::Read
    };
    if record.resource.is_none() {
        record.verb = method.as_str().to_ascii_lowercase();
        return Ok(effect);
    }
    let named = record.name.is_some();
    let verb = match *method {
        _ if path_verb == Some("watch") => "watch",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if named => "delete",
        Method::DELETE => "deletecollection",
        _ if named => "get",
        _ if query::flag(query, "watch") => "watch",
        _ => "list",
    };
    verb.clone_into(&mut record.verb);
    // What is watched by its path is not selected: the API server does not look.
    if !named && path_verb.is_none() && matches!(verb, "list" | "watch") {
        record.name = query::selected_name(query);
    }
    Ok(effect)
}

fn span_of(record: &KubernetesRequest, query: &str) -> Span {
    let follows = record.subresource.as_deref() == Some("log") && query::flag(query, "follow");
    match record.verb.as_str() {
        "watch" => Span::Watch,
        "connect" | "proxy" => Span::Long,
        _ if follows => Span::Long,
        _ => Span::Short,
    }
}

#[cfg(test)]
mod tests;
