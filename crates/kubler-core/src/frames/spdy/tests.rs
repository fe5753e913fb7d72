use proptest::prelude::*;

use super::*;

/// What a client of another author sends, behind a byte that says so.
fn seed(name: &str) -> Vec<u8> {
    let path = format!(
        "{}/../../fuzz/seeds/spdy/{name}",
        env!("CARGO_MANIFEST_DIR")
    );
    std::fs::read(path).unwrap().split_off(1)
}

fn error_streams(bytes: &[u8]) -> ErrorStreams {
    let (mut frames, mut streams) = (Frames::default(), ErrorStreams::default());
    // A byte at a time is the hardest way.
    for byte in bytes {
        let one = std::slice::from_ref(byte);
        frames.read(one, |part| streams.client_sent(&part)).unwrap();
    }
    assert!(frames.is_between());
    streams
}

#[test]
fn e1_the_stream_for_errors_is_found_among_what_others_send() {
    assert_eq!(error_streams(&seed("exec")).open().collect::<Vec<_>>(), [1]);
    // The first of three was given up.
    let mut streams = error_streams(&seed("portforward"));
    assert_eq!(streams.open().collect::<Vec<_>>(), [5, 9]);
    assert_eq!(streams.others().collect::<Vec<_>>(), [3, 7, 11]);
    let last = last_data(5, b"because").unwrap();
    let mut told = Vec::new();
    let mut server = Frames::default();
    server
        .read(&last, |part| {
            if streams.server_sent(&part) {
                told.extend_from_slice(part.payload);
            }
        })
        .unwrap();
    assert_eq!(told, b"because");
    assert_eq!(streams.open().collect::<Vec<_>>(), [9]);
}

#[test]
fn a_block_that_cannot_be_read_costs_nothing_but_the_streams_behind_it() {
    let mut bytes = seed("portforward");
    let second = 8 + usize::from(bytes[7]) + usize::from(bytes[6]) * 256;
    // The method of the compression, in the first block.
    bytes[18] = 0;
    assert_eq!(error_streams(&bytes).open().count(), 0);
    let mut bytes = seed("portforward");
    bytes[second + 20..second + 30].fill(0xff);
    assert!(error_streams(&bytes).open().count() <= 1);
}

#[test]
fn what_is_not_spdy_is_named() {
    for (bytes, fault) in [
        (b"HTTP/1.1 200 OK", Fault::Data),
        (b"\x80\x02\0\x06\0\0\0\x04\0\0\0\x01\0\0\0", Fault::Control),
        (b"\x80\x03\0\x0a\0\0\0\x04\0\0\0\x01\0\0\0", Fault::Control),
        (b"\0\0\0\0\0\0\0\x04\0\0\0\x01\0\0\0", Fault::Data),
    ] {
        assert_eq!(
            Frames::default().read(bytes, |_| {}),
            Err(fault),
            "{bytes:?}"
        );
    }
}

#[test]
fn our_frames_are_frames() {
    let (mut frames, mut seen) = (Frames::default(), Vec::new());
    let ours = [
        ping_to_client(),
        ping_to_server(),
        last_data(1, b"").unwrap(),
        goaway(),
    ]
    .concat();
    frames
        .read(&ours, |part| seen.push((part.frame, part.payload.len())))
        .unwrap();
    let data = Frame::Data {
        stream: 1,
        is_final: true,
    };
    let expected = [
        (Frame::Control(PING), 4),
        (Frame::Control(PING), 4),
        (data, 0),
        (Frame::Control(GOAWAY), 8),
    ];
    assert_eq!(seen, expected);
    assert!(frames.is_between() && frames.went_away());
    assert_eq!(last_data(1, &vec![0; 1 << 24]), None);
}

proptest! {
    #[test]
    fn e1_frames_are_found_however_they_are_cut(
        payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..12),
        cuts in proptest::collection::vec(1_usize..97, 1..200),
    ) {
        let (mut bytes, mut ends) = (Vec::new(), vec![0]);
        for payload in &payloads {
            bytes.extend(last_data(3, payload).unwrap());
            ends.push(bytes.len());
        }
        let (mut frames, mut at) = (Frames::default(), 0);
        let mut found: Vec<Vec<u8>> = Vec::new();
        for cut in cuts.into_iter().cycle() {
            prop_assert_eq!(frames.is_between(), ends.contains(&at), "after {} bytes", at);
            if at == bytes.len() {
                break;
            }
            let next = (at + cut).min(bytes.len());
            let kept = frames.read(&bytes[at..next], |part| {
                if part.is_first {
                    found.push(Vec::new());
                }
                if let Some(payload) = found.last_mut() {
                    payload.extend_from_slice(part.payload);
                }
            });
            prop_assert_eq!(kept, Ok(()));
            at = next;
        }
        prop_assert_eq!(found, payloads);
    }
}
