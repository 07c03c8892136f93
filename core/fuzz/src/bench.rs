//! What the fuzz targets share: a pool, keys, and a reader of the fuzzer's bytes. Seeds are fixed; none of this is for
//! use.

#[path = "../../tests/lab/chance.rs"]
mod chance;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use rand_core::TryRng;

use secure_router_core::channel::{Channel, ChannelError, Event, StaticSecret, buffer_bytes};
use secure_router_core::circuit::{Message, Program, Slot};
use secure_router_core::keys::{DeviceSeeds, Seed};
use secure_router_core::routing::Routing;
use secure_router_core::session::{CounterError, Counters, DeviceMemory, FRAME_PAYLOAD};
use secure_router_core::spec::{MAX_SPEC_BYTES, ModelSpec, NamedModel, Opening, Output, PoolSpec, RouterSpec};

pub use chance::Chance;

fn opening(shift: u8, index_bits: u8) -> Opening {
    Opening { shift, index_bits }
}

/// Every routing policy.
pub const ROUTINGS: [Routing; 3] = [Routing::Open, Routing::Private { epsilon: 1000 }, Routing::Device];

/// A router, a plain model, one with attention, and one whose messages take several frames.
pub fn pool(routing: Routing) -> PoolSpec {
    let base = ModelSpec {
        tokens: 2,
        features: 24,
        width: 0,
        heads: 0,
        ffn: 3,
        layers: 1,
        qkv: opening(6, 12),
        score: opening(8, 5),
        mix: opening(8, 12),
        ffn_in: opening(9, 5),
        output_bits: 20,
    };
    let attention = ModelSpec { tokens: 4, features: 12, width: 4, heads: 2, ffn: 2, ..base };
    let frames = ModelSpec { tokens: 16, features: 3, ffn: 110, ..base };
    let trunk = ModelSpec { layers: 0, ffn: 0, output_bits: 14, ..base };
    let named = |name: &str, spec| NamedModel { name: name.try_into().unwrap(), spec };
    let pool = PoolSpec {
        edition: [1; 16],
        task: "fuzz".try_into().unwrap(),
        input_len: 48,
        input_bits: 8,
        input_frac: 4,
        word_bits: 0,
        classes: 3,
        output: Output::Label,
        routing,
        models: [named("plain", base), named("attention", attention), named("frames", frames)].into_iter().collect(),
        router: Some(RouterSpec { trunk, answers: 0 }),
    };
    pool.validate().unwrap();
    pool
}

/// [`pool`] and its encoding.
pub fn spec(routing: Routing) -> &'static (PoolSpec, Vec<u8>) {
    static SPECS: LazyLock<[(PoolSpec, Vec<u8>); 3]> = LazyLock::new(|| {
        ROUTINGS.map(|routing| {
            let pool = pool(routing);
            let encoded = pool.to_bytes(&mut [0; MAX_SPEC_BYTES]).unwrap().to_vec();
            (pool, encoded)
        })
    });
    &SPECS[ROUTINGS.iter().position(|have| *have == routing).unwrap()]
}

/// Slots of [`pool`], and some that it does not have.
pub const SLOTS: [Slot; 6] =
    [Slot::Router, Slot::Model(0), Slot::Model(1), Slot::Model(2), Slot::Model(3), Slot::Model(255)];

pub fn program(slot: Slot, routing: Routing) -> Program {
    Program::of(&spec(routing).0, slot).unwrap()
}

/// The server's online messages of a program, in frames.
pub fn server_frames(slot: Slot, routing: Routing) -> Vec<usize> {
    let program = program(slot, routing);
    let gates = (0..).map_while(|id| program.gate(id).unwrap());
    let messages = gates.flat_map(|gate| gate.messages().into_iter()).filter(|m: &Message| !m.kind.from_device());
    messages
        .flat_map(|message| {
            let bytes = message.bytes();
            (0..bytes).step_by(FRAME_PAYLOAD).map(move |at| (bytes - at).min(FRAME_PAYLOAD))
        })
        .collect()
}

pub fn device_secret() -> StaticSecret {
    StaticSecret::generate(&mut Chance(1)).unwrap()
}

pub fn server_secret() -> StaticSecret {
    StaticSecret::generate(&mut Chance(2)).unwrap()
}

pub fn device_seeds() -> DeviceSeeds {
    DeviceSeeds { dealer: Seed::from_bytes([3; 32]), server: Seed::from_bytes([4; 32]) }
}

/// Counters that must rise.
#[derive(Default)]
pub struct Store(BTreeMap<u8, u64>);

impl Counters for Store {
    fn next(&mut self, slot: Slot) -> Result<u64, CounterError> {
        Ok(self.0.get(&slot.code()).copied().unwrap_or(0))
    }

