//! What passes after a change of protocol: where its frames are, and what we may put between them.

use kubler_core::frames::websocket::{self, Kind, Sender};
use kubler_core::ids::RequestId;
use kubler_core::request::upgrade::{Agreed, Protocol};

use super::status::Refused;

/// The channel on which a command's end is told, in all of Kubernetes' channel protocols.
const ERROR_CHANNEL: u8 = 3;
/// Most bytes that are kept of how a command ended.
const END_BYTES_MAX: usize = 4096;
/// What our pings carry.
const PING: &[u8] = b"kubler";

/// How the way that ends is told inside of WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// By a Status on the error channel.
    Status,
    /// By the reason of the close alone.
    Close,
}

/// One direction of a changed protocol.
#[derive(Debug, Clone)]
pub(super) struct Frames {
    sender: Sender,
    inside: websocket::Frames,
}

/// Bytes that are not what was agreed on.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error(transparent)]
pub(super) struct Garbage(#[from] websocket::Fault);

impl Frames {
    /// Before the first byte of `sender`.
    pub(super) fn new(_agreed: &Agreed, sender: Sender) -> Self {
        Self {
            sender,
            inside: websocket::Frames::new(sender),
        }
    }

    /// Reads what passes, and notes in `end` how a command ended.
    ///
    /// # Errors
    /// When it is not what was agreed on.
    pub(super) fn read(&mut self, bytes: &[u8], end: &mut CommandEnd) -> Result<(), Garbage> {
        self.inside.read(bytes, |part| end.see(&part))?;
        Ok(())
    }

    /// Whether something of ours may be put here.
    pub(super) fn is_between(&self) -> bool {
        self.inside.is_between_messages()
    }

    /// How many of `bytes`, which come next, belong to what has begun; all of them when it goes on behind them.
    pub(super) fn rest_in(&self, bytes: &[u8]) -> usize {
        let mut ahead = self.clone();
        for (nth, _) in bytes.iter().enumerate() {
            if ahead.is_between() {
                return nth;
            }
            let one = bytes.get(nth..=nth).unwrap_or_default();
            if ahead.inside.read(one, |_| {}).is_err() {
                break;
            }
        }
        bytes.len()
    }

    /// A question whether the other side is there, as `sender` would ask it; none where it would be in the way.
    pub(super) fn ping(&self) -> Option<Vec<u8>> {
        let is_open = self.inside.is_between_frames() && !self.inside.is_closed();
        is_open.then(|| websocket::message(self.sender, Kind::Ping, PING))
    }
}

/// The last bytes to a client whose connection is ended by us; nothing may follow them.
pub(super) fn last_words(agreed: &Agreed, refused: &Refused, request_id: RequestId) -> Vec<u8> {
    let mut words = Vec::new();
    if told(agreed) == Told::Status {
        let mut payload = vec![ERROR_CHANNEL];
        payload.extend(refused.object(request_id).to_string().into_bytes());
        words = websocket::message(Sender::Server, Kind::Binary, &payload);
    }
    words.extend(websocket::close(
        Sender::Server,
        websocket::CLOSED_BY_POLICY,
        &refused.message,
    ));
    words
}

fn told(agreed: &Agreed) -> Told {
    match (agreed.protocol, agreed.subprotocol.as_deref()) {
        (Protocol::WebSocket, Some("v4.channel.k8s.io" | "v5.channel.k8s.io")) => Told::Status,
        (Protocol::WebSocket | Protocol::Spdy, _) => Told::Close,
    }
}

/// How a command ended, read from what its API server says to the client.
#[derive(Debug, Default)]
pub(super) struct CommandEnd {
    is_on_error_channel: bool,
    bytes: Vec<u8>,
}

impl CommandEnd {
    fn see(&mut self, part: &websocket::Part<'_>) {
        if part.kind != Kind::Binary {
            return;
        }
        let payload = part.payload();
        let mut rest = payload.as_ref();
        if part.is_first {
            let Some((channel, behind)) = rest.split_first() else {
                return;
            };
            self.is_on_error_channel = *channel == ERROR_CHANNEL;
            rest = behind;
        }
        if self.is_on_error_channel {
            let room = END_BYTES_MAX.saturating_sub(self.bytes.len());
            self.bytes.extend(rest.iter().take(room));
        }
    }

    /// The command's exit code, when it was told.
    pub(super) fn exit_code(&self) -> Option<i32> {
        let status: serde_json::Value = serde_json::from_slice(&self.bytes).ok()?;
        if status.get("status")? == "Success" {
            return Some(0);
        }
        let causes = status.get("details")?.get("causes")?.as_array()?;
        let code = causes.iter().find(|cause| {
            cause
                .get("reason")
                .is_some_and(|reason| reason == "ExitCode")
        })?;
        code.get("message")?.as_str()?.parse().ok()
    }
}
