//! Margin gate: whether an operand is clear of 0, by a margin that the server chooses when it runs: 1 from the margin on, -1 below
//! it on the other side, 0 between.
//!
//! | party | when | what |
//! | --- | --- | --- |
//! | dealer | offline | two tables of `2^n` entries: `e[j] = [j - sigma >= 0] + r_out - pad(j)`, `e'[j] = [j - sigma >= 0] - 1 - pad'(j)` |
//! | server | online | sends its margin `d`, and the masked index `i` |
//! | device | online | answers `pad(i - d) + pad'(i + d)`: two seeks in its stream |
//! | server | online | `z_hat = e[i - d] + e'[i + d] + pad(i - d) + pad'(i + d) = [y >= d] + [y >= -d] - 1 + r_out` |
//!
//! Two [`table`](super::table) gates on one opening, of whose results the sum alone has a mask and is put together: the server learns one
//! sum of two pads, under `r_out`, whatever margin it names. A margin and an index are public to the device; the index is
//! uniform to both. Indices wrap, so an operand must be as far from either end of its range as the margin is wide.

use crate::ring::low_bits;

/// Tables of one element.
pub const TABLES: u32 = 2;

/// The function's value at a signed index.
#[must_use]
pub const fn value(index: i64, margin: u16) -> i64 {
    let margin = margin as i64;
    (index >= margin) as i64 + (index >= -margin) as i64 - 1
}

/// Whether neither table's index wraps.
#[must_use]
pub const fn in_range(index: i64, margin: u16, index_bits: u8) -> bool {
    let (limit, margin) = (1i64 << (index_bits - 1), margin as i64);
    index - margin >= -limit && index + margin < limit
}

/// What is added to the entries of table `which`, before their pads: the sum of both tables has one mask, and is less by 1.
#[must_use]
pub const fn mask_of(which: u32, wire_mask: u32) -> u32 {
    if which == 0 { wire_mask } else { u32::MAX }
}

/// The margin of `element`: none of the first `even`.
#[inline]
#[must_use]
pub fn margin_of(element: u32, even: u32, margin: u32) -> u32 {
    if element < even { 0 } else { margin }
}

/// Which entries an index selects, of those of both tables of an element.
#[inline]
#[must_use]
pub fn places(index: u32, margin: u32, index_bits: u8) -> [u32; 2] {
    let second = 1u32 << index_bits;
    [low_bits(index.wrapping_sub(margin), index_bits), second + low_bits(index.wrapping_add(margin), index_bits)]
}

/// The server's new share, of the two entries and the device's sum of pads.
#[inline]
#[must_use]
pub fn server_share(entries: [u32; 2], pads: u32, bits: u8) -> u32 {
    low_bits(entries[0].wrapping_add(entries[1]).wrapping_add(pads), bits)
}
