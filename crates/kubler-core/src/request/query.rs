//! Queries: the few keys that change what a request means, read as the API server reads them.

use std::borrow::Cow;

/// Checks that two readers would find the same keys and values.
pub(super) fn check(query: &str) -> Result<(), &'static str> {
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
        if decode(key).is_none() || decode(value).is_none() {
            return Err("it has an encoding that is broken or gives no text");
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

/// The one name that a field selector asks for, if it asks for one.
pub(super) fn selected_name(query: &str) -> Option<String> {
    let selector = values(query, "fieldSelector").next()?;
    selector.split(',').find_map(|term| {
        let (field, value) = term.split_once('=')?;
        let name = value.strip_prefix('=').unwrap_or(value);
        let is_segment =
            !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '%', '\\']);
        (field == "metadata.name" && is_segment).then(|| name.to_owned())
    })
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
