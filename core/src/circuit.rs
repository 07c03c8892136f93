//! Programs as sequences of gates.
//!
//! The architecture of a model and of the router is written once ([`crate::model`]) as calls on a
//! [`Circuit`], which hands each [`Gate`] to a [`Party`]. A gate is a description: which wires it
//! reads, how it opens them, where its weights, its stock and its corrections lie. Every role is an
//! interpretation of the same sequence, so that no two roles can disagree on a shape, an order or
//! an offset. A description holds no data and does not grow with weights or tables; a party that
//! must stop between gates (the device, the server) finds gate number `n` again by walking the
//! sequence, and so keeps nothing per layer.

use core::fmt;

use heapless::Vec;

use crate::gate::margin;
use crate::model;
use crate::prg::{BLOCK_WORDS, Purpose};
use crate::ring::packed_bytes;
use crate::routing::{Bias, Routing};
use crate::spec::{
    MAX_COLUMNS, MAX_LAYERS, MAX_MODELS, MAX_WORD_BITS, ModelSpec, Opening, Output, PoolSpec, RouterSpec, Words,
};

/// Most wires that one linear gate reads: the input, and two per layer.
pub const MAX_TERMS: usize = 1 + 2 * MAX_LAYERS;

/// A program of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Slot {
    /// The router.
    Router,
    /// The model of this index.
    Model(u8),
}

/// Programs of a pool: its models and its router.
pub const SLOTS: usize = MAX_MODELS + 1;

impl Slot {
    /// One byte for key derivations and stores: 0 is the router, `1 + i` is model `i`.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Router => 0,
            Self::Model(index) => index.saturating_add(1),
        }
    }

    /// The slot of a [`code`](Self::code).
    #[must_use]
    pub const fn from_code(code: u8) -> Self {
        match code.checked_sub(1) {
            None => Self::Router,
            Some(index) => Self::Model(index),
        }
    }
}

/// A shared tensor: the server holds `x + r`, the device knows where `r` comes from.
///
/// Elements lie in `blocks` (one per attention head, else 1) of `rows x width`, row by row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire {
    /// The gate that made it; its masks are this gate's [`Purpose::WireMask`](crate::prg::Purpose).
    pub gate: u16,
    /// Tokens.
    pub rows: u16,
    /// Columns of one block.
    pub width: u16,
    /// Blocks side by side.
    pub blocks: u16,
    /// `k`: the wire is known modulo `2^k` only.
    pub bits: u8,
    /// Place of element 0 in the arena of a party that holds wires.
    pub at: u32,
}

impl Wire {
    /// Columns over all blocks.
    #[must_use]
    pub const fn columns(&self) -> u16 {
        self.width.saturating_mul(self.blocks)
    }

    /// Elements.
    #[must_use]
    pub const fn elements(&self) -> u32 {
        self.rows as u32 * self.width as u32 * self.blocks as u32
    }

    /// First element of `row` within `block`; `width` elements follow each other from there.
    #[must_use]
    pub const fn run(&self, block: u16, row: u16) -> u32 {
        (block as u32 * self.rows as u32 + row as u32) * self.width as u32
    }
}

/// `W·x + b` with `W` and `b` at the server, where `x` is the concatenation of the terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linear {
    /// The wires read, side by side.
    pub terms: Vec<Wire, MAX_TERMS>,
    /// Rows of the result: the terms' rows, or 1 when pooled.
    pub rows: u16,
    /// Outputs per row.
    pub outputs: u16,
    /// The rows of the terms are summed first.
    pub pooled: bool,
    /// Place of the first weight. Weights lie term by term, each `outputs x columns`, row-major.
    pub weights_at: u32,
    /// Place of the first bias; biases are `rows x outputs`.
    pub biases_at: u32,
}

impl Linear {
    /// Weights of the gate.
    #[must_use]
    pub fn weights(&self) -> u32 {
        self.terms.iter().map(|term| u32::from(term.columns()) * u32::from(self.outputs)).sum()
    }

    /// Columns of the widest term.
    #[must_use]
    pub fn widest(&self) -> u16 {
        self.terms.iter().map(Wire::columns).max().unwrap_or(0)
    }
}

