//! The last line of rule L1: types keep tokens out of records; this keeps out those that a caller typed into a
//! path, a branch or its user agent.

use serde_json::Value;

/// What stands where a secret stood.
pub const REDACTED: &str = "[redacted]";

/// How the first part of every JSON Web Token begins: `{"` in base64url.
const TOKEN_PREFIX: &str = "eyJ";
const PRIVATE_KEY_MARK: &str = "PRIVATE KEY-----";
const BEARER: &str = "bearer ";
/// Shorter dotted words that begin like a token are words.
const TOKEN_BYTES_MIN: usize = 24;

/// Whether the JSON text may hold a secret. Cheap; wrong only in one direction.
pub(super) fn is_suspect(json: &[u8]) -> bool {
    contains(json, TOKEN_PREFIX.as_bytes())
        || contains(json, PRIVATE_KEY_MARK.as_bytes())
        || contains_bearer(json)
}

/// The JSON text with every secret in its texts replaced. What is not JSON becomes nothing.
pub(super) fn redact(json: &[u8]) -> Vec<u8> {
    let Ok(mut value) = serde_json::from_slice::<Value>(json) else {
        return Vec::new();
    };
    redact_value(&mut value);
    serde_json::to_vec(&value).unwrap_or_default()
}

fn redact_value(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Some(clean) = redact_text(text) {
                *text = clean;
            }
        }
        Value::Array(values) => values.iter_mut().for_each(redact_value),
        Value::Object(fields) => {
            let dirty: Vec<String> = fields
                .keys()
                .filter(|key| redact_text(key).is_some())
                .cloned()
                .collect();
            for key in dirty {
                fields.shift_remove(&key);
            }
            fields.values_mut().for_each(redact_value);
        }
        _ => {}
    }
}

/// The text without its secrets; `None` when it has none.
pub(crate) fn redact_text(text: &str) -> Option<String> {
    if text.contains(PRIVATE_KEY_MARK) {
        return Some(REDACTED.to_owned());
    }
    let is_token_character =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '=' | '~' | '/' | '+');
    let mut clean = String::with_capacity(text.len());
    let (mut rest, mut after_bearer) = (text, false);
    while !rest.is_empty() {
        let end = rest.find(|c| !is_token_character(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        clean.push_str(&if after_bearer && !word.is_empty() {
            REDACTED.to_owned()
        } else {
            redact_word(word)
        });
        let separator = after.chars().next().map_or(0, char::len_utf8);
        let (between, next) = after.split_at(separator);
        // Several spaces may stand before the token.
        after_bearer = word.eq_ignore_ascii_case(BEARER.trim_end())
            || (after_bearer && word.is_empty() && between.trim().is_empty());
        clean.push_str(between);
        rest = next;
    }
    (clean != text).then_some(clean)
}

/// A word without the token in it: from its beginning to the end of the word.
fn redact_word(word: &str) -> String {
    let mut from = 0;
    while let Some(at) = word
        .get(from..)
        .and_then(|rest| rest.find(TOKEN_PREFIX))
        .map(|at| at + from)
    {
        let token = word.get(at..).unwrap_or_default();
        if token.len() >= TOKEN_BYTES_MIN && token.contains('.') {
            return format!("{}{REDACTED}", word.get(..at).unwrap_or_default());
        }
        from = at + TOKEN_PREFIX.len();
    }
    word.to_owned()
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    memchr::memmem::find(text, part).is_some()
}

/// Looked for by its blank: written JSON has few.
fn contains_bearer(text: &[u8]) -> bool {
    let word = BEARER.trim_end().as_bytes();
    memchr::memchr_iter(b' ', text).any(|blank| {
        text.get(blank.saturating_sub(word.len())..blank)
            .is_some_and(|before| before.eq_ignore_ascii_case(word))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.c2lnbmF0dXJl";

    #[test]
    fn l1_tokens_are_found_wherever_they_stand_in_a_text() {
        for (text, clean) in [
            (TOKEN.to_owned(), "[redacted]"),
            (format!("/api/{TOKEN}"), "/api/[redacted]"),
            (format!("a?token={TOKEN}&b=c"), "a?token=[redacted]&b=c"),
            (
                "curl Bearer abcdefgh x".to_owned(),
                "curl Bearer [redacted] x",
            ),
            (
                "curl Bearer   abcdefgh x".to_owned(),
                "curl Bearer   [redacted] x",
            ),
            ("-----BEGIN PRIVATE KEY-----\nMC4".to_owned(), "[redacted]"),
        ] {
            assert_eq!(redact_text(&text).as_deref(), Some(clean), "{text}");
            assert!(is_suspect(&serde_json::to_vec(&text).unwrap()), "{text}");
        }
        for text in [
            "eyJ",
            "feature/eyJoke",
            "forbearer of news",
            "kubectl/v1.34 (linux/amd64)",
        ] {
            assert_eq!(redact_text(text), None, "{text}");
        }
    }
}
