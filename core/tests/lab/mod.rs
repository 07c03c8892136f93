//! The three parties in one thread, for tests: seeds are fixed and the dealer is here, so none of
//! this is for use.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

pub mod chance;
pub mod peer;

use secure_router_core::circuit::{Gate, Program, Slot};
use secure_router_core::clear::{self, ClearError, Parameters, Reference};
use secure_router_core::dealer::{self, MaskedParameters};
use secure_router_core::device::{self, Offline, Online, Outgoing, Step};
use secure_router_core::keys::{DealerKeys, DealerSeeds, DeviceSeeds, Seed, server_key, weight_key};
use secure_router_core::prg::{Purpose, Stream, StreamId};
use secure_router_core::ring::low_bits;
use secure_router_core::routing::Bias;
use secure_router_core::server::{self, Server, Stock, Turn};

/// A program with its secrets.
#[derive(Clone, Debug)]
pub struct Secret {
    pub program: Program,
    pub weights: Vec<i16>,
    pub biases: Vec<i32>,
    pub tables: Vec<i16>,
}

impl Secret {
    pub fn parameters(&self) -> Parameters<'_> {
        Parameters { weights: &self.weights, biases: &self.biases, tables: &self.tables }
    }
}

/// The three pairwise seeds.
pub struct Seeds {
    pub device_dealer: Seed,
    pub server_dealer: Seed,
    pub device_server: Seed,
    pub pool: [u8; 32],
    pub slot: Slot,
}

impl Seeds {
    pub fn fixed(value: u8) -> Self {
        Self {
            device_dealer: Seed::from_bytes([value; 32]),
            server_dealer: Seed::from_bytes([value ^ 0x55; 32]),
            device_server: Seed::from_bytes([value ^ 0xaa; 32]),
            pool: [9; 32],
            slot: Slot::Model(0),
        }
    }

    pub fn dealer_keys(&self, counter: u64) -> DealerKeys {
        DealerSeeds { device: self.device_dealer.clone(), server: self.server_dealer.clone() }
            .keys(&self.pool, self.slot, counter)
    }
}

/// A program with small random secrets.
pub fn random_secret(program: Program, seed: u64, size: i16) -> Secret {
    let layout = program.layout().unwrap();
    let mut state = seed;
    let mut draw = move |limit: i64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as i64 % (2 * limit + 1) - limit
    };
    Secret {
        program,
        weights: (0..layout.weights).map(|_| draw(i64::from(size)) as i16).collect(),
        biases: (0..layout.biases).map(|_| draw(100) as i32).collect(),
        tables: (0..layout.tables).map(|_| draw(15) as i16).collect(),
    }
}

/// Everything that crossed the two links, and the answer.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    pub up: Vec<Vec<u8>>,
    pub down: Vec<Vec<u8>>,
    pub corrections: Vec<u8>,
    pub stock: Vec<u8>,
    pub logits: Vec<i32>,
    pub choice: Option<Slot>,
}

pub fn masked_weights(secret: &Secret, seeds: &Seeds) -> Vec<u32> {
    let key = weight_key(&seeds.device_server, &seeds.pool, seeds.slot);
    let mut masked = vec![0; secret.weights.len()];
    server::mask_weights(&secret.program, &key, &secret.weights, &mut masked).unwrap();
    masked
}

pub fn deal(secret: &Secret, seeds: &Seeds, counter: u64) -> Vec<u8> {
    let masked = masked_weights(secret, seeds);
    let parameters = MaskedParameters { weights: &masked, tables: &secret.tables };
    let mut work = vec![0; dealer::work_words(&secret.program).unwrap()];
    let mut stock = vec![0; secret.program.layout().unwrap().stock as usize];
    let (keys, mut rng) = (seeds.dealer_keys(counter), chance::Chance(counter));
    let bytes = dealer::deal(&secret.program, &keys, &parameters, &mut rng, &mut work, &mut stock).unwrap();
    assert_eq!(bytes, stock.len());
    stock
}

