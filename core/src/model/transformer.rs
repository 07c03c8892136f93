//! A transformer made for these gates.
//!
//! Between two nonlinear gates everything is linear: normalisation with static statistics, the
//! projections and the residual additions. So the residual stream itself is never opened. Each
//! nonlinear gate reads an affine function of all earlier wires, whose weights are the products of
//! the trained matrices, multiplied out once at export. Against a residual stream that is
//! requantised twice per layer this saves two round trips and two openings of a stream per layer, and
//! its rounding noise; it costs weights (at the server and in the pseudo-random stream), which
//! grow with the square of the layers.

use heapless::Vec;

use crate::circuit::{Circuit, CircuitError, Groups, HeadView, Linear, MAX_TERMS, Operand, Party, Product, Wire};
use crate::spec::{ModelSpec, Output, Words};

use super::{Items, argmax};

/// The answer of `spec`, for the device: its logits, or the one-hot of the largest.
///
/// For a label, of two logits that differ by less than one step of [`ModelSpec::difference`] either may win.
///
/// # Errors
/// The party's.
pub fn transformer<P: Party>(
    circuit: &mut Circuit<'_, P>,
    spec: &ModelSpec,
    words: Option<Words>,
    classes: u16,
    output: Output,
) -> Result<(), P::Error> {
    let logits = trunk(circuit, spec, words, classes)?;
    if output == Output::Logits {
        circuit.reveal(logits, spec.output_bits)?;
        return Ok(());
    }
    let groups = Groups::one(classes);
    let wire = circuit.remask(logits, spec.output_bits)?;
    argmax(circuit, Items { wire, difference: spec.difference() }, groups)
}

/// Everything up to the last linear gate, of `outputs` outputs, which the caller opens.
pub(crate) fn trunk<P: Party>(
    circuit: &mut Circuit<'_, P>,
    spec: &ModelSpec,
    words: Option<Words>,
    outputs: u16,
) -> Result<Linear, P::Error> {
    let bits = spec.stream_bits();
    let mut stream: Vec<Wire, MAX_TERMS> = Vec::new();
    let extend = |stream: &mut Vec<Wire, MAX_TERMS>, wire| stream.push(wire).map_err(|_| CircuitError::TooLarge);

    let input = match words {
        None => circuit.input(spec.tokens, spec.features, bits)?,
        Some(words) => circuit.embed(words, spec.tokens, spec.features, bits)?,
    };
    extend(&mut stream, input)?;
    for _ in 0..spec.layers {
        if spec.heads > 0 {
            let attended = attention(circuit, spec, &stream)?;
            extend(&mut stream, attended)?;
        }
        if spec.ffn > 0 {
            let hidden = circuit.linear(&stream, spec.ffn, false)?;
            let activation = circuit.secret_table(spec.ffn_in.index_bits)?;
            let activated = circuit.table(hidden, spec.ffn_in, activation, bits)?;
            extend(&mut stream, activated)?;
        }
    }
    circuit.linear(&stream, outputs, true)
}

/// Attention with a static normalisation: one table on each score (Ramapuram et al. 2024 with a
/// sigmoid). Returns the heads' outputs, a block per head.
fn attention<P: Party>(circuit: &mut Circuit<'_, P>, spec: &ModelSpec, stream: &[Wire]) -> Result<Wire, P::Error> {
    let heads = u16::from(spec.heads);
    let projected = circuit.linear(stream, spec.width.saturating_mul(3), false)?;
    let qkv = circuit.requantise(projected, spec.qkv, spec.qkv_bits())?;
    let part = |index: u16| HeadView { wire: qkv, column: index * spec.width, depth: spec.depth() };

    let scores = Product { left: part(0), right: part(1), heads, rows: spec.tokens, transposed: true };
    let weighting = circuit.secret_table(spec.score.index_bits)?;
    let weights = circuit.table(Operand::Product(scores), spec.score, weighting, spec.mix.bits())?;

    let left = HeadView { wire: weights, column: 0, depth: spec.tokens };
    let mixed = Product { left, right: part(2), heads, rows: spec.tokens, transposed: false };
    circuit.requantise(Operand::Product(mixed), spec.mix, spec.stream_bits())
}
