//! What the authenticated mode that docs/security.md designs would cost, from the committed pool's gates. It is not built.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use secure_router::pool::{Pool, slot_name};
use secure_router_core::circuit::{Gate, MessageKind, Operand, Program};
use secure_router_core::cost::Cost;
use secure_router_core::ring::packed_bytes;
use secure_router_tests::POOL;

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
        if gate.operand == Operand::Private {
            // A byte of index and two pads instead of one share; a tag for all.
            let share = packed_bytes(gate.elements(), gate.out.bits) as u64;
            self.up += elements + share + TAG;
            self.dealer += NIBBLES * elements * (u64::from(gate.out.bits) + 8 * TAG) / 8;
            self.blocks_online += 4 * elements;
        }
        if entries > 0 {
            // A tag for each entry; a word for the correction's part of the dealer's.
            self.up += TAG;
            self.dealer += TAG * elements * entries + WORD * elements;
            self.blocks_online += elements;
        }
        // A word for each mask of a wire.
        if gate.messages().iter().any(|m| matches!(m.kind, MessageKind::Share | MessageKind::Answer)) {
            self.dealer += WORD * elements;
        }
        if let Operand::Product(_) = gate.operand {
            self.down += SEED;
            self.up += 2 * WORD;
            self.dealer += WORD;
        }
    }
}

#[test]
fn the_designed_mode_costs_what_the_document_says() {
    let pool = Pool::load(POOL.as_ref()).unwrap();
    let mut table = Vec::new();
    for slot in pool.spec.slots() {
        let (cost, added) =
            (Cost::of(&pool.spec, slot, 4).unwrap(), Added::of(&Program::of(&pool.spec, slot).unwrap()));
        let row = format!(
            "| {} | {} + {} | {} + {} | {} + {} | {} + {} |",
            slot_name(&pool.spec, slot),
            cost.online.up,
            added.up,
            cost.online.down,
            added.down,
            cost.dealer_to_server,
            added.dealer,
            cost.device_blocks_online,
            added.blocks_online,
        );
        println!("{row} {added:?} offline blocks {}", cost.device_blocks_offline);
        table.push(row);
    }
    let document = include_str!("../../docs/security.md");
    for row in table {
        assert!(document.contains(&row), "docs/security.md does not say {row}");
    }
}
