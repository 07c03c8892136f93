//! A driver's own mistakes: typed errors too, and final like the rest.

use super::*;
use crate::channel::MIN_BUFFER_BYTES;

#[test]
fn buffers_that_cannot_hold_the_handshake_are_refused() {
    for (rx, tx) in [(0, 0), (101, 200), (200, 101)] {
        let error = ChannelError::BufferTooSmall { needed: MIN_BUFFER_BYTES, have: rx.min(tx) };
        let (mut rx, mut tx) = (vec![0; rx], vec![0; tx]);
        let dialled = Channel::initiator(LINK, &device_key(), server_name(), &mut Chance(3), &mut rx, &mut tx);
        assert_eq!(dialled.err(), Some(error));
        let answering = Channel::responder(LINK, &server_key(), &mut Chance(3), &mut rx, &mut tx);
        assert_eq!(answering.err(), Some(error));
    }
}

#[test]
fn nothing_can_be_sent_before_the_handshake() {
    with_strangers(8, |device, server| {
        assert_eq!(device.outgoing().map(|_| ()), Err(ChannelError::NotEstablished));
        assert_dead(device);
        assert_eq!(server.send(1, b"early"), Err(ChannelError::NotEstablished));
        assert_dead(server);
    });
    with_strangers(8, |device, server| {
        give(server, &take(device)).unwrap();
        assert_eq!(server.seal(1, 0), Err(ChannelError::NotEstablished));
        assert_dead(server);
    });
}

#[test]
fn a_frame_waits_for_the_one_before_it() {
    with_friends(8, |device, _| {
        device.send(1, b"one").unwrap();
        device.sent(5).unwrap();
        assert!(!device.can_send());
        assert_eq!(device.send(2, b"two"), Err(ChannelError::SendPending));
        assert_dead(device);
    });
    with_strangers(8, |device, server| {
        give(server, &take(device)).unwrap();
        server.accept().unwrap();
        assert!(server.is_established() && !server.can_send());
        assert_eq!(server.outgoing().map(|_| ()), Err(ChannelError::SendPending));
    });
}

#[test]
fn an_answer_needs_a_question() {
    with_strangers(8, |device, server| {
        assert_eq!(server.accept(), Err(ChannelError::NothingToAccept));
        assert_dead(server);
        assert_eq!(device.accept(), Err(ChannelError::NothingToAccept));
        assert_dead(device);
    });
    with_friends(8, |_, server| {
        assert_eq!(server.accept(), Err(ChannelError::NothingToAccept));
    });
}

#[test]
fn more_bytes_than_offered_are_refused() {
    let error = |reported, offered| Err(ChannelError::BadCount { reported, offered });
    with_strangers(8, |device, server| {
        assert_eq!(server.wanted().len(), 4);
        assert_eq!(server.received(5), error(5, 4).map(|()| Event::NeedMore));
        assert_dead(server);
        assert_eq!(device.sent(103), error(103, 102));
        assert_dead(device);
    });
    with_strangers(8, |device, server| {
        give(server, &take(device)).unwrap();
        assert_eq!(server.received(0), Ok(Event::NeedMore));
        assert_eq!(server.received(usize::MAX), error(usize::MAX, 0).map(|()| Event::NeedMore));
    });
    with_friends(8, |device, server| {
        give(server, &frame(device, 1, b"x")).unwrap();
        assert_eq!(server.received(1), error(1, 0).map(|()| Event::NeedMore));
    });
}

#[test]
fn a_payload_must_fit_the_buffer() {
    with_friends(100, |device, _| {
        assert_eq!(device.outgoing().unwrap().len(), 100);
        device.send(1, &[1; 100]).unwrap();
        take(device);
        assert_eq!(device.send(1, &[1; 101]), Err(ChannelError::PayloadTooLarge { needed: 120, have: 119 }));
        assert_dead(device);
    });
    with_friends(8, |device, _| {
        assert!(matches!(device.seal(1, usize::MAX), Err(ChannelError::PayloadTooLarge { .. })));
    });
}

#[test]
fn the_end_of_the_input_between_frames_is_no_error_but_final() {
    with_friends(8, |device, server| {
        assert_eq!(device.end_of_input(), Ok(()));
        assert_dead(device);
        server.close();
        assert_dead(server);
    });
}

#[test]
fn every_error_says_something() {
    for error in [
        ChannelError::Closed,
        ChannelError::BufferTooSmall { needed: 1, have: 2 },
        ChannelError::WrongMagic { found: *b"HT", ours: 1 },
        ChannelError::WrongVersion { ours: 1, theirs: 2 },
        ChannelError::WrongKind { expected: 1, found: 2 },
        ChannelError::HandshakeLength { expected: 1, found: 2 },
        ChannelError::HandshakeForged,
        ChannelError::WeakKey,
        ChannelError::BlankSecret,
        ChannelError::RandomFailed,
        ChannelError::RandomStuck,
        ChannelError::FrameTooShort { needed: 1, have: 2 },
        ChannelError::FrameTooLarge { needed: 1, have: 2 },
        ChannelError::PayloadTooLarge { needed: 1, have: 2 },
        ChannelError::FrameForged,
        ChannelError::Truncated,
        ChannelError::NonceExhausted,
        ChannelError::NotEstablished,
        ChannelError::SendPending,
        ChannelError::NothingToAccept,
        ChannelError::BadCount { reported: 1, offered: 2 },
    ] {
        let told = std::format!("{error}");
        assert!(told.len() > 20 && told.contains([';', ':']), "{told}");
    }
}
