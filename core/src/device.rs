//! The device's half of an inference: two resumable streams of bytes, offline and online.
//!
//! Nothing here grows with weights, tables or layers. Masks are never stored: a wire's mask is a
//! position in a stream, drawn again where it is needed. Work space is lent with each call and must
//! be the same, untouched, from one call to the next.

use core::fmt;

use subtle::{ConditionallySelectable, ConstantTimeLess};
use zeroize::Zeroize;

use crate::circuit::{CircuitError, Embed, Gate, HeadView, MessageKind, Operand, Party, Product, Program, Response};
use crate::error::BufferError;
use crate::gate::{self, combine, embed, linear, margin, table, tell};
use crate::keys::DeviceKeys;
use crate::model::choice;
use crate::prg::{Purpose, Stream, StreamId};
use crate::ring::{Packer, Unpacker, low_bits, signed};
use crate::routing::Routing;
use crate::spec::Opening;

/// What the device's half refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum DeviceError {
    /// The program is not valid.
    Circuit(CircuitError),
    /// A lent buffer is too small.
    Buffer(BufferError),
    /// The peer's message is longer than the protocol's, or its padding is not zero.
    Message,
}

impl From<CircuitError> for DeviceError {
    fn from(error: CircuitError) -> Self {
        Self::Circuit(error)
    }
}

impl From<BufferError> for DeviceError {
    fn from(error: BufferError) -> Self {
        Self::Buffer(error)
    }
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Circuit(error) => error.fmt(f),
            Self::Buffer(error) => error.fmt(f),
            Self::Message => f.write_str("the server's message does not have the protocol's length and padding"),
        }
    }
}

impl core::error::Error for DeviceError {}

/// Words of work space for `program` when `tile` tokens of a linear gate are masked at a time.
///
/// # Errors
/// [`CircuitError`].
pub fn work_words(program: &Program, tile: u16) -> Result<usize, CircuitError> {
    struct Measure {
        tile: u16,
        words: usize,
    }
    impl Party for Measure {
        type Error = CircuitError;
        fn gate(&mut self, gate: &Gate) -> Result<(), CircuitError> {
            let needed = match &gate.operand {
                Operand::Linear(linear) => linear::device_words(linear, self.tile.min(linear.rows)),
                Operand::Product(product) => product_words(product),
                Operand::Combine(combine) => combine::device_words(combine, gate.elements()),
                Operand::Embed(embed) => embed.width.into(),
                Operand::Private => 0,
            };
            self.words = self.words.max(needed);
            Ok(())
        }
    }
    let mut measure = Measure { tile, words: 0 };
    program.walk(&mut measure)?;
    Ok(measure.words)
}

fn product_words(product: &Product) -> usize {
    let rows = usize::from(product.rows);
    2 * rows * usize::from(product.right.depth) + 2 * usize::from(product.left.depth) + usize::from(product.width())
}

/// Where a call left off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The frame in `tx` is ready to go; call again with an empty one.
    Flush,
    /// All input is used; call again with the next frame.
    Input,
    /// The stream is complete (and `tx` empty).
    Done,
}

/// The frame being filled; every frame but a message's last is filled to the end.
#[derive(Debug)]
pub struct Outgoing<'b> {
    /// Room for the frame's payload.
    pub buffer: &'b mut [u8],
    /// Bytes filled.
    pub len: usize,
}

impl<'b> Outgoing<'b> {
    /// An empty frame.
    pub fn new(buffer: &'b mut [u8]) -> Self {
        Self { buffer, len: 0 }
    }

    #[inline]
    fn push(&mut self, packer: &mut Packer, value: u32, bits: u8) -> bool {
        packer.push(value, bits, self.buffer, &mut self.len)
    }

    fn finish(&mut self, packer: &mut Packer) -> bool {
        packer.finish(self.buffer, &mut self.len)
    }
}

/// Whether a part of the stream is complete, or why it pauses.
enum Flow {
    Complete,
    Pause(Step),
}

/// The offline phase of one inference: the corrections `c` of all gates whose operands do not
/// depend on the online phase, packed as one message.
#[derive(Debug)]
pub struct Offline {
    program: Program,
    keys: DeviceKeys,
    tile: u16,
    gate: Option<Gate>,
    /// Next element of the gate.
    element: u32,
    /// Elements whose masks stand in the work space, from the tile's first.
    ready: u32,
    packer: Packer,
    flushed: bool,
}

