//! The cost model: what a program costs, from its public shape alone.
//!
//! Bytes are counted as they cross the link: packed payload, frames and control messages. The tests
//! and the demo hold them to what is measured, to the byte.

use core::fmt;

use crate::channel::FRAME_OVERHEAD;
use crate::circuit::{CircuitError, Gate, Operand, Party, Program, Slot, Wire};
use crate::device;
use crate::gate::embed;
use crate::prg::BLOCK_WORDS;
use crate::server;
use crate::session::{
    DeviceMemory, FRAME_PAYLOAD, Infer, LinkProfile, Prepare, PreparedStock, SESSION_BYTES, SlotStock, ToDevice,
    ToServer, encoded_bytes, framed_bytes,
};
use crate::spec::PoolSpec;

/// Bytes each way and changes of direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes from the device.
    pub up: u64,
    /// Bytes to the device.
    pub down: u64,
    /// Runs of messages in one direction; two make a round trip.
    pub half_trips: u32,
}

impl Traffic {
    /// Bytes both ways.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.up + self.down
    }

    /// Time on a link, in microseconds, without anyone's computing.
    #[must_use]
    pub fn latency_us(&self, link: &LinkProfile) -> u64 {
        link.latency_us(self.bytes(), self.half_trips)
    }
}

/// As a pool file holds what a program costs, for whoever loads it to compare.
impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, {} half trips", self.bytes(), self.half_trips)
    }
}

/// Costs of one inference of one program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Online traffic on the device's link.
    pub online: Traffic,
    /// Offline traffic on the device's link.
    pub offline: Traffic,
    /// Bytes of the dealer's stock item.
    pub dealer_to_server: u64,
    /// ChaCha blocks that the device computes online, when every frame goes out before the next is
    /// worked on.
    pub device_blocks_online: u64,
    /// ChaCha blocks that the device computes offline.
    pub device_blocks_offline: u64,
    /// Words of the device's work space.
    pub device_work_words: usize,
    /// Words of the server's work space.
    pub server_work_words: usize,
    /// Words of the dealer's work space.
    pub dealer_work_words: usize,
    /// Weights at the server.
    pub weights: u32,
}

impl Cost {
    /// Costs of `slot` of `pool` for a device that masks `tile` tokens at a time.
    ///
    /// # Errors
    /// [`CircuitError`].
    pub fn of(pool: &PoolSpec, slot: Slot, tile: u16) -> Result<Self, CircuitError> {
        let program = Program::of(pool, slot)?;
        let mut count = Count { cost: Self::default(), tile: tile.max(1), device_turn: false, cuts: 0 };
        let layout = program.walk(&mut count)?;
        let mut cost = count.cost;

        let link = LinkProfile::UART;
        let infer = ToServer::Infer(Infer { slot, counter: 0, lambda: 0, allowed: 0, link });
        cost.online.up += control_bytes(encoded_bytes(&infer));
        let prepare = ToServer::Prepare(Prepare { slot, counter: 0 });
        let stock = SlotStock { slot, first: 0, fresh: 0, ready: 0 };
        let prepared = ToDevice::Prepared(PreparedStock { stock });
        cost.offline = Traffic {
            up: control_bytes(encoded_bytes(&prepare)) + framed_bytes(layout.correction_bytes()),
            down: control_bytes(encoded_bytes(&prepared)),
            half_trips: 2,
        };
        cost.dealer_to_server = layout.stock;
        cost.device_work_words = device::work_words(&program, tile.max(1))?;
        cost.server_work_words = server::work_words(&program)?;
        cost.dealer_work_words = crate::dealer::work_words(&program)?;
        cost.weights = layout.weights;
        Ok(cost)
    }

    /// Costs of an inference that the router of `pool` sends to the model of this `index`.
    ///
    /// # Errors
    /// [`CircuitError`].
    pub fn routed(pool: &PoolSpec, index: u8, tile: u16) -> Result<Self, CircuitError> {
        let router = Self::of(pool, Slot::Router, tile)?;
        if pool.router_answers(Slot::Model(index)) {
            return Ok(router);
        }
        Ok(router.plus(&Self::of(pool, Slot::Model(index), tile)?))
    }

