//! The reference pages, made of the lists that the program itself uses. Reads nothing and decides nothing.

use std::fmt::Write as _;

use kubler_api::error::ErrorCode;
use kubler_core::configuration::{Configuration, NEEDS_RESTART};
use kubler_core::ledger::record::LedgerAction;
use serde_json::{Map, Value};

use crate::config::VARIABLES;
use crate::metrics::{METRICS, PREFIX};

/// One page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Page {
    /// Every key of the configuration.
    Configuration,
    /// Every variable that the server reads.
    EnvironmentVariables,
    /// Every error code.
    Errors,
    /// Every action in the ledger.
    LedgerActions,
    /// Every metric.
    Metrics,
}

impl Page {
    /// Every page.
    pub const ALL: [Self; 5] = [
        Self::Configuration,
        Self::EnvironmentVariables,
        Self::Errors,
        Self::LedgerActions,
        Self::Metrics,
    ];

    /// The word that asks for it; with `.md` the name of its file in `docs/reference`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::EnvironmentVariables => "environment-variables",
            Self::Errors => "errors",
            Self::LedgerActions => "ledger-actions",
            Self::Metrics => "metrics",
        }
    }

    /// The page as Markdown.
    pub fn text(self) -> String {
        let (title, body) = match self {
            Self::Configuration => ("Configuration", configuration()),
            Self::EnvironmentVariables => (
                "Environment variables of `kubler-server`",
                environment_variables(),
            ),
            Self::Errors => ("Errors", errors()),
            Self::LedgerActions => ("Ledger actions", ledger_actions()),
            Self::Metrics => ("Metrics", metrics()),
        };
        let word = self.word();
        format!(
            "# {title}\n\n<!-- Made by `kubler-server reference {word}`; do not edit. -->\n\n{}\n",
            body.trim_end()
        )
    }
}

/// A table whose cells hold no line break and no bar of their own.
fn table<const N: usize>(
    columns: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut text = format!("| {} |\n|{}\n", columns.join(" | "), "---|".repeat(N));
    for row in rows {
        let cells = row.map(|cell| cell.replace('\n', " ").replace('|', "\\|"));
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}

fn environment_variables() -> String {
    let rows = VARIABLES
        .iter()
        .map(|(name, meaning)| [format!("`{name}`"), meaning.trim().to_owned()]);
    format!(
        "Those of `kubler` are in [its own page](kubler.md#environment-variables).\n\n{}",
        table(["variable", "meaning"], rows)
    )
}

fn errors() -> String {
    let rows = ErrorCode::ALL.iter().map(|code| {
        [
            format!("[`{0}`](../troubleshooting.md#{0})", code.as_str()),
            code.status().to_string(),
            code.meaning().trim().to_owned(),
            code.next_step().to_owned(),
        ]
    });
    format!(
        "Every refusal is `application/problem+json` (RFC 9457) with a stable `code`. `detail` says what was wrong and \
         where, `hint` what to do next; the hint below stands there when there is no better one. `request_id` names the \
         request in the ledger, but for those that were refused before anybody knew who called: they are counted, by \
         source and reason.\n\n{}",
        table(["code", "status", "what", "what next"], rows)
    )
}

fn ledger_actions() -> String {
    let rows = LedgerAction::ALL.iter().map(|action| {
        [
            format!("`{}`", action.as_str()),
            action.meaning().trim().to_owned(),
        ]
    });
    format!(
        "What a record's `action` can be. `kind` says whether it begins (`start`), ends (`end`, with the start's \
         sequence in `start`) or just happened (`event`).\n\n{}",
        table(["action", "what"], rows)
    )
}

fn metrics() -> String {
    let rows = METRICS.iter().map(|metric| {
        [
            format!("`{PREFIX}_{}`", metric.name),
            metric
                .labels
                .iter()
                .map(|label| format!("`{label}`"))
                .collect::<Vec<_>>()
                .join(", "),
            metric.help.to_owned(),
        ]
    });
    format!(
        "`GET /metrics`, OpenMetrics; needs an operator or a policy that allows `read_metrics`. All are gauges, computed \
         from the state of things when somebody asks.\n\n{}",
        table(["metric", "labels", "what"], rows)
    )
}

fn configuration() -> String {
    let schema = Value::from(schemars::schema_for!(Configuration));
    let mut page = String::from(
        "One YAML file. Relative paths count from its folder. An unknown key is an error, with its line and the key \
         that was probably meant. `kubler-server check` reads the file without starting; `kubler-server schema` prints \
         the JSON Schema ([kubler.schema.json](kubler.schema.json)).\n",
    );
    page.push_str(
        "\nSIGHUP loads it anew, all or nothing; these keys keep their values until a restart, and the log names those that \
         have changed:\n\n",
    );
    let rows = NEEDS_RESTART
        .iter()
        .map(|key| [format!("`{}`", key.name), key.why.to_owned()]);
    page.push_str(&table(["key", "why"], rows));
    Sections {
        definitions: schema.get("$defs").and_then(Value::as_object),
        page: &mut page,
    }
    .add("", &schema);
    page
}

/// Writes a section for each object of the configuration, outer ones first.
struct Sections<'a> {
    definitions: Option<&'a Map<String, Value>>,
    page: &'a mut String,
}