/// Rows of an embedding of the device's private words, summed: words follow each other, as many to each row of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Embed {
    /// The words.
    pub words: Words,
    /// Rows of the result; they divide the words.
    pub rows: u16,
    /// Words of each row.
    pub each: u16,
    /// Columns of the embedding.
    pub width: u16,
    /// Place of the first weight: `2^bits x width`, row by row.
    pub weights_at: u32,
}

impl Embed {
    /// `None` when the rows do not divide the words, or when there are more entries or pads than an `u32` counts.
    fn new(words: Words, rows: u16, width: u16, weights_at: u32) -> Option<Self> {
        let each = words.count.checked_div(rows).filter(|each| each * rows == words.count)?;
        if words.bits > MAX_WORD_BITS || width > MAX_COLUMNS {
            return None;
        }
        let embed = Self { words, rows, each, width, weights_at };
        (u32::from(words.count) << words.bits).checked_mul(u32::from(embed.pad_words()))?;
        Some(embed)
    }

    /// Weights of the gate.
    #[must_use]
    pub const fn weights(&self) -> u32 {
        (self.width as u32) << self.words.bits
    }

    /// Entries in the dealer's stock.
    #[must_use]
    pub const fn entries(&self) -> u32 {
        (self.words.count as u32).wrapping_mul(self.weights())
    }

    /// Words of the pads' stream for each entry: within a block, or whole blocks, so that every entry takes as many blocks.
    #[must_use]
    pub const fn pad_words(&self) -> u16 {
        const BLOCK: u16 = BLOCK_WORDS as u16;
        if self.width < BLOCK { self.width.next_power_of_two() } else { self.width.next_multiple_of(BLOCK) }
    }

    /// Blocks of the weight masks' stream for each vector: a vector begins with a block.
    #[must_use]
    pub const fn mask_blocks(&self) -> u32 {
        self.width.div_ceil(BLOCK_WORDS as u16) as u32
    }

    /// First element of entry `index` of `word` in the stock.
    #[must_use]
    pub const fn entry(&self, word: u16, index: u32) -> u64 {
        word as u64 * self.weights() as u64 + index as u64 * self.width as u64
    }

    /// The words of `row`.
    #[must_use]
    pub const fn words_of(&self, row: u16) -> core::ops::Range<u16> {
        let first = row.saturating_mul(self.each);
        first..first.saturating_add(self.each)
    }
}

/// One operand of a product: per head, `rows x depth` elements of a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadView {
    /// The wire.
    pub wire: Wire,
    /// Column of head 0 when all heads lie in one block.
    pub column: u16,
    /// Columns per head.
    pub depth: u16,
}

impl HeadView {
    /// First element, within the wire, of `row` of `head`.
    #[must_use]
    pub const fn run(&self, head: u16, row: u16) -> u32 {
        if self.wire.blocks > 1 {
            self.wire.run(head, row)
        } else {
            self.wire.run(0, row) + self.column as u32 + head as u32 * self.depth as u32
        }
    }
}

/// A product of two shared matrices, per head: `left · rightᵀ` or `left · right`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// Left operand, `rows x left.depth` per head.
    pub left: HeadView,
    /// Right operand, `rows x right.depth` per head.
    pub right: HeadView,
    /// Heads.
    pub heads: u16,
    /// Rows of either operand: the tokens.
    pub rows: u16,
    /// Whether the right operand is transposed (then the depths agree).
    pub transposed: bool,
}

impl Product {
    /// Columns of the result per head.
    #[must_use]
    pub const fn width(&self) -> u16 {
        if self.transposed { self.rows } else { self.right.depth }
    }

    /// Elements of one operand over all heads.
    #[must_use]
    pub const fn operand_elements(&self, view: &HeadView) -> u32 {
        self.heads as u32 * self.rows as u32 * view.depth as u32
    }
}

/// A public linear combination of a wire of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combination {
    /// `x_i - x_j` for all pairs of [`Groups::pairs`].
    Differences {
        /// Public scores are added in units of `2^scale`.
        scale: u8,
    },
    /// Wins of each item, given for all pairs whether `i` beats `j` (1) or not (0).
    Wins,
    /// Wins less losses of each item, given for all pairs whether `i` beats `j` (1), loses (-1), or neither (0).
    Balance,
    /// The number whose bit `p` is the result of pair `p` of the first group, and the wins of the others.
    Tournament,
    /// The items of the last group themselves, to be revealed.
    Last,
}

/// Items side by side that are compared with those of their own group only. A group may be empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups(pub [u16; 2]);

