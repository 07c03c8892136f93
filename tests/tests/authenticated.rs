//! What the authenticated mode that docs/security.md designs would cost, from the gates of two models. It is not built.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use secure_router_core::circuit::{Gate, Operand, Program, Response, Slot};
use secure_router_core::cost::Cost;
use secure_router_core::ring::packed_bytes;
use secure_router_core::routing::Routing;
use secure_router_core::spec::{ModelSpec, NamedModel, Opening, Output, PoolSpec};

/// Bytes of a tag of an answer, in a field of 2^40 elements.
const TAG: u64 = 5;
/// Bytes of a word of the check of corrections, modulo 2^64.
const WORD: u64 = 8;
/// Bytes of what a random combination is drawn from.
const SEED: u64 = 16;
/// Table entries per input value: two tables of one nibble.
const NIBBLES: u64 = 2 * 16;

/// What is added to one inference of a program.
#[derive(Debug, Default, PartialEq)]
struct Added {
    up: u64,
    down: u64,
    offline: u64,
    dealer: u64,
    blocks_online: u64,
}

impl Added {
    fn of(program: &Program) -> Self {
        let mut added = Self::default();
        for gate in (0..).map_while(|id| program.gate(id).unwrap()) {
            added.gate(&gate);
        }
        // The combination and its tag, behind a seed of the server's; one more word of the dealer's masks it.
        added.offline = SEED + 2 * WORD;
        added.dealer += WORD;
        added
    }

    fn gate(&mut self, gate: &Gate) {
        let elements = u64::from(gate.elements());
        let entries = u64::from(gate.response.entries());
        assert!(!matches!(gate.operand, Operand::Embed(_)), "no check of words is designed");
        if gate.operand == Operand::Private {
            // A byte of index and two pads instead of one share; a tag for all.
            let share = packed_bytes(gate.elements(), gate.out.bits) as u64;
            self.up += elements + share + TAG;
            self.dealer += NIBBLES * elements * (u64::from(gate.out.bits) + 8 * TAG) / 8;
            self.blocks_online += 4 * elements;
        }
        // What is told is not answered.
        let told = matches!(gate.response, Response::Tell { .. });
        if entries > 0 && !told {
            // A tag for each entry.
            self.up += TAG;
            self.dealer += TAG * elements * entries;
            self.blocks_online += elements;
        }
        // A word for the correction's part of the dealer's.
        if gate.response.corrected_to().is_some() {
            self.dealer += WORD * elements;
        }
        // A word for each mask of a wire.
        if !told && !matches!(gate.response, Response::Reveal { .. }) {
            self.dealer += WORD * elements;
        }
        if let Operand::Product(_) = gate.operand {
            self.down += SEED;
            self.up += 2 * WORD;
            self.dealer += WORD;
        }
    }
}

/// A pool of one model for inputs of 416 values of 8 bits and ten classes.
fn pool(width: u16, layers: u8) -> PoolSpec {
    let opening = |shift, index_bits| Opening { shift, index_bits };
    let spec = ModelSpec {
        tokens: 16,
        features: 26,
        width,
        heads: (width / 16) as u8,
        ffn: 2 * width,
        layers,
        qkv: opening(6, 10),
        score: opening(6, 8),
        mix: opening(6, 10),
        ffn_in: opening(8, 8),
        output_bits: 16,
    };
    let pool = PoolSpec {
        edition: [0; 16],
        task: "cost".try_into().unwrap(),
        input_len: 416,
        input_bits: 8,
        input_frac: 4,
        word_bits: 0,
        classes: 10,
        output: Output::Label,
        routing: Routing::Open,
        models: [NamedModel { name: "model".try_into().unwrap(), spec }].into_iter().collect(),
        router: None,
    };
    pool.validate().unwrap();
    pool
}

#[test]
fn the_designed_mode_costs_what_the_document_says() {
    let document = include_str!("../../docs/security.md");
    for (width, layers) in [(32, 1), (64, 3)] {
        let (pool, slot) = (pool(width, layers), Slot::Model(0));
        let (cost, added) = (Cost::of(&pool, slot, 4).unwrap(), Added::of(&Program::of(&pool, slot).unwrap()));
        let row = format!(
            "| 16 tokens, width {width}, layers {layers} | {} + {} | {} + {} | {} + {} | {} + {} | {} + {} |",
            cost.online.up,
            added.up,
            cost.online.down,
            added.down,
            cost.offline.bytes(),
            added.offline,
            cost.dealer_to_server,
            added.dealer,
            cost.device_blocks_online,
            added.blocks_online,
        );
        println!("{row}");
        assert!(document.contains(&row), "docs/security.md does not say {row}");
    }
}
