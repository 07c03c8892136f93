//! Who gets in, and who does not.

use super::*;

#[test]
fn another_magic_version_link_or_end_is_named() {
    with_strangers(8, |device, _| {
        let first = take(device);
        let altered = |at: usize, to: u8| {
            let mut bytes = first.clone();
            bytes[at] = to;
            with_server(|server| refusal(server, &bytes))
        };
        assert_eq!(altered(0, b'X'), ChannelError::WrongMagic { found: *b"XR", ours: 1 });
        assert_eq!(altered(1, 0), ChannelError::WrongMagic { found: *b"S\0", ours: 1 });
        assert_eq!(altered(2, 9), ChannelError::WrongVersion { ours: 1, theirs: 9 });
        assert_eq!(altered(3, 0x21), ChannelError::WrongKind { expected: 0x11, found: 0x21 });
        assert_eq!(altered(3, 0x12), ChannelError::WrongKind { expected: 0x11, found: 0x12 });
    });
    let told = std::format!("{}", ChannelError::WrongVersion { ours: 1, theirs: 9 });
    assert!(told.contains('1') && told.contains('9'), "{told}");
}

#[test]
fn a_wrong_version_is_found_before_anything_else_is_awaited() {
    with_server(|server| {
        assert_eq!(refusal(server, b"SR\x02\x11"), ChannelError::WrongVersion { ours: 1, theirs: 2 });
    });
}

/// An attacker may rewrite both preambles consistently; the prologue is what notices.
#[test]
fn the_preambles_are_part_of_the_transcript() {
    let mut buffers = [[0; 102]; 2];
    let [a, b] = &mut buffers;
    let other = Link::ServerDealer;
    let mut device = Channel::initiator(other, &device_key(), server_name(), &mut Chance(3), a, b).unwrap();
    let mut first = take(&mut device);
    with_server(|server| {
        assert_eq!(refusal(server, &first), ChannelError::WrongKind { expected: 0x11, found: 0x21 });
    });
    first[3] = 0x11;
    with_server(|server| assert_eq!(refusal(server, &first), ChannelError::HandshakeForged));
}

#[test]
fn a_message_for_another_responder_is_refused() {
    let mut buffers = [[0; 102]; 2];
    let [a, b] = &mut buffers;
    let wrong = secret(77).public_key();
    let mut device = Channel::initiator(LINK, &device_key(), wrong, &mut Chance(3), a, b).unwrap();
    let first = take(&mut device);
    with_server(|server| assert_eq!(refusal(server, &first), ChannelError::HandshakeForged));
}

/// Without the server's key the best an impostor has is a genuine answer to somebody else.
#[test]
fn an_impostor_cannot_answer() {
    let answer = with_server(|server| {
        let mut buffers = [[0; 102]; 2];
        let [a, b] = &mut buffers;
        let mut other = Channel::initiator(LINK, &secret(9), server_name(), &mut Chance(8), a, b).unwrap();
        give(server, &take(&mut other)).unwrap();
        server.accept().unwrap();
        let answer = take(server);
        assert_eq!(give(&mut other, &answer), Ok(vec![Event::Established]));
        answer
    });
    with_strangers(8, |device, _| {
        assert_eq!(refusal(device, &answer), ChannelError::HandshakeForged);
    });
}

#[test]
fn an_unknown_initiator_is_refused_without_an_answer() {
    with_strangers(8, |device, server| {
        let events = give(server, &take(device)).unwrap();
        assert_eq!(events, [Event::Identity(device_key().public_key())]);
        assert!(server.pending().is_empty() && !server.can_send());
        server.refuse();
        assert_dead(server);
        assert_eq!(device.end_of_input(), Err(ChannelError::Truncated));
        assert_dead(device);
    });
}

/// Noise IK lets message 1 be replayed. The replayer gets an answer that it cannot use.
#[test]
fn a_replayed_first_message_leads_nowhere() {
    with_strangers(8, |device, server| {
        let first = take(device);
        give(server, &first).unwrap();
        server.accept().unwrap();
        give(device, &take(server)).unwrap();
        let honest = frame(device, 1, b"once");
        give(server, &honest).unwrap();

        let mut buffers = [[0; 102]; 2];
        let [a, b] = &mut buffers;
        let mut second = Channel::responder(LINK, &server_key(), &mut Chance(5), a, b).unwrap();
        let events = give(&mut second, &first).unwrap();
        assert_eq!(events, [Event::Identity(device_key().public_key())]);
        second.accept().unwrap();
        let answer = take(&mut second);
        assert_eq!(refusal(&mut second, &honest), ChannelError::FrameForged);
        // Nor does the second answer mean anything to the device, which has moved on.
        assert_eq!(refusal(device, &answer[4..]), ChannelError::FrameForged);
    });
}

#[test]
fn low_order_keys_are_refused() {
    for point in [[0; 32], {
        let mut one = [0; 32];
        one[0] = 1;
        one
    }] {
        let mut buffers = [[0; 102]; 2];
        let [a, b] = &mut buffers;
        let dialled = Channel::initiator(LINK, &device_key(), PublicKey(point), &mut Chance(3), a, b);
        assert_eq!(dialled.err(), Some(ChannelError::WeakKey));

        with_strangers(8, |device, server| {
            let mut first = take(device);
            first[6..38].copy_from_slice(&point);
            assert_eq!(refusal(server, &first), ChannelError::WeakKey);
        });
        with_strangers(8, |device, server| {
            give(server, &take(device)).unwrap();
            server.accept().unwrap();
            let mut second = take(server);
            second[6..38].copy_from_slice(&point);
            assert_eq!(refusal(device, &second), ChannelError::WeakKey);
        });
    }
}

#[test]
fn a_handshake_cut_anywhere_is_reported() {
    with_strangers(8, |device, _| {
        let first = take(device);
        for cut in 0..first.len() {
            with_server(|server| {
                assert_eq!(give(server, &first[..cut]), Ok(vec![]));
                assert_eq!(server.end_of_input(), Err(ChannelError::Truncated), "cut at {cut}");
                assert_dead(server);
            });
        }
    });
}

#[test]
fn fresh_sources_give_fresh_channels() {
    let dial = |seed| {
        let mut buffers = [[0; 102]; 2];
        let [a, b] = &mut buffers;
        take(&mut Channel::initiator(LINK, &device_key(), server_name(), &mut Chance(seed), a, b).unwrap())
    };
    let (one, two) = (dial(10), dial(11));
    assert!(one[6..].iter().zip(&two[6..]).filter(|(x, y)| x == y).count() < 16);
}
