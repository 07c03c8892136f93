//! Index opening, shared by table and requantisation: the operand `y_hat = y + m` becomes the
//! public index `i = (y >> s) + sigma + carry (mod 2^n)`.
//!
//! | party | what |
//! | --- | --- |
//! | dealer | knows `rho = rho_D + rho_S`, so `sigma = (rho mod 2^(s+n)) >> s` |
//! | device | sends `c = rho_D - m` (offline, except after a product) |
//! | server | forms `i = ((y_hat + c + rho_S) mod 2^(s+n)) >> s` |
//!
//! `rho` is uniform, so the carry out of the low `s` bits is exactly unbiased stochastic rounding,
//! and `i` is uniform to the server, who does not know `rho_D`, and to the device, who does not
//! know `rho_S`.

use crate::ring::low_bits;
use crate::spec::Opening;

/// The server's index, from its share `y_hat`, the device's correction and its own mask.
#[inline]
#[must_use]
pub fn server_index(opening: Opening, y_hat: u32, correction: u32, rho_server: u32) -> u32 {
    low_bits(y_hat.wrapping_add(correction).wrapping_add(rho_server), opening.bits()) >> opening.shift
}

/// The dealer's offset of the index.
#[inline]
#[must_use]
pub fn dealer_sigma(opening: Opening, rho: u32) -> u32 {
    low_bits(rho, opening.bits()) >> opening.shift
}

/// The reference: `y / 2^s` rounded with `offset` in `0..2^s`. Half of the range rounds to nearest;
/// the low bits of `rho` round as the protocol does.
#[inline]
#[must_use]
pub fn round(opening: Opening, y: i64, offset: u32) -> i64 {
    y.wrapping_add(i64::from(offset)) >> opening.shift
}
