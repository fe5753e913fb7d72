//! Queries: the few keys that change what a request means, read as the API server reads them.

use std::borrow::Cow;

/// Most parameters of one query. Go drops all of them when there are more than 10,000.
const PARAMETERS_MAX: usize = 1000;

/// Checks that two readers would find the same keys and values.
pub(super) fn check(query: &str) -> Result<(), &'static str> {
    if query.split('&').nth(PARAMETERS_MAX).is_some() {
        return Err("it has more than 1000 parameters");
    }
    // Go drops a pair with `;` where others split at it.
    if query.contains(';') {
        return Err("a `;` must be written `%3B`");
    }
    if query
        .bytes()
        .any(|byte| !byte.is_ascii_graphic() || matches!(byte, b'#' | b'\\'))
    {
        return Err("it has a byte that must be encoded");
    }
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (Some(key), Some(value)) = (decode(key), decode(value)) else {
            return Err("it has an encoding that is broken or gives no text");
        };
        // To the API server a long s is an s or none, depending on the other parameters.
        if key == "watch" && !value.is_ascii() {
            return Err("the value of `watch` can be read as true and as false");
        }
    }
    Ok(())
}

/// Every value of `key`, in order.
pub(super) fn values<'a>(query: &'a str, key: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
    query.split('&').filter_map(move |pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name)? == key).then(|| decode(value)).flatten()
    })
}

/// A boolean as the API server reads it: only absence, `0` and `false` are false; the first one counts.
pub(super) fn flag(query: &str, key: &str) -> bool {
    values(query, key)
        .next()
        .is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
}

/// The one name that a field selector asks for, if it asks for one. A selector that the API server would refuse asks
/// for none.
pub(super) fn selected_name(query: &str) -> Option<String> {
    let selector = values(query, "fieldSelector").next()?;
    let mut terms: Vec<_> = split_unescaped(&selector).collect();
    // In this order the API server takes the first of several.
    terms.sort_unstable();
    let mut selected = None;
    for term in terms.into_iter().filter(|term| !term.is_empty()) {
        let (field, value, equal) = operator(term)?;
        let value = unescape(value)?;
        if equal && field == "metadata.name" {
            selected.get_or_insert(value);
        }
    }
    let is_segment = |name: &String| {
        !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '%'])
    };
    selected.filter(is_segment)
}

/// The terms of a selector: a comma behind a backslash belongs to a value.
fn split_unescaped(selector: &str) -> impl Iterator<Item = &str> {
    let mut escaped = false;
    selector.split(move |c| {
        let splits = c == ',' && !escaped;
        escaped = c == '\\' && !escaped;
        splits
    })
}

/// Field, value, and whether they are to be equal, of the first operator in a term.
fn operator(term: &str) -> Option<(&str, &str, bool)> {
    let (field, value) = term.split_once('=')?;
    Some(match field.strip_suffix('!') {
        Some(field) => (field, value, false),
        None => (field, value.strip_prefix('=').unwrap_or(value), true),
    })
}

/// A value without its backslashes; `None` for one that no selector may have.
fn unescape(value: &str) -> Option<String> {
    let mut characters = value.chars();
    let mut plain = String::with_capacity(value.len());
    while let Some(c) = characters.next() {
        plain.push(match c {
            '\\' => characters
                .next()
                .filter(|c| matches!(*c, '\\' | ',' | '='))?,
            ',' | '=' => return None,
            c => c,
        });
    }
    Some(plain)
}

/// Form decoding: `+` is a space.
fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains(['%', '+']) {
        return Some(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16));
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}
