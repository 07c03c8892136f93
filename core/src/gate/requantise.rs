//! Requantisation: `v = y >> s` under sharing, for `|v| < 2^(n-2)`.
//!
//! The operand is offset by `2^(n-2)` so that its top bit is 0; whether the masked index wrapped is
//! then told by its top bit alone: `v = i - 2^(n-2) - sigma + 2^n·msb(sigma)·(1 - msb(i))`. A
//! table of two entries, keyed by that one bit.

use crate::ring::low_bits;
use crate::spec::Opening;

/// What the server adds to its share before the opening.
#[inline]
#[must_use]
pub const fn offset(opening: Opening) -> u32 {
    1 << (opening.index_bits - 2 + opening.shift)
}

/// The one bit of the index that the server sends.
#[inline]
#[must_use]
pub const fn key_bit(opening: Opening, index: u32) -> u32 {
    (index >> (opening.index_bits - 1)) & 1
}

/// The dealer's entry for key bit `bit`, before the pad.
#[inline]
#[must_use]
pub fn dealer_entry(opening: Opening, sigma: u32, bit: u32, wire_mask: u32) -> u32 {
    let n = opening.index_bits;
    let wrapped = key_bit(opening, sigma) & (1 ^ bit);
    wire_mask.wrapping_sub(1 << (n - 2)).wrapping_sub(sigma).wrapping_add(((u64::from(wrapped)) << n) as u32)
}

/// The server's new share, from its index, its entry and the device's pad.
#[inline]
#[must_use]
pub fn server_share(index: u32, entry: u32, pad: u32, bits: u8) -> u32 {
    low_bits(index.wrapping_add(entry).wrapping_add(pad), bits)
}

/// Whether the rounded value is in the range that the gate handles.
#[must_use]
pub const fn in_range(opening: Opening, value: i64) -> bool {
    let limit = 1i64 << (opening.index_bits - 2);
    -limit < value && value < limit
}