impl Groups {
    /// One group.
    #[must_use]
    pub const fn one(items: u16) -> Self {
        Self([0, items])
    }

    /// Items of both groups.
    #[must_use]
    pub const fn items(self) -> u16 {
        self.0[0].saturating_add(self.0[1])
    }

    /// Items of the larger group.
    #[must_use]
    pub const fn largest(self) -> u16 {
        if self.0[0] > self.0[1] { self.0[0] } else { self.0[1] }
    }

    /// All `(i, j)`, `i < j`, of one group, group by group and in lexicographic order.
    pub fn pairs(self) -> impl Iterator<Item = (u16, u16)> {
        let [first, _] = self.0;
        [0..first, first..self.items()].into_iter().flat_map(|group| {
            let end = group.end;
            group.flat_map(move |i| (i + 1..end).map(move |j| (i, j)))
        })
    }

    /// How many [`pairs`](Self::pairs) there are.
    #[must_use]
    pub const fn pair_count(self) -> u16 {
        const fn of(items: u16) -> u16 {
            items.saturating_mul(items.saturating_sub(1)) / 2
        }
        of(self.0[0]).saturating_add(of(self.0[1]))
    }
}

/// A public combination of `wire` over groups of items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Combine {
    /// The wire read, of one row.
    pub wire: Wire,
    /// Which combination.
    pub combination: Combination,
    /// Items compared.
    pub groups: Groups,
}

impl Combine {
    /// Elements of the result.
    #[must_use]
    pub const fn elements(&self) -> u16 {
        match self.combination {
            Combination::Differences { .. } => self.groups.pair_count(),
            Combination::Wins | Combination::Balance => self.groups.items(),
            Combination::Tournament => self.groups.0[1].saturating_add(1),
            Combination::Last => self.groups.0[1],
        }
    }
}

/// What a gate opens.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "one at a time, and no heap to box it on")]
pub enum Operand {
    /// The device's private input.
    Private,
    /// Secret vectors of the device's private words.
    Embed(Embed),
    /// Secret weights times shared wires.
    Linear(Linear),
    /// A product of shared wires.
    Product(Product),
    /// A public combination.
    Combine(Combine),
}

impl From<Linear> for Operand {
    fn from(linear: Linear) -> Self {
        Self::Linear(linear)
    }
}

/// The contents of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// The server's (and the dealer's), from this place in the tables.
    Secret {
        /// Place of the first entry.
        at: u32,
    },
    /// 1 for an index of at least 0, else 0.
    Sign,
    /// 1 for an index of exactly this, else 0.
    Equals(u16),
    /// The item that wins the tournament of this many items; 0 for results that have no winner.
    Winner(u16),
}

/// Which table each element is looked up in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// The table of the first elements.
    pub first: Table,
    /// How many elements use it.
    pub split: u32,
    /// The table of the others.
    pub rest: Table,
}

impl Lookup {
    /// The table of `element`.
    #[must_use]
    pub const fn table(&self, element: u32) -> Table {
        if element < self.split { self.first } else { self.rest }
    }
}

/// What becomes of the opened operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// The device shares its input.
    Share {
        /// Bits.
        bits: u8,
    },
    /// Round to `index_bits` signed bits under sharing.
    Requantise(Opening),
    /// Share a linear gate's result again under a fresh mask of `bits` bits, exactly and without a message: the device's
    /// offline correction replaces the operand's mask, which has no place in a stream, by the wire's.
    Remask {
        /// Bits.
        bits: u8,
    },
    /// Look up in a table under sharing.
    Table {
        /// The index.
        opening: Opening,
        /// The entries.
        table: Table,
    },
    /// Share by how much each operand is clear of 0: 1 from a margin on, -1 below it on the other side, else 0. The server
    /// chooses the margin of each run, in the message of the indices; of the first `even` elements it is 0.
    Margin {
        /// The index.
        opening: Opening,
        /// Elements without a margin.
        even: u32,
    },
    /// Look up in a table; the device learns what is found.
    Tell {
        /// The index.
        opening: Opening,
        /// The entries.
        lookup: Lookup,
    },
    /// The device learns the operand modulo `2^bits`.
    Reveal {
        /// Bits.
        bits: u8,
    },
}

