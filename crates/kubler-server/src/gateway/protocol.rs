//! What passes after a change of protocol: where its frames are, what they tell of a command's end, and what we may
//! put between them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kubler_core::frames::spdy;
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

/// Bytes that are not what was agreed on.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub(super) enum Garbage {
    /// Where there should be WebSocket.
    #[error(transparent)]
    WebSocket(#[from] websocket::Fault),
    /// Where there should be SPDY.
    #[error(transparent)]
    Spdy(#[from] spdy::Fault),
}

/// One direction of a changed protocol.
#[derive(Debug, Clone)]
pub(super) struct Frames {
    sender: Sender,
    inside: Inside,
}

#[derive(Debug, Clone)]
enum Inside {
    WebSocket(websocket::Frames),
    Spdy(spdy::Frames),
    /// SPDY inside of WebSocket's messages.
    Tunnel(websocket::Frames, spdy::Frames),
}

impl Frames {
    /// Before the first byte of `sender`.
    pub(super) fn new(agreed: &Agreed, sender: Sender) -> Self {
        let websocket = websocket::Frames::new(sender);
        let inside = match agreed.protocol {
            Protocol::WebSocket if agreed.is_tunnel() => {
                Inside::Tunnel(websocket, spdy::Frames::default())
            }
            Protocol::WebSocket => Inside::WebSocket(websocket),
            Protocol::Spdy => Inside::Spdy(spdy::Frames::default()),
        };
        Self { sender, inside }
    }

    /// Reads what passes, and notes what matters later.
    ///
    /// # Errors
    /// When it is not what was agreed on.
    pub(super) fn read(&mut self, bytes: &[u8], notes: Option<&Notes>) -> Result<(), Garbage> {
        let sender = self.sender;
        let note = |part: &spdy::Part<'_>| {
            if let Some(notes) = notes {
                notes.spdy(sender, part);
            }
        };
        match &mut self.inside {
            Inside::WebSocket(frames) => {
                frames.read(bytes, |part| {
                    if let (Some(notes), Sender::Server) = (notes, sender) {
                        notes.channel(&part);
                    }
                })?;
            }
            Inside::Spdy(frames) => frames.read(bytes, |part| note(&part))?,
            Inside::Tunnel(outer, inner) => {
                let mut fault = None;
                outer.read(bytes, |part| {
                    if part.kind == Kind::Binary && fault.is_none() {
                        fault = inner.read(&part.payload(), |part| note(&part)).err();
                    }
                })?;
                if let Some(fault) = fault {
                    return Err(fault.into());
                }
            }
        }
        Ok(())
    }

    /// Whether something of ours may be put here.
    pub(super) fn is_between(&self) -> bool {
        match &self.inside {
            Inside::WebSocket(frames) => frames.is_between_messages(),
            Inside::Spdy(frames) => frames.is_between(),
            Inside::Tunnel(outer, inner) => outer.is_between_messages() && inner.is_between(),
        }
    }

    /// How many of `bytes`, which come next, belong to what has begun; all of them when it goes on behind them.
    pub(super) fn rest_in(&self, bytes: &[u8]) -> usize {
        let mut ahead = self.clone();
        for (nth, byte) in bytes.iter().enumerate() {
            if ahead.is_between() {
                return nth;
            }
            if ahead.read(std::slice::from_ref(byte), None).is_err() {
                break;
            }
        }
        bytes.len()
    }

    /// A question whether the other side is there, as `sender` would ask it; none where it would be in the way.
    pub(super) fn ping(&self) -> Option<Vec<u8>> {
        match &self.inside {
            Inside::WebSocket(frames) | Inside::Tunnel(frames, _) => {
                let is_open = frames.is_between_frames() && !frames.is_closed();
                is_open.then(|| websocket::message(self.sender, Kind::Ping, PING))
            }
            Inside::Spdy(frames) if frames.is_between() => Some(match self.sender {
                Sender::Client => spdy::ping_to_server(),
                Sender::Server => spdy::ping_to_client(),
            }),
            Inside::Spdy(_) => None,
        }
    }
}

/// What both directions of a connection have told.
#[derive(Debug, Clone, Default)]
pub(super) struct Notes {
    noted: Arc<Mutex<Noted>>,
}

#[derive(Debug, Default)]
struct Noted {
    /// Whether the message that passes is on the error channel.
    is_on_error_channel: bool,
    error_streams: spdy::ErrorStreams,
    /// What was said of a command's end.
    end: Vec<u8>,
}

