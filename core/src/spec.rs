//! Public shapes: what every party, and anyone watching, may know about a pool.
//!
//! A [`PoolSpec`] says how large each model is and how many bits each of its openings uses. It holds
//! no weight, no bias and no table. It travels as postcard behind a version number and is validated
//! when it is parsed: a [`PoolSpec`] that exists is one whose every size fits the types that the
//! kernel computes with.

use core::fmt;

use blake2::{Blake2s256, Digest};
use heapless::{String, Vec};
use serde::{Deserialize, Serialize};

use crate::circuit::{CircuitError, Program, Slot};
use crate::routing::{MAX_EPSILON, MAX_PRIVATE_MODELS, Routing};

/// Version of the encoding of [`PoolSpec`]; the first field on the wire.
pub const SPEC_VERSION: u16 = 7;
/// Most models in one pool (the router not counted).
pub const MAX_MODELS: usize = 8;
/// Most layers in one model.
pub const MAX_LAYERS: usize = 8;
/// Most tokens in one model's view of the input.
pub const MAX_TOKENS: u16 = 256;
/// Most columns of any wire, and most outputs of any linear gate.
pub const MAX_COLUMNS: u16 = 1024;
/// Most attention heads.
pub const MAX_HEADS: u8 = 16;
/// Most classes.
pub const MAX_CLASSES: u16 = 256;
/// Most classes of a pool that answers with labels: their argmax compares all pairs.
pub const MAX_LABELS: u16 = 32;
/// Most values in one input.
pub const MAX_INPUT: u16 = 8192;
/// Most bits of a word: all entries of a vocabulary stand once per word in the server's stock.
pub const MAX_WORD_BITS: u8 = 14;
/// Most bits of a table index or of a requantised value.
pub const MAX_INDEX_BITS: u8 = 16;
/// Most bits of a table index: a table stands once per element in the server's stock.
pub const MAX_TABLE_BITS: u8 = 12;
/// Longest postcard encoding of a [`PoolSpec`], in bytes.
pub const MAX_SPEC_BYTES: usize = 512;
/// Longest name of a task or model, in bytes.
pub const MAX_NAME: usize = 16;

/// How an accumulator is opened to a masked index: `index_bits` bits, above `shift` bits that are
/// rounded away. The opening needs the accumulator modulo `2^(shift + index_bits)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// `s`: fractional bits of the accumulator that the opening rounds away.
    pub shift: u8,
    /// `n`: bits of the masked index.
    pub index_bits: u8,
}

impl Opening {
    /// `k = s + n`: the bits of the accumulator that the opening needs.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.shift.saturating_add(self.index_bits)
    }

    const fn is_valid(self, index_max: u8) -> bool {
        self.index_bits >= 2 && self.index_bits <= index_max && self.bits() <= 32
    }
}

/// An input of words, of which the device knows numbers and the server, for each model, vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words {
    /// Words in one input.
    pub count: u16,
    /// A word is a number of so many bits.
    pub bits: u8,
}

/// The public shape of one transformer, or of the router's trunk.
///
/// The residual stream is never opened: every nonlinear gate reads an affine function of *all*
/// earlier wires, so `width` is the width of queries, keys and values; see `docs/architecture.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// Rows of the model's view of the input.
    pub tokens: u16,
    /// Columns of that view; `tokens * features` is the pool's input length. Of words, which `tokens` divide: columns of the
    /// embedding.
    pub features: u16,
    /// Columns of queries, of keys and of values, over all heads.
    pub width: u16,
    /// Attention heads; 0 leaves attention out.
    pub heads: u8,
    /// Columns of the feed-forward table; 0 leaves the feed-forward part out.
    pub ffn: u16,
    /// Layers.
    pub layers: u8,
    /// Requantisation of queries, keys and values.
    pub qkv: Opening,
    /// Index of the attention table.
    pub score: Opening,
    /// Requantisation of the attention's output.
    pub mix: Opening,
    /// Index of the activation table.
    pub ffn_in: Opening,
    /// Bits of the accumulators that the model ends in (the logits), and of their differences.
    pub output_bits: u8,
}

/// The public shape of the router: a small trunk whose accumulators are utilities, one per model, that go through the
/// argmax gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterSpec {
    /// The trunk, of at least [`MAX_TABLE_BITS`] output bits.
    pub trunk: ModelSpec,
    /// 0; or the pool's classes, when the router has the first model's outputs beside its own and
    /// answers for it. The trunk then has the first model's shape.
    pub answers: u16,
}

