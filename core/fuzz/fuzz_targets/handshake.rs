//! Both ends of a channel from their first byte on, and a device's session before it is connected, against bytes that
//! are the peer's, changed or made up. The other targets begin behind the handshake, whose X25519 takes nearly all of
//! the time here.
#![no_main]

use bench::{Bytes, Chance, Memory, Store, converse, device_secret, device_seeds, server_secret};
use libfuzzer_sys::fuzz_target;
use secure_router_core::channel::{Channel, Link};
use secure_router_core::routing::Routing;
use secure_router_core::session::{DeviceIdentity, DeviceSession, SessionError};

const LINK: Link = Link::DeviceServer;

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes(data);
    if bytes.byte() % 4 == 0 {
        return connecting(&mut bytes);
    }
    converse(
        &mut bytes,
        |rx, tx| {
            let server = server_secret().public_key();
            Channel::initiator(LINK, &device_secret(), server, &mut Chance(5), rx, tx).unwrap()
        },
        |rx, tx| Channel::responder(LINK, &server_secret(), &mut Chance(6), rx, tx).unwrap(),
    );
});

/// A session that waits for its server's half of the handshake gets made-up bytes: it closes, at the last when the link
/// ends, wiped and without a word more.
fn connecting(bytes: &mut Bytes<'_>) {
    let (secret, seeds) = (device_secret(), device_seeds());
    let (mut memory, mut store) = (Memory::default(), Store::default());
    let identity =
        DeviceIdentity { secret: &secret, server: server_secret().public_key(), seeds: &seeds, routing: Routing::Open };
    let mut session = DeviceSession::connect(identity, memory.lend(), 4, &mut store, &mut Chance(5)).unwrap();
    let pending = session.io().1.len();
    session.sent(pending).unwrap();
    let outcome = loop {
        let wanted = session.io().0;
        let taken = bytes.take(wanted.len());
        if taken.is_empty() {
            break session.link_ended();
        }
        wanted[..taken.len()].copy_from_slice(taken);
        match session.received(taken.len()) {
            Ok(None) => assert!(session.io().1.is_empty(), "an answer to a server that proved nothing"),
            outcome => break outcome,
        }
    };
    assert!(matches!(outcome, Err(SessionError::Channel(_))), "{outcome:?}");
    assert!(session.is_closed());
    std::mem::forget(session);
    assert!(memory.is_wiped());
}