impl Response {
    /// `k`: the bits of the operand that this response needs.
    #[must_use]
    pub const fn bits(&self) -> u8 {
        match self {
            Self::Requantise(opening)
            | Self::Table { opening, .. }
            | Self::Margin { opening, .. }
            | Self::Tell { opening, .. } => opening.bits(),
            Self::Share { bits } | Self::Remask { bits } | Self::Reveal { bits } => *bits,
        }
    }

    /// The table that `element` is looked up in, if it is.
    #[must_use]
    pub const fn table(&self, element: u32) -> Option<Table> {
        match self {
            Self::Table { table, .. } => Some(*table),
            Self::Tell { lookup, .. } => Some(lookup.table(element)),
            Self::Margin { .. } => Some(Table::Sign),
            Self::Share { .. } | Self::Requantise(_) | Self::Remask { .. } | Self::Reveal { .. } => None,
        }
    }

    /// Tables of each element, of which the device sends the sum of the chosen pads.
    #[must_use]
    pub const fn tables(&self) -> u32 {
        match self {
            Self::Margin { .. } => margin::TABLES,
            _ => 1,
        }
    }

    /// Entries in the server's stock per element.
    #[must_use]
    pub const fn entries(&self) -> u32 {
        match self {
            Self::Requantise(_) => 2,
            Self::Table { opening, .. } | Self::Margin { opening, .. } | Self::Tell { opening, .. } => {
                self.tables() << opening.index_bits
            }
            Self::Share { .. } | Self::Remask { .. } | Self::Reveal { .. } => 0,
        }
    }

    /// Whether the device gives a correction of the operand's mask, and for which mask.
    #[must_use]
    pub const fn corrected_to(&self) -> Option<Purpose> {
        match self {
            Self::Requantise(_) | Self::Table { .. } | Self::Margin { .. } | Self::Tell { .. } => {
                Some(Purpose::IndexMask)
            }
            Self::Remask { .. } => Some(Purpose::WireMask),
            Self::Share { .. } | Self::Reveal { .. } => None,
        }
    }

    /// Bits of the masked index that the server sends per element.
    #[must_use]
    pub const fn index_bits(&self) -> u8 {
        match self {
            Self::Requantise(_) => 1,
            Self::Table { opening, .. } | Self::Margin { opening, .. } | Self::Tell { opening, .. } => {
                opening.index_bits
            }
            Self::Share { .. } | Self::Remask { .. } | Self::Reveal { .. } => 0,
        }
    }
}

/// One gate: an operand, what is done with it, and where everything of it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Number in the program.
    pub id: u16,
    /// What is opened.
    pub operand: Operand,
    /// What becomes of it.
    pub response: Response,
    /// The result; of what the device learns, its shape.
    pub out: Wire,
    /// First byte of the operand's part of the dealer's stock.
    pub stock_at: u64,
    /// First byte of the response's part of the dealer's stock.
    pub entries_at: u64,
    /// First bit of this gate's corrections in the device's offline message.
    pub corrections_at: u64,
}

impl Gate {
    /// `k`: the bits of the operand that are opened.
    #[must_use]
    pub const fn bits(&self) -> u8 {
        self.response.bits()
    }

    /// Elements.
    #[must_use]
    pub const fn elements(&self) -> u32 {
        self.out.elements()
    }

    /// Whether the device's correction `c` does not depend on the online phase.
    #[must_use]
    pub fn corrects_offline(&self) -> bool {
        matches!(self.operand, Operand::Linear(_) | Operand::Combine(_)) && self.response.corrected_to().is_some()
    }

    /// Elements of the dealer's correlation for the operand, of [`bits`](Self::bits) bits each.
    #[must_use]
    pub fn correlated(&self) -> u32 {
        match &self.operand {
            Operand::Linear(_) | Operand::Product(_) => self.elements(),
            Operand::Embed(embed) => embed.entries(),
            Operand::Private | Operand::Combine(_) => 0,
        }
    }

