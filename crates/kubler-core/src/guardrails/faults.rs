//! What guardrails can say and must not: an operator who writes one that keeps nobody from anything believes to be
//! safe (rule T9).

use super::matcher::ANY;
use super::{
    APPROVAL_SECONDS_MAX, APPROVAL_SECONDS_MIN, Guardrails, MATCHED_MAX, MATCHERS_MAX, Matcher,
    OBJECT_BYTES_MIN,
};

/// Something in guardrails that cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardrailFault {
    /// Where, as `deny[0].verbs`.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// Verbs of requests that change nothing of themselves.
const READS: [&str; 3] = ["get", "list", "watch"];
/// Verbs of requests that are a change, and can be a dry run.
const CHANGES: [&str; 5] = ["create", "update", "patch", "delete", "deletecollection"];
/// Verbs of requests that open a way to something behind the API server.
const CONNECTS: [&str; 2] = ["connect", "proxy"];
/// Verbs of requests that carry no name, or need none.
const NAMELESS: [&str; 5] = [ANY, "create", "list", "watch", "deletecollection"];

/// The faults that were found until now.
struct Faults(Vec<GuardrailFault>);

impl Faults {
    fn add(&mut self, key: impl Into<String>, message: impl Into<String>, hint: &str) {
        self.0.push(GuardrailFault {
            key: key.into(),
            message: message.into(),
            hint: hint.to_owned(),
        });
    }
}

impl Guardrails {
    /// Every fault, in the order of the file. `request_bytes_max` is the profile's.
    pub fn faults(&self, request_bytes_max: u64) -> Vec<GuardrailFault> {
        let mut faults = Faults(Vec::new());
        for (list, matchers) in [
            ("deny", &self.deny),
            ("dry_run", &self.dry_run),
            ("approval", &self.approval),
        ] {
            if matchers.len() > MATCHERS_MAX {
                let message = format!("{} entries are more than {MATCHERS_MAX}", matchers.len());
                faults.add(
                    list,
                    message,
                    "one entry can list several groups, resources and verbs",
                );
            }
            for (place, matcher) in matchers.iter().enumerate() {
                matcher.faults(&format!("{list}[{place}]"), &mut faults);
            }
        }
        self.dry_run_faults(&mut faults);
        self.bound_faults(request_bytes_max, &mut faults);
        self.contradictions(&mut faults);
        faults.0
    }

    fn dry_run_faults(&self, faults: &mut Faults) {
        for (place, matcher) in self.dry_run.iter().enumerate() {
            let is_change = |verb: &&String| CHANGES.contains(&verb.as_str());
            if let Some(verb) = matcher.verbs.iter().find(|verb| !is_change(verb)) {
                faults.add(
                    format!("dry_run[{place}].verbs"),
                    format!("`{verb}` cannot be a dry run"),
                    "list `create`, `update`, `patch`, `delete` and `deletecollection`, as many as are meant; what must not happen at all belongs under `deny`",
                );
            }
        }
    }

    fn bound_faults(&self, request_bytes_max: u64, faults: &mut Faults) {
        if let Some(bytes) = self.object_bytes_max
            && !(OBJECT_BYTES_MIN..=request_bytes_max).contains(&bytes)
        {
            faults.add(
                "object_bytes_max",
                format!("{bytes} is out of bounds"),
                &format!("give a number from {OBJECT_BYTES_MIN} to the profile's `request_bytes_max`, {request_bytes_max}"),
            );
        }
        if let Some(seconds) = self.approval_seconds {
            if !(APPROVAL_SECONDS_MIN..=APPROVAL_SECONDS_MAX).contains(&seconds) {
                faults.add(
                    "approval_seconds",
                    format!("{seconds} is out of bounds"),
                    &format!("give a number from {APPROVAL_SECONDS_MIN} to {APPROVAL_SECONDS_MAX}"),
                );
            }
            if self.approval.is_empty() {
                faults.add(
                    "approval_seconds",
                    "nothing needs an approval",
                    "list under `approval` what does, or leave it out",
                );
            }
        }
    }