/// What a device learns of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// The class alone: the argmax is taken under sharing, in a round trip more. The default,
    /// since logits tell far more about a model than labels do.
    #[default]
    Label,
    /// Every class's logit.
    Logits,
}

/// A model of the pool and its public name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedModel {
    /// Public name, shown to people.
    pub name: String<MAX_NAME>,
    /// Public shape.
    pub spec: ModelSpec,
}

/// Everything public about a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSpec {
    /// Names the pool's secret contents without describing them: a keyed hash that the server
    /// takes over weights, biases and tables. Two pools of one shape differ here.
    pub edition: [u8; 16],
    /// Public name of the task.
    pub task: String<MAX_NAME>,
    /// Values in one input, of `input_bits` bits each, or words.
    pub input_len: u16,
    /// Signed bits of an input value.
    pub input_bits: u8,
    /// An input value `v` stands for `v / 2^input_frac`.
    pub input_frac: u8,
    /// 0; or an input is made of words of so many bits, one below `input_bits`, and each model has an embedding of them.
    pub word_bits: u8,
    /// Classes of the answer.
    pub classes: u16,
    /// What devices learn of an answer; the server's policy.
    pub output: Output,
    /// Who learns the router's choice; the server's policy.
    pub routing: Routing,
    /// The models, cheapest first: the router's ties go to the earlier one.
    pub models: Vec<NamedModel, MAX_MODELS>,
    /// The router; a pool of one model has none.
    pub router: Option<RouterSpec>,
}

/// What is wrong with a spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum SpecError {
    /// The bytes are not a spec: cut off, trailing bytes, or values outside their types.
    Malformed,
    /// The spec has another version than this build.
    Version {
        /// Version found.
        found: u16,
    },
    /// The pool has no model, or a router that chooses among fewer than two.
    ModelCount,
    /// A size is zero or above its limit; the field's name.
    Size(&'static str),
    /// An opening's bits are out of range; the field's name.
    Bits(&'static str),
    /// `tokens * features` of a model is not the pool's input length, or its `tokens` do not divide the words.
    InputLength,
    /// `heads` does not divide `width`.
    Heads,
    /// A router that answers has another trunk or other classes than the first model.
    Answers,
    /// A name is empty or not printable ASCII; the field's name.
    Name(&'static str),
    /// Private routing with an epsilon of 0 or above [`MAX_EPSILON`], or among more than
    /// [`MAX_PRIVATE_MODELS`] models.
    Routing,
    /// The lent buffer is too small for the encoding.
    BufferTooSmall,
    /// The sizes are in range one by one, and a program of them is not.
    Program(CircuitError),
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => f.write_str("the pool spec is malformed: cut off, too long, or out of range"),
            Self::Version { found } => {
                write!(f, "the pool spec has version {found}, this build reads version {SPEC_VERSION}")
            }
            Self::ModelCount => f.write_str("the pool has no model, or a router with fewer than two to choose from"),
            Self::Size(field) => write!(f, "`{field}` in the pool spec is zero or above its limit"),
            Self::Bits(field) => write!(f, "the bit widths of `{field}` in the pool spec are out of range"),
            Self::InputLength => f.write_str(
                "a model's tokens x features is not the pool's input length, nor do its tokens divide the words",
            ),
            Self::Heads => f.write_str("a model's width is not a multiple of its heads"),
            Self::Answers => f.write_str("the router answers for the first model, but has not its shape and classes"),
            Self::Name(field) => write!(f, "the name of a {field} in the pool spec is empty or not printable ASCII"),
            Self::Routing => {
                write!(
                    f,
                    "private routing takes an epsilon up to {} and {MAX_PRIVATE_MODELS} models",
                    MAX_EPSILON / 1000
                )
            }
            Self::BufferTooSmall => f.write_str("the buffer lent for the pool spec's encoding is too small"),
            Self::Program(error) => write!(f, "a program of the pool spec cannot be built: {error}"),
        }
    }
}

impl core::error::Error for SpecError {}

fn within(value: u16, max: u16, field: &'static str) -> Result<(), SpecError> {
    if value == 0 || value > max { Err(SpecError::Size(field)) } else { Ok(()) }
}