    /// The gate's online messages, in order; none of a gate whose messages all are offline. This list is the wire
    /// format of the online phase: parties and cost model all follow it.
    #[must_use]
    pub fn messages(&self) -> Vec<Message, 4> {
        let mut messages = Vec::new();
        let mut message = |kind, elements, bits| {
            // Four is the most that any gate has: a product's two and an opening's two.
            let _ = messages.push(Message { kind, elements, bits });
        };
        if let Operand::Product(product) = &self.operand {
            let elements = product.operand_elements(&product.left) + product.operand_elements(&product.right);
            message(MessageKind::Operands, elements, self.bits());
            message(MessageKind::Correction, self.elements(), self.bits());
        }
        match self.response {
            Response::Share { bits } => {
                let words = if let Operand::Embed(embed) = &self.operand { embed.words.count } else { 0 };
                message(MessageKind::Share, u32::from(words) + self.elements(), bits);
            }
            Response::Requantise(_) | Response::Table { .. } => {
                message(MessageKind::Index, self.elements(), self.response.index_bits());
                message(MessageKind::Answer, self.elements(), self.out.bits);
            }
            Response::Margin { opening, .. } => {
                message(MessageKind::Index, 1 + self.elements(), opening.index_bits);
                message(MessageKind::Answer, self.elements(), self.out.bits);
            }
            Response::Remask { .. } => {}
            Response::Tell { opening, .. } => {
                message(MessageKind::Tell, self.elements(), opening.index_bits + self.out.bits);
            }
            Response::Reveal { bits } => message(MessageKind::Reveal, self.elements(), bits),
        }
        messages
    }
}

/// What an online message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// Device to server: the masked input; of words these, and behind them the masked vectors.
    Share,
    /// Server to device: both operands of a product, masked; per head the right one, then the left.
    Operands,
    /// Device to server: `c` of a product's opening.
    Correction,
    /// Server to device: masked indices; of [`Response::Margin`] the margin before them.
    Index,
    /// Device to server: the pads that the indices select.
    Answer,
    /// Server to device: masked indices, each with the masked entry that it selects above it.
    Tell,
    /// Server to device: the masked output.
    Reveal,
}

impl MessageKind {
    /// Whether the device sends it.
    #[must_use]
    pub const fn from_device(self) -> bool {
        matches!(self, Self::Share | Self::Correction | Self::Answer)
    }
}

/// One online message: `elements` packed elements of `bits` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub kind: MessageKind,
    /// Elements.
    pub elements: u32,
    /// Bits per element.
    pub bits: u8,
}

impl Message {
    /// Bytes, padding included.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        packed_bytes(self.elements, self.bits)
    }
}

/// Why a program cannot be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum CircuitError {
    /// A gate needs more bits of a wire than are known.
    WireTooNarrow {
        /// Bits that the gate needs.
        needed: u8,
        /// Bits that the wire has.
        have: u8,
    },
    /// More terms or elements than the kernel's types hold.
    TooLarge,
    /// The pool has no such program.
    NoSuchSlot,
}

impl fmt::Display for CircuitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WireTooNarrow { needed, have } => {
                write!(f, "a gate needs {needed} bits of a wire that is known modulo 2^{have}")
            }
            Self::TooLarge => f.write_str("a program has more elements than the kernel can address"),
            Self::NoSuchSlot => f.write_str("the pool has no such model, or no router"),
        }
    }
}

impl core::error::Error for CircuitError {}

/// A role: what is done at each gate.
pub trait Party {
    /// What can go wrong.
    type Error: From<CircuitError>;

    /// Called for each gate, in order.
    ///
    /// # Errors
    /// The role's own; it ends the walk.
    fn gate(&mut self, gate: &Gate) -> Result<(), Self::Error>;
}

/// Sizes of a program, known after a walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Gates.
    pub gates: u16,
    /// Elements of all wires.
    pub arena: u32,
    /// Weights.
    pub weights: u32,
    /// Biases.
    pub biases: u32,
    /// Table entries.
    pub tables: u32,
    /// Bytes of the dealer's stock for one inference.
    pub stock: u64,
    /// Bits of the device's offline message for one inference.
    pub corrections: u64,
}

impl Layout {
    /// Bytes of the device's offline message.
    #[must_use]
    pub const fn correction_bytes(&self) -> u64 {
        self.corrections.div_ceil(8)
    }
}

/// Hands the gates of a program to a party, one by one.
#[derive(Debug)]
pub struct Circuit<'p, P> {
    party: &'p mut P,
    layout: Layout,
}

impl<'p, P: Party> Circuit<'p, P> {
    fn new(party: &'p mut P) -> Self {
        Self { party, layout: Layout::default() }
    }