    fn contradictions(&self, faults: &mut Faults) {
        if self.read_only {
            let is_refused = |matcher: &Matcher| {
                let reads = |verb: &String| verb == ANY || READS.contains(&verb.as_str());
                !matcher.verbs.iter().any(reads)
            };
            let lists = [
                ("deny", &self.deny),
                ("dry_run", &self.dry_run),
                ("approval", &self.approval),
            ];
            for (list, matchers) in lists {
                for place in (0..)
                    .zip(matchers)
                    .filter(|(_, it)| is_refused(it))
                    .map(|(place, _)| place)
                {
                    let place: usize = place;
                    faults.add(
                        format!("{list}[{place}]"),
                        "`read_only` refuses all of it already",
                        "leave one of them out",
                    );
                }
            }
            if self.object_bytes_max.is_some() {
                faults.add(
                    "object_bytes_max",
                    "with `read_only` no object is sent at all",
                    "leave one of them out",
                );
            }
        }
        for (list, matchers) in [("dry_run", &self.dry_run), ("approval", &self.approval)] {
            for (place, matcher) in matchers.iter().enumerate() {
                if let Some(denied) = self.deny.iter().position(|deny| deny.covers(matcher)) {
                    faults.add(
                        format!("{list}[{place}]"),
                        format!("`deny[{denied}]` refuses all of it already"),
                        "leave one of them out",
                    );
                }
            }
        }
    }
}

impl Matcher {
    fn faults(&self, at: &str, faults: &mut Faults) {
        let lists = [
            ("groups", &self.groups, true),
            ("resources", &self.resources, true),
            ("verbs", &self.verbs, true),
            ("namespaces", &self.namespaces, false),
            ("names", &self.names, false),
        ];
        for (key, list, needed) in lists {
            let key = format!("{at}.{key}");
            if needed && list.is_empty() {
                faults.add(
                    &key,
                    "an empty list matches nothing",
                    "list what is meant; `*` is everything",
                );
            }
            if list.len() > MATCHED_MAX {
                let message = format!("{} entries are more than {MATCHED_MAX}", list.len());
                faults.add(&key, message, "write several matchers, or `*`");
            }
        }
        for verb in &self.verbs {
            let known = [READS.as_slice(), &CHANGES, &CONNECTS, &[ANY]];
            if !known.iter().any(|known| known.contains(&verb.as_str())) {
                faults.add(
                    format!("{at}.verbs"),
                    format!("`{verb}` is not a verb"),
                    "known: get, list, watch, create, update, patch, delete, deletecollection, connect, proxy, *",
                );
            }
        }
        for resource in self.resources.iter().filter(|text| !is_resource(text)) {
            faults.add(
                format!("{at}.resources"),
                format!("`{resource}` is not a resource"),
                "as in a path: `deployments`, `pods/exec`, `pods/*`, `*/scale` or `*`; the group is listed by itself",
            );
        }
        for group in self.groups.iter().filter(|text| !is_group(text)) {
            faults.add(
                format!("{at}.groups"),
                format!("`{group}` is not an API group"),
                "as before the `/` of an `apiVersion`, such as `apps`; `\"\"` is the core group, `*` every group",
            );
        }
        for (key, list) in [("namespaces", &self.namespaces), ("names", &self.names)] {
            if let Some(text) = list
                .iter()
                .find(|text| text.is_empty() || text.contains([ANY_CHARACTER, '/']))
            {
                faults.add(
                    format!("{at}.{key}"),
                    format!("`{text}` names nothing"),
                    "there are no wildcards here; leave the list out to mean all",
                );
            }
        }
        let nameless = |verb: &&String| NAMELESS.contains(&verb.as_str());
        if !self.names.is_empty()
            && let Some(verb) = self.verbs.iter().find(nameless)
        {
            faults.add(
                format!("{at}.names"),
                format!("a request to `{verb}` need not carry a name, so names would let it through"),
                "list only verbs that do: get, update, patch, delete, connect, proxy; write another matcher for the others",
            );
        }
    }
}

const ANY_CHARACTER: char = '*';

fn is_word(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(is_inner)
}

fn is_resource(text: &str) -> bool {
    let is_part = |part: &str| part == ANY || is_word(part);
    match text.split_once('/') {
        None => is_part(text),
        Some((whole, part)) => is_part(whole) && is_part(part) && (whole, part) != (ANY, ANY),
    }
}

fn is_group(text: &str) -> bool {
    text.is_empty() || text == ANY || text.split('.').all(is_word)
}
