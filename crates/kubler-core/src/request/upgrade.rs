//! A wish to change the protocol, for exec, attach, port-forward and proxied servers: read once, and written anew
//! for the API server and for the client. No header of one side is ever seen by the other (rule H1).

use http::header::{
    self, CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use http::{Method, StatusCode, Version};

use super::{ApiRequest, Effect};
use crate::frames::websocket;

/// What SPDY's streams speak, as client and API server agree on it.
pub const STREAM_PROTOCOL_VERSION: HeaderName =
    HeaderName::from_static("x-stream-protocol-version");
/// Most protocols that a client may offer.
pub const OFFERED_MAX: usize = 16;
/// Longest name of one, in bytes.
pub const OFFERED_BYTES_MAX: usize = 128;
/// A WebSocket subprotocol that is a bearer token, as browsers send it to an API server.
const BEARER_PREFIX: &str = "base64url.bearer.authorization.k8s.io.";
/// SPDY as a WebSocket subprotocol.
const TUNNEL_PREFIX: &str = "SPDY/3.1+";

/// The protocol that is changed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// WebSocket.
    WebSocket,
    /// SPDY/3.1.
    Spdy,
}

impl Protocol {
    /// As it stands in `Upgrade`, and in the ledger.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Spdy => "SPDY/3.1",
        }
    }
}

/// A wish to change the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    protocol: Protocol,
    /// WebSocket's.
    key: Option<HeaderValue>,
    /// What may be spoken inside, the client's favourite first.
    offered: Vec<String>,
    is_command: bool,
}

/// Why a wish is not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeFault {
    /// Nothing was wished where nothing goes without.
    #[error(
        "this is spoken over WebSocket or SPDY/3.1 only, and neither was asked for; over HTTP/2 there is none"
    )]
    Required,
    /// Only ways into something behind the API server change the protocol.
    #[error("the protocol is changed for exec, attach, port-forward and proxied servers only")]
    NotHere,
    /// Another protocol.
    #[error("the protocol is changed to WebSocket or SPDY/3.1 only, and to one of them at a time")]
    Unknown,
    /// Not asked as the protocol asks for it.
    #[error("{0}")]
    Malformed(&'static str),
}

/// An API server's answer that is not what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the API server changed the protocol in another way than it was asked to: {0}")]
pub struct NotAgreed(&'static str);

/// What both sides speak from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// The protocol.
    pub protocol: Protocol,
    /// What is spoken inside, when they said.
    pub subprotocol: Option<String>,
    /// Whether it is a command's: exec or attach.
    pub is_command: bool,
}

impl Agreed {
    /// Whether SPDY travels inside of WebSocket.
    pub fn is_tunnel(&self) -> bool {
        let inside = self.subprotocol.as_deref().unwrap_or_default();
        self.protocol == Protocol::WebSocket && inside.starts_with(TUNNEL_PREFIX)
    }
}

/// What a client wishes, if it wishes anything. Pure.
///
/// # Errors
/// When it is not clear, not possible, or missing where nothing goes without it.
pub fn read(
    method: &Method,
    version: Version,
    headers: &HeaderMap,
    understood: &ApiRequest,
) -> Result<Option<Upgrade>, UpgradeFault> {
    let connects = understood.effect() == Effect::Connect;
    let is_proxy = is_proxy(understood);
    let Some(wished) = only(headers, &UPGRADE, "`Upgrade` is given more than once")? else {
        return if connects && !is_proxy {
            Err(UpgradeFault::Required)
        } else {
            Ok(None)
        };
    };
    if !connects {
        return Err(UpgradeFault::NotHere);
    }
    let protocol = [Protocol::WebSocket, Protocol::Spdy]
        .into_iter()
        .find(|known| {
            wished
                .as_bytes()
                .eq_ignore_ascii_case(known.as_str().as_bytes())
        })
        .filter(|known| !is_proxy || *known == Protocol::WebSocket)
        .ok_or(UpgradeFault::Unknown)?;
    if version != Version::HTTP_11 {
        return Err(UpgradeFault::Malformed(
            "the protocol is changed over HTTP/1.1 only",
        ));
    }
    if !names_upgrade(headers) {
        return Err(UpgradeFault::Malformed(
            "`Connection` does not say `Upgrade`",
        ));
    }
    let carried = |name: &String| is_proxy || is_carried(name);
    let (key, mut offered) = match protocol {
        Protocol::WebSocket => (
            Some(websocket_key(method, headers)?),
            subprotocols(headers)?,
        ),
        Protocol::Spdy => (None, listed(headers, &STREAM_PROTOCOL_VERSION)?),
    };
    let has_offered = !offered.is_empty();
    offered.retain(carried);
    if has_offered && offered.is_empty() {
        return Err(UpgradeFault::Malformed(
            "none of the protocols that were offered inside is carried; `v5.channel.k8s.io`, `v4.channel.k8s.io` and `SPDY/3.1+portforward.k8s.io` are",
        ));
    }
    Ok(Some(Upgrade {
        protocol,
        key,
        offered,
        is_command: is_command(understood),
    }))
}