impl<'a> Sections<'a> {
    fn add(&mut self, path: &str, schema: &'a Value) {
        let properties = schema.get("properties").and_then(Value::as_object);
        let Some(properties) = properties else {
            return;
        };
        let heading = if path.is_empty() {
            "The whole file".to_owned()
        } else {
            format!("`{path}`")
        };
        let about = if path.is_empty() {
            "Every section below that has defaults for all of its keys may be left out.".to_owned()
        } else {
            description(schema)
        };
        let required: Vec<_> = schema
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let mut inner = Vec::new();
        let mut rows = Vec::new();
        for (key, property) in properties {
            let meant = self.meant(key, property);
            let default = match property.get("default") {
                _ if required.contains(&key.as_str()) => "required".to_owned(),
                Some(Value::Object(_)) | None => String::new(),
                Some(Value::Null) => "absent".to_owned(),
                Some(value) => format!("`{value}`"),
            };
            rows.push([
                format!("`{key}`"),
                meant.kind,
                default,
                description(property) + &meant.words,
            ]);
            inner.extend(meant.section.map(|(below, of)| {
                let dot = if path.is_empty() { "" } else { "." };
                (format!("{path}{dot}{below}"), of)
            }));
        }
        let _ = write!(
            self.page,
            "\n## {heading}\n\n{about}\n\n{}",
            table(["key", "type", "default", "meaning"], rows)
        );
        for (path, of) in inner {
            self.add(&path, of);
        }
    }

    fn resolved(&self, schema: &'a Value) -> &'a Value {
        let reference = schema.get("$ref").and_then(Value::as_str);
        reference
            .and_then(|reference| reference.strip_prefix("#/$defs/"))
            .and_then(|name| self.definitions?.get(name))
            .unwrap_or(schema)
    }

    fn meant(&self, key: &str, property: &'a Value) -> Meant<'a> {
        if let Some(items) = property.get("items") {
            let item = self.meant(&format!("{key}[]"), items);
            return Meant {
                kind: format!("list of {}", item.kind),
                ..item
            };
        }
        if let Some(values) = property
            .get("additionalProperties")
            .filter(|it| it.is_object())
        {
            let value = self.meant(&format!("{key}.<name>"), values);
            return Meant {
                kind: format!("map of {}", value.kind),
                ..value
            };
        }
        let of = self.resolved(property);
        if let Some(words) = of.get("oneOf").and_then(Value::as_array) {
            let of_word =
                |word: &Value| Some((word.get("const")?.as_str()?.to_owned(), description(word)));
            let words: Vec<_> = words.iter().filter_map(of_word).collect();
            let named: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
            let said = words
                .iter()
                .map(|(word, about)| format!(" `{word}`: {about}"));
            return Meant {
                kind: named.join(" or "),
                words: said.collect(),
                section: None,
            };
        }
        let object = of.get("properties").is_some();
        Meant {
            kind: if object { "section".into() } else { kind(of) },
            words: String::new(),
            section: object.then(|| (key.to_owned(), of)),
        }
    }
}

/// What a key can hold.
struct Meant<'a> {
    kind: String,
    /// What each word means, when it is one of a few.
    words: String,
    /// The section that describes it, by path.
    section: Option<(String, &'a Value)>,
}

fn description(schema: &Value) -> String {
    let text = schema.get("description").and_then(Value::as_str);
    text.unwrap_or_default().replace('\n', " ")
}

/// A plain type with its bounds.
fn kind(schema: &Value) -> String {
    let word = match schema.get("type") {
        Some(Value::Array(types)) => types
            .iter()
            .filter_map(Value::as_str)
            .find(|word| *word != "null"),
        Some(word) => word.as_str(),
        None => None,
    };
    let bounds = (schema.get("minimum"), schema.get("maximum"));
    match (word.unwrap_or("value"), bounds) {
        ("string", _) => "text".into(),
        ("integer", (Some(min), Some(max))) => format!("number, {min} to {max}"),
        ("integer", _) => "number".into(),
        ("boolean", _) => "`true` or `false`".into(),
        (other, _) => other.into(),
    }
}
