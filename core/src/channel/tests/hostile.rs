//! Altered, lost, repeated, reordered, and random bytes: a typed error every time, a panic never.

use proptest::prelude::*;

use super::*;

/// Every bit of both handshake messages.
#[test]
fn no_bit_of_the_handshake_can_change() {
    let (first, second) = with_strangers(8, |device, server| {
        let first = take(device);
        give(server, &first).unwrap();
        server.accept().unwrap();
        (first, take(server))
    });
    for bit in 0..first.len() * 8 {
        let mut bytes = first.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        with_server(|server| refusal(server, &bytes));
    }
    for bit in 0..second.len() * 8 {
        let mut bytes = second.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        with_strangers(8, |device, _| refusal(device, &bytes));
    }
}

/// Every bit of a frame, its length included. A longer length makes the receiver wait; the next frame's bytes
/// then complete a body that is not authentic.
#[test]
fn no_bit_of_a_frame_can_change() {
    let frames = |channel: &mut Channel| -> Vec<Vec<u8>> {
        (0..30).map(|kind| frame(channel, kind, b"a payload of 27 bytes, or so")).collect()
    };
    let bits = with_friends(1200, |device, _| frames(device)[0].len() * 8);
    for bit in 0..bits {
        with_friends(1200, |device, server| {
            let mut frames = frames(device);
            frames[0][bit / 8] ^= 1 << (bit % 8);
            let error = refusal(server, &frames.concat());
            let short = matches!(error, ChannelError::FrameTooShort { .. });
            let large = matches!(error, ChannelError::FrameTooLarge { .. });
            assert!(error == ChannelError::FrameForged || (bit < 16 && (short || large)), "{error}");
        });
    }
}

#[test]
fn lost_repeated_reordered_and_reflected_frames_are_forgeries() {
    type Tamper = fn(Vec<Vec<u8>>) -> Vec<u8>;
    let tampers: [(&str, usize, Tamper); 5] = [
        ("first lost", 0, |f| f[1..].concat()),
        ("second lost", 1, |f| [&f[0][..], &f[2]].concat()),
        ("repeated", 1, |f| [&f[0][..], &f[0], &f[1]].concat()),
        ("reordered", 0, |f| [&f[1][..], &f[0]].concat()),
        ("repeated later", 2, |f| [&f[0][..], &f[1], &f[0]].concat()),
    ];
    for (name, good, tamper) in tampers {
        with_friends(32, |device, server| {
            let frames = (0..3).map(|kind| frame(device, kind, b"same")).collect();
            let stream = tamper(frames);
            let mut rest = &stream[..];
            for kind in 0..good {
                let (taken, event) = server.feed(rest).unwrap();
                assert_eq!(event, Event::Frame { kind: kind as u8, len: 4 }, "{name}");
                rest = &rest[taken..];
            }
            assert_eq!(refusal(server, rest), ChannelError::FrameForged, "{name}");
        });
    }
    with_friends(32, |device, _| {
        let own = frame(device, 1, b"mirror");
        assert_eq!(refusal(device, &own), ChannelError::FrameForged);
    });
}

#[test]
fn an_error_in_one_direction_ends_both() {
    with_friends(32, |device, server| {
        device.send(1, b"never to leave").unwrap();
        assert_eq!(refusal(device, &[0; 64]), ChannelError::FrameTooShort { needed: 17, have: 0 });
        assert_eq!(server.end_of_input(), Ok(()));
    });
}

#[test]
fn impossible_lengths_are_refused_before_their_bodies() {
    for have in 0..17u16 {
        with_friends(32, |_, server| {
            let error = ChannelError::FrameTooShort { needed: 17, have: have.into() };
            assert_eq!(refusal(server, &have.to_le_bytes()), error);
        });
    }
    with_friends(100, |_, server| {
        // 100 bytes of payload take a buffer of 119: a body of 117.
        assert_eq!(give(server, &117u16.to_le_bytes()), Ok(vec![]));
        assert_eq!(server.wanted().len(), 117);
    });
    for len in [118u16, 200, u16::MAX] {
        with_friends(100, |_, server| {
            let error = ChannelError::FrameTooLarge { needed: usize::from(len) + 2, have: 119 };
            assert_eq!(refusal(server, &len.to_le_bytes()), error);
        });
    }
    for len in (0..=u16::MAX).filter(|len| *len != 96).step_by(251) {
        with_server(|server| {
            let bytes = [b'S', b'R', 1, 0x11, len as u8, (len >> 8) as u8];
            let error = ChannelError::HandshakeLength { expected: 96, found: len.into() };
            assert_eq!(refusal(server, &bytes), error);
        });
    }
}

