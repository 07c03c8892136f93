//! Product gate: `Z = X·Y` or `X·Yᵀ` per head, both shared.
//!
//! | party | when | what |
//! | --- | --- | --- |
//! | dealer | offline | `q = P_x R_y + R_x P_y + R_x R_y - u` to the server |
//! | server | online | sends `E_x = X_hat + P_x`, `E_y = Y_hat + P_y`; keeps `z_S = X_hat Y_hat + q` |
//! | device | online | keeps `z_D = u - E_x R_y - R_x E_y`; its mask is `-z_D` |
//!
//! `z_S + z_D = X·Y`. Beaver's multiplication with a dealer who knows both masks (Beaver 1991), and
//! with `P` on top so that the device, too, sees only uniform values.

use crate::circuit::{HeadView, Product};
use crate::keys::StreamKey;
use crate::prg::{Purpose, Stream, StreamId};

use super::{Factor, Scalar, part};

/// Elements of scratch that a party which holds whole operands needs: four operands of one head.
#[must_use]
pub fn scratch(product: &Product) -> usize {
    2 * usize::from(product.rows) * (usize::from(product.left.depth) + usize::from(product.right.depth))
}

/// Copies one head of an operand out of the arena, row-major.
fn gather<X: Scalar>(view: &HeadView, head: u16, rows: u16, arena: &[X], into: &mut [X]) {
    let depth = usize::from(view.depth).max(1);
    for (row, into) in (0..rows).zip(into.chunks_exact_mut(depth)) {
        let held = part(arena, view.wire.at + view.run(head, row), depth);
        for (slot, x) in into.iter_mut().zip(held) {
            *slot = *x;
        }
    }
}

/// Splits scratch into two operands of one head and the rest.
fn operands<'s, X>(product: &Product, scratch: &'s mut [X]) -> Option<(&'s mut [X], &'s mut [X], &'s mut [X])> {
    let rows = usize::from(product.rows);
    let (left, rest) = scratch.split_at_mut_checked(rows * usize::from(product.left.depth))?;
    let (right, rest) = rest.split_at_mut_checked(rows * usize::from(product.right.depth))?;
    Some((left, right, rest))
}

/// One entry of one head's product: a row of the left operand with `column` of the result.
#[inline]
pub(crate) fn entry<X: Scalar + Factor<X>>(product: &Product, left: &[X], right: &[X], column: usize) -> X {
    if product.transposed {
        let depth = left.len();
        super::dot(left, right.get(column * depth..(column + 1) * depth).unwrap_or(&[]))
    } else {
        let right = right.iter().skip(column).step_by(usize::from(product.right.depth).max(1));
        left.iter().zip(right).fold(X::ZERO, |sum, (l, r)| sum.plus(l.times(*r)))
    }
}

/// The reference: `X·Y` over values held in `arena`.
pub fn evaluate<X: Scalar + Factor<X>>(
    product: &Product,
    arena: &[X],
    scratch: &mut [X],
    mut emit: impl FnMut(u32, X),
) {
    let mut element = 0;
    let Some((left, right, _)) = operands(product, scratch) else { return };
    for head in 0..product.heads {
        gather(&product.left, head, product.rows, arena, left);
        gather(&product.right, head, product.rows, arena, right);
        for left in left.chunks_exact(usize::from(product.left.depth).max(1)) {
            for column in 0..usize::from(product.width()) {
                emit(element, entry(product, left, right, column));
                element += 1;
            }
        }
    }
}

/// The server opens: every element of the message [`Operands`](crate::circuit::MessageKind), per
/// head `E_y` and then `E_x`, row by row.
pub fn server_open(gate: u16, product: &Product, key: &StreamKey, arena: &[u32], mut emit: impl FnMut(u32)) {
    let mut left = Stream::new(key, StreamId::new(gate, Purpose::LeftMask));
    let mut right = Stream::new(key, StreamId::new(gate, Purpose::RightMask));
    for head in 0..product.heads {
        for (view, masks) in [(&product.right, &mut right), (&product.left, &mut left)] {
            for row in 0..product.rows {
                let held = part(arena, view.wire.at + view.run(head, row), usize::from(view.depth));
                held.iter().for_each(|x| emit(x.wrapping_add(masks.draw())));
            }
        }
    }
}

/// The dealer's correlation `q`, element by element; `arena` holds the wires' masks.
pub fn dealer_correlation(
    gate: u16,
    product: &Product,
    device: &StreamKey,
    server: &StreamKey,
    arena: &[u32],
    scratch: &mut [u32],
    mut emit: impl FnMut(u32, u32),
) {
    let mut left_masks = Stream::new(server, StreamId::new(gate, Purpose::LeftMask));
    let mut right_masks = Stream::new(server, StreamId::new(gate, Purpose::RightMask));
    let mut pads = Stream::new(device, StreamId::new(gate, Purpose::OperandPad));
    let Some((r_left, r_right, rest)) = operands(product, scratch) else { return };
    let Some((p_left, p_right, _)) = operands(product, rest) else { return };
    let mut element = 0;
    for head in 0..product.heads {
        gather(&product.left, head, product.rows, arena, r_left);
        gather(&product.right, head, product.rows, arena, r_right);
        left_masks.fill(p_left);
        right_masks.fill(p_right);
        // q = (P_x + R_x) R_y + R_x P_y - u
        p_left.iter_mut().zip(r_left.iter()).for_each(|(p, r)| *p = p.wrapping_add(*r));
        let depth = usize::from(product.left.depth).max(1);
        for (sum, r_left) in p_left.chunks_exact(depth).zip(r_left.chunks_exact(depth)) {
            for column in 0..usize::from(product.width()) {
                let cross = entry(product, sum, r_right, column).wrapping_add(entry(product, r_left, p_right, column));
                emit(element, cross.wrapping_sub(pads.draw()));
                element += 1;
            }
        }
    }
}
