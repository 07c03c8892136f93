//! Public combinations of a wire, the local half of the argmax: pairwise differences, and what is made of
//! their signs.
//!
//! Linear and public, so every party applies the same coefficients to what it holds: the server to
//! `x_hat`, device and dealer to `r`. No correlation is needed. Constants are the server's to add.

use crate::circuit::{Combination, Combine, Groups};
use crate::error::BufferError;
use crate::keys::StreamKey;
use crate::prg::{Purpose, Stream, StreamId};

use super::{Scalar, part};

/// The combination of values held from `values`, without constants.
pub fn evaluate<X: Scalar>(combine: &Combine, values: &[X], mut emit: impl FnMut(u32, X)) {
    let value = |index: u16| values.get(usize::from(index)).copied().unwrap_or(X::ZERO);
    let groups = combine.groups;
    let ([first, _], items) = (groups.0, groups.items());
    let wins = |item: u16| {
        (0u16..).zip(groups.pairs()).fold(X::ZERO, |wins, (pair, (i, j))| match item {
            _ if i == item => wins.plus(value(pair)),
            _ if j == item => wins.minus(value(pair)),
            _ => wins,
        })
    };
    match combine.combination {
        Combination::Differences { .. } => {
            (0u32..).zip(groups.pairs()).for_each(|(element, (i, j))| emit(element, value(i).minus(value(j))));
        }
        Combination::Last => (0u32..).zip(first..items).for_each(|(element, item)| emit(element, value(item))),
        Combination::Wins | Combination::Balance => (0..items).for_each(|item| emit(item.into(), wins(item))),
        Combination::Tournament => {
            let bits = (0..Groups([first, 0]).pair_count()).rev();
            emit(0, bits.fold(X::ZERO, |number, pair| number.plus(number).plus(value(pair))));
            (1u32..).zip(first..items).for_each(|(element, item)| emit(element, wins(item)));
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
    let lost = |item: u32| combine.groups.pairs().filter(|(_, j)| u32::from(*j) == item).count() as i32;
    match combine.combination {
        Combination::Last | Combination::Balance => 0,
        Combination::Wins => lost(index),
        Combination::Tournament => index.checked_sub(1).map_or(0, |item| lost(item + u32::from(combine.groups.0[0]))),
        Combination::Differences { scale } => {
            let score = |item: u16| scores.get(usize::from(item)).copied().unwrap_or(0);
            let difference = |(i, j)| score(i).saturating_sub(score(j));
            combine.groups.pairs().nth(index as usize).map_or(0, difference).wrapping_shl(scale.into())
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