/// Names are shown on terminals: nothing in them may steer one.
fn printable(name: &str, field: &'static str) -> Result<(), SpecError> {
    let shown = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
    if !name.is_empty() && name.bytes().all(shown) { Ok(()) } else { Err(SpecError::Name(field)) }
}

impl ModelSpec {
    /// Bits of every wire that linear gates read (the input, attention outputs and activations):
    /// the most that any of the model's linear gates needs.
    #[must_use]
    pub const fn stream_bits(&self) -> u8 {
        let mut bits = self.output_bits;
        if self.heads > 0 && self.layers > 0 && self.qkv.bits() > bits {
            bits = self.qkv.bits();
        }
        if self.ffn > 0 && self.layers > 0 && self.ffn_in.bits() > bits {
            bits = self.ffn_in.bits();
        }
        bits
    }

    /// Bits of the queries, keys and values: what the two products need.
    #[must_use]
    pub const fn qkv_bits(&self) -> u8 {
        if self.score.bits() > self.mix.bits() { self.score.bits() } else { self.mix.bits() }
    }

    /// How a difference of two outputs is opened for its sign: its highest bits, as many as a table takes.
    #[must_use]
    pub const fn difference(&self) -> Opening {
        let index_bits = if self.output_bits < MAX_TABLE_BITS { self.output_bits } else { MAX_TABLE_BITS };
        Opening { shift: self.output_bits.saturating_sub(index_bits), index_bits }
    }

    /// Columns of one head.
    #[must_use]
    pub const fn depth(&self) -> u16 {
        match self.width.checked_div(self.heads as u16) {
            Some(depth) => depth,
            None => 0,
        }
    }

    fn validate(&self, input_len: u16, words: Option<Words>) -> Result<(), SpecError> {
        within(self.tokens, MAX_TOKENS, "tokens")?;
        within(self.features, MAX_COLUMNS, "features")?;
        let fits = match words {
            None => u32::from(self.tokens) * u32::from(self.features) == u32::from(input_len),
            Some(words) => words.count.is_multiple_of(self.tokens),
        };
        if !fits {
            return Err(SpecError::InputLength);
        }
        if usize::from(self.layers) > MAX_LAYERS {
            return Err(SpecError::Size("layers"));
        }
        if self.heads > MAX_HEADS {
            return Err(SpecError::Size("heads"));
        }
        if self.heads > 0 {
            within(self.width, MAX_COLUMNS / 3, "width")?;
            if !self.width.is_multiple_of(u16::from(self.heads)) {
                return Err(SpecError::Heads);
            }
            self.opening(self.qkv, MAX_INDEX_BITS, "qkv")?;
            self.opening(self.score, MAX_TABLE_BITS, "score")?;
            self.opening(self.mix, MAX_INDEX_BITS, "mix")?;
        }
        if self.ffn > 0 {
            within(self.ffn, MAX_COLUMNS, "ffn")?;
            self.opening(self.ffn_in, MAX_TABLE_BITS, "ffn_in")?;
        }
        if self.layers > 0 && self.heads == 0 && self.ffn == 0 {
            return Err(SpecError::Size("ffn"));
        }
        if self.output_bits < 2 || self.output_bits > 32 {
            return Err(SpecError::Bits("output"));
        }
        Ok(())
    }

    fn opening(&self, opening: Opening, index_max: u8, field: &'static str) -> Result<(), SpecError> {
        if opening.is_valid(index_max) { Ok(()) } else { Err(SpecError::Bits(field)) }
    }
}