impl Offline {
    /// Starts the offline phase of `program`, masking `tile` tokens at a time.
    ///
    /// # Errors
    /// [`DeviceError::Buffer`] when `work_len` is less than [`work_words`].
    pub fn new(program: Program, keys: DeviceKeys, tile: u16, work_len: usize) -> Result<Self, DeviceError> {
        let tile = tile.max(1);
        BufferError::check("device workspace", work_words(&program, tile)?, work_len)?;
        let gate = program.gate(0)?;
        Ok(Self { program, keys, tile, gate, element: 0, ready: 0, packer: Packer::default(), flushed: false })
    }

    /// Continues. Never asks for input.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn advance(&mut self, work: &mut [u32], tx: &mut Outgoing<'_>) -> Result<Step, DeviceError> {
        while let Some(gate) = &self.gate {
            if gate.corrects_offline() {
                let Flow::Complete = correct(
                    gate,
                    &self.keys,
                    self.tile,
                    &mut self.element,
                    &mut self.ready,
                    work,
                    &mut self.packer,
                    tx,
                )?
                else {
                    return Ok(Step::Flush);
                };
            }
            let next = gate.id + 1;
            (self.element, self.ready) = (0, 0);
            self.gate = self.program.gate(next)?;
        }
        if !self.flushed {
            self.flushed = tx.finish(&mut self.packer);
            if tx.len > 0 {
                return Ok(Step::Flush);
            }
        }
        work.zeroize();
        Ok(Step::Done)
    }
}

/// Packs corrections of one gate from `element` on.
#[expect(clippy::too_many_arguments, reason = "the parts of one state, borrowed apart")]
fn correct(
    gate: &Gate,
    keys: &DeviceKeys,
    tile: u16,
    element: &mut u32,
    ready: &mut u32,
    work: &mut [u32],
    packer: &mut Packer,
    tx: &mut Outgoing<'_>,
) -> Result<Flow, DeviceError> {
    let Some(purpose) = gate.response.corrected_to() else { return Ok(Flow::Complete) };
    let mut masks = Stream::new(&keys.run, StreamId::new(gate.id, purpose));
    masks.seek(u64::from(*element));
    let (tile_rows, outputs) = match &gate.operand {
        Operand::Linear(linear) => (tile.min(linear.rows), u32::from(linear.outputs)),
        _ => (1, gate.elements()),
    };
    let tile_elements = (u32::from(tile_rows) * outputs).max(1);
    while *element < gate.elements() {
        let first = *element / tile_elements * tile_elements;
        if *ready <= *element {
            match &gate.operand {
                Operand::Linear(linear) => {
                    let row = (first / outputs.max(1)) as u16;
                    let rows = tile_rows.min(linear.rows - row);
                    linear::device_masks(gate.id, linear, keys, row, rows, work)?;
                }
                Operand::Combine(combine) => {
                    combine::device_masks(combine, gate.elements(), &keys.run, work)?;
                }
                Operand::Private | Operand::Embed(_) | Operand::Product(_) => {}
            }
            *ready = (first + tile_elements).min(gate.elements());
        }
        let mask = work.get((*element - first) as usize).copied().unwrap_or(0);
        // The draw is taken back by the seek above when the frame is full.
        if !tx.push(packer, gate::correction(masks.draw(), mask), gate.bits()) {
            return Ok(Flow::Pause(Step::Flush));
        }
        *element += 1;
    }
    Ok(Flow::Complete)
}

/// Where the device stands in a product.
#[derive(Clone, Copy, Debug, Default)]
struct ProductPlace {
    head: u16,
    row: u16,
    /// Elements taken of the operand, or given of the row.
    done: usize,
    part: ProductPart,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ProductPart {
    /// Taking `E_y` of a head.
    #[default]
    Right,
    /// Taking one row of `E_x`.
    Left,
    /// Giving one row of corrections.
    Give,
}

/// What the device does next at its gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// A product's operands come and its corrections go.
    Product,
    /// The gate's response.
    Respond,
    /// The last frame of a message goes.
    Close {
        /// The gate is over after it.
        gate_ends: bool,
    },
}

