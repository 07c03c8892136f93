//! What each gate of a program costs, from its public shape alone.

use anyhow::Result;
use secure_router::pool::slot_name;
use secure_router_core::circuit::{Combination, Gate, Operand, Program, Response, Slot};
use secure_router_core::cost::Cost;
use secure_router_core::spec::PoolSpec;
use serde::{Deserialize, Serialize};

/// One gate of a program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct GateCost {
    pub(crate) what: String,
    pub(crate) elements: u32,
    pub(crate) index_bits: u8,
    /// Bytes of its online messages, without frames.
    pub(crate) up: u64,
    pub(crate) down: u64,
    /// Bits of its part of the device's offline message.
    pub(crate) offline_bits: u64,
    /// Bytes of its part of the dealer's stock.
    pub(crate) stock: u64,
}

/// A program with its gates; what the gates do not add up to is frames and control messages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ProgramCost {
    pub(crate) name: String,
    pub(crate) up: u64,
    pub(crate) down: u64,
    pub(crate) half_trips: u32,
    pub(crate) offline: u64,
    pub(crate) stock: u64,
    pub(crate) gates: Vec<GateCost>,
}

impl ProgramCost {
    pub(crate) fn of(pool: &PoolSpec, slot: Slot) -> Result<Self> {
        let cost = Cost::of(pool, slot, crate::infer::TILE)?;
        let program = Program::of(pool, slot)?;
        let gates = program.gates().collect::<Result<Vec<Gate>, _>>()?;
        let ends = gates.iter().skip(1).map(|gate| gate.stock_at).chain([cost.dealer_to_server]);
        let gates = gates.iter().zip(ends).map(|(gate, end)| of_gate(gate, end)).collect();
        Ok(Self {
            name: slot_name(pool, slot),
            up: cost.online.up,
            down: cost.online.down,
            half_trips: cost.online.half_trips,
            offline: cost.offline.bytes(),
            stock: cost.dealer_to_server,
            gates,
        })
    }
}

fn of_gate(gate: &Gate, stock_end: u64) -> GateCost {
    let (mut up, mut down) = (0, 0);
    for message in gate.messages() {
        *if message.kind.from_device() { &mut up } else { &mut down } += message.bytes() as u64;
    }
    let operand = match &gate.operand {
        Operand::Private => "input",
        Operand::Embed(_) => "embedding",
        Operand::Linear(linear) if linear.pooled => "pooled linear",
        Operand::Linear(_) => "linear",
        Operand::Product(product) if product.transposed => "scores",
        Operand::Product(_) => "weighted values",
        Operand::Combine(combine) => match combine.combination {
            Combination::Differences { .. } => "differences",
            Combination::Wins => "wins",
            Combination::Balance => "wins less losses",
            Combination::Tournament => "tournament",
            Combination::Last => "answer",
        },
    };
    let response = match gate.response {
        Response::Share { .. } => "",
        Response::Remask { .. } => ", masked anew",
        Response::Requantise(_) => ", requantised",
        Response::Table { .. } => ", table",
        Response::Margin { .. } => ", margin",
        Response::Tell { .. } => ", told",
        Response::Reveal { .. } => ", revealed",
    };
    GateCost {
        what: format!("{operand}{response}"),
        elements: gate.elements(),
        index_bits: gate.response.index_bits(),
        up,
        down,
        offline_bits: if gate.corrects_offline() { u64::from(gate.elements()) * u64::from(gate.bits()) } else { 0 },
        stock: stock_end - gate.stock_at,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;
    use secure_router::pool::Pool;
    use std::path::Path;

    #[test]
    fn gates_add_up_to_their_program() {
        let pool = Pool::load(Path::new(crate::demo::POOL)).unwrap();
        for slot in pool.spec.slots() {
            let program = ProgramCost::of(&pool.spec, slot).unwrap();
            let sum = |of: fn(&GateCost) -> u64| program.gates.iter().map(of).sum::<u64>();
            assert_eq!(sum(|g| g.stock), program.stock, "{}", program.name);
            // The rest is frames and a handful of control messages.
            for (gates, whole) in [
                (sum(|g| g.up), program.up),
                (sum(|g| g.down), program.down),
                (sum(|g| g.offline_bits) / 8, program.offline),
            ] {
                assert!(gates <= whole && whole - gates < 200 + whole / 4, "{}: {gates} of {whole}", program.name);
            }
        }
    }
}
