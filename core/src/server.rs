//! The server's half of an inference, message by message.
//!
//! It holds the model in the clear, a stock item and the device's corrections, and in its arena the
//! shares `x + r` of every wire. It is driven by whole messages and does no I/O.

use core::fmt;

use zeroize::Zeroize;

use crate::circuit::{CircuitError, Gate, Layout, Message, MessageKind, Operand, Party, Program, Response, Wire};
use crate::clear::{Parameters, scratch_elements};
use crate::error::BufferError;
use crate::gate::{combine, embed, linear, margin, opening, product, remask, requantise, table, tell};
use crate::keys::StreamKey;
use crate::prg::{Purpose, Stream, StreamId};
use crate::ring::{BitWriter, bits_at};
use crate::routing::Bias;

/// What the server refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServerError {
    /// The program is not valid.
    Circuit(CircuitError),
    /// A lent slice has the wrong length.
    Buffer(BufferError),
    /// A message came, or was asked for, that is not this turn's.
    Turn,
    /// A message has the wrong length.
    Length {
        /// Bytes expected.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
}

impl From<CircuitError> for ServerError {
    fn from(error: CircuitError) -> Self {
        Self::Circuit(error)
    }
}

impl From<BufferError> for ServerError {
    fn from(error: BufferError) -> Self {
        Self::Buffer(error)
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Circuit(error) => error.fmt(f),
            Self::Buffer(error) => error.fmt(f),
            Self::Turn => f.write_str("a message came out of turn"),
            Self::Length { expected, found } => write!(f, "a message has {found} bytes instead of {expected}"),
        }
    }
}

impl core::error::Error for ServerError {}

/// What one inference of one program uses up.
#[derive(Clone, Copy)]
pub struct Stock<'a> {
    /// The dealer's part.
    pub correlations: &'a [u8],
    /// The device's corrections, sent offline.
    pub corrections: &'a [u8],
}

impl fmt::Debug for Stock<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stock").field("bytes", &self.correlations.len()).finish_non_exhaustive()
    }
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The server sends this message.
    Send(Message),
    /// The device sends this message.
    Receive(Message),
    /// The program is over.
    Done,
}

/// One run of one program.
#[derive(Debug)]
pub struct Server<'a> {
    program: Program,
    parameters: Parameters<'a>,
    key: StreamKey,
    stock: Stock<'a>,
    /// What the request's lambda comes to.
    bias: Bias<'a>,
    arena: &'a mut [u32],
    scratch: &'a mut [u32],
    gate: Option<Gate>,
    /// Which of the gate's messages is next.
    message: usize,
}

/// Words of work space that a [`Server`] needs: its arena and its scratch.
///
/// # Errors
/// [`CircuitError`].
pub fn work_words(program: &Program) -> Result<usize, CircuitError> {
    Ok(program.layout()?.arena as usize + scratch_elements(program)?)
}

/// Masks a program's weights for the dealer, once per device: `F = W - B`, in the order of the
/// weights, where `key` expands to `B` (see [`weight_key`](crate::keys::weight_key)).
///
/// # Errors
/// [`ServerError::Buffer`] when `weights` or `masked` do not have the program's length.
pub fn mask_weights(
    program: &Program,
    key: &StreamKey,
    weights: &[i16],
    masked: &mut [u32],
) -> Result<(), ServerError> {
    struct Mask<'a> {
        key: &'a StreamKey,
        weights: &'a [i16],
        masked: &'a mut [u32],
    }
    impl Party for Mask<'_> {
        type Error = CircuitError;
        fn gate(&mut self, gate: &Gate) -> Result<(), CircuitError> {
            match &gate.operand {
                Operand::Linear(linear) => {
                    linear::mask_weights(gate.id, linear, self.key, self.weights, self.masked);
                }
                Operand::Embed(embed) => embed::mask_weights(gate.id, embed, self.key, self.weights, self.masked),
                Operand::Private | Operand::Product(_) | Operand::Combine(_) => {}
            }
            Ok(())
        }
    }
    let needed = program.layout()?.weights as usize;
    for (buffer, have) in [("weights", weights.len()), ("masked weights", masked.len())] {
        if needed != have {
            return Err(BufferError { buffer, needed, have }.into());
        }
    }
    program.walk(&mut Mask { key, weights, masked })?;
    Ok(())
}

impl<'a> Server<'a> {
    /// Starts `program` with a stock item that is used up by it.
    ///
    /// # Errors
    /// [`ServerError::Buffer`] when a slice does not fit the program.
    pub fn new(
        program: Program,
        parameters: Parameters<'a>,
        key: StreamKey,
        stock: Stock<'a>,
        bias: Bias<'a>,
        work: &'a mut [u32],
    ) -> Result<Self, ServerError> {
        let layout: Layout = program.layout()?;
        parameters.check(&layout)?;
        for (buffer, needed, have) in [
            ("stock item", layout.stock as usize, stock.correlations.len()),
            ("corrections", layout.correction_bytes() as usize, stock.corrections.len()),
        ] {
            if needed != have {
                return Err(BufferError { buffer, needed, have }.into());
            }
        }
        BufferError::check("server workspace", work_words(&program)?, work.len())?;
        let (arena, scratch) = work.split_at_mut(layout.arena as usize);
        let (gate, bias) = (program.gate(0)?, program.bias(bias));
        Ok(Self { program, parameters, key, stock, bias, arena, scratch, gate, message: 0 })
    }

