//! Embedding gate: `y = sum of W[x_i]` over the words `i` of a row; `W` at the server, the words at the device.
//!
//! | party | when | what |
//! | --- | --- | --- |
//! | dealer | offline | of every word `e_i[j] = F[j - sigma_i] - pad_i(j)`, all `2^n` rows, to the server; `F = W - B` |
//! | device | online | the masked words `j_i = x_i + sigma_i`, of which the low `n` bits count, and for each row `t = sum of (pad_i(j_i) + B[x_i]) + r` |
//! | server | online | `sum of e_i[j_i] + t = y + r` |
//!
//! A lookup in a private table at a private place in one message from the device: `k` bits a word and one vector a row, however
//! many words a row has and whatever the vocabulary. The server sees uniform `j_i`, and of the entries, each under a pad of its
//! own, only the sum that `r` hides; the dealer sees neither `x` nor `W`; the device is told nothing.
//!
//! `B[x]` is a place in a stream that depends on a secret. Rows of `B` begin at whole blocks, so that the place is a block counter,
//! which the cipher adds as it adds any, and neither an address nor a branch.

use crate::circuit::Embed;
use crate::error::BufferError;
use crate::keys::{DeviceKeys, StreamKey};
use crate::prg::{Purpose, Stream, StreamId};
use crate::ring::low_bits;
use crate::spec::MAX_COLUMNS;
use zeroize::Zeroize;

use super::{Scalar, part};

/// Blocks that the device computes for `row` beside those of its words' masks and of its own.
#[must_use]
pub const fn device_blocks(embed: &Embed, row: u16) -> u64 {
    let words = embed.words_of(row);
    (words.end - words.start) as u64 * 2 * embed.mask_blocks() as u64
}

/// `x + sigma`: what the server sees of a word. Its low `n` bits count; the others are as uniform.
#[inline]
#[must_use]
pub const fn device_word(word: i16, sigma: u32) -> u32 {
    (word as u32).wrapping_add(sigma)
}

/// The device's half: what it sends of `row`, in the part of `work` that is returned.
///
/// # Errors
/// [`BufferError`] when `work` is shorter than a row, or `input` than all words.
pub fn device_row<'w>(
    gate: u16,
    embed: &Embed,
    keys: &DeviceKeys,
    row: u16,
    input: &[i16],
    work: &'w mut [u32],
) -> Result<&'w mut [u32], BufferError> {
    let width = usize::from(embed.width);
    BufferError::check("device workspace", width, work.len())?;
    BufferError::check("input", usize::from(embed.words.count), input.len())?;
    let sums = work.get_mut(..width).unwrap_or(&mut []);
    let mut masks = Stream::new(&keys.run, StreamId::new(gate, Purpose::WireMask));
    masks.seek((u32::from(row) * u32::from(embed.width)).into());
    masks.fill(sums);

    let words = embed.words_of(row);
    let mut sigma = Stream::new(&keys.run, StreamId::new(gate, Purpose::IndexMask));
    let mut pads = Stream::new(&keys.run, StreamId::new(gate, Purpose::TablePad));
    let mut weight_masks = Stream::new(&keys.weights, StreamId::weights(gate, 0));
    sigma.seek(u64::from(words.start));
    for (i, x) in words.clone().zip(input.iter().skip(usize::from(words.start))) {
        let index = low_bits(device_word(*x, sigma.draw()), embed.words.bits);
        let entry = u32::from(i) << embed.words.bits | index;
        let mut pad = pads.at(entry.wrapping_mul(embed.pad_words().into()).into());
        // A multiplication of 32 by 32 bits to 32, which takes the same time on every core.
        weight_masks.seek_block(low_bits(*x as u32, embed.words.bits).wrapping_mul(embed.mask_blocks()));
        for (column, sum) in sums.iter_mut().enumerate() {
            if column > 0 {
                pad = pads.draw();
            }
            *sum = sum.wrapping_add(pad).wrapping_add(weight_masks.draw());
        }
    }
    Ok(sums)
}