fn is_proxy(understood: &ApiRequest) -> bool {
    understood.record().verb == "proxy"
}

fn is_command(understood: &ApiRequest) -> bool {
    let subresource = understood.record().subresource.as_deref();
    matches!(subresource, Some("exec" | "attach"))
}

/// Kubernetes' own, in all their versions.
fn is_carried(name: &str) -> bool {
    let name = name.strip_prefix(TUNNEL_PREFIX).unwrap_or(name);
    let channel = name.strip_suffix("channel.k8s.io");
    channel.is_some_and(|version| {
        let version = version.strip_suffix("base64.").unwrap_or(version);
        matches!(version, "" | "v2." | "v3." | "v4." | "v5.")
    }) || name == "portforward.k8s.io"
}

impl Upgrade {
    /// The protocol that is wished for.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Writes the wish for the API server. Whatever `headers` holds of the kind is replaced.
    pub fn write(&self, headers: &mut HeaderMap) {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static(self.protocol.as_str()));
        let inside = match (self.protocol, &self.key) {
            (Protocol::WebSocket, Some(key)) => {
                headers.insert(SEC_WEBSOCKET_KEY, key.clone());
                headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
                SEC_WEBSOCKET_PROTOCOL
            }
            (Protocol::WebSocket, None) => SEC_WEBSOCKET_PROTOCOL,
            (Protocol::Spdy, _) => STREAM_PROTOCOL_VERSION,
        };
        headers.remove(&inside);
        // SPDY's are a header each: that is how API servers read them.
        let values = match self.protocol {
            Protocol::WebSocket if self.offered.is_empty() => Vec::new(),
            Protocol::WebSocket => vec![self.offered.join(", ")],
            Protocol::Spdy => self.offered.clone(),
        };
        for value in values
            .iter()
            .filter_map(|value| HeaderValue::from_str(value).ok())
        {
            headers.append(inside.clone(), value);
        }
    }

    /// What was agreed on, from the head of an answer that says so.
    ///
    /// # Errors
    /// When it is an answer to another wish.
    pub fn agreed(&self, status: StatusCode, headers: &HeaderMap) -> Result<Agreed, NotAgreed> {
        let one = |name: &HeaderName| {
            only(headers, name, "").map_err(|_| NotAgreed("a header is there twice"))
        };
        if status != StatusCode::SWITCHING_PROTOCOLS || !names_upgrade(headers) {
            return Err(NotAgreed("it did not say that it does"));
        }
        let is_wished = |value: &HeaderValue| {
            value
                .as_bytes()
                .eq_ignore_ascii_case(self.protocol.as_str().as_bytes())
        };
        if !one(&UPGRADE)?.is_some_and(is_wished) {
            return Err(NotAgreed("to another protocol"));
        }
        let inside = match &self.key {
            Some(key) => {
                let accepted = websocket::accept(key.as_bytes());
                if one(&SEC_WEBSOCKET_ACCEPT)?.is_none_or(|value| value != accepted.as_str()) {
                    return Err(NotAgreed("it did not read the key"));
                }
                if headers.contains_key(SEC_WEBSOCKET_EXTENSIONS) {
                    return Err(NotAgreed("with an extension"));
                }
                one(&SEC_WEBSOCKET_PROTOCOL)?
            }
            None => one(&STREAM_PROTOCOL_VERSION)?,
        };
        let chosen = inside.map(|value| {
            self.offered
                .iter()
                .find(|offered| value.as_bytes() == offered.as_bytes())
                .ok_or(NotAgreed("with something inside that was not offered"))
        });
        Ok(Agreed {
            protocol: self.protocol,
            subprotocol: chosen.transpose()?.cloned(),
            is_command: self.is_command,
        })
    }

    /// The head of the answer to the client, as far as it is about the protocol.
    pub fn answer(&self, agreed: &Agreed) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static(self.protocol.as_str()));
        let accept = self
            .key
            .as_ref()
            .map(|key| websocket::accept(key.as_bytes()));
        let inside = match self.protocol {
            Protocol::WebSocket => SEC_WEBSOCKET_PROTOCOL,
            Protocol::Spdy => STREAM_PROTOCOL_VERSION,
        };
        for (name, value) in [
            (SEC_WEBSOCKET_ACCEPT, accept.as_deref()),
            (inside, agreed.subprotocol.as_deref()),
        ] {
            if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
                headers.insert(name, value);
            }
        }
        headers
    }
}

