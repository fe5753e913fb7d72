use proptest::prelude::*;

use super::*;

fn read(sender: Sender, bytes: &[u8]) -> Result<Frames, Fault> {
    let mut frames = Frames::new(sender);
    frames.read(bytes, |_| {}).map(|()| frames)
}

#[test]
fn the_key_of_the_rfc_is_accepted_as_there() {
    let key = b"dGhlIHNhbXBsZSBub25jZQ==";
    assert!(is_key(key));
    assert_eq!(accept(key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    for other in [
        &b""[..],
        b"short",
        b"dGhlIHNhbXBsZSBub25jZQ",
        b"dGhlIHNhbXBsZSBub25jZTE=",
    ] {
        assert!(!is_key(other));
    }
}

#[test]
fn what_is_not_websocket_is_named() {
    for (sender, bytes, fault) in [
        (Sender::Server, &[0xc2, 0][..], Fault::Extension),
        (Sender::Server, &[0x83, 0], Fault::Opcode),
        (Sender::Server, b"HTTP/1.1 200 OK", Fault::Extension),
        (Sender::Server, &[0x82, 0x80], Fault::Masking),
        (Sender::Client, &[0x82, 0], Fault::Masking),
        (Sender::Server, &[0x89, 126], Fault::Control),
        (Sender::Server, &[0x09, 0], Fault::Control),
        (Sender::Server, &[0x80, 0], Fault::Order),
        (Sender::Server, &[0x02, 0, 0x82], Fault::Order),
        (
            Sender::Server,
            &[0x82, 127, 0xff, 0, 0, 0, 0, 0, 0, 0],
            Fault::Length,
        ),
    ] {
        assert_eq!(read(sender, bytes), Err(fault), "{bytes:?}");
    }
}

#[test]
fn a_ping_fits_between_the_parts_of_a_message_and_a_message_does_not() {
    let half = read(Sender::Server, &[0x02, 1, b'a']).unwrap();
    assert!(half.is_between_frames() && !half.is_between_messages());
    let begun = read(Sender::Server, &[0x82, 1]).unwrap();
    assert!(!begun.is_between_frames());
    let whole = read(Sender::Server, &[0x02, 1, b'a', 0x89, 0, 0x80, 1, b'b']).unwrap();
    assert!(whole.is_between_messages() && !whole.is_closed());
    let closed = read(Sender::Server, &close(Sender::Server, 1000, "")).unwrap();
    assert!(closed.is_closed());
}

#[test]
fn a_reason_is_cut_where_a_character_ends() {
    let long = "ä".repeat(100);
    for reason in ["short", &long, &format!("a{long}")] {
        let frame = close(Sender::Server, CLOSED_BY_POLICY, reason);
        let mut text = Vec::new();
        let mut frames = Frames::new(Sender::Server);
        let kept = frames.read(&frame, |part| text.extend_from_slice(&part.payload()));
        assert_eq!(kept, Ok(()));
        assert!(text.len() <= CONTROL_BYTES_MAX && frames.is_closed());
        let text = std::str::from_utf8(&text[2..]).unwrap();
        assert!(text == reason || text.ends_with("..."), "{text}");
    }
}

fn messages() -> impl Strategy<Value = Vec<(Kind, Vec<u8>)>> {
    let kind = prop_oneof![Just(Kind::Text), Just(Kind::Binary), Just(Kind::Ping)];
    let one =
        (kind, proptest::collection::vec(any::<u8>(), 0..300)).prop_map(|(kind, mut bytes)| {
            if kind == Kind::Ping {
                bytes.truncate(CONTROL_BYTES_MAX);
            }
            (kind, bytes)
        });
    proptest::collection::vec(one, 0..12)
}

proptest! {
    #[test]
    fn e1_messages_are_found_however_they_are_cut(
        messages in messages(),
        sender in prop_oneof![Just(Sender::Client), Just(Sender::Server)],
        cuts in proptest::collection::vec(1_usize..97, 1..200),
    ) {
        let (mut bytes, mut ends) = (Vec::new(), vec![0]);
        for (kind, payload) in &messages {
            bytes.extend(message(sender, *kind, payload));
            ends.push(bytes.len());
        }
        let (mut frames, mut at) = (Frames::new(sender), 0);
        let mut found: Vec<(Kind, Vec<u8>)> = Vec::new();
        for cut in cuts.into_iter().cycle() {
            prop_assert_eq!(frames.is_between_messages(), ends.contains(&at), "after {} bytes", at);
            if at == bytes.len() {
                break;
            }
            let next = (at + cut).min(bytes.len());
            let kept = frames.read(&bytes[at..next], |part| {
                if part.is_first {
                    found.push((part.kind, Vec::new()));
                }
                if let Some((_, payload)) = found.last_mut() {
                    payload.extend_from_slice(&part.payload());
                }
            });
            prop_assert_eq!(kept, Ok(()));
            at = next;
        }
        prop_assert_eq!(found, messages);
    }
}
