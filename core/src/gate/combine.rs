//! Public combinations of a wire, the local half of the argmax: pairwise differences and wins.
//!
//! Linear and public, so every party applies the same coefficients to what it holds: the server to
//! `x_hat`, device and dealer to `r`. No correlation is needed. Constants are the server's to add.

use crate::circuit::{Combination, Combine, pairs};
use crate::keys::StreamKey;
use crate::prg::{Purpose, Stream, StreamId};
use crate::spec::MAX_MODELS;

use super::{Scalar, part};

/// Most elements of a combination's operand.
const OPERAND_MAX: usize = pairs(MAX_MODELS as u16) as usize;

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

/// The device's half: the mask of each element, from the wire's masks.
pub fn device_masks(combine: &Combine, run: &StreamKey, emit: impl FnMut(u32, u32)) {
    let mut masks = [0; OPERAND_MAX];
    let mut source = Stream::new(run, StreamId::new(combine.wire.gate, Purpose::WireMask));
    let count = (combine.wire.elements() as usize).min(OPERAND_MAX);
    let masks = masks.get_mut(..count).unwrap_or(&mut []);
    source.fill(masks);
    evaluate(combine, masks, emit);
    zeroize::Zeroize::zeroize(masks);
}