    /// Costs of one inference after another, each with its own request.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        let add = |a: &Traffic, b: &Traffic| Traffic {
            up: a.up + b.up,
            down: a.down + b.down,
            half_trips: a.half_trips + b.half_trips,
        };
        Self {
            online: add(&self.online, &other.online),
            offline: add(&self.offline, &other.offline),
            dealer_to_server: self.dealer_to_server + other.dealer_to_server,
            device_blocks_online: self.device_blocks_online + other.device_blocks_online,
            device_blocks_offline: self.device_blocks_offline + other.device_blocks_offline,
            device_work_words: self.device_work_words.max(other.device_work_words),
            server_work_words: self.server_work_words.max(other.server_work_words),
            dealer_work_words: self.dealer_work_words.max(other.dealer_work_words),
            weights: self.weights + other.weights,
        }
    }

    /// Static RAM of a device for this program, in bytes: frames, work space, input and session.
    #[must_use]
    pub const fn device_ram_bytes(&self, input_len: u16) -> usize {
        2 * DeviceMemory::FRAME_BYTES + 4 * self.device_work_words + 2 * input_len as usize + SESSION_BYTES
    }

    /// RAM of the server for one inference of this program under way, in bytes: work space, stock
    /// item and corrections.
    #[must_use]
    pub fn server_ram_bytes(&self) -> u64 {
        4 * self.server_work_words as u64 + self.dealer_to_server + self.offline.up
    }

    /// RAM of the dealer for one inference of this program, in bytes: work space, masked weights
    /// and the stock item.
    #[must_use]
    pub fn dealer_ram_bytes(&self) -> u64 {
        4 * (self.dealer_work_words as u64 + u64::from(self.weights)) + self.dealer_to_server
    }
}

const fn control_bytes(payload: usize) -> u64 {
    (payload + FRAME_OVERHEAD) as u64
}

struct Count {
    cost: Cost,
    tile: u16,
    /// Whether the device sent last.
    device_turn: bool,
    /// Frames of the offline message that earlier gates filled.
    cuts: u64,
}

/// Blocks that hold `count` words from word `first` on.
const fn blocks(first: u64, count: u64) -> u64 {
    if count == 0 { 0 } else { (first % BLOCK_WORDS as u64 + count).div_ceil(BLOCK_WORDS as u64) }
}

/// Blocks of one word per element for `elements` packed elements of `bits` bits, from bit `at` of
/// their message, where every full frame breaks the stream off at an element and takes it up again
/// there. The element that finds the frame full was drawn already if `ahead`. `cuts` frames were
/// full before and are counted on.
fn framed_blocks(at: u64, elements: u64, bits: u8, words: u64, ahead: bool, cuts: &mut u64) -> u64 {
    let (bits, frame) = (u64::from(bits).max(1), 8 * FRAME_PAYLOAD as u64);
    let (mut total, mut first) = (0, 0);
    loop {
        // An element waits when those before it fill the frame and a byte beyond.
        let full = (*cuts + 1) * frame + 8;
        let waits = full.saturating_sub(at).div_ceil(bits);
        if waits >= elements {
            return total + blocks(words * first, words * (elements - first));
        }
        total += blocks(words * first, words * (waits + u64::from(ahead) - first));
        first = waits;
        *cuts += 1;
    }
}

/// Blocks of a wire's masks over `rows` when every run is sought apart.
fn run_blocks(wire: &Wire, rows: core::ops::Range<u16>) -> u64 {
    (0..wire.blocks)
        .flat_map(|block| rows.clone().map(move |row| (block, row)))
        .map(|(block, row)| blocks(u64::from(wire.run(block, row)), u64::from(wire.width)))
        .sum()
}

impl Count {
    fn linear_blocks(&self, linear: &crate::circuit::Linear) -> u64 {
        let outputs = u64::from(linear.outputs);
        let tile = self.tile.min(linear.rows).max(1);
        let mut total = 0;
        let mut first = 0;
        while first < linear.rows {
            let rows = tile.min(linear.rows - first);
            total += blocks(u64::from(first) * outputs, u64::from(rows) * outputs);
            for term in &linear.terms {
                let read = if linear.pooled { 0..term.rows } else { first..first + rows };
                total += run_blocks(term, read) + blocks(0, u64::from(term.columns()) * outputs);
            }
            first += rows;
        }
        total
    }
}

impl Party for Count {
    type Error = CircuitError;

