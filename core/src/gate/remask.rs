//! Re-masking: a linear gate's result becomes a wire, exactly and without a message online.
//!
//! | party | when | what |
//! | --- | --- | --- |
//! | device | offline | sends `c = r - m`, `m` the operand's mask and `r` the new wire's |
//! | server | online | `y_hat + c = y + r` |
//!
//! A linear gate leaves the server with `y + m`, but `m = B·r + u` has no place in a stream: the device would compute it
//! again wherever the wire is read. `r` has one. The server learns nothing from `c`, since `r` is uniform and known to
//! device and dealer only; the dealer has nothing to send.

use crate::ring::low_bits;

/// The server's share of the wire.
#[inline]
#[must_use]
pub fn server_share(y_hat: u32, correction: u32, bits: u8) -> u32 {
    low_bits(y_hat.wrapping_add(correction), bits)
}