/// The online phase of one program.
#[derive(Debug)]
pub struct Online {
    program: Program,
    keys: DeviceKeys,
    gate: Option<Gate>,
    stage: Stage,
    /// Next element of the message.
    element: u32,
    product: ProductPlace,
    /// A reveal's masks, or a row of an embedding, stand in the work space.
    masked: bool,
    /// What a router chose, once it is known.
    route: u8,
    /// The margin of the gate's signs, once the server has named it.
    margin: Option<u16>,
    /// Bytes of the server's message that have not come yet.
    inbound: usize,
    packer: Packer,
    unpacker: Unpacker,
}

impl Online {
    /// Starts the online phase of `program`.
    ///
    /// # Errors
    /// [`DeviceError::Buffer`] when `work_len` is less than [`work_words`] for a tile of 1.
    pub fn new(program: Program, keys: DeviceKeys, work_len: usize) -> Result<Self, DeviceError> {
        BufferError::check("device workspace", work_words(&program, 1)?, work_len)?;
        let mut online = Self {
            program,
            keys,
            gate: None,
            stage: Stage::Respond,
            element: 0,
            product: ProductPlace::default(),
            masked: false,
            route: 0,
            margin: None,
            inbound: 0,
            packer: Packer::default(),
            unpacker: Unpacker::default(),
        };
        online.enter(0)?;
        Ok(online)
    }

    /// The model that a router chose, after [`Step::Done`]. Always one, and the first where none won or what the server said is
    /// not a model (the second where routes go by a margin and no answer is clear): an error would tell the server about what it made the device read.
    #[must_use]
    pub const fn route(&self) -> u8 {
        self.route
    }

    /// Bytes of the server's current message that have not come yet.
    #[must_use]
    pub const fn inbound(&self) -> usize {
        self.inbound
    }