    fn gate(&mut self, gate: &Gate) -> Result<(), CircuitError> {
        for message in gate.messages() {
            let bytes = framed_bytes(message.bytes() as u64);
            let online = &mut self.cost.online;
            if message.kind.from_device() {
                online.up += bytes;
            } else {
                online.down += bytes;
            }
            if online.half_trips == 0 || self.device_turn != message.kind.from_device() {
                online.half_trips += 1;
            }
            self.device_turn = message.kind.from_device();
        }
        let elements = u64::from(gate.elements());
        let cost = &mut self.cost;
        match &gate.operand {
            Operand::Private => {
                cost.device_blocks_online += framed_blocks(0, elements, gate.out.bits, 1, true, &mut 0);
            }
            Operand::Embed(embed) => {
                let words = u64::from(embed.words.count);
                cost.device_blocks_online += framed_blocks(0, words, gate.out.bits, 1, true, &mut 0);
                for row in 0..embed.rows {
                    let (of_row, width) = (embed.words_of(row), u64::from(embed.width));
                    cost.device_blocks_online += blocks(u64::from(row) * width, width)
                        + blocks(of_row.start.into(), of_row.len() as u64)
                        + embed::device_blocks(embed, row);
                }
            }
            Operand::Linear(linear) if gate.corrects_offline() => {
                cost.device_blocks_offline +=
                    framed_blocks(gate.corrections_at, elements, gate.bits(), 1, true, &mut self.cuts);
                let masks = self.linear_blocks(linear);
                self.cost.device_blocks_offline += masks;
            }
            Operand::Linear(linear) => {
                let masks = self.linear_blocks(linear);
                self.cost.device_blocks_online += masks;
            }
            Operand::Product(product) => {
                for head in 0..product.heads {
                    for row in 0..product.rows {
                        for view in [&product.left, &product.right] {
                            cost.device_blocks_online += blocks(u64::from(view.run(head, row)), u64::from(view.depth));
                        }
                        let first = u64::from(gate.out.run(head, row));
                        cost.device_blocks_online += 2 * blocks(first, u64::from(product.width()));
                    }
                }
            }
            Operand::Combine(combine) if gate.corrects_offline() => {
                cost.device_blocks_offline +=
                    framed_blocks(gate.corrections_at, elements, gate.bits(), 1, true, &mut self.cuts)
                        + blocks(0, u64::from(combine.wire.elements()));
            }
            Operand::Combine(combine) => {
                cost.device_blocks_online += blocks(0, u64::from(combine.wire.elements()));
            }
        }
        self.cost.device_blocks_online += match gate.response {
            // Indices of one bit end their frames at a whole block: only full answers break it.
            crate::circuit::Response::Requantise(_) => framed_blocks(0, elements, gate.out.bits, 2, false, &mut 0),
            crate::circuit::Response::Table { .. }
            | crate::circuit::Response::Margin { .. }
            | crate::circuit::Response::Tell { .. } => elements * u64::from(gate.response.tables()),
            crate::circuit::Response::Share { .. }
            | crate::circuit::Response::Remask { .. }
            | crate::circuit::Response::Reveal { .. } => 0,
        };
        Ok(())
    }
}

/// Public scores of the models for the router: minus lambda times what the model costs on `link`
/// beyond the router itself, where the dearest model costs 255. Models outside `allowed` (bit `i` for model `i`) get a score
/// that no utility within [`UTILITY_SPREAD`](crate::model::UTILITY_SPREAD) of the others makes up for. None for a pool without a router.
///
/// # Errors
/// [`CircuitError`].
pub fn router_scores(
    pool: &PoolSpec,
    lambda: u16,
    allowed: u8,
    link: &LinkProfile,
) -> Result<heapless::Vec<i32, { crate::spec::MAX_MODELS }>, CircuitError> {
    use crate::model::{COST_BIAS_MAX, UTILITY_MAX};

    if pool.router.is_none() {
        return Ok(heapless::Vec::new());
    }
    let mut latencies = heapless::Vec::<u64, { crate::spec::MAX_MODELS }>::new();
    let router = Cost::of(pool, Slot::Router, 1)?.online.latency_us(link);
    for index in 0..pool.models.len() as u8 {
        let latency = Cost::routed(pool, index, 1)?.online.latency_us(link).saturating_sub(router);
        latencies.push(latency).map_err(|_| CircuitError::TooLarge)?;
    }
    let by_margin = Program::of(pool, Slot::Router)?.by_margin();
    let dearest = latencies.iter().copied().max().unwrap_or(1).max(1);
    let full = UTILITY_MAX as u64;
    Ok((0u8..)
        .zip(&latencies)
        .map(|(index, latency)| {
            // Where the first model is chosen by margin, utilities decide among the others.
            if allowed & (1 << index) == 0 || (index == 0 && by_margin) {
                return -COST_BIAS_MAX;
            }
            let share = u128::from(*latency) * u128::from(full) / u128::from(dearest);
            let bias = share * u128::from(lambda) / 256;
            -(bias.min(u128::from(full)) as i32)
        })
        .collect())
}