    /// The device's input as a wire of `rows x width`.
    ///
    /// # Errors
    /// The party's.
    pub fn input(&mut self, rows: u16, width: u16, bits: u8) -> Result<Wire, P::Error> {
        self.gate(Operand::Private, Response::Share { bits }, rows, width, 1, bits)
    }

    /// The secret vectors of the device's words, summed over as many words for each row, as a wire of `rows x width`.
    ///
    /// # Errors
    /// [`CircuitError::WireTooNarrow`] when a word has more than `bits` bits, [`CircuitError::TooLarge`], or the party's.
    pub fn embed(&mut self, words: Words, rows: u16, width: u16, bits: u8) -> Result<Wire, P::Error> {
        if words.bits > bits {
            return Err(CircuitError::WireTooNarrow { needed: words.bits, have: bits }.into());
        }
        let embed = Embed::new(words, rows, width, self.layout.weights).ok_or(CircuitError::TooLarge)?;
        self.layout.weights = add(self.layout.weights, embed.weights())?;
        self.gate(Operand::Embed(embed), Response::Share { bits }, rows, width, 1, bits)
    }

    /// `W·x + b` over the concatenation of `terms`, to be opened by the next call.
    ///
    /// # Errors
    /// [`CircuitError::TooLarge`].
    pub fn linear(&mut self, terms: &[Wire], outputs: u16, pooled: bool) -> Result<Linear, P::Error> {
        let rows = match terms.first() {
            Some(first) if !pooled => first.rows,
            _ => 1,
        };
        let linear = Linear {
            terms: Vec::from_slice(terms).map_err(|_| CircuitError::TooLarge)?,
            rows,
            outputs,
            pooled,
            weights_at: self.layout.weights,
            biases_at: self.layout.biases,
        };
        self.layout.weights = add(self.layout.weights, linear.weights())?;
        self.layout.biases = add(self.layout.biases, u32::from(rows) * u32::from(outputs))?;
        Ok(linear)
    }

    /// A place for a secret table of `index_bits`.
    ///
    /// # Errors
    /// [`CircuitError::TooLarge`].
    pub fn secret_table(&mut self, index_bits: u8) -> Result<Table, P::Error> {
        let at = self.layout.tables;
        self.layout.tables = add(at, 1 << index_bits)?;
        Ok(Table::Secret { at })
    }

    /// Opens `operand` and shares it again, rounded, with `bits` bits.
    ///
    /// # Errors
    /// [`CircuitError`], or the party's.
    pub fn requantise(&mut self, operand: impl Into<Operand>, opening: Opening, bits: u8) -> Result<Wire, P::Error> {
        self.opened(operand.into(), Response::Requantise(opening), bits)
    }

    /// Opens `operand` and shares what is looked up, with `bits` bits.
    ///
    /// # Errors
    /// [`CircuitError`], or the party's.
    pub fn table(
        &mut self,
        operand: impl Into<Operand>,
        opening: Opening,
        table: Table,
        bits: u8,
    ) -> Result<Wire, P::Error> {
        self.opened(operand.into(), Response::Table { opening, table }, bits)
    }

    /// Opens `combine` and shares by how much each element, but for the first `even`, is clear of 0, with `bits` bits.
    ///
    /// # Errors
    /// [`CircuitError`], or the party's.
    pub fn margin(&mut self, combine: Combine, opening: Opening, even: u32, bits: u8) -> Result<Wire, P::Error> {
        self.opened(Operand::Combine(combine), Response::Margin { opening, even }, bits)
    }

    /// Opens `combine` and tells the device what is looked up, of `bits` bits.
    ///
    /// # Errors
    /// [`CircuitError`], or the party's.
    pub fn tell(&mut self, combine: Combine, opening: Opening, lookup: Lookup, bits: u8) -> Result<(), P::Error> {
        self.opened(Operand::Combine(combine), Response::Tell { opening, lookup }, bits)?;
        Ok(())
    }

    /// Shares the result of `linear` again under a fresh mask, as a wire of `bits` bits, without a message.
    ///
    /// # Errors
    /// [`CircuitError`], or the party's.
    pub fn remask(&mut self, linear: Linear, bits: u8) -> Result<Wire, P::Error> {
        self.opened(linear.into(), Response::Remask { bits }, bits)
    }

    /// The device learns `operand` modulo `2^bits`.
    ///
    /// # Errors
    /// [`CircuitError`], or the party's.
    pub fn reveal(&mut self, operand: impl Into<Operand>, bits: u8) -> Result<Wire, P::Error> {
        self.opened(operand.into(), Response::Reveal { bits }, bits)
    }

