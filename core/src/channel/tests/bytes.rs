//! What goes over the wire when all is well, to the byte.

use proptest::prelude::*;

use super::*;
use crate::channel::{
    FRAME_OVERHEAD, HANDSHAKE_INITIATOR_BYTES, HANDSHAKE_RESPONDER_BYTES, MAX_PAYLOAD_BYTES, frame_bytes,
};

#[test]
fn the_published_sizes_are_the_real_ones() {
    with_strangers(64, |device, server| {
        let first = take(device);
        assert_eq!(first.len(), HANDSHAKE_INITIATOR_BYTES);
        assert_eq!(first[..6], [b'S', b'R', 1, 0x11, 96, 0]);
        give(server, &first).unwrap();
        server.accept().unwrap();
        let second = take(server);
        assert_eq!(second.len(), HANDSHAKE_RESPONDER_BYTES);
        assert_eq!(second[..6], [b'S', b'R', 1, 0x12, 48, 0]);
        give(device, &second).unwrap();
        for len in [0, 1, 15, 16, 63, 64] {
            let sealed = frame(device, 1, &vec![0; len]);
            assert_eq!(sealed.len(), len + FRAME_OVERHEAD);
            assert_eq!(sealed.len(), frame_bytes(len));
            assert_eq!(sealed[..2], u16::try_from(len + 17).unwrap().to_le_bytes());
        }
    });
    assert_eq!((HANDSHAKE_INITIATOR_BYTES, HANDSHAKE_RESPONDER_BYTES, FRAME_OVERHEAD), (102, 54, 19));
}

#[test]
fn a_channel_fed_byte_by_byte_wants_exactly_what_is_missing() {
    with_strangers(32, |device, server| {
        let carry = |from: &mut Channel, to: &mut Channel| {
            let mut last = Event::NeedMore;
            while let Some(&byte) = from.pending().first() {
                to.wanted()[0] = byte;
                from.sent(1).unwrap();
                last = to.received(1).unwrap();
                if !from.pending().is_empty() {
                    assert_eq!(last, Event::NeedMore);
                    assert!(to.wanted().len() <= from.pending().len(), "read past the message");
                }
            }
            last
        };
        assert_eq!(carry(device, server), Event::Identity(device_key().public_key()));
        assert!(server.wanted().is_empty(), "nothing is wanted before the verdict");
        server.accept().unwrap();
        assert_eq!(carry(server, device), Event::Established);
        device.send(9, b"question").unwrap();
        assert_eq!(carry(device, server), Event::Frame { kind: 9, len: 8 });
        let (question, answer) = server.exchange().unwrap();
        answer[..8].copy_from_slice(question);
        server.seal(10, 8).unwrap();
        assert_eq!(carry(server, device), Event::Frame { kind: 10, len: 8 });
        assert_eq!(device.payload(), b"question");
        assert_eq!(device.peer(), Some(server_name()));
        assert_eq!(server.peer(), Some(device_key().public_key()));
    });
}

#[test]
fn both_directions_can_be_under_way_at_once() {
    with_friends(32, |device, server| {
        server.send(1, b"down").unwrap();
        device.send(2, b"up").unwrap();
        let half = server.pending()[..9].to_vec();
        server.sent(9).unwrap();
        assert_eq!(give(device, &half), Ok(vec![]));
        let (wanted, pending) = device.io();
        assert_eq!((wanted.len(), pending.len()), (14, frame_bytes(2)));
        assert_eq!(give(server, &take(device)), Ok(vec![Event::Frame { kind: 2, len: 2 }]));
        assert_eq!(give(device, &take(server)), Ok(vec![Event::Frame { kind: 1, len: 4 }]));
        assert_eq!((server.payload(), device.payload()), (&b"up"[..], &b"down"[..]));
    });
}

#[test]
fn the_longest_payload_passes_and_one_byte_more_does_not() {
    with_friends(MAX_PAYLOAD_BYTES + 100, |device, server| {
        let payload: Vec<u8> = (0..MAX_PAYLOAD_BYTES).map(|i| i as u8).collect();
        let sealed = frame(device, 0, &payload);
        assert_eq!(give(server, &sealed), Ok(vec![Event::Frame { kind: 0, len: MAX_PAYLOAD_BYTES }]));
        assert_eq!(server.payload(), payload);
        assert_eq!(device.outgoing().unwrap().len(), MAX_PAYLOAD_BYTES);
        assert_eq!(
            device.seal(0, MAX_PAYLOAD_BYTES + 1),
            Err(ChannelError::PayloadTooLarge { needed: 65_538, have: 65_537 })
        );
    });
}

#[test]
fn a_sealed_frame_hides_its_kind_and_payload() {
    with_friends(64, |device, _| {
        let (one, two) = (frame(device, 5, &[7; 40]), frame(device, 5, &[7; 40]));
        assert_ne!(one, two, "equal frames must not look equal");
        assert!(!one.windows(3).any(|w| w == [7; 3]));
    });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    /// A conversation over a wire that cuts and joins at will.
    #[test]
    fn any_cutting_of_the_stream_gives_the_same_frames(
        messages in prop::collection::vec((any::<bool>(), any::<u8>(), prop::collection::vec(any::<u8>(), 0..200)), 1..12),
        cuts in prop::collection::vec(1usize..40, 1..40),
    ) {
        with_friends(200, |device, server| {
            let mut streams = [Vec::new(), Vec::new()];
            for (up, kind, payload) in &messages {
                let from = if *up { &mut *device } else { &mut *server };
                streams[usize::from(*up)].extend(frame(from, *kind, payload));
            }
            for (up, to) in [(true, server), (false, device)] {
                let mut expected = messages.iter().filter(|m| m.0 == up);
                let mut stream = &streams[usize::from(up)][..];
                let mut cuts = cuts.iter().cycle();
                while !stream.is_empty() {
                    let (mut chunk, rest) = stream.split_at(stream.len().min(*cuts.next().unwrap()));
                    stream = rest;
                    while !chunk.is_empty() {
                        let (taken, event) = to.feed(chunk).unwrap();
                        assert!(taken > 0, "the channel neither takes bytes nor refuses them");
                        chunk = &chunk[taken..];
                        if let Event::Frame { kind, len } = event {
                            let (_, expected_kind, expected_payload) = expected.next().unwrap();
                            assert_eq!((kind, len), (*expected_kind, expected_payload.len()));
                            assert_eq!(to.payload(), expected_payload);
                        }
                    }
                }
                assert!(expected.next().is_none());
                assert_eq!(to.end_of_input(), Ok(()));
            }
        });
    }
}
