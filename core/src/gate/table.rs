//! Table gate: any function of an `n`-bit index, under sharing.
//!
//! | party | when | what |
//! | --- | --- | --- |
//! | dealer | offline | `e[j] = f(signed(j - sigma)) + r_out - pad(j)`, all `2^n` entries, to the server |
//! | server | online | sends the masked index `i` |
//! | device | online | answers `pad(i)`: one seek in its stream |
//! | server | online | `z_hat = e[i] + pad(i) = f(y >> s) + r_out` |
//!
//! A one-time truth table (Ishai et al. 2013) with its entries one-time padded by the device.

use crate::circuit::Table;
use crate::ring::{low_bits, signed};

use super::part;

/// The function's value at a signed index of `index_bits`.
#[must_use]
pub fn value(table: Table, tables: &[i16], index_bits: u8, index: i32) -> i32 {
    match table {
        Table::Secret { at } => {
            let place = low_bits(index as u32, index_bits) as usize;
            part(tables, at, 1 << index_bits).get(place).copied().map_or(0, i32::from)
        }
        Table::Sign => i32::from(index >= 0),
        Table::Equals(wanted) => i32::from(index == i32::from(wanted)),
        Table::Winner(items) => winner(items, index as u32),
    }
}

/// The first of `items` items that lost no pair of the tournament, or 0.
fn winner(items: u16, tournament: u32) -> i32 {
    let lost = |item: u16| {
        let pairs = (0..items).flat_map(|first| (first + 1..items).map(move |second| (first, second)));
        pairs.zip(0..).any(|((first, second), pair)| {
            let loser = if tournament.checked_shr(pair).is_some_and(|rest| rest & 1 == 1) { second } else { first };
            loser == item
        })
    };
    (0..items).find(|item| !lost(*item)).map_or(0, i32::from)
}

/// The dealer's entries of one element, before the pads. `function` holds the function's `2^n`
/// values by unsigned index; `emit` gets `f(signed(j - sigma)) + r_out` for each `j` in order.
#[inline]
pub fn dealer_entries(function: &[u32], sigma: u32, wire_mask: u32, mut emit: impl FnMut(u32)) {
    let start = function.len() - (sigma as usize).min(function.len());
    // j - sigma runs from 2^n - sigma up and wraps: two runs without a test per entry.
    let (low, high) = function.split_at(start % function.len().max(1));
    high.iter().chain(low).for_each(|f| emit(f.wrapping_add(wire_mask)));
}

/// All values of a table by unsigned index.
pub fn tabulate(table: Table, tables: &[i16], index_bits: u8, function: &mut [u32]) {
    for (index, slot) in (0u32..).zip(function) {
        *slot = value(table, tables, index_bits, signed(index, index_bits)) as u32;
    }
}

/// Place of entry `index` of `element` in the gate's pads and entries.
#[inline]
#[must_use]
pub const fn entry(element: u32, entries: u32, index: u32) -> u64 {
    element as u64 * entries as u64 + index as u64
}

/// The server's new share.
#[inline]
#[must_use]
pub fn server_share(entry: u32, pad: u32, bits: u8) -> u32 {
    low_bits(entry.wrapping_add(pad), bits)
}