/// Runs one inference with frames of `frame` bytes and `tile` tokens at a time on the device.
pub fn run(
    secret: &Secret,
    seeds: &Seeds,
    counter: u64,
    input: &[i16],
    bias: Bias<'_>,
    frame: usize,
    tile: u16,
) -> Outcome {
    let program = secret.program;
    let mut outcome = Outcome { stock: deal(secret, seeds, counter), ..Outcome::default() };
    let device_seeds = DeviceSeeds { dealer: seeds.device_dealer.clone(), server: seeds.device_server.clone() };
    let keys = device_seeds.keys(&seeds.pool, seeds.slot, counter);

    let mut work = vec![0; device::work_words(&program, tile).unwrap()];
    outcome.corrections = offline(secret, seeds, counter, frame, tile);

    let stock = outcome.stock.clone();
    let corrections = outcome.corrections.clone();
    let mut server_work = vec![0; server::work_words(&program).unwrap()];
    let key = server_key(&seeds.server_dealer, &seeds.pool, seeds.slot, counter);
    let stock = Stock { correlations: &stock, corrections: &corrections };
    let mut server = Server::new(program, secret.parameters(), key, stock, bias, &mut server_work).unwrap();

    let mut online = Online::new(program, keys, work.len()).unwrap();
    let mut tx = vec![0; frame];
    let mut filled = 0;
    let mut pending: Vec<u8> = Vec::new();
    let mut from_device: Vec<u8> = Vec::new();
    let mut done = false;
    loop {
        match server.turn() {
            Turn::Done => break,
            Turn::Send(message) => {
                let mut bytes = vec![0; message.bytes()];
                let sent = server.send(&mut bytes).unwrap();
                assert_eq!(sent, message.bytes());
                outcome.down.push(bytes.clone());
                pending.extend_from_slice(&bytes);
            }
            Turn::Receive(message) => {
                assert!(!done);
                while from_device.len() < message.bytes() {
                    advance(&mut online, input, &mut work, &mut pending, &mut tx, &mut filled, &mut from_device);
                }
                assert_eq!(from_device.len(), message.bytes());
                server.receive(&from_device).unwrap();
                outcome.up.push(std::mem::take(&mut from_device));
            }
        }
    }
    while !done {
        done = advance(&mut online, input, &mut work, &mut pending, &mut tx, &mut filled, &mut from_device);
    }
    assert!(pending.is_empty() && from_device.is_empty());
    let revealed = match program {
        Program::Router { spec, .. } => spec.answers,
        Program::Model { classes, .. } => classes,
    };
    outcome.logits = work.iter().take(usize::from(revealed)).map(|word| *word as i32).collect();
    outcome.choice = matches!(program, Program::Router { .. }).then(|| Slot::Model(online.route()));
    outcome
}

/// The device's corrections.
pub fn offline(secret: &Secret, seeds: &Seeds, counter: u64, frame: usize, tile: u16) -> Vec<u8> {
    let device_seeds = DeviceSeeds { dealer: seeds.device_dealer.clone(), server: seeds.device_server.clone() };
    let keys = device_seeds.keys(&seeds.pool, seeds.slot, counter);
    let mut work = vec![0; device::work_words(&secret.program, tile).unwrap()];
    let mut tx = vec![0; frame];
    let mut corrections = Vec::new();
    let mut offline = Offline::new(secret.program, keys, tile, work.len()).unwrap();
    loop {
        let mut out = Outgoing::new(&mut tx);
        if offline.advance(&mut work, &mut out).unwrap() == Step::Done {
            return corrections;
        }
        let len = out.len;
        corrections.extend_from_slice(&tx[..len]);
    }
}

fn advance(
    online: &mut Online,
    input: &[i16],
    work: &mut [u32],
    pending: &mut Vec<u8>,
    tx: &mut [u8],
    filled: &mut usize,
    up: &mut Vec<u8>,
) -> bool {
    let frame = pending.len().min(tx.len()).min(online.inbound());
    let mut rx = &pending[..frame];
    let mut out = Outgoing { buffer: tx, len: *filled };
    let step = online.advance(input, work, &mut rx, &mut out).unwrap();
    let (left, len) = (rx.len(), out.len);
    pending.drain(..frame - left);
    // A frame that waits for more input stays as it is.
    *filled = if step == Step::Input { len } else { 0 };
    up.extend_from_slice(&tx[..len - *filled]);
    step == Step::Done
}

/// Rounds as the protocol does: by the low bits of `rho`.
pub struct Dither(pub DealerKeys);

impl Reference for Dither {
    fn offset(&mut self, gate: &Gate, element: u32, shift: u8) -> u32 {
        let rho = |key| Stream::new(key, StreamId::new(gate.id, Purpose::IndexMask)).at(u64::from(element));
        low_bits(rho(&self.0.device).wrapping_add(rho(&self.0.server)), shift)
    }
}

/// The reference's last wire.
pub fn reference<R: Reference>(
    secret: &Secret,
    input: &[i16],
    bias: Bias<'_>,
    rounding: &mut R,
) -> Result<Vec<i64>, ClearError> {
    let mut arena = vec![0; secret.program.layout().unwrap().arena as usize];
    let mut scratch = vec![0; clear::scratch_elements(&secret.program).unwrap()];
    let wire = clear::run(&secret.program, &secret.parameters(), input, bias, &mut arena, &mut scratch, rounding)?;
    Ok(arena[wire.at as usize..][..wire.elements() as usize].to_vec())
}