    fn burn(&mut self, slot: Slot, counter: u64) -> Result<(), CounterError> {
        let next = self.0.entry(slot.code()).or_default();
        assert!(counter >= *next, "a counter is burned twice");
        *next = counter + 1;
        Ok(())
    }
}

pub struct Memory {
    pub rx: Vec<u8>,
    pub tx: Vec<u8>,
    pub work: Vec<u32>,
    pub input: Vec<i16>,
}

impl Default for Memory {
    fn default() -> Self {
        let frame = || vec![0; DeviceMemory::FRAME_BYTES];
        Self { rx: frame(), tx: frame(), work: vec![0; 2048], input: vec![0; 48] }
    }
}

impl Memory {
    pub fn lend(&mut self) -> DeviceMemory<'_> {
        DeviceMemory { rx: &mut self.rx, tx: &mut self.tx, work: &mut self.work, input: &mut self.input }
    }

    pub fn is_wiped(&self) -> bool {
        self.rx.iter().chain(&self.tx).all(|byte| *byte == 0)
            && self.work.iter().all(|word| *word == 0)
            && self.input.iter().all(|value| *value == 0)
    }
}

/// The fuzzer's bytes, front to back; zeros behind the end.
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    pub fn long(&mut self) -> u64 {
        u64::from_le_bytes([(); 8].map(|()| self.byte()))
    }

    /// Up to `count` bytes.
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// `len` bytes, made from one of the fuzzer's or, if that is large, from 32; zeros for 0.
    pub fn fill(&mut self, len: usize) -> Vec<u8> {
        let first = self.byte();
        let mut out = vec![0; len];
        if first > 0 {
            let more = self.take(if first < 128 { 0 } else { 31 });
            let mix = |mixed: u64, byte: &u8| mixed.wrapping_mul(257).wrapping_add(u64::from(*byte));
            let _ = Chance(more.iter().fold(u64::from(first), mix)).try_fill_bytes(&mut out);
        }
        out
    }

    pub fn slot(&mut self) -> Slot {
        SLOTS[usize::from(self.byte()) % SLOTS.len()]
    }
}

/// Most bytes of a frame of [`converse`].
const PAYLOAD: usize = 200;

/// One end of a channel, in either role, against bytes that are the peer's, changed or made up. Frames that are
/// delivered are the peer's, in order; anything else closes the channel and wipes it.
pub fn converse(
    bytes: &mut Bytes<'_>,
    initiator: impl for<'b> FnOnce(&'b mut [u8], &'b mut [u8]) -> Channel<'b>,
    responder: impl for<'b> FnOnce(&'b mut [u8], &'b mut [u8]) -> Channel<'b>,
) {
    let mut memory = [(); 4].map(|()| vec![0u8; buffer_bytes(PAYLOAD)]);
    let [a, b, c, d] = &mut memory;
    let (mut initiator, mut responder) = (initiator(a, b), responder(c, d));
    let (tested, peer) =
        if bytes.byte() & 1 == 1 { (&mut initiator, &mut responder) } else { (&mut responder, &mut initiator) };
    // Frames that the peer said, and how many were delivered.
    let (mut said, mut heard) = (Vec::<(u8, Vec<u8>)>::new(), 0);
    let mut honest = true;
    while !bytes.is_empty() && !tested.is_closed() {
        // What an initiator says first, a responder's verdict.
        give(peer, &take(tested)).expect("the end under test is honest");
        let mut wire = match bytes.byte() % 4 {
            0 => {
                honest = false;
                let count = usize::from(bytes.word());
                bytes.take(count).to_vec()
            }
            _ if peer.is_established() && peer.can_send() => {
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
            Ok(frames) => {
                for frame in frames {
                    assert_eq!(said.get(heard), Some(&frame), "not the peer's next frame");
                    heard += 1;
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
}

fn take(channel: &mut Channel) -> Vec<u8> {
    let bytes = channel.pending().to_vec();
    let _ = channel.sent(bytes.len());
    bytes
}

/// Feeds all bytes and lets in whoever proves to be the device; the frames that came.
fn give(channel: &mut Channel, bytes: &[u8]) -> Result<Vec<(u8, Vec<u8>)>, ChannelError> {
    let mut frames = Vec::new();
    let mut rest = bytes;
    loop {
        let (taken, event) = channel.feed(rest)?;
        rest = &rest[taken..];
        match event {
            Event::Identity(key) => {
                assert_eq!(key, device_secret().public_key());
                channel.accept()?;
            }
            Event::Frame { kind, len } => {
                assert_eq!(len, channel.payload().len());
                frames.push((kind, channel.payload().to_vec()));
            }
            Event::NeedMore if rest.is_empty() || taken == 0 => return Ok(frames),
            Event::Established | Event::NeedMore => {}
        }
    }
}