impl PoolSpec {
    /// Checks every size and bit width.
    ///
    /// # Errors
    /// The first [`SpecError`] met.
    #[inline(never)]
    pub fn validate(&self) -> Result<(), SpecError> {
        printable(&self.task, "task")?;
        within(self.input_len, MAX_INPUT, "input_len")?;
        let most = if self.output == Output::Label { MAX_LABELS } else { MAX_CLASSES };
        within(self.classes, most, "classes")?;
        if self.input_bits < 2 || self.input_bits > 16 {
            return Err(SpecError::Bits("input"));
        }
        if self.input_frac > 16 {
            return Err(SpecError::Bits("input_frac"));
        }
        let words = self.words();
        if words.is_some()
            && (self.word_bits > MAX_WORD_BITS || self.input_bits != self.word_bits + 1 || self.input_frac > 0)
        {
            return Err(SpecError::Bits("word"));
        }
        if self.models.is_empty() {
            return Err(SpecError::ModelCount);
        }
        for model in &self.models {
            printable(&model.name, "model")?;
            model.spec.validate(self.input_len, words)?;
        }
        if let Some(router) = &self.router {
            if self.models.len() < 2 {
                return Err(SpecError::ModelCount);
            }
            router.trunk.validate(self.input_len, words)?;
            // Else differences of scores would wrap.
            if router.trunk.output_bits < MAX_TABLE_BITS {
                return Err(SpecError::Bits("router"));
            }
            if router.answers > 0 {
                let first = self.models.first().map(|model| model.spec);
                if router.answers != self.classes || first != Some(router.trunk) {
                    return Err(SpecError::Answers);
                }
                within(router.answers, MAX_LABELS, "answers")?;
            }
        }
        if let Routing::Private { epsilon } = self.routing
            && (epsilon == 0 || epsilon > MAX_EPSILON || self.models.len() > MAX_PRIVATE_MODELS)
        {
            return Err(SpecError::Routing);
        }
        for slot in self.slots() {
            Program::of(self, slot).and_then(|program| program.layout()).map_err(SpecError::Program)?;
        }
        Ok(())
    }

    /// The words of an input, if it is made of words.
    #[must_use]
    pub const fn words(&self) -> Option<Words> {
        if self.word_bits > 0 { Some(Words { count: self.input_len, bits: self.word_bits }) } else { None }
    }

    /// The programs of the pool: the router, if there is one, and the models.
    pub fn slots(&self) -> impl Iterator<Item = Slot> + use<> {
        let router = self.router.map(|_| Slot::Router);
        router.into_iter().chain((0..self.models.len() as u8).map(Slot::Model))
    }

    /// Whether the router gives the answer of `model` itself.
    #[must_use]
    pub fn router_answers(&self, model: Slot) -> bool {
        model == Slot::Model(0) && Program::of(self, Slot::Router).is_ok_and(|router| router.answers())
    }

    /// Reads a spec from its encoding and validates it.
    ///
    /// # Errors
    /// [`SpecError`] for any bytes that are not exactly one valid spec of this version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SpecError> {
        let spec = Self::decode(bytes)?;
        spec.validate()?;
        Ok(spec)
    }

    /// Reads a spec that is yet to be validated. On its own, so that the parser's copies are off the
    /// stack before the programs are walked.
    #[inline(never)]
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, SpecError> {
        let (version, rest) = postcard::take_from_bytes::<u16>(bytes).map_err(|_| SpecError::Malformed)?;
        if version != SPEC_VERSION {
            return Err(SpecError::Version { found: version });
        }
        match postcard::take_from_bytes::<Self>(rest) {
            Ok((spec, [])) => Ok(spec),
            _ => Err(SpecError::Malformed),
        }
    }

    /// Writes the encoding into `buffer` and returns the used part. [`MAX_SPEC_BYTES`] always fit.
    ///
    /// # Errors
    /// [`SpecError::BufferTooSmall`].
    pub fn to_bytes<'b>(&self, buffer: &'b mut [u8]) -> Result<&'b mut [u8], SpecError> {
        let head = postcard::to_slice(&SPEC_VERSION, buffer).map_err(|_| SpecError::BufferTooSmall)?.len();
        let tail = buffer.get_mut(head..).ok_or(SpecError::BufferTooSmall)?;
        let body = postcard::to_slice(self, tail).map_err(|_| SpecError::BufferTooSmall)?.len();
        buffer.get_mut(..head + body).ok_or(SpecError::BufferTooSmall)
    }

    /// BLAKE2s-256 over the encoding: the name of this pool in every key derivation.
    ///
    /// # Errors
    /// [`SpecError::BufferTooSmall`] if the spec is larger than [`MAX_SPEC_BYTES`], which no valid
    /// spec is.
    #[inline(never)]
    pub fn fingerprint(&self) -> Result<[u8; 32], SpecError> {
        let mut buffer = [0; MAX_SPEC_BYTES];
        let bytes = self.to_bytes(&mut buffer)?;
        Ok(Blake2s256::digest(&*bytes).into())
    }
}
