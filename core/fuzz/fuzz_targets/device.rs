//! A device's session behind the handshake, against frames of the fuzzer's. Steps are those of a server that may know
//! the protocol, and requests of the device's user. No panic; after an error the session is closed and its memory is
//! wiped; no counter is burned twice.
#![no_main]

use bench::{Bytes, Memory, ROUTINGS, Store, device_secret, device_seeds, server_frames, spec};
use libfuzzer_sys::fuzz_target;
use secure_router_core::channel::{Channel, Link, PublicKey};
use secure_router_core::routing::Routing;
use secure_router_core::session::{
    Control, DeviceIdentity, DeviceMemory, DeviceSession, Event, FRAME_CONTROL, FRAME_DATA, FRAME_PAYLOAD, LinkProfile,
    PreparedStock, Refusal, Request, SessionError, SlotStock, ToDevice, Welcome,
};

/// Takes what the device sends and throws it away.
fn drain(session: &mut DeviceSession<'_, &mut Store>) -> Result<Option<Event>, SessionError> {
    let mut last = None;
    loop {
        match session.io().1.len() {
            0 => return Ok(last),
            pending => last = session.sent(pending)?.or(last),
        }
    }
}

/// Carries what the server sends.
fn carry(session: &mut DeviceSession<'_, &mut Store>, peer: &mut Channel) -> Result<Option<Event>, SessionError> {
    let mut last = None;
    loop {
        let (wanted, _) = session.io();
        let count = wanted.len().min(peer.pending().len());
        if count == 0 {
            return Ok(last);
        }
        wanted[..count].copy_from_slice(&peer.pending()[..count]);
        peer.sent(count).unwrap();
        last = session.received(count)?.or(last);
        last = drain(session)?.or(last);
    }
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes(data);
    let (mut memory, mut store) = (Memory::default(), Store::default());
    let (mut rx, mut tx) = (vec![0; DeviceMemory::FRAME_BYTES], vec![0; DeviceMemory::FRAME_BYTES]);
    let (secret, seeds) = (device_secret(), device_seeds());
    let identity =
        DeviceIdentity { secret: &secret, server: PublicKey([0; 32]), seeds: &seeds, routing: Routing::Open };
    let plan = bytes.byte();
    let (tile, routing) = (1 + u16::from(plan % 4), ROUTINGS[usize::from(plan) / 4 % 3]);
    let mut session = DeviceSession::established(identity, memory.lend(), tile, &mut store).unwrap();
    let mut peer = Channel::established(Link::DeviceServer, false, &mut rx, &mut tx).unwrap();
    drain(&mut session).unwrap();

    let (spec, encoded) = spec(routing);
    let mut frames: Vec<usize> = Vec::new();
    let mut outcome = Ok(None);
    while !bytes.is_empty() && outcome.is_ok() {
        let step = bytes.byte();
        let slot = bytes.slot();
        let counter = match bytes.byte() {
            255 => bytes.long(),
            small => u64::from(small),
        };
        let control = |message: ToDevice| {
            let mut buffer = vec![0; FRAME_PAYLOAD];
            let len = message.to_bytes(&mut buffer).unwrap();
            (FRAME_CONTROL, buffer[..len].to_vec())
        };
        let stock = SlotStock { slot, first: counter, fresh: counter, ready: u32::from(step) };
        let frame = match step % 12 {
            0 => {
                let stock = spec.slots().map(|slot| SlotStock {
                    slot,
                    first: counter,
                    fresh: counter.saturating_add(9),
                    ready: 9,
                });
                Some(control(ToDevice::Welcome(Welcome {
                    pool: encoded.iter().copied().collect(),
                    stock: stock.collect(),
                })))
            }
            1 => {
                let len = usize::from(bytes.word()) % 512;
                let pool = bytes.take(len).iter().copied().collect();
                Some(control(ToDevice::Welcome(Welcome { pool, stock: [stock].into_iter().collect() })))
            }
            2 => Some(control(ToDevice::Prepared(PreparedStock { stock }))),
            4 => Some(control(ToDevice::Refused(Refusal::Counter(slot)))),
            5..=8 if !frames.is_empty() => {
                // What the protocol expects, in length.
                let len = frames.remove(0);
                Some((FRAME_DATA, bytes.fill(len)))
            }
            9 => {
                let (kind, len) = (bytes.byte(), usize::from(bytes.word()) % (FRAME_PAYLOAD + 1));
                Some((kind, bytes.take(len).to_vec()))
            }
            10 => {
                outcome = match session.prepare(slot) {
                    Ok(()) => drain(&mut session),
                    Err(error) => {
                        assert!(session.io().1.is_empty(), "{error}");
                        Ok(None)
                    }
                };
                None
            }
            11 => {
                let request = Request { slot, lambda: u16::from(step), link: LinkProfile::BLE };
                outcome = match session.infer(request, &[counter as i16 & 127; 48]) {
                    Ok(()) => {
                        frames = server_frames(slot, routing);
                        drain(&mut session)
                    }
                    Err(error) => {
                        assert!(session.io().1.is_empty(), "{error}");
                        Ok(None)
                    }
                };
                None
            }
            _ => None,
        };
        if let Some((kind, payload)) = frame {
            if peer.send(kind, &payload).is_ok() {
                outcome = carry(&mut session, &mut peer);
            }
        }
        if let Ok(Some(Event::Routed(chosen))) = outcome {
            frames = server_frames(chosen, routing);
        }
        if let Ok(Some(Event::Answer)) = outcome {
            assert_eq!(session.logits().count(), 3);
        }
    }
    if outcome.is_err() {
        assert!(session.is_closed() && session.logits().count() == 0);
        assert!(session.io().0.is_empty() && session.io().1.is_empty());
        // Without the wiping of its `drop`.
        std::mem::forget(session);
        assert!(memory.is_wiped());
    }
});
