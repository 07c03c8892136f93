//! How many bits each kind of opening of a model uses, and the steps that follow from them.

use crate::nn::attention::Attention;
use crate::nn::feed_forward::FeedForward;
use crate::nn::model::Model;
use secure_router_core::spec::Opening;

/// The openings of one model; all layers share them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bits {
    /// Fractional bits of the input.
    pub(crate) input_frac: u8,
    pub(crate) qkv: Opening,
    pub(crate) score: Opening,
    pub(crate) mix: Opening,
    pub(crate) ffn_in: Opening,
    pub(crate) output: u8,
    /// Head-room of a table index, above the largest of many augmented epochs. An index beyond the
    /// range would wrap, too.
    pub(crate) index_room: f32,
}

/// Head-room of a requantised wire: one bit above the largest value seen, because a value beyond
/// the range would wrap, not saturate.
const REQUANTISE_ROOM: f32 = 2.0;
/// Largest output of an activation table. A finer step would cost nothing, a coarser one accuracy.
const ACTIVATION_LIMIT: f32 = 127.0;

fn requantised_limit(opening: Opening) -> f32 {
    (1u32 << (opening.index_bits - 2)) as f32 / REQUANTISE_ROOM
}

fn index_limit(opening: Opening, room: f32) -> f32 {
    (1u32 << (opening.index_bits - 1)) as f32 / room
}

/// Derives every step of the model from the largest values that its quantisers saw.
pub(crate) fn calibrate(model: &mut Model, bits: &Bits) {
    for block in &mut model.blocks {
        if let Some(sub) = &mut block.attention {
            calibrate_attention(&mut sub.inner, bits);
        }
        if let Some(sub) = &mut block.feed_forward {
            calibrate_feed_forward(&mut sub.inner, bits);
        }
    }
}

fn calibrate_feed_forward(inner: &mut FeedForward, bits: &Bits) {
    inner.index.calibrate(index_limit(bits.ffn_in, bits.index_room));
    inner.output.calibrate(ACTIVATION_LIMIT);
}

/// Scores and mixed values are opened by plain shifts of products, so their steps are products of
/// steps times `2^shift`. The steps of q and k give way to that of the score, the step of the
/// attention table to that of the mixed values.
fn calibrate_attention(inner: &mut Attention, bits: &Bits) {
    let power = |shift: u8| (1u64 << shift) as f32;
    inner.score.calibrate(index_limit(bits.score, bits.index_room));
    let limit = requantised_limit(bits.qkv);
    inner.query.calibrate(limit);
    inner.key.calibrate(limit);
    inner.value.calibrate(limit);
    let to_score = power(bits.score.shift) / (inner.depth() as f32).sqrt();
    let finest = inner.query.step * inner.key.step * to_score;
    if inner.score.step < finest {
        inner.score.step = finest;
    } else {
        let coarser = (inner.score.step / finest).sqrt();
        inner.query.step *= coarser;
        inner.key.step *= coarser;
    }
    inner.output.calibrate(requantised_limit(bits.mix));
    inner.weight.step = inner.output.step / (inner.value.step * power(bits.mix.shift));
}
