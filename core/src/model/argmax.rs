//! The argmax under sharing, in two round trips, of one group of items or of two at once.
//!
//! A sign table on all pairwise differences, whose sums are the wins, and a table that asks for a
//! full score of wins. The differences are opened without a shift, so the comparisons are exact:
//! they are consistent with each other and exactly one item of a group wins. Of equal items the first
//! wins.

use crate::circuit::{Circuit, Combination, Combine, Groups, Lookup, Operand, Party, Table, Wire};
use crate::spec::{MAX_LABELS, MAX_MODELS, Opening};

const DIFFERENCE: Opening = Opening { shift: 0, index_bits: 11 };
const _: () = assert!(MAX_MODELS as u16 <= MAX_LABELS && MAX_LABELS < 1 << 14);

/// Signed bits of what is compared, public scores included: differences have one more.
pub(crate) const COMPARED_BITS: u8 = DIFFERENCE.index_bits - 1;
/// Bits of a wire of items.
pub(crate) const ITEM_BITS: u8 = DIFFERENCE.bits();
/// Bits of a one-hot: 0 and 1, read as signed.
pub(crate) const ONE_HOT_BITS: u8 = 2;

/// The one-hots of the largest of each group of `wire`; the server learns the first `opened`
/// elements.
pub(crate) fn argmax<P: Party>(
    circuit: &mut Circuit<'_, P>,
    wire: Wire,
    groups: Groups,
    opened: u16,
) -> Result<Wire, P::Error> {
    // As many bits as hold all wins but one with a sign.
    let most = groups.largest().saturating_sub(1);
    let wins = Opening { shift: 0, index_bits: (u16::BITS - most.leading_zeros()) as u8 + 1 };
    let combine = |wire, combination| Operand::Combine(Combine { wire, combination, groups });
    let signs = circuit.table(combine(wire, Combination::Differences), DIFFERENCE, Table::Sign, wins.bits())?;
    let [first, rest] = groups.0;
    let full = Lookup {
        first: Table::Equals(first.saturating_sub(1)),
        split: first.into(),
        rest: Table::Equals(rest.saturating_sub(1)),
        opened: opened.into(),
    };
    circuit.table(combine(signs, Combination::Wins), wins, full, ONE_HOT_BITS)
}