#[test]
fn a_frame_cut_anywhere_is_reported() {
    let sealed = with_friends(32, |device, _| frame(device, 1, b"whole"));
    for cut in 1..sealed.len() {
        with_friends(32, |_, server| {
            assert_eq!(give(server, &sealed[..cut]), Ok(vec![]));
            assert_eq!(server.end_of_input(), Err(ChannelError::Truncated), "cut at {cut}");
        });
    }
}

#[test]
fn the_last_nonce_is_never_used() {
    with_friends(32, |device, server| {
        device.fast_forward(u64::MAX - 1);
        server.fast_forward(u64::MAX - 1);
        let last = frame(device, 1, b"last");
        assert_eq!(give(server, &last), Ok(vec![Event::Frame { kind: 1, len: 4 }]));
        assert_eq!(device.send(1, b"beyond"), Err(ChannelError::NonceExhausted));
        assert_dead(device);
        assert_eq!(refusal(server, &last), ChannelError::NonceExhausted);
    });
}

#[test]
fn closing_wipes_both_lent_buffers() {
    let mut buffers = [[0; 150]; 4];
    let [a, b, c, d] = &mut buffers;
    {
        let mut device = Channel::initiator(LINK, &device_key(), server_name(), &mut Chance(3), a, b).unwrap();
        let mut server = Channel::responder(LINK, &server_key(), &mut Chance(4), c, d).unwrap();
        befriend(&mut device, &mut server);
        let sealed = frame(&mut device, 1, &[0xaa; 100]);
        give(&mut server, &sealed).unwrap();
        server.outgoing().unwrap().fill(0xbb);
        device.close();
        assert_dead(&mut device);
        // The server is merely dropped, with a payload and an unsealed answer in its buffers.
    }
    assert_eq!(buffers, [[0; 150]; 4]);
}

/// Feeds noise in pieces and lets the driver do everything it could do, right or wrong.
fn survive(channel: &mut Channel, noise: &[u8], pieces: &[usize]) {
    let mut rest = noise;
    let mut pieces = pieces.iter().cycle();
    while !rest.is_empty() {
        let (piece, tail) = rest.split_at(rest.len().min(*pieces.next().unwrap()));
        rest = tail;
        match give(channel, piece) {
            Ok(events) => assert!(events.is_empty(), "noise was believed"),
            Err(_) => return assert_dead(channel),
        }
    }
    let _ = channel.end_of_input();
    assert_dead(channel);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(10_000) })]

    #[test]
    fn noise_before_the_handshake_is_survived(
        // How much of a genuine head precedes the noise: none, the preamble, or the length too.
        head in 0usize..=6,
        noise in prop::collection::vec(any::<u8>(), 0..160),
        pieces in prop::collection::vec(1usize..64, 1..6),
        dial in any::<bool>(),
    ) {
        with_strangers(16, |device, server| {
            let (channel, genuine) =
                if dial { (device, [b'S', b'R', 1, 0x12, 48, 0]) } else { (server, [b'S', b'R', 1, 0x11, 96, 0]) };
            let bytes = [&genuine[..head], &noise].concat();
            survive(channel, &bytes, &pieces);
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_500) })]

    #[test]
    fn noise_after_the_handshake_is_survived(
        len in prop::option::of(0u16..200),
        noise in prop::collection::vec(any::<u8>(), 0..300),
        pieces in prop::collection::vec(1usize..64, 1..6),
        dialler in any::<bool>(),
    ) {
        with_friends(128, |device, server| {
            let mut bytes = len.map_or(vec![], |len| len.to_le_bytes().to_vec());
            bytes.extend(noise);
            survive(if dialler { device } else { server }, &bytes, &pieces);
        });
    }

    /// Any splice of two genuine conversations: cut, doubled or altered, a frame is genuine or refused.
    #[test]
    fn spliced_frames_are_survived(
        order in prop::collection::vec(0usize..4, 1..6),
        at in any::<prop::sample::Index>(),
        with in any::<u8>(),
    ) {
        with_friends(64, |device, server| {
            let frames: Vec<_> = (0..4).map(|kind| frame(device, kind, &[kind; 20])).collect();
            let mut bytes = order.iter().flat_map(|i| frames[*i].clone()).collect::<Vec<_>>();
            let at = at.index(bytes.len());
            bytes[at] ^= with;
            let genuine = order.iter().enumerate().take_while(|(i, f)| i == *f).count();
            let intact = if with == 0 { usize::MAX } else { at / frames[0].len() };
            let mut rest = &bytes[..];
            let mut got = 0;
            while !rest.is_empty() {
                let Ok((taken, event)) = server.feed(rest) else { break };
                assert!(taken > 0, "the channel neither takes bytes nor refuses them");
                if let Event::Frame { kind, len } = event {
                    assert_eq!((usize::from(kind), len), (got, 20));
                    got += 1;
                }
                rest = &rest[taken..];
            }
            assert_eq!(got, genuine.min(intact));
        });
    }
}
