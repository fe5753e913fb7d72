//! Frames of changed protocols. The first byte of the input says who sends: `c` or `s`; the rest is what they send.

use crate::frames::{spdy, websocket};

/// How much is read at a time, to be compared with all at once.
const PIECES: [usize; 3] = [1, 3, 64];

pub(super) fn websocket(input: &[u8]) -> bool {
    use websocket::{Frames, Kind, Sender};
    let (sender, bytes) = match input.split_first() {
        Some((b'c', bytes)) => (Sender::Client, bytes),
        Some((b's', bytes)) => (Sender::Server, bytes),
        _ => return false,
    };
    let read = |piece: usize| -> Result<_, websocket::Fault> {
        let (mut frames, mut messages) = (Frames::new(sender), Vec::<(Kind, Vec<u8>)>::new());
        let mut seen = 0;
        for bytes in bytes.chunks(piece) {
            let read = frames.read(bytes, |part| {
                seen += part.payload().len();
                if part.is_first || messages.is_empty() {
                    messages.push((part.kind, Vec::new()));
                }
                if let Some((_, payload)) = messages.last_mut() {
                    payload.extend_from_slice(&part.payload());
                }
            });
            read?;
        }
        assert!(seen <= bytes.len());
        assert!(!frames.is_between_messages() || frames.is_between_frames());
        Ok((frames, messages))
    };
    let at_once = read(bytes.len().max(1));
    for piece in PIECES {
        assert_eq!(read(piece), at_once, "in pieces of {piece}");
    }
    let Ok((frames, messages)) = at_once else {
        return false;
    };
    if frames.is_between_messages() && bytes.len() < 100 {
        // Whatever is put between two messages is read as itself.
        let mut frames = frames;
        let mut ours = Vec::new();
        let ping = websocket::message(sender, Kind::Ping, b"ours");
        let read = frames.read(&ping, |part| {
            ours.push((part.kind, part.payload().into_owned()))
        });
        assert_eq!(read, Ok(()));
        assert_eq!(ours, [(Kind::Ping, b"ours".to_vec())]);
    }
    !messages.is_empty()
}

pub(super) fn spdy(input: &[u8]) -> bool {
    use spdy::{ErrorStreams, Frames};
    let (is_client, bytes) = match input.split_first() {
        Some((b'c', bytes)) => (true, bytes),
        Some((b's', bytes)) => (false, bytes),
        _ => return false,
    };
    let read = |piece: usize| -> Result<_, spdy::Fault> {
        let (mut frames, mut streams) = (Frames::default(), ErrorStreams::default());
        let (mut seen, mut begun) = (0, 0);
        for bytes in bytes.chunks(piece) {
            let read = frames.read(bytes, |part| {
                seen += part.payload.len();
                begun += usize::from(part.is_first);
                match is_client {
                    true => streams.client_sent(&part),
                    false => drop(streams.server_sent(&part)),
                }
            });
            read?;
        }
        // Eight bytes of each frame are its head.
        assert!(seen <= bytes.len());
        let open: Vec<_> = streams.open().collect();
        Ok((frames.is_between(), frames.went_away(), begun, open))
    };
    let at_once = read(bytes.len().max(1));
    for piece in PIECES {
        let again = read(piece);
        // A frame whose head is the last that came is begun at once or with its next byte.
        match (&again, &at_once) {
            (Ok(again), Ok(at_once)) => assert_eq!(
                (again.0, again.1, &again.3),
                (at_once.0, at_once.1, &at_once.3)
            ),
            (again, at_once) => assert_eq!(again.is_err(), at_once.is_err()),
        }
    }
    at_once.is_ok_and(|(_, _, begun, _)| begun > 0)
}