/// The server's half: the share of one element, given what the device sent of it. `word` gives the masked word `j_i`, `entry` an element
/// of the stock.
pub fn server_share(
    embed: &Embed,
    row: u16,
    column: u16,
    sent: u32,
    word: impl Fn(u16) -> u32,
    entry: impl Fn(u64) -> u32,
) -> u32 {
    let of_word = |i: u16| entry(embed.entry(i, low_bits(word(i), embed.words.bits)) + u64::from(column));
    embed.words_of(row).fold(sent, |sum, i| sum.wrapping_add(of_word(i)))
}

/// The dealer's half: the entries of all words, in order. `weights` are the masked ones of the program.
pub fn dealer_entries(gate: u16, embed: &Embed, key: &StreamKey, weights: &[u32], mut emit: impl FnMut(u32)) {
    let width = usize::from(embed.width).max(1);
    let stride = usize::from(embed.pad_words()).max(1);
    let rows = part(weights, embed.weights_at, embed.weights() as usize);
    let mut sigma = Stream::new(key, StreamId::new(gate, Purpose::IndexMask));
    let mut pads = Stream::new(key, StreamId::new(gate, Purpose::TablePad));
    let mut drawn = [0; MAX_COLUMNS as usize];
    let at_a_time = (drawn.len() / stride).max(1);
    for _ in 0..embed.words.count {
        // Entry `j` is row `j - sigma`: the table begins at row `-sigma`.
        let first = low_bits(sigma.draw().wrapping_neg(), embed.words.bits) as usize * width;
        let (end, start) = rows.split_at_checked(first).unwrap_or((rows, &[]));
        for rows in [start, end].into_iter().flat_map(|rows| rows.chunks(at_a_time * width)) {
            let drawn = drawn.get_mut(..rows.len() / width * stride).unwrap_or(&mut []);
            pads.fill(drawn);
            for (values, pads) in rows.chunks_exact(width).zip(drawn.chunks_exact(stride)) {
                values.iter().zip(pads).for_each(|(value, pad)| emit(value.wrapping_sub(*pad)));
            }
        }
    }
    drawn.zeroize();
}

/// The clear-text reference: the elements of all rows. Words beyond the vocabulary count modulo its size.
pub fn evaluate<X: Scalar + From<i16>>(embed: &Embed, weights: &[i16], input: &[i16], mut emit: impl FnMut(u32, X)) {
    let width = usize::from(embed.width);
    let rows = part(weights, embed.weights_at, embed.weights() as usize);
    for row in 0..embed.rows {
        for column in 0..width {
            let words = embed.words_of(row).filter_map(|i| input.get(usize::from(i)));
            let sum = words.fold(X::ZERO, |sum, x| {
                let place = low_bits(*x as u32, embed.words.bits) as usize * width + column;
                sum.plus(rows.get(place).copied().unwrap_or(0).into())
            });
            emit(u32::from(row) * u32::from(embed.width) + column as u32, sum);
        }
    }
}

/// The server masks the embedding for the dealer: `F = W - B`.
pub fn mask_weights(gate: u16, embed: &Embed, key: &StreamKey, weights: &[i16], masked: &mut [u32]) {
    let range = embed.weights_at as usize..(embed.weights_at + embed.weights()) as usize;
    let (Some(weights), Some(masked)) = (weights.get(range.clone()), masked.get_mut(range)) else { return };
    let width = usize::from(embed.width).max(1);
    let mut source = Stream::new(key, StreamId::weights(gate, 0));
    for ((word, weights), masked) in (0..).zip(weights.chunks_exact(width)).zip(masked.chunks_exact_mut(width)) {
        source.seek_block(embed.mask_blocks().wrapping_mul(word));
        for (masked, weight) in masked.iter_mut().zip(weights) {
            *masked = (i32::from(*weight) as u32).wrapping_sub(source.draw());
        }
    }
}