    /// Whose turn it is, and with which message.
    #[must_use]
    pub fn turn(&self) -> Turn {
        let next = self.gate.as_ref().and_then(|gate| gate.messages().get(self.message).copied());
        match next {
            None => Turn::Done,
            Some(message) if message.kind.from_device() => Turn::Receive(message),
            Some(message) => Turn::Send(message),
        }
    }

    /// Writes the message of this turn to `out` and returns its bytes.
    ///
    /// # Errors
    /// [`ServerError::Turn`], or [`ServerError::Buffer`] when `out` is too small.
    pub fn send(&mut self, out: &mut [u8]) -> Result<usize, ServerError> {
        let Turn::Send(message) = self.turn() else { return Err(ServerError::Turn) };
        BufferError::check("message buffer", message.bytes(), out.len())?;
        let gate = self.gate.take().ok_or(ServerError::Turn)?;
        let mut writer = BitWriter::new(out);
        match message.kind {
            MessageKind::Operands => {
                if let Operand::Product(product) = &gate.operand {
                    let push = |value| writer.push(value, message.bits);
                    product::server_open(gate.id, product, &self.key, self.arena, push);
                }
            }
            MessageKind::Index => {
                if gate.corrects_offline() {
                    self.evaluate(&gate);
                    self.open(&gate, self.stock.corrections, gate.corrections_at);
                }
                if let Response::Margin { .. } = gate.response {
                    writer.push(self.bias.margin.into(), message.bits);
                }
                for index in self.held(&gate.out) {
                    let value = match gate.response {
                        Response::Requantise(opening) => requantise::key_bit(opening, *index),
                        _ => *index,
                    };
                    writer.push(value, message.bits);
                }
            }
            MessageKind::Tell => {
                self.evaluate(&gate);
                self.open(&gate, self.stock.corrections, gate.corrections_at);
                if let Response::Tell { opening, .. } = gate.response {
                    for (element, index) in (0u32..).zip(self.held(&gate.out)) {
                        let entry = self.entry(&gate, element, *index);
                        writer.push(tell::server_message(opening, *index, entry), message.bits);
                    }
                }
            }
            MessageKind::Reveal => {
                self.evaluate(&gate);
                self.held(&gate.out).iter().for_each(|y| writer.push(*y, message.bits));
            }
            MessageKind::Share | MessageKind::Correction | MessageKind::Answer => return Err(ServerError::Turn),
        }
        let bytes = writer.finish().ok_or(ServerError::Turn)?;
        self.advance(gate)?;
        Ok(bytes)
    }

