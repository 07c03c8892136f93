//! The argmax under sharing, in one round trip and a message, of one group of items or of two at once.
//!
//! A sign table on all pairwise differences, and a table on what the signs say, which the device is told: for a one-hot,
//! each item's wins and whether they are a full score; for an index, the group's whole tournament at once,
//! which is one element that no party can turn into more than one of the items. The items are the
//! accumulators of a linear gate, and the opening of a difference rounds it: of two items that differ by less
//! than a step the earlier may win though it is the smaller, and of equal ones it does. Items that are neighbours within a
//! step may beat one another in a circle, so that nobody has a full score: a one-hot of zeros, which
//! readers take for the first item of all. With a margin, nobody has one either where the largest is not that far ahead.

use crate::circuit::{Circuit, Combination, Combine, Groups, Lookup, Operand, Party, Table, Wire};
use crate::routing::MAX_PRIVATE_MODELS;
use crate::spec::{MAX_LABELS, MAX_MODELS, MAX_TABLE_BITS, Opening};

const _: () = assert!(MAX_MODELS as u16 <= MAX_LABELS && MAX_LABELS < 1 << 14);
const _: () = assert!(
    Groups::one(MAX_PRIVATE_MODELS as u16).pair_count() < MAX_TABLE_BITS as u16
        && MAX_PRIVATE_MODELS <= 1 << INDEX_BITS
        && ONE_HOT_BITS <= INDEX_BITS
);

/// Bits of a one-hot's element; one would do.
const ONE_HOT_BITS: u8 = 2;
/// Bits of an index.
const INDEX_BITS: u8 = 3;

/// Tells the device the one-hots of the largest of each group of `items`.
pub(crate) fn argmax<P: Party>(circuit: &mut Circuit<'_, P>, items: Items, groups: Groups) -> Result<(), P::Error> {
    let opening = Opening { shift: 0, index_bits: win_bits(groups.largest()) };
    let [first, rest] = groups.0;
    let lookup = Lookup { first: full(first), split: first.into(), rest: full(rest) };
    decide(circuit, items, groups, Combination::Wins, opening, lookup, ONE_HOT_BITS)
}

/// Tells the device the index of the largest of the first group, of at most [`MAX_PRIVATE_MODELS`] items, or the one that
/// the dealer has put in its place; and behind it the one-hot of the other group.
pub(crate) fn tell_index<P: Party>(circuit: &mut Circuit<'_, P>, items: Items, groups: Groups) -> Result<(), P::Error> {
    let [first, rest] = groups.0;
    // With a sign that is always 0.
    let tournament = Groups::one(first).pair_count() as u8 + 1;
    let opening = Opening { shift: 0, index_bits: tournament.max(win_bits(rest)) };
    let lookup = Lookup { first: Table::Winner(first), split: 1, rest: full(rest) };
    decide(circuit, items, groups, Combination::Tournament, opening, lookup, INDEX_BITS)
}

/// Tells the device the one-hot of the largest of the first group of `items`, and that of the largest of the other group if it is
/// larger than each of the others by the margin of this run; else zeros. Costs no more messages than [`argmax`], and the margin.
pub(crate) fn margin_argmax<P: Party>(
    circuit: &mut Circuit<'_, P>,
    items: Items,
    groups: Groups,
) -> Result<(), P::Error> {
    let opening = Opening { shift: 0, index_bits: win_bits(groups.largest()) };
    let [first, rest] = groups.0;
    let lookup = Lookup { first: full(first), split: first.into(), rest: full(rest) };
    let even = Groups::one(first).pair_count().into();
    let Items { wire, difference } = items;
    let differences = Combination::Differences { scale: difference.shift };
    let signs = circuit.margin(Combine { wire, combination: differences, groups }, difference, even, opening.bits())?;
    let balance = Combine { wire: signs, combination: Combination::Balance, groups };
    circuit.tell(balance, opening, lookup, ONE_HOT_BITS)
}

/// What is compared: a wire of one row, and how differences of its elements are opened.
#[derive(Clone, Copy)]
pub(crate) struct Items {
    pub(crate) wire: Wire,
    pub(crate) difference: Opening,
}

/// Bits that hold all wins but one of `items` items, with a sign.
const fn win_bits(items: u16) -> u8 {
    (u16::BITS - items.saturating_sub(1).leading_zeros()) as u8 + 1
}

/// Whether an item of `items` has won against all others.
const fn full(items: u16) -> Table {
    Table::Equals(items.saturating_sub(1))
}

fn decide<P: Party>(
    circuit: &mut Circuit<'_, P>,
    Items { wire, difference }: Items,
    groups: Groups,
    combination: Combination,
    opening: Opening,
    lookup: Lookup,
    bits: u8,
) -> Result<(), P::Error> {
    let differences = Combination::Differences { scale: difference.shift };
    let differences = Operand::Combine(Combine { wire, combination: differences, groups });
    let signs = circuit.table(differences, difference, Table::Sign, opening.bits())?;
    circuit.tell(Combine { wire: signs, combination, groups }, opening, lookup, bits)
}
