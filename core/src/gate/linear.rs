//! Linear gate: `y = W·x + b`, `W` and `b` at the server.
//!
//! | party | when | what |
//! | --- | --- | --- |
//! | dealer | offline | `s = F·r - u` to the server, `F = W - B` |
//! | device | offline | its mask `m = B·r + u` (enters the correction of the next opening or re-masking) |
//! | server | online | `y_hat = W·x_hat + b - s = y + m` |
//!
//! `W·r = F·r + B·r`, so no one learns `W` but the server, and no message is sent.

use crate::circuit::{Linear, Wire};
use crate::error::BufferError;
use crate::keys::DeviceKeys;
use crate::prg::{Purpose, Stream, StreamId};

use super::{Factor, Scalar, dot, part};

/// Elements of scratch that [`evaluate`] needs.
#[must_use]
pub fn scratch(linear: &Linear) -> usize {
    usize::from(linear.outputs) + usize::from(linear.widest())
}

/// `W·x` over wires held in `arena`: the server's and the reference's product with the weights, and
/// the dealer's with the masked weights and the wires' masks. `emit` gets each element and its
/// value, in order. `scratch` holds [`scratch`] elements.
pub fn evaluate<X: Scalar, W: Factor<X>>(
    linear: &Linear,
    weights: &[W],
    arena: &[X],
    scratch: &mut [X],
    mut emit: impl FnMut(u32, X),
) {
    let outputs = usize::from(linear.outputs);
    let Some((sums, gathered)) = scratch.split_at_mut_checked(outputs) else { return };
    for row in 0..linear.rows {
        sums.fill(X::ZERO);
        let mut at = linear.weights_at;
        for term in &linear.terms {
            let columns = usize::from(term.columns());
            let values = gathered.get_mut(..columns).unwrap_or(&mut []);
            if linear.pooled {
                values.fill(X::ZERO);
                (0..term.rows).for_each(|row| gather(term, row, arena, values));
            } else {
                values.fill(X::ZERO);
                gather(term, row, arena, values);
            }
            let block = part(weights, at, outputs * columns);
            for (sum, weights) in sums.iter_mut().zip(block.chunks_exact(columns.max(1))) {
                *sum = sum.plus(dot(weights, values));
            }
            at += (outputs * columns) as u32;
        }
        for (output, sum) in sums.iter().enumerate() {
            emit(u32::from(row) * outputs as u32 + output as u32, *sum);
        }
    }
}

/// Adds one row of a wire to `values`.
fn gather<X: Scalar>(wire: &Wire, row: u16, arena: &[X], values: &mut [X]) {
    let width = usize::from(wire.width).max(1);
    for (block, values) in (0..wire.blocks).zip(values.chunks_exact_mut(width)) {
        let held = part(arena, wire.at + wire.run(block, row), width);
        for (value, x) in values.iter_mut().zip(held) {
            *value = value.plus(*x);
        }
    }
}

/// Words of `work` that [`device_masks`] needs for `rows` rows at a time.
#[must_use]
pub fn device_words(linear: &Linear, rows: u16) -> usize {
    usize::from(rows) * (usize::from(linear.outputs) + usize::from(linear.widest()))
}

/// The device's half: masks `m = B·r + u` of rows `first..first + rows`, row-major, in the part of
/// `work` that is returned. `B` is drawn as a stream and never held; the masks of the wires are
/// drawn once per call, so fewer rows per call trade memory for output of the generator.
///
/// # Errors
/// [`BufferError`] when `work` is shorter than [`device_words`].
pub fn device_masks<'w>(
    gate: u16,
    linear: &Linear,
    keys: &DeviceKeys,
    first: u16,
    rows: u16,
    work: &'w mut [u32],
) -> Result<&'w mut [u32], BufferError> {
    let outputs = usize::from(linear.outputs);
    let tile = usize::from(rows);
    BufferError::check("device workspace", device_words(linear, rows), work.len())?;
    let (masks, wire_masks) = work.split_at_mut(tile * outputs);

    let mut pads = Stream::new(&keys.run, StreamId::new(gate, Purpose::OperandPad));
    pads.seek(u64::from(first) * outputs as u64);
    pads.fill(masks);

    for (index, term) in (0u16..).zip(&linear.terms) {
        let columns = usize::from(term.columns());
        let wire_masks = wire_masks.get_mut(..tile * columns).unwrap_or(&mut []);
        wire_masks.fill(0);
        let mut source = Stream::new(&keys.run, StreamId::new(term.gate, Purpose::WireMask));
        let rows_read = if linear.pooled { 0..term.rows } else { first..first.saturating_add(rows) };
        for (place, row) in rows_read.enumerate() {
            let place = if linear.pooled { 0 } else { place };
            for block in 0..term.blocks {
                source.seek(u64::from(term.run(block, row)));
                let columns = usize::from(block * term.width)..usize::from((block + 1) * term.width);
                for column in columns {
                    // Column-major, so that the loop over rows below walks through memory.
                    if let Some(mask) = wire_masks.get_mut(column * tile + place) {
                        *mask = mask.wrapping_add(source.draw());
                    }
                }
            }
        }
        let mut weight_masks = Stream::new(&keys.weights, StreamId::weights(gate, index));
        for output in 0..outputs {
            for column in wire_masks.chunks_exact(tile.max(1)) {
                let b = weight_masks.draw();
                let masks = masks.iter_mut().skip(output).step_by(outputs);
                for (mask, r) in masks.zip(column) {
                    *mask = mask.wrapping_add(b.wrapping_mul(*r));
                }
            }
        }
    }
    Ok(masks)
}

/// The server masks its weights for the dealer: `F = W - B`, in the order of the weights.
pub fn mask_weights(gate: u16, linear: &Linear, key: &crate::keys::StreamKey, weights: &[i16], masked: &mut [u32]) {
    let mut at = linear.weights_at as usize;
    for (index, term) in (0u16..).zip(&linear.terms) {
        let count = usize::from(term.columns()) * usize::from(linear.outputs);
        let mut source = Stream::new(key, StreamId::weights(gate, index));
        let range = at..at.saturating_add(count);
        let (Some(weights), Some(masked)) = (weights.get(range.clone()), masked.get_mut(range)) else { return };
        for (masked, weight) in masked.iter_mut().zip(weights) {
            *masked = (i32::from(*weight) as u32).wrapping_sub(source.draw());
        }
        at += count;
    }
}