/// The bearer token that a browser hides among its subprotocols, if there is one: decoded, and text.
///
/// # Errors
/// When there are several, it is none, or nothing is offered besides it.
pub fn bearer(headers: &HeaderMap) -> Result<Option<String>, UpgradeFault> {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let is_websocket = headers.get(UPGRADE).is_some_and(|value| {
        value
            .as_bytes()
            .eq_ignore_ascii_case(Protocol::WebSocket.as_str().as_bytes())
    });
    if !is_websocket {
        return Ok(None);
    }
    let names = names(headers, &SEC_WEBSOCKET_PROTOCOL);
    let (tokens, others): (Vec<_>, Vec<_>) =
        names.partition(|name| name.starts_with(BEARER_PREFIX));
    let [token] = tokens.as_slice() else {
        return match tokens.is_empty() {
            true => Ok(None),
            false => Err(UpgradeFault::Malformed(
                "several subprotocols are a bearer token",
            )),
        };
    };
    if others.is_empty() {
        return Err(UpgradeFault::Malformed(
            "a bearer token as a subprotocol needs another one beside it, which the server can agree to",
        ));
    }
    let encoded = token.get(BEARER_PREFIX.len()..).unwrap_or_default();
    URL_SAFE_NO_PAD
        .decode(encoded)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .map(Some)
        .ok_or(UpgradeFault::Malformed(
            "the bearer token among the subprotocols is none",
        ))
}

fn websocket_key(method: &Method, headers: &HeaderMap) -> Result<HeaderValue, UpgradeFault> {
    if *method != Method::GET {
        return Err(UpgradeFault::Malformed("WebSocket is asked for with GET"));
    }
    let version = only(
        headers,
        &SEC_WEBSOCKET_VERSION,
        "`Sec-WebSocket-Version` is given twice",
    )?;
    if version.is_none_or(|version| version != "13") {
        return Err(UpgradeFault::Malformed(
            "WebSocket is spoken in version 13 only",
        ));
    }
    only(
        headers,
        &SEC_WEBSOCKET_KEY,
        "`Sec-WebSocket-Key` is given twice",
    )?
    .filter(|key| websocket::is_key(key.as_bytes()))
    .cloned()
    .ok_or(UpgradeFault::Malformed("`Sec-WebSocket-Key` is none"))
}

/// What is offered inside of WebSocket, a bearer token excepted: that is for us, and goes no further.
fn subprotocols(headers: &HeaderMap) -> Result<Vec<String>, UpgradeFault> {
    let mut headers = headers.clone();
    let kept: Vec<_> = names(&headers, &SEC_WEBSOCKET_PROTOCOL)
        .filter(|name| !name.starts_with(BEARER_PREFIX))
        .collect();
    let kept = HeaderValue::from_str(&kept.join(","));
    headers.remove(SEC_WEBSOCKET_PROTOCOL);
    if let Some(kept) = kept.ok().filter(|kept| !kept.is_empty()) {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, kept);
    }
    listed(&headers, &SEC_WEBSOCKET_PROTOCOL)
}

fn listed(headers: &HeaderMap, header: &HeaderName) -> Result<Vec<String>, UpgradeFault> {
    let offered: Vec<_> = names(headers, header).collect();
    let is_name = |name: &String| {
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b';' | b'\\');
        (1..=OFFERED_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_plain)
    };
    if offered.len() > OFFERED_MAX || !offered.iter().all(is_name) {
        return Err(UpgradeFault::Malformed(
            "the protocols that are offered inside are too many, or none of such names",
        ));
    }
    Ok(offered)
}

/// Everything that a header lists, over all its lines. A value that is no text gives a name that is none.
fn names<'a>(
    headers: &'a HeaderMap,
    header: &HeaderName,
) -> impl Iterator<Item = String> + use<'a> {
    headers.get_all(header).iter().flat_map(|value| {
        let text = value.to_str().unwrap_or("\0");
        text.split(',').map(|name| name.trim().to_owned())
    })
}

fn names_upgrade(headers: &HeaderMap) -> bool {
    names(headers, &header::CONNECTION).any(|name| name.eq_ignore_ascii_case("upgrade"))
}

/// The one value of a header, if there is one.
fn only<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
    twice: &'static str,
) -> Result<Option<&'a HeaderValue>, UpgradeFault> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        (_, Some(_)) => Err(UpgradeFault::Malformed(twice)),
    }
}

#[cfg(test)]
mod tests;
