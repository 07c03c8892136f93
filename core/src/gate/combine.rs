//! Public combinations of a wire, the local half of the argmax: pairwise differences, and what is made of their signs.
//!
//! Linear and public, so every party applies the same coefficients to what it holds: the server to
//! `x_hat`, device and dealer to `r`. No correlation is needed. Constants are the server's to add.

use crate::circuit::{Combination, Combine};
use crate::error::BufferError;
use crate::keys::StreamKey;
use crate::prg::{Purpose, Stream, StreamId};

use super::{Scalar, part};

/// The combination of values held from `values`, without constants.
pub fn evaluate<X: Scalar>(combine: &Combine, values: &[X], mut emit: impl FnMut(u32, X)) {
    let value = |index: usize| values.get(index).copied().unwrap_or(X::ZERO);
    let items = usize::from(combine.items);
    match combine.combination {
        Combination::Differences => {
            let mut element = 0;
            for first in 0..items {
                for second in first + 1..items {
                    emit(element, value(first).minus(value(second)));
                    element += 1;
                }
            }
        }
        Combination::Tournament => {
            emit(0, values.iter().rev().fold(X::ZERO, |number, bit| number.plus(number).plus(*bit)));
        }
        Combination::Same => (0u32..).zip(values).for_each(|(element, value)| emit(element, *value)),
        Combination::Wins => {
            for item in 0..items {
                let mut wins = X::ZERO;
                let mut pair = 0;
                for first in 0..items {
                    for second in first + 1..items {
                        if first == item {
                            wins = wins.plus(value(pair));
                        } else if second == item {
                            wins = wins.minus(value(pair));
                        }
                        pair += 1;
                    }
                }
                emit(item as u32, wins);
            }
        }
    }
}

/// The operand's values in an arena.
pub fn held<'a, X>(combine: &Combine, arena: &'a [X]) -> &'a [X] {
    part(arena, combine.wire.at, combine.wire.elements() as usize)
}

/// What the server (and the reference) adds to element `index`: the difference of the items'
/// public `scores` for differences; for wins, one for each lost comparison's complement.
#[must_use]
pub fn constant(combine: &Combine, index: u32, scores: &[i32]) -> i32 {
    match combine.combination {
        Combination::Same | Combination::Tournament => 0,
        Combination::Wins => index as i32,
        Combination::Differences => {
            let mut element = 0;
            for first in 0..usize::from(combine.items) {
                for second in first + 1..usize::from(combine.items) {
                    if element == index {
                        let score = |item: usize| scores.get(item).copied().unwrap_or(0);
                        return score(first).saturating_sub(score(second));
                    }
                    element += 1;
                }
            }
            0
        }
    }
}

/// Words of `work` that [`device_masks`] needs for a result of `elements`.
#[must_use]
pub const fn device_words(combine: &Combine, elements: u32) -> usize {
    (elements + combine.wire.elements()) as usize
}

/// The device's half: the mask of each of `elements` elements, in the part of `work` that is
/// returned, from the wire's masks.
///
/// # Errors
/// [`BufferError`] when `work` is shorter than [`device_words`].
pub fn device_masks<'w>(
    combine: &Combine,
    elements: u32,
    run: &StreamKey,
    work: &'w mut [u32],
) -> Result<&'w mut [u32], BufferError> {
    BufferError::check("device workspace", device_words(combine, elements), work.len())?;
    let (masks, rest) = work.split_at_mut(elements as usize);
    let operand = rest.get_mut(..combine.wire.elements() as usize).unwrap_or(&mut []);
    Stream::new(run, StreamId::new(combine.wire.gate, Purpose::WireMask)).fill(operand);
    evaluate(combine, operand, |element, mask| {
        if let Some(slot) = masks.get_mut(element as usize) {
            *slot = mask;
        }
    });
    Ok(masks)
}
