//! The argmax under sharing, in two round trips.
//!
//! A sign table on all pairwise differences, and a table on what the signs say: for a one-hot, each
//! item's wins and whether they are a full score; for an index, the whole tournament at once, which is
//! one element that no party can turn into more than one of the items. The differences are opened
//! without a shift, so the comparisons are exact: they are consistent with each other and exactly one
//! item wins. Of equal items the first wins.

use crate::circuit::{Circuit, Combination, Combine, Operand, Party, Table, Wire, pairs};
use crate::routing::MAX_PRIVATE_MODELS;
use crate::spec::{MAX_LABELS, MAX_MODELS, MAX_TABLE_BITS, Opening};

const DIFFERENCE: Opening = Opening { shift: 0, index_bits: 11 };
const _: () = assert!(MAX_MODELS as u16 <= MAX_LABELS && MAX_LABELS < 1 << 14);
const _: () =
    assert!(pairs(MAX_PRIVATE_MODELS as u16) < MAX_TABLE_BITS as u16 && MAX_PRIVATE_MODELS <= 1 << INDEX_BITS);

/// Signed bits of what is compared, public scores included: differences have one more.
pub(crate) const COMPARED_BITS: u8 = DIFFERENCE.index_bits - 1;
/// Bits of a wire of items.
pub(crate) const ITEM_BITS: u8 = DIFFERENCE.bits();
/// Bits of a revealed one-hot: 0 and 1, read as signed.
pub(crate) const ONE_HOT_BITS: u8 = 2;
/// Bits of an opened index.
const INDEX_BITS: u8 = 3;

/// Whether each item beats each later one, as a wire of `bits` bits.
fn signs<P: Party>(circuit: &mut Circuit<'_, P>, wire: Wire, items: u16, bits: u8) -> Result<Wire, P::Error> {
    let differences = Operand::Combine(Combine { wire, combination: Combination::Differences, items });
    circuit.table(differences, DIFFERENCE, Table::Sign, bits)
}

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
    let wire = signs(circuit, wire, items, wins.bits())?;
    let operand = Operand::Combine(Combine { wire, combination: Combination::Wins, items });
    let full = Table::Equals(items.saturating_sub(1));
    if open { circuit.open_table(operand, wins, full, bits) } else { circuit.table(operand, wins, full, bits) }
}

/// Reveals the one-hot of the largest of `items` items to the device.
pub(crate) fn reveal_argmax<P: Party>(circuit: &mut Circuit<'_, P>, wire: Wire, items: u16) -> Result<Wire, P::Error> {
    let wire = argmax(circuit, wire, items, ONE_HOT_BITS, false)?;
    circuit.reveal(Operand::Combine(Combine { wire, combination: Combination::Same, items }), ONE_HOT_BITS)
}

/// Opens the index of the largest of at most [`MAX_PRIVATE_MODELS`] items to the server.
pub(crate) fn open_index<P: Party>(circuit: &mut Circuit<'_, P>, wire: Wire, items: u16) -> Result<Wire, P::Error> {
    // With a sign that is always 0.
    let opening = Opening { shift: 0, index_bits: pairs(items) as u8 + 1 };
    let wire = signs(circuit, wire, items, opening.bits())?;
    let tournament = Operand::Combine(Combine { wire, combination: Combination::Tournament, items });
    circuit.open_table(tournament, opening, Table::Winner(items), INDEX_BITS)
}
