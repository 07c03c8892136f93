//! The clear-text integer reference: the same gates over plain integers.
//!
//! The protocol must agree with it. With [`Nearest`] it is the reference whose accuracy is printed
//! beside the protocol's; with the low bits of the dealer's `rho` as rounding it reproduces the
//! protocol bit for bit, which the tests use. It also watches every range: a requantised value, a
//! table index or an output that its bits cannot hold is an error here, and would be a wrong value
//! under the protocol.

use core::fmt;

use crate::circuit::{CircuitError, Gate, Layout, Operand, Party, Program, Response, Wire};
use crate::error::BufferError;
use crate::gate::{combine, embed, linear, margin, opening, product, requantise, table};
use crate::model::choice;
use crate::routing::{Bias, Routing};
use crate::spec::{MAX_CLASSES, MAX_MODELS, Opening};

/// The server's secrets of one program, in the order of its gates.
#[derive(Clone, Copy)]
pub struct Parameters<'a> {
    /// Integer weights.
    pub weights: &'a [i16],
    /// Biases at the accumulators' scale.
    pub biases: &'a [i32],
    /// Entries of the secret tables; the entry of a signed index `v` of `n` bits is at `v mod 2^n`.
    pub tables: &'a [i16],
}

impl Parameters<'_> {
    /// Checks the three lengths against a program's layout.
    ///
    /// # Errors
    /// [`BufferError`] naming the first that differs.
    pub fn check(&self, layout: &Layout) -> Result<(), BufferError> {
        for (buffer, needed, have) in [
            ("weights", layout.weights as usize, self.weights.len()),
            ("biases", layout.biases as usize, self.biases.len()),
            ("tables", layout.tables as usize, self.tables.len()),
        ] {
            if needed != have {
                return Err(BufferError { buffer, needed, have });
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Parameters<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parameters").field("weights", &self.weights.len()).finish_non_exhaustive()
    }
}

/// How the reference rounds, and who watches it.
pub trait Reference {
    /// What is added to an element of `gate`, in `0..2^shift`, before its low `shift` bits are cut.
    fn offset(&mut self, gate: &Gate, element: u32, shift: u8) -> u32;

    /// Called with every rounded value (of a requantisation, a table index or an output).
    fn observe(&mut self, gate: &Gate, value: i64) {
        let _ = (gate, value);
    }
}

/// Rounds to nearest, halves up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nearest;

impl Reference for Nearest {
    fn offset(&mut self, _: &Gate, _: u32, shift: u8) -> u32 {
        (1u32 << shift) >> 1
    }
}

/// What the reference refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClearError {
    /// The program is not valid.
    Circuit(CircuitError),
    /// A lent slice has the wrong length.
    Buffer(BufferError),
    /// A value does not fit its bits.
    Range {
        /// The gate.
        gate: u16,
        /// The value.
        value: i64,
        /// The gate's signed bits.
        bits: u8,
    },
}

impl From<CircuitError> for ClearError {
    fn from(error: CircuitError) -> Self {
        Self::Circuit(error)
    }
}

impl From<BufferError> for ClearError {
    fn from(error: BufferError) -> Self {
        Self::Buffer(error)
    }
}

impl fmt::Display for ClearError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Circuit(error) => error.fmt(f),
            Self::Buffer(error) => error.fmt(f),
            Self::Range { gate, value, bits } => {
                write!(f, "gate {gate} got {value}, which its {bits} bits do not hold: recalibrate with more head-room")
            }
        }
    }
}

impl core::error::Error for ClearError {}

/// Elements of scratch that the clear reference, the server and the dealer need for `program`.
///
/// # Errors
/// [`CircuitError`].
pub fn scratch_elements(program: &Program) -> Result<usize, CircuitError> {
    struct Measure(usize);
    impl Party for Measure {
        type Error = CircuitError;
        fn gate(&mut self, gate: &Gate) -> Result<(), CircuitError> {
            let needed = match &gate.operand {
                Operand::Linear(linear) => linear::scratch(linear),
                Operand::Product(product) => product::scratch(product),
                Operand::Private | Operand::Embed(_) | Operand::Combine(_) => 0,
            };
            self.0 = self.0.max(needed);
            Ok(())
        }
    }
    let mut measure = Measure(0);
    program.walk(&mut measure)?;
    Ok(measure.0)
}

/// The model that what a router `told` comes to, as a device takes it; 0 of any other program.
#[must_use]
pub fn chosen(program: &Program, told: &[i64]) -> u8 {
    let Program::Router { models, routing, .. } = program else { return 0 };
    if matches!(routing, Routing::Private { .. }) {
        return told.first().and_then(|index| u8::try_from(*index).ok()).unwrap_or(0);
    }
    let mut words = [0; MAX_MODELS + MAX_CLASSES as usize];
    words.iter_mut().zip(told).for_each(|(word, one)| *word = *one as u32);
    choice(words.get(..told.len()).unwrap_or(&words), *models, program.by_margin())
}

/// How far the largest of `logits` is ahead of the next; as far as can be where there is no other.
#[must_use]
pub fn lead(logits: &[i64]) -> i64 {
    let [best, next] = logits.iter().fold([None; 2], |[best, next], logit| {
        if Some(logit) > best { [Some(logit), best] } else { [best, next.max(Some(logit))] }
    });
    best.zip(next).map_or(i32::MAX.into(), |(best, next)| best - next)
}

