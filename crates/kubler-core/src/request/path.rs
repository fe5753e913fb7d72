//! Paths: which are normal, and what they mean.

use std::borrow::Cow;

use crate::ledger::record::KubernetesRequest;
use crate::text::is_unsafe;

/// Why a path is not in its normal form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    /// It does not begin with `/`.
    #[error("it does not begin with `/`")]
    NotAbsolute,
    /// `//`.
    #[error("it has an empty segment")]
    EmptySegment,
    /// `.` or `..`, also encoded.
    #[error("it has a `.` or `..` segment")]
    DotSegment,
    /// A byte that no path may have.
    #[error("it has a byte that must not stand in a path")]
    Character,
    /// `%` that is not followed by two hex digits.
    #[error("it has a `%` that encodes nothing")]
    BrokenEncoding,
    /// An encoded `/`, `\`, `;`, `%`, control byte or character that does not show, or an encoded letter, digit, `-`,
    /// `.`, `_` or `~`.
    #[error("it encodes a byte that must not be encoded in a path")]
    HiddenCharacter,
    /// The decoded bytes are no text.
    #[error("its decoded bytes are not valid UTF-8")]
    NotText,
    /// A special verb without anything after it.
    #[error("`watch` or `proxy` is not followed by a resource")]
    NothingAfterVerb,
}

/// Checks that `path` has one reading only, and gives it decoded. One `/` at the end is allowed: some servers
/// behind a proxy subresource tell the two apart, and the API server reads both alike.
pub(super) fn read(path: &str) -> Result<Cow<'_, str>, PathFault> {
    let rest = path.strip_prefix('/').ok_or(PathFault::NotAbsolute)?;
    if let Some(fault) = path
        .bytes()
        .find_map(|byte| (!may_stand(byte)).then_some(PathFault::Character))
    {
        return Err(fault);
    }
    let decoded = decode(path)?;
    if !rest.is_empty() {
        let trimmed = rest.strip_suffix('/').unwrap_or(rest);
        for segment in trimmed.split('/') {
            match segment {
                "" => return Err(PathFault::EmptySegment),
                "." | ".." => return Err(PathFault::DotSegment),
                _ => {}
            }
        }
    }
    if segments(&decoded).is_some_and(|segments| lacks_resource(&segments)) {
        return Err(PathFault::NothingAfterVerb);
    }
    Ok(decoded)
}

/// RFC 3986 `pchar` without `;`, plus `/` and the `%` of an encoding.
fn may_stand(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(
            byte,
            b'/' | b'%'
                | b':'
                | b'@'
                | b'!'
                | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b','
                | b'='
        )
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Decodes what may be encoded and refuses everything whose encoding could hide something.
fn decode(path: &str) -> Result<Cow<'_, str>, PathFault> {
    if !path.contains('%') {
        return Ok(Cow::Borrowed(path));
    }
    let mut bytes = path.bytes();
    let mut decoded = Vec::with_capacity(path.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        let (high, low) = (digit(bytes.next()), digit(bytes.next()));
        let hidden = high
            .zip(low)
            .and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
        let hidden = hidden.ok_or(PathFault::BrokenEncoding)?;
        if is_unreserved(hidden)
            || hidden.is_ascii_control()
            || matches!(hidden, b'/' | b'\\' | b';' | b'%')
        {
            return Err(PathFault::HiddenCharacter);
        }
        decoded.push(hidden);
    }
    let text = String::from_utf8(decoded).map_err(|_| PathFault::NotText)?;
    // C1 controls, and what is not seen or changes direction, although no single byte of them looks like it: names of
    // Kubernetes have none of them, and whoever reads the ledger must see what was asked for.
    if text.chars().any(is_unsafe) {
        Err(PathFault::HiddenCharacter)
    } else {
        Ok(Cow::Owned(text))
    }
}

/// The parts of a path below its API version, with group and version; `None` when it is about no resource.
struct Segments<'a> {
    group: &'a str,
    version: &'a str,
    parts: Vec<&'a str>,
}

fn segments(path: &str) -> Option<Segments<'_>> {
    let trimmed = path.trim_matches('/');
    let mut all = trimmed.split('/');
    let group = match all.next()? {
        "api" => "",
        "apis" => all.next()?,
        _ => return None,
    };
    let version = all.next()?;
    let parts: Vec<_> = all.collect();
    (!parts.is_empty()).then_some(Segments {
        group,
        version,
        parts,
    })
}

fn special_verb(part: &str) -> Option<&'static str> {
    match part {
        "watch" => Some("watch"),
        "proxy" => Some("proxy"),
        _ => None,
    }
}

fn lacks_resource(segments: &Segments<'_>) -> bool {
    segments.parts.len() == 1
        && segments
            .parts
            .first()
            .is_some_and(|part| special_verb(part).is_some())
}

/// What a decoded path is about, without its verb, and the verb if the path itself says one.
pub(super) fn understand(path: &str) -> (KubernetesRequest, Option<&'static str>) {
    let mut record = KubernetesRequest {
        verb: String::new(),
        path: None,
        group: None,
        version: None,
        resource: None,
        subresource: None,
        namespace: None,
        name: None,
        label_selector: None,
        field_selector: None,
        dry_run: false,
        user_agent: None,
    };
    let Some(Segments {
        group,
        version,
        parts,
    }) = segments(path)
    else {
        record.path = Some(path.to_owned());
        return (record, None);
    };
    let verb = parts.first().and_then(|part| special_verb(part));
    let mut parts = parts.get(usize::from(verb.is_some())..).unwrap_or_default();
    if let ["namespaces", namespace, below @ ..] = parts {
        record.namespace = Some((*namespace).to_owned());
        // `status` and `finalize` belong to the namespace itself; anything else is a resource within it.
        if below
            .first()
            .is_some_and(|part| !matches!(*part, "status" | "finalize"))
        {
            parts = below;
        }
    }
    record.group = Some(group.to_owned());
    record.version = Some(version.to_owned());
    let mut parts = parts.iter().map(|part| (*part).to_owned());
    record.resource = parts.next();
    record.name = parts.next();
    // Behind `/proxy/` everything after the name is the proxied server's own path.
    record.subresource = if verb == Some("proxy") {
        None
    } else {
        parts.next()
    };
    (record, verb)
}