    /// Takes the device's message of this turn.
    ///
    /// # Errors
    /// [`ServerError::Turn`] or [`ServerError::Length`].
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), ServerError> {
        let Turn::Receive(message) = self.turn() else { return Err(ServerError::Turn) };
        if bytes.len() != message.bytes() {
            return Err(ServerError::Length { expected: message.bytes(), found: bytes.len() });
        }
        let gate = self.gate.take().ok_or(ServerError::Turn)?;
        match message.kind {
            MessageKind::Share => {
                let sent = |element: u64| bits_at(bytes, element * u64::from(message.bits), message.bits);
                let stock = self.stock.correlations;
                let entry =
                    |element: u64| bits_at(stock, gate.stock_at * 8 + element * u64::from(message.bits), message.bits);
                let out = self.held_mut(&gate.out);
                match &gate.operand {
                    Operand::Embed(embed) => {
                        let words = u64::from(embed.words.count);
                        let places = (0..embed.rows).flat_map(|row| (0..embed.width).map(move |column| (row, column)));
                        for ((element, slot), (row, column)) in (words..).zip(out).zip(places) {
                            let word = |i: u16| sent(i.into());
                            *slot = embed::server_share(embed, row, column, sent(element), word, entry);
                        }
                    }
                    _ => (0u64..).zip(out).for_each(|(element, slot)| *slot = sent(element)),
                }
            }
            MessageKind::Correction => {
                self.evaluate(&gate);
                self.open(&gate, bytes, 0);
            }
            MessageKind::Answer => self.answer(&gate, bytes),
            MessageKind::Operands | MessageKind::Index | MessageKind::Tell | MessageKind::Reveal => {
                return Err(ServerError::Turn);
            }
        }
        self.advance(gate)
    }

    fn held(&self, wire: &Wire) -> &[u32] {
        let at = wire.at as usize;
        self.arena.get(at..at + wire.elements() as usize).unwrap_or(&[])
    }

    fn held_mut(&mut self, wire: &Wire) -> &mut [u32] {
        let at = wire.at as usize;
        self.arena.get_mut(at..at + wire.elements() as usize).unwrap_or(&mut [])
    }

    /// `y_hat` of the operand, to the place of the gate's wire.
    fn evaluate(&mut self, gate: &Gate) {
        let at = gate.out.at as usize;
        let Some((before, after)) = self.arena.split_at_mut_checked(at) else { return };
        let correlation = |element: u32| {
            let bit = gate.stock_at * 8 + u64::from(element) * u64::from(gate.bits());
            bits_at(self.stock.correlations, bit, gate.bits())
        };
        let mut set = |element: u32, value: u32| {
            if let Some(slot) = after.get_mut(element as usize) {
                *slot = value;
            }
        };
        match &gate.operand {
            Operand::Private | Operand::Embed(_) => {}
            Operand::Linear(linear) => {
                let biases = self.parameters.biases;
                linear::evaluate(linear, self.parameters.weights, before, self.scratch, |element, value| {
                    let bias = biases.get((linear.biases_at + element) as usize).copied().unwrap_or(0);
                    set(element, value.wrapping_add(bias as u32).wrapping_sub(correlation(element)));
                });
            }
            Operand::Product(product) => product::evaluate(product, before, self.scratch, |element, value| {
                set(element, value.wrapping_add(correlation(element)));
            }),
            Operand::Combine(combine) => {
                combine::evaluate(combine, combine::held(combine, before), |element, value| {
                    set(element, value.wrapping_add(combine::constant(combine, element, self.bias.scores) as u32));
                })
            }
        }
    }

    /// Replaces `y_hat` by the masked index, or by the share of a wire that is masked anew.
    fn open(&mut self, gate: &Gate, corrections: &[u8], first_bit: u64) {
        let mut rho = Stream::new(&self.key, StreamId::new(gate.id, Purpose::IndexMask));
        let bits = gate.bits();
        for (element, slot) in (0u64..).zip(self.held_mut(&gate.out)) {
            let correction = bits_at(corrections, first_bit + element * u64::from(bits), bits);
            *slot = match gate.response {
                Response::Requantise(opening) => {
                    let y_hat = slot.wrapping_add(requantise::offset(opening));
                    opening::server_index(opening, y_hat, correction, rho.draw())
                }
                Response::Table { opening, .. } | Response::Margin { opening, .. } | Response::Tell { opening, .. } => {
                    opening::server_index(opening, *slot, correction, rho.draw())
                }
                Response::Remask { bits } => remask::server_share(*slot, correction, bits),
                Response::Share { .. } | Response::Reveal { .. } => return,
            };
        }
    }

    /// Replaces the masked index by the share of the result.
    fn answer(&mut self, gate: &Gate, pads: &[u8]) {
        let bits = gate.out.bits;
        for element in 0..gate.elements() {
            let at = (gate.out.at + element) as usize;
            let Some(index) = self.arena.get(at).copied() else { return };
            let pad = bits_at(pads, u64::from(element) * u64::from(bits), bits);
            let share = match gate.response {
                Response::Requantise(opening) => {
                    let entry = self.entry(gate, element, requantise::key_bit(opening, index));
                    requantise::server_share(index, entry, pad, bits)
                }
                Response::Margin { opening, even } => {
                    let margin = margin::margin_of(element, even, self.bias.margin.into());
                    let places = margin::places(index, margin, opening.index_bits);
                    margin::server_share(places.map(|place| self.entry(gate, element, place)), pad, bits)
                }
                _ => table::server_share(self.entry(gate, element, index), pad, bits),
            };
            if let Some(slot) = self.arena.get_mut(at) {
                *slot = share;
            }
        }
    }

    /// The dealer's entry of `element` that `key` selects.
    fn entry(&self, gate: &Gate, element: u32, key: u32) -> u32 {
        let bits = gate.out.bits;
        let place = table::entry(element, gate.response.entries(), key);
        bits_at(self.stock.correlations, gate.entries_at * 8 + place * u64::from(bits), bits)
    }

    fn advance(&mut self, gate: Gate) -> Result<(), ServerError> {
        self.message += 1;
        if self.message < gate.messages().len() {
            self.gate = Some(gate);
            return Ok(());
        }
        self.message = 0;
        let mut over = gate;
        loop {
            let Some(next) = self.program.gate(over.id + 1)? else { return Ok(()) };
            if !next.messages().is_empty() {
                self.gate = Some(next);
                return Ok(());
            }
            self.evaluate(&next);
            self.open(&next, self.stock.corrections, next.corrections_at);
            over = next;
        }
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        // Shares are one-time padded, but with the device's masks they are intermediate values.
        self.arena.zeroize();
        self.scratch.zeroize();
    }
}