    fn opened(&mut self, operand: Operand, response: Response, bits: u8) -> Result<Wire, P::Error> {
        let needed = response.bits();
        let narrowest = match &operand {
            Operand::Private | Operand::Embed(_) => 32,
            Operand::Linear(linear) => linear.terms.iter().map(|term| term.bits).min().unwrap_or(32),
            Operand::Product(product) => product.left.wire.bits.min(product.right.wire.bits),
            Operand::Combine(combine) => combine.wire.bits,
        };
        if narrowest < needed {
            return Err(CircuitError::WireTooNarrow { needed, have: narrowest }.into());
        }
        let (rows, width, blocks) = match &operand {
            Operand::Private | Operand::Embed(_) => (0, 0, 0),
            Operand::Linear(linear) => (linear.rows, linear.outputs, 1),
            Operand::Product(product) => (product.rows, product.width(), product.heads),
            Operand::Combine(combine) => (1, combine.elements(), 1),
        };
        self.gate(operand, response, rows, width, blocks, bits)
    }

    fn gate(
        &mut self,
        operand: Operand,
        response: Response,
        rows: u16,
        width: u16,
        blocks: u16,
        bits: u8,
    ) -> Result<Wire, P::Error> {
        let layout = &mut self.layout;
        let out = Wire { gate: layout.gates, rows, width, blocks, bits, at: layout.arena };
        let mut gate = Gate {
            id: layout.gates,
            operand,
            response,
            out,
            stock_at: layout.stock,
            entries_at: 0,
            corrections_at: layout.corrections,
        };
        gate.entries_at = gate.stock_at + packed_bytes(gate.correlated(), gate.bits()) as u64;
        let entry_bits = u64::from(gate.elements()) * u64::from(response.entries()) * u64::from(bits);
        layout.stock = gate.entries_at + entry_bits.div_ceil(8);
        if gate.corrects_offline() {
            layout.corrections += u64::from(gate.elements()) * u64::from(gate.bits());
        }
        layout.gates = layout.gates.checked_add(1).ok_or(CircuitError::TooLarge)?;
        layout.arena = add(layout.arena, out.elements())?;
        self.party.gate(&gate)?;
        Ok(out)
    }
}

fn add(sum: u32, more: u32) -> Result<u32, CircuitError> {
    sum.checked_add(more).ok_or(CircuitError::TooLarge)
}

/// One program of a pool: what runs between an input and an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Chooses among `models` models.
    Router {
        /// Shape.
        spec: RouterSpec,
        /// The words of an input, if it is made of words.
        words: Option<Words>,
        /// Models to choose from.
        models: u16,
        /// What the device learns if the router answers itself.
        output: Output,
        /// Who learns the choice.
        routing: Routing,
    },
    /// Answers with `classes` logits.
    Model {
        /// Shape.
        spec: ModelSpec,
        /// The words of an input, if it is made of words.
        words: Option<Words>,
        /// Logits.
        classes: u16,
        /// What the device learns of them.
        output: Output,
    },
}

impl Program {
    /// Program `slot` of `pool`.
    ///
    /// # Errors
    /// [`CircuitError::NoSuchSlot`].
    pub fn of(pool: &PoolSpec, slot: Slot) -> Result<Self, CircuitError> {
        match slot {
            Slot::Router => {
                let spec = pool.router.ok_or(CircuitError::NoSuchSlot)?;
                let (words, models) = (pool.words(), pool.models.len() as u16);
                Ok(Self::Router { spec, words, models, output: pool.output, routing: pool.routing })
            }
            Slot::Model(index) => {
                let model = pool.models.get(usize::from(index)).ok_or(CircuitError::NoSuchSlot)?;
                Ok(Self::Model { spec: model.spec, words: pool.words(), classes: pool.classes, output: pool.output })
            }
        }
    }

    /// Whether a run ends in an answer: that of a model, and that of a router which gives the first model's as well.
    /// Under [`Routing::Device`] a router's label tells the route and no more, since quotas count on inferences of every model.
    #[must_use]
    pub const fn answers(&self) -> bool {
        match self {
            Self::Router { spec, routing, .. } => spec.answers > 0 && !matches!(routing, Routing::Device),
            Self::Model { .. } => true,
        }
    }

