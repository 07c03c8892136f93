//! One end of a channel, in either role, before or after its handshake, against bytes that are the peer's, changed or
//! made up. Frames that are delivered are the peer's, in order; anything else closes the channel and wipes it.
#![no_main]

use bench::{Bytes, Seeded, device_secret, server_secret};
use libfuzzer_sys::fuzz_target;
use secure_router_core::channel::{Channel, ChannelError, Event, Link, buffer_bytes};

const PAYLOAD: usize = 200;

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes(data);
    let mut memory = [(); 4].map(|()| vec![0u8; buffer_bytes(PAYLOAD)]);
    let [a, b, c, d] = &mut memory;
    let (device, server) = (device_secret(), server_secret());
    let link = Link::DeviceServer;
    let mut initiator = Channel::initiator(link, &device, server.public_key(), &mut Seeded(5), a, b).unwrap();
    let mut responder = Channel::responder(link, &server, &mut Seeded(6), c, d).unwrap();
    let plan = bytes.byte();
    let tested_initiates = plan & 1 == 1;
    if plan & 2 == 2 {
        // A whole handshake first.
        let up = take(&mut initiator);
        assert_eq!(give(&mut responder, &up), Ok(vec![(Event::Identity(device.public_key()), Vec::new())]));
        responder.accept().unwrap();
        let down = take(&mut responder);
        assert_eq!(give(&mut initiator, &down), Ok(vec![(Event::Established, Vec::new())]));
    }
    let (tested, peer) =
        if tested_initiates { (&mut initiator, &mut responder) } else { (&mut responder, &mut initiator) };
    // Frames that the peer said, and how many were delivered.
    let (mut said, mut heard) = (Vec::<(u8, Vec<u8>)>::new(), 0);
    let mut honest = true;
    while !bytes.is_empty() && !tested.is_closed() {
        let mut wire = match bytes.byte() % 4 {
            0 => {
                honest = false;
                let count = usize::from(bytes.word());
                bytes.take(count).to_vec()
            }
            _ if peer.is_established() => {
                let (kind, len) = (bytes.byte(), usize::from(bytes.byte()).min(PAYLOAD));
                let payload = bytes.fill(len);
                peer.send(kind, &payload).unwrap();
                said.push((kind, payload));
                take(peer)
            }
            _ => take(peer),
        };
        match bytes.byte() % 8 {
            0 => {
                let cut = usize::from(bytes.byte()).min(wire.len());
                honest &= cut == wire.len();
                wire.truncate(cut);
            }
            1 if !wire.is_empty() => {
                let at = usize::from(bytes.word()) % wire.len();
                let change = bytes.byte();
                honest &= change == 0;
                wire[at] ^= change;
            }
            2 => {
                honest &= wire.is_empty();
                wire.extend_from_within(..);
            }
            _ => {}
        }
        match give(tested, &wire) {
            Ok(events) => {
                for (event, payload) in events {
                    match event {
                        Event::Identity(key) => {
                            assert_eq!(key, device.public_key());
                            tested.accept().unwrap();
                            let answer = take(tested);
                            let _ = give(peer, &answer);
                        }
                        Event::Frame { kind, len } => {
                            assert_eq!(len, payload.len());
                            assert_eq!(said.get(heard), Some(&(kind, payload)), "not the peer's next frame");
                            heard += 1;
                        }
                        Event::Established | Event::NeedMore => {}
                    }
                }
            }
            Err(error) => {
                assert!(!honest, "the peer's own bytes are refused: {error}");
                assert!(tested.is_closed() && tested.wanted().is_empty() && tested.pending().is_empty());
                assert_eq!(tested.received(0), Err(ChannelError::Closed));
            }
        }
    }
    let closed = tested.is_closed();
    drop(initiator);
    drop(responder);
    assert!(!closed || memory.iter().all(|buffer| buffer.iter().all(|byte| *byte == 0)));
});

fn take(channel: &mut Channel) -> Vec<u8> {
    let bytes = channel.pending().to_vec();
    let _ = channel.sent(bytes.len());
    bytes
}

/// Feeds all bytes; the events, and the payload of each.
fn give(channel: &mut Channel, bytes: &[u8]) -> Result<Vec<(Event, Vec<u8>)>, ChannelError> {
    let mut events = Vec::new();
    let mut rest = bytes;
    loop {
        let (taken, event) = channel.feed(rest)?;
        rest = &rest[taken..];
        if event != Event::NeedMore {
            events.push((event, channel.payload().to_vec()));
        } else if rest.is_empty() || taken == 0 {
            return Ok(events);
        }
    }
}