    /// Continues with `rx`, taking bytes off its front. After [`Step::Done`] of a program that answers the logits,
    /// as [`signed`] values, or its label's one-hot stand in `work`.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn advance(
        &mut self,
        input: &[i16],
        work: &mut [u32],
        rx: &mut &[u8],
        tx: &mut Outgoing<'_>,
    ) -> Result<Step, DeviceError> {
        loop {
            let Some(gate) = self.gate.take() else { return Ok(Step::Done) };
            let before = rx.len();
            let flow = match self.stage {
                Stage::Product => self.multiply(&gate, work, rx, tx),
                Stage::Respond => match gate.response {
                    Response::Share { bits } => match &gate.operand {
                        Operand::Embed(embed) => self.embed(&gate, embed, bits, input, work, tx),
                        _ => self.share(&gate, bits, input, tx),
                    },
                    Response::Requantise(_) | Response::Table { .. } | Response::Margin { .. } => {
                        self.answer(&gate, rx, tx)
                    }
                    Response::Remask { .. } => Ok(Flow::Complete),
                    Response::Tell { opening, .. } => self.learn(&gate, opening, work, rx),
                    Response::Reveal { bits } => self.reveal(&gate, bits, work, rx),
                },
                Stage::Close { .. } => Ok(self.close(tx)),
            };
            let next = gate.id + 1;
            let sends_nothing =
                matches!(gate.response, Response::Remask { .. } | Response::Tell { .. } | Response::Reveal { .. });
            self.gate = Some(gate);
            // Of this gate's message; the next gate may begin with one as well.
            self.inbound = self.inbound.saturating_sub(before - rx.len());
            match (flow?, self.stage) {
                (Flow::Pause(step), _) => return Ok(step),
                (Flow::Complete, Stage::Product) => self.stage = Stage::Close { gate_ends: false },
                (Flow::Complete, Stage::Respond) if sends_nothing => self.enter(next)?,
                (Flow::Complete, Stage::Respond) => self.stage = Stage::Close { gate_ends: true },
                (Flow::Complete, Stage::Close { gate_ends: true }) => self.enter(next)?,
                (Flow::Complete, Stage::Close { gate_ends: false }) => self.begin(Stage::Respond),
            }
        }
    }

    /// Moves to gate `id`.
    fn enter(&mut self, id: u16) -> Result<(), DeviceError> {
        self.gate = self.program.gate(id)?;
        self.product = ProductPlace::default();
        let product = self.gate.as_ref().is_some_and(|gate| matches!(gate.operand, Operand::Product(_)));
        self.begin(if product { Stage::Product } else { Stage::Respond });
        Ok(())
    }

    fn begin(&mut self, stage: Stage) {
        self.stage = stage;
        self.element = 0;
        self.masked = false;
        self.margin = None;
        let wanted = |kind| match stage {
            Stage::Product => kind == MessageKind::Operands,
            _ => matches!(kind, MessageKind::Index | MessageKind::Tell | MessageKind::Reveal),
        };
        let messages = self.gate.as_ref().map(Gate::messages);
        self.inbound =
            messages.iter().flatten().find(|message| wanted(message.kind)).map_or(0, |message| message.bytes());
    }

    /// Ends a message: its last frame goes.
    fn close(&mut self, tx: &mut Outgoing<'_>) -> Flow {
        if !tx.finish(&mut self.packer) || tx.len > 0 {
            return Flow::Pause(Step::Flush);
        }
        Flow::Complete
    }

    /// Input gate: `x + r`.
    fn share(&mut self, gate: &Gate, bits: u8, input: &[i16], tx: &mut Outgoing<'_>) -> Result<Flow, DeviceError> {
        BufferError::check("input", gate.elements() as usize, input.len())?;
        let mut masks = Stream::new(&self.keys.run, StreamId::new(gate.id, Purpose::WireMask));
        masks.seek(u64::from(self.element));
        for value in input.iter().take(gate.elements() as usize).skip(self.element as usize) {
            let share = (i32::from(*value) as u32).wrapping_add(masks.draw());
            if !tx.push(&mut self.packer, share, bits) {
                return Ok(Flow::Pause(Step::Flush));
            }
            self.element += 1;
        }
        Ok(Flow::Complete)
    }

    /// Embedding gate: the masked words, then row by row what makes shares of their vectors. On its own, so that programs without one
    /// do not have its streams on their stack.
    #[inline(never)]
    fn embed(
        &mut self,
        gate: &Gate,
        embed: &Embed,
        bits: u8,
        input: &[i16],
        work: &mut [u32],
        tx: &mut Outgoing<'_>,
    ) -> Result<Flow, DeviceError> {
        let words = u32::from(embed.words.count);
        BufferError::check("input", words as usize, input.len())?;
        let mut sigma = Stream::new(&self.keys.run, StreamId::new(gate.id, Purpose::IndexMask));
        if self.element < words {
            sigma.seek(self.element.into());
        }
        for word in input.iter().take(words as usize).skip(self.element as usize) {
            let masked = embed::device_word(*word, sigma.draw());
            if !tx.push(&mut self.packer, masked, bits) {
                return Ok(Flow::Pause(Step::Flush));
            }
            self.element += 1;
        }
        let width = u32::from(embed.width).max(1);
        while self.element < words + gate.elements() {
            let place = self.element.saturating_sub(words);
            if !self.masked {
                embed::device_row(gate.id, embed, &self.keys, (place / width) as u16, input, work)?;
                self.masked = true;
            }
            let sum = work.get((place % width) as usize).copied().unwrap_or(0);
            if !tx.push(&mut self.packer, sum, bits) {
                return Ok(Flow::Pause(Step::Flush));
            }
            self.element += 1;
            self.masked = (place + 1) % width != 0;
        }
        Ok(Flow::Complete)
    }

    /// Opening: the pads that the masked indices select. The index is public; which pad it selects
    /// costs the same for every index.
    fn answer(&mut self, gate: &Gate, rx: &mut &[u8], tx: &mut Outgoing<'_>) -> Result<Flow, DeviceError> {
        let mut pads = Stream::new(&self.keys.run, StreamId::new(gate.id, Purpose::TablePad));
        let entries = gate.response.entries();
        let both = matches!(gate.response, Response::Requantise(_));
        if both {
            pads.seek(u64::from(self.element) * 2);
        }
        let signs = matches!(gate.response, Response::Margin { .. });
        if signs && self.margin.is_none() {
            let Some(margin) = self.unpacker.pull(gate.response.index_bits(), rx) else {
                return Ok(Flow::Pause(Step::Input));
            };
            self.margin = Some(margin as u16);
        }
        while self.element < gate.elements() {
            if !self.packer.ready(tx.buffer, &mut tx.len) {
                return Ok(Flow::Pause(Step::Flush));
            }
            let Some(index) = self.unpacker.pull(gate.response.index_bits(), rx) else {
                return Ok(Flow::Pause(Step::Input));
            };
            let pad = if both {
                // Both pads of the element are drawn, in sequence: an eighth of the blocks.
                let (zero, one) = (pads.draw(), pads.draw());
                let select = 0u32.wrapping_sub(index);
                zero ^ (select & (zero ^ one))
            } else if let Response::Margin { opening, even } = gate.response {
                let margin = margin::margin_of(self.element, even, self.margin.unwrap_or(0).into());
                let [one, other] = margin::places(index, margin, opening.index_bits);
                let mut pad = |place| pads.at(table::entry(self.element, entries, place));
                pad(one).wrapping_add(pad(other))
            } else {
                pads.at(table::entry(self.element, entries, index))
            };
            let taken = tx.push(&mut self.packer, pad, gate.out.bits);
            debug_assert!(taken, "asked above");
            self.element += 1;
        }
        self.end_of_message(rx)
    }

    fn end_of_message(&mut self, rx: &[u8]) -> Result<Flow, DeviceError> {
        if self.unpacker.finish() && rx.is_empty() { Ok(Flow::Complete) } else { Err(DeviceError::Message) }
    }

    /// What the server looked up, under the pads that its indices select. A router's choice is taken off the front.
    fn learn(&mut self, gate: &Gate, opening: Opening, work: &mut [u32], rx: &mut &[u8]) -> Result<Flow, DeviceError> {
        BufferError::check("device workspace", gate.elements() as usize, work.len())?;
        let mut pads = Stream::new(&self.keys.run, StreamId::new(gate.id, Purpose::TablePad));
        let bits = gate.out.bits;
        while self.element < gate.elements() {
            let Some(message) = self.unpacker.pull(opening.index_bits + bits, rx) else {
                return Ok(Flow::Pause(Step::Input));
            };
            let index = tell::device_index(opening, message);
            let pad = pads.at(table::entry(self.element, gate.response.entries(), index));
            if let Some(slot) = work.get_mut(self.element as usize) {
                *slot = tell::device_value(opening, message, pad, bits);
            }
            self.element += 1;
        }
        if let Program::Router { routing, models, .. } = self.program {
            let (words, route) = match routing {
                Routing::Open | Routing::Device => {
                    let told = work.get(..gate.elements() as usize).unwrap_or(&[]);
                    (usize::from(models), choice(told, models, self.program.by_margin()))
                }
                Routing::Private { .. } => (1, below(work.first().copied().unwrap_or(0), models)),
            };
            self.route = route;
            let told = (gate.elements() as usize).min(work.len());
            work.copy_within(words.min(told)..told, 0);
        }
        self.end_of_message(rx)
    }

    /// Output gate: the server's share less the operand's mask.
    fn reveal(&mut self, gate: &Gate, bits: u8, work: &mut [u32], rx: &mut &[u8]) -> Result<Flow, DeviceError> {
        if !self.masked {
            match &gate.operand {
                Operand::Linear(linear) => {
                    linear::device_masks(gate.id, linear, &self.keys, 0, linear.rows, work)?;
                }
                Operand::Combine(combine) => {
                    combine::device_masks(combine, gate.elements(), &self.keys.run, work)?;
                }
                Operand::Private | Operand::Embed(_) | Operand::Product(_) => {}
            }
            self.masked = true;
        }
        while self.element < gate.elements() {
            let Some(y_hat) = self.unpacker.pull(bits, rx) else { return Ok(Flow::Pause(Step::Input)) };
            if let Some(slot) = work.get_mut(self.element as usize) {
                *slot = signed(low_bits(y_hat.wrapping_sub(*slot), bits), bits) as u32;
            }
            self.element += 1;
        }
        self.end_of_message(rx)
    }

    /// Product: takes `E_y`, then row by row takes `E_x` and gives the corrections of
    /// `z_D = u - E_x R_y - R_x E_y`.
    fn multiply(
        &mut self,
        gate: &Gate,
        work: &mut [u32],
        rx: &mut &[u8],
        tx: &mut Outgoing<'_>,
    ) -> Result<Flow, DeviceError> {
        let Operand::Product(product) = &gate.operand else { return Ok(Flow::Complete) };
        let have = work.len();
        let rows = usize::from(product.rows);
        let (left, right) = (usize::from(product.left.depth), usize::from(product.right.depth));
        let short = || BufferError { buffer: "device workspace", needed: product_words(product), have };
        let (e_right, rest) = work.split_at_mut_checked(rows * right).ok_or_else(short)?;
        let (r_right, rest) = rest.split_at_mut_checked(rows * right).ok_or_else(short)?;
        let (e_left, rest) = rest.split_at_mut_checked(left).ok_or_else(short)?;
        let (r_left, rest) = rest.split_at_mut_checked(left).ok_or_else(short)?;
        let given = rest.get_mut(..usize::from(product.width())).ok_or_else(short)?;

        while self.product.head < product.heads {
            let place = &mut self.product;
            match place.part {
                ProductPart::Right => {
                    if !take(&mut self.unpacker, gate.bits(), rx, e_right, &mut place.done) {
                        return Ok(Flow::Pause(Step::Input));
                    }
                    let depth = right.max(1);
                    for (row, masks) in (0..product.rows).zip(r_right.chunks_exact_mut(depth)) {
                        draw(&self.keys, &product.right, place.head, row, masks);
                    }
                    (place.part, place.row, place.done) = (ProductPart::Left, 0, 0);
                }
                ProductPart::Left => {
                    if !take(&mut self.unpacker, gate.bits(), rx, e_left, &mut place.done) {
                        return Ok(Flow::Pause(Step::Input));
                    }
                    draw(&self.keys, &product.left, place.head, place.row, r_left);
                    let first = gate.out.run(place.head, place.row);
                    let mut pads = Stream::new(&self.keys.run, StreamId::new(gate.id, Purpose::OperandPad));
                    let mut rho = Stream::new(&self.keys.run, StreamId::new(gate.id, Purpose::IndexMask));
                    pads.seek(u64::from(first));
                    rho.seek(u64::from(first));
                    for (column, slot) in given.iter_mut().enumerate() {
                        let mask = crate::gate::product::entry(product, e_left, r_right, column)
                            .wrapping_add(crate::gate::product::entry(product, r_left, e_right, column))
                            .wrapping_sub(pads.draw());
                        *slot = gate::correction(rho.draw(), mask);
                    }
                    (place.part, place.done) = (ProductPart::Give, 0);
                }
                ProductPart::Give => {
                    while let Some(value) = given.get(place.done) {
                        if !tx.push(&mut self.packer, *value, gate.bits()) {
                            return Ok(Flow::Pause(Step::Flush));
                        }
                        place.done += 1;
                    }
                    place.row += 1;
                    (place.part, place.done) = (ProductPart::Left, 0);
                    if place.row == product.rows {
                        place.head += 1;
                        place.part = ProductPart::Right;
                    }
                }
            }
        }
        self.end_of_message(rx)
    }
}

/// The index, or 0 if it is not below `models`.
fn below(index: u32, models: u16) -> u8 {
    u32::conditional_select(&0, &index, index.ct_lt(&u32::from(models))) as u8
}

/// Takes elements until `into` is full; `false` when `rx` runs out first.
fn take(unpacker: &mut Unpacker, bits: u8, rx: &mut &[u8], into: &mut [u32], done: &mut usize) -> bool {
    while let Some(slot) = into.get_mut(*done) {
        let Some(value) = unpacker.pull(bits, rx) else { return false };
        *slot = value;
        *done += 1;
    }
    true
}

/// Draws a wire's masks for one row of one head.
fn draw(keys: &DeviceKeys, view: &HeadView, head: u16, row: u16, masks: &mut [u32]) {
    let mut source = Stream::new(&keys.run, StreamId::new(view.wire.gate, Purpose::WireMask));
    source.seek(u64::from(view.run(head, row)));
    source.fill(masks);
}
