//! The argmax under sharing, in two round trips.
//!
//! A sign table on all pairwise differences, whose sums are the wins, and a table that asks for a
//! full score of wins. The differences are opened without a shift, so the comparisons are exact:
//! they are consistent with each other and exactly one item wins. Of equal items the first wins.

use crate::circuit::{Circuit, Combination, Combine, Operand, Party, Table, Wire};
use crate::spec::{MAX_LABELS, MAX_MODELS, Opening};

const DIFFERENCE: Opening = Opening { shift: 0, index_bits: 11 };
const _: () = assert!(MAX_MODELS as u16 <= MAX_LABELS && MAX_LABELS < 1 << 14);

/// Signed bits of what is compared, public scores included: differences have one more.
pub(crate) const COMPARED_BITS: u8 = DIFFERENCE.index_bits - 1;
/// Bits of a wire of items.
pub(crate) const ITEM_BITS: u8 = DIFFERENCE.bits();

/// The one-hot of the largest of `items` items, as a wire of `bits` bits; `open` shows it to the
/// server.
pub(crate) fn argmax<P: Party>(
    circuit: &mut Circuit<'_, P>,
    wire: Wire,
    items: u16,
    bits: u8,
    open: bool,
) -> Result<Wire, P::Error> {
    // As many bits as hold `items - 1` wins with a sign.
    let wins = Opening { shift: 0, index_bits: (u16::BITS - items.saturating_sub(1).leading_zeros()) as u8 + 1 };
    let combine = |wire, combination| Operand::Combine(Combine { wire, combination, items });
    let signs = circuit.table(combine(wire, Combination::Differences), DIFFERENCE, Table::Sign, wins.bits())?;
    let full = Table::Equals(items.saturating_sub(1));
    if open {
        circuit.open_table(combine(signs, Combination::Wins), wins, full, bits)
    } else {
        circuit.table(combine(signs, Combination::Wins), wins, full, bits)
    }
}