impl Notes {
    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn channel(&self, part: &websocket::Part<'_>) {
        if part.kind != Kind::Binary {
            return;
        }
        let mut noted = self.noted();
        let payload = part.payload();
        let mut rest = payload.as_ref();
        if part.is_first {
            let Some((channel, behind)) = rest.split_first() else {
                return;
            };
            noted.is_on_error_channel = *channel == ERROR_CHANNEL;
            rest = behind;
        }
        if noted.is_on_error_channel {
            noted.keep(rest);
        }
    }

    fn spdy(&self, sender: Sender, part: &spdy::Part<'_>) {
        let mut noted = self.noted();
        match sender {
            Sender::Client => noted.error_streams.client_sent(part),
            Sender::Server => {
                if noted.error_streams.server_sent(part) {
                    noted.keep(part.payload);
                }
            }
        }
    }

    /// The command's exit code, when it was told.
    pub(super) fn exit_code(&self) -> Option<i32> {
        let status: serde_json::Value = serde_json::from_slice(&self.noted().end).ok()?;
        if status.get("status")? == "Success" {
            return Some(0);
        }
        let causes = status.get("details")?.get("causes")?.as_array()?;
        let is_code = |cause: &&serde_json::Value| {
            cause
                .get("reason")
                .is_some_and(|reason| reason == "ExitCode")
        };
        let code = causes.iter().find(is_code)?;
        code.get("message")?.as_str()?.parse().ok()
    }
}

impl Noted {
    fn keep(&mut self, bytes: &[u8]) {
        let room = END_BYTES_MAX.saturating_sub(self.end.len());
        self.end.extend(bytes.iter().take(room));
    }
}

/// The last bytes to a client whose connection is ended by us, put where something of ours may be put.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct LastWords {
    /// Why.
    pub(super) why: Vec<u8>,
    /// The end, a moment later where the client needs that to show why. Nothing may follow.
    pub(super) end: Vec<u8>,
}

/// What a client is told at the end.
pub(super) fn last_words(
    agreed: &Agreed,
    notes: &Notes,
    refused: &Refused,
    request_id: RequestId,
) -> LastWords {
    let told = match agreed.subprotocol.as_deref() {
        Some("v4.channel.k8s.io" | "v5.channel.k8s.io") => {
            refused.object(request_id).to_string().into_bytes()
        }
        // Others show people what stands there.
        _ => refused.message.clone().into_bytes(),
    };
    let binary = |payload: &[u8]| websocket::message(Sender::Server, Kind::Binary, payload);
    let close = || {
        let code = websocket::CLOSED_BY_POLICY;
        websocket::close(Sender::Server, code, &refused.message)
    };
    match agreed.protocol {
        Protocol::Spdy => LastWords {
            why: spdy_words(agreed, notes, &told),
            end: spdy::goaway(),
        },
        Protocol::WebSocket if agreed.is_tunnel() => LastWords {
            why: binary(&spdy_words(agreed, notes, &told)),
            end: [binary(&spdy::goaway()), close()].concat(),
        },
        Protocol::WebSocket if has_error_channel(agreed) => LastWords {
            why: binary(&[&[ERROR_CHANNEL], told.as_slice()].concat()),
            end: close(),
        },
        Protocol::WebSocket => LastWords {
            why: Vec::new(),
            end: close(),
        },
    }
}

/// Every stream that tells errors says why. Those of forwarded ports end with it: a client reads why when they do.
fn spdy_words(agreed: &Agreed, notes: &Notes, told: &[u8]) -> Vec<u8> {
    let noted = notes.noted();
    let streams = noted.error_streams.open();
    let errors = streams.filter_map(|stream| spdy::last_data(stream, told));
    let others = noted.error_streams.others().filter(|_| !agreed.is_command);
    let ends = others.filter_map(|stream| spdy::last_data(stream, b""));
    errors.chain(ends).flatten().collect()
}

/// Whether the third channel tells errors. In the old way to forward ports over WebSocket channels are numbered by
/// port; what is encoded in base64 has other numbers, too.
fn has_error_channel(agreed: &Agreed) -> bool {
    let inside = agreed.subprotocol.as_deref();
    agreed.is_command
        && inside.is_some_and(|name| name.ends_with("channel.k8s.io") && !name.contains("base64"))
}