    /// How this program leans: as `bias` says for a router, in no way for a model.
    #[must_use]
    pub const fn bias<'s>(&self, bias: Bias<'s>) -> Bias<'s> {
        match self {
            Self::Router { .. } => bias,
            Self::Model { .. } => Bias::NONE,
        }
    }

    /// Whether a router goes by how clear its own answer is: then the first model is chosen where it is clear enough, and else
    /// the best of the others.
    #[must_use]
    pub const fn by_margin(&self) -> bool {
        match self {
            Self::Router { spec, routing, .. } => spec.answers > 0 && !matches!(routing, Routing::Private { .. }),
            Self::Model { .. } => false,
        }
    }

    /// Hands every gate to `party`, in order.
    ///
    /// # Errors
    /// [`CircuitError`], or the party's.
    pub fn walk<P: Party>(&self, party: &mut P) -> Result<Layout, P::Error> {
        let mut circuit = Circuit::new(party);
        match self {
            Self::Router { spec, words, models, output, routing } => {
                model::router(&mut circuit, spec, *words, *models, *output, *routing)?
            }
            Self::Model { spec, words, classes, output } => {
                model::transformer(&mut circuit, spec, *words, *classes, *output)?
            }
        }
        Ok(circuit.layout)
    }

    /// The sizes of the program.
    ///
    /// # Errors
    /// [`CircuitError`].
    pub fn layout(&self) -> Result<Layout, CircuitError> {
        struct Measure;
        impl Party for Measure {
            type Error = CircuitError;
            fn gate(&mut self, _: &Gate) -> Result<(), CircuitError> {
                Ok(())
            }
        }
        self.walk(&mut Measure)
    }

    /// Gate `id`, or `None` behind the last one.
    ///
    /// # Errors
    /// [`CircuitError`].
    pub fn gate(&self, id: u16) -> Result<Option<Gate>, CircuitError> {
        struct Find {
            id: u16,
            found: Option<Gate>,
        }
        impl Party for Find {
            type Error = CircuitError;
            fn gate(&mut self, gate: &Gate) -> Result<(), CircuitError> {
                if gate.id == self.id {
                    self.found = Some(gate.clone());
                }
                Ok(())
            }
        }
        let mut find = Find { id, found: None };
        self.walk(&mut find)?;
        Ok(find.found)
    }

    /// All gates, in order, each by a walk of its own: for tools, not for parties.
    pub fn gates(&self) -> impl Iterator<Item = Result<Gate, CircuitError>> {
        (0..).map_while(|id| self.gate(id).transpose())
    }

    /// What the program compares: of a router its utilities, and behind them its own answer's logits, in units of
    /// `2^scale` of the [`Combination::Differences`].
    ///
    /// # Errors
    /// [`CircuitError`].
    pub fn compared(&self) -> Result<Option<Combine>, CircuitError> {
        self.gates()
            .find_map(|gate| match gate {
                Ok(Gate { operand: Operand::Combine(combine), .. })
                    if matches!(combine.combination, Combination::Differences { .. }) =>
                {
                    Some(Ok(combine))
                }
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            })
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    struct Anyone;
    impl Party for Anyone {
        type Error = CircuitError;
        fn gate(&mut self, _: &Gate) -> Result<(), CircuitError> {
            Ok(())
        }
    }

    /// No spec asks for one: wires have what their readers need.
    #[test]
    fn a_gate_that_needs_more_bits_than_its_wire_has_is_refused() {
        let mut party = Anyone;
        let mut circuit = Circuit::new(&mut party);
        let wire = circuit.input(1, 4, 10).unwrap();
        let linear = circuit.linear(&[wire], 3, false).unwrap();
        let narrow = |needed| Err(CircuitError::WireTooNarrow { needed, have: 10 });
        let opening = |shift| Opening { shift, index_bits: 8 };
        assert_eq!(circuit.requantise(linear.clone(), opening(3), 8), narrow(11));
        assert_eq!(circuit.remask(linear.clone(), 17), narrow(17));
        assert_eq!(circuit.reveal(linear.clone(), 32), narrow(32));
        assert_eq!(circuit.layout.gates, 1);
        assert!(circuit.requantise(linear.clone(), opening(2), 8).is_ok());
        assert!(circuit.remask(linear, 10).is_ok());
    }
}