struct Clear<'a, R> {
    parameters: &'a Parameters<'a>,
    input: &'a [i16],
    bias: Bias<'a>,
    arena: &'a mut [i64],
    scratch: &'a mut [i64],
    reference: &'a mut R,
    last: Option<Wire>,
}

/// Runs `program` on `input`; a router leans as `bias` says. Wires are left in `arena`.
/// Returned is that of a model's answer; of a router, the choice's one-hot (of zeros where none wins) and, behind it, that
/// of its own answer if that is a label. [`chosen`] says what they come to.
///
/// # Errors
/// [`ClearError`].
pub fn run<R: Reference>(
    program: &Program,
    parameters: &Parameters<'_>,
    input: &[i16],
    bias: Bias<'_>,
    arena: &mut [i64],
    scratch: &mut [i64],
    reference: &mut R,
) -> Result<Wire, ClearError> {
    let layout = program.layout()?;
    parameters.check(&layout)?;
    BufferError::check("arena", layout.arena as usize, arena.len())?;
    BufferError::check("scratch", scratch_elements(program)?, scratch.len())?;
    let bias = program.bias(bias);
    let mut party = Clear { parameters, input, bias, arena, scratch, reference, last: None };
    program.walk(&mut party)?;
    party.last.ok_or(ClearError::Circuit(CircuitError::NoSuchSlot))
}

impl<R: Reference> Clear<'_, R> {
    /// The operand's values go to the wire's place in the arena.
    fn operand(&mut self, gate: &Gate) -> Result<(), ClearError> {
        let at = gate.out.at as usize;
        let (before, after) = self.arena.split_at_mut(at.min(self.arena.len()));
        let out = after.get_mut(..gate.elements() as usize).unwrap_or(&mut []);
        let mut set = |element: u32, value: i64| {
            if let Some(slot) = out.get_mut(element as usize) {
                *slot = value;
            }
        };
        match &gate.operand {
            Operand::Private => {
                BufferError::check("input", gate.elements() as usize, self.input.len())?;
                for (element, value) in (0..gate.elements()).zip(self.input) {
                    set(element, i64::from(*value));
                }
            }
            Operand::Embed(embed) => {
                BufferError::check("input", embed.words.count.into(), self.input.len())?;
                embed::evaluate(embed, self.parameters.weights, self.input, set);
            }
            Operand::Linear(linear) => {
                let biases = self.parameters.biases;
                linear::evaluate(linear, self.parameters.weights, before, self.scratch, |element, value| {
                    let bias = biases.get((linear.biases_at + element) as usize).copied().unwrap_or(0);
                    set(element, value.wrapping_add(i64::from(bias)));
                });
            }
            Operand::Product(product) => product::evaluate(product, before, self.scratch, set),
            Operand::Combine(combine) => {
                combine::evaluate(combine, combine::held(combine, before), |element, value| {
                    set(element, value + i64::from(combine::constant(combine, element, self.bias.scores)));
                })
            }
        }
        Ok(())
    }

    fn respond(&mut self, gate: &Gate, element: u32, y: i64) -> Result<i64, ClearError> {
        let fits = |value: i64, bits: u8| {
            let limit = 1i64 << (bits - 1);
            if (-limit..limit).contains(&value) {
                Ok(value)
            } else {
                Err(ClearError::Range { gate: gate.id, value, bits })
            }
        };
        let mut rounded = |opening: Opening| {
            let value = opening::round(opening, y, self.reference.offset(gate, element, opening.shift));
            self.reference.observe(gate, value);
            value
        };
        match gate.response {
            Response::Share { .. } => Ok(y),
            Response::Requantise(opening) => {
                let value = rounded(opening);
                if requantise::in_range(opening, value) {
                    Ok(value)
                } else {
                    Err(ClearError::Range { gate: gate.id, value, bits: opening.index_bits - 1 })
                }
            }
            Response::Margin { opening, even } => {
                let index = rounded(opening);
                let margin = margin::margin_of(element, even, self.bias.margin.into()) as u16;
                if margin::in_range(index, margin, opening.index_bits) {
                    Ok(margin::value(index, margin))
                } else {
                    Err(ClearError::Range { gate: gate.id, value: index, bits: opening.index_bits })
                }
            }
            Response::Table { opening, .. } | Response::Tell { opening, .. } => {
                let index = fits(rounded(opening), opening.index_bits)? as i32;
                let value = |table| table::value(table, self.parameters.tables, opening.index_bits, index);
                Ok(gate.response.table(element).map_or(0, value).into())
            }
            Response::Remask { bits } | Response::Reveal { bits } => {
                self.reference.observe(gate, y);
                fits(y, bits)
            }
        }
    }
}

impl<R: Reference> Party for Clear<'_, R> {
    type Error = ClearError;

    fn gate(&mut self, gate: &Gate) -> Result<(), ClearError> {
        self.operand(gate)?;
        for element in 0..gate.elements() {
            let place = (gate.out.at + element) as usize;
            let y = self.arena.get(place).copied().unwrap_or(0);
            let value = self.respond(gate, element, y)?;
            if let Some(slot) = self.arena.get_mut(place) {
                *slot = value;
            }
        }
        // A router's own answer is a part of the wire before it.
        if !matches!((gate.response, &gate.operand), (Response::Reveal { .. }, Operand::Combine(_))) {
            self.last = Some(gate.out);
        }
        Ok(())
    }
}
