//! Tests of the channel, and the two-ended bench they share.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

extern crate std;

mod bytes;
mod handshake;
mod hostile;
mod keys;
mod misuse;
mod vectors;

use core::convert::Infallible;
use std::vec;
use std::vec::Vec;

use rand_core::{TryCryptoRng, TryRng};

use super::{Channel, ChannelError, Event, Link, PublicKey, StaticSecret, buffer_bytes};
use crate::positions::lab::chance::Chance;

const LINK: Link = Link::DeviceServer;

fn secret(seed: u64) -> StaticSecret {
    StaticSecret::generate(&mut Chance(seed)).unwrap()
}

/// The initiator's key.
fn device_key() -> StaticSecret {
    secret(1)
}

/// The responder's key.
fn server_key() -> StaticSecret {
    secret(2)
}

fn server_name() -> PublicKey {
    server_key().public_key()
}

/// Two fresh ends that have not met, with buffers for `payload` bytes.
fn with_strangers<T>(payload: usize, test: impl for<'b> FnOnce(&mut Channel<'b>, &mut Channel<'b>) -> T) -> T {
    let mut buffers = vec![vec![0; buffer_bytes(payload)]; 4];
    let [a, b, c, d] = buffers.as_mut_slice() else { unreachable!() };
    let mut device = Channel::initiator(LINK, &device_key(), server_name(), &mut Chance(3), a, b).unwrap();
    let mut server = Channel::responder(LINK, &server_key(), &mut Chance(4), c, d).unwrap();
    test(&mut device, &mut server)
}

/// Two ends after their handshake.
fn with_friends<T>(payload: usize, test: impl for<'b> FnOnce(&mut Channel<'b>, &mut Channel<'b>) -> T) -> T {
    with_strangers(payload, |device, server| {
        befriend(device, server);
        test(device, server)
    })
}

fn befriend(device: &mut Channel, server: &mut Channel) {
    assert_eq!(give(server, &take(device)), Ok(vec![Event::Identity(device_key().public_key())]));
    server.accept().unwrap();
    assert_eq!(give(device, &take(server)), Ok(vec![Event::Established]));
}

/// A fresh responder, for one test.
fn with_server<T>(test: impl FnOnce(&mut Channel) -> T) -> T {
    with_strangers(64, |_, server| test(server))
}

/// Puts everything pending on the wire.
fn take(channel: &mut Channel) -> Vec<u8> {
    let bytes = channel.pending().to_vec();
    channel.sent(bytes.len()).unwrap();
    bytes
}

/// Seals one frame and puts it on the wire.
fn frame(channel: &mut Channel, kind: u8, payload: &[u8]) -> Vec<u8> {
    channel.send(kind, payload).unwrap();
    take(channel)
}

/// Feeds all bytes, or as many as the channel takes; returns the events.
fn give(channel: &mut Channel, bytes: &[u8]) -> Result<Vec<Event>, ChannelError> {
    let mut events = Vec::new();
    let mut rest = bytes;
    loop {
        let (taken, event) = channel.feed(rest)?;
        rest = &rest[taken..];
        if event != Event::NeedMore {
            events.push(event);
        } else if rest.is_empty() || taken == 0 {
            return Ok(events);
        }
    }
}

/// The one error that the bytes lead to.
fn refusal(channel: &mut Channel, bytes: &[u8]) -> ChannelError {
    let error = give(channel, bytes).expect_err("these bytes must be refused");
    assert_dead(channel);
    error
}

/// Checks that the channel is closed for good, and that nothing is left in it.
fn assert_dead(channel: &mut Channel) {
    assert!(channel.is_closed() && !channel.is_established() && !channel.can_send());
    assert!(channel.wanted().is_empty() && channel.pending().is_empty());
    assert!(channel.payload().is_empty());
    assert_eq!(channel.received(0), Err(ChannelError::Closed));
    assert_eq!(channel.received(1), Err(ChannelError::Closed));
    assert_eq!(channel.feed(b"SR"), Err(ChannelError::Closed));
    assert_eq!(channel.accept(), Err(ChannelError::Closed));
    assert_eq!(channel.outgoing().map(|_| ()), Err(ChannelError::Closed));
    assert_eq!(channel.exchange().map(|_| ()), Err(ChannelError::Closed));
    assert_eq!(channel.seal(0, 0), Err(ChannelError::Closed));
    assert_eq!(channel.send(0, b"x"), Err(ChannelError::Closed));
    assert_eq!(channel.sent(0), Err(ChannelError::Closed));
    assert_eq!(channel.end_of_input(), Err(ChannelError::Closed));
}
