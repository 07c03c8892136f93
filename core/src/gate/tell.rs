//! Telling: the device learns what is looked up in a table.
//!
//! | party | when | what |
//! | --- | --- | --- |
//! | dealer | offline | `e[j] = f(signed(j - sigma)) - pad(j)`, all `2^n` entries, to the server |
//! | server | online | sends the masked index `i`, and `e[i]` |
//! | device | online | `f(y >> s) = e[i] + pad(i)`: one seek in its stream |
//!
//! A [`table`](super::table) whose result carries no mask and is put together by the other party, so that nothing goes back. The
//! server sees an entry under a pad that it does not know; the device sees the one entry that its pad opens, and an index that
//! is uniform to it, since it does not know `rho_S`.

use crate::ring::low_bits;
use crate::spec::Opening;

/// What the server sends of an element: the entry above its index.
#[inline]
#[must_use]
pub const fn server_message(opening: Opening, index: u32, entry: u32) -> u32 {
    entry << opening.index_bits | index
}

/// The index that selects the device's pad.
#[inline]
#[must_use]
pub fn device_index(opening: Opening, message: u32) -> u32 {
    low_bits(message, opening.index_bits)
}

/// What the device learns, modulo `2^bits`.
#[inline]
#[must_use]
pub fn device_value(opening: Opening, message: u32, pad: u32, bits: u8) -> u32 {
    low_bits((message >> opening.index_bits).wrapping_add(pad), bits)
}
