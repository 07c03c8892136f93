//! One layer: `x += Wo attention(BN(x))`, then `x += W2 feed_forward(BN(x))`.

use super::Mode;
use super::attention::Attention;
use super::feed_forward::FeedForward;
use super::linear::Linear;
use super::model::{Shape, Style};
use super::norm::Norm;
use super::param::Param;
use crate::rng::Rng;

/// A sublayer and what ties it to the stream. The way back has no bias: the batch norm of the next
/// reader would remove it.
#[derive(Clone, Debug)]
pub(crate) struct Residual<Inner> {
    pub(crate) norm: Norm,
    pub(crate) inner: Inner,
    pub(crate) back: Linear,
}

#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) attention: Option<Residual<Attention>>,
    pub(crate) feed_forward: Option<Residual<FeedForward>>,
}

impl Block {
    pub(crate) fn new(shape: Shape, style: Style, rng: &mut Rng) -> Self {
        const BACK_GAIN: f32 = 0.5;
        let Shape { tokens, width, heads, ffn, .. } = shape;
        Self {
            attention: (heads > 0).then(|| Residual {
                norm: Norm::new(style, width),
                inner: Attention::new(tokens, width, heads, style, rng),
                back: Linear::new(width, width, BACK_GAIN, rng).without_bias(),
            }),
            feed_forward: (ffn > 0).then(|| Residual {
                norm: Norm::new(style, width),
                inner: FeedForward::new(width, ffn, rng),
                back: Linear::new(ffn, width, BACK_GAIN, rng).without_bias(),
            }),
        }
    }

    pub(crate) fn forward(&mut self, x: &mut [f32], mode: &mut Mode) {
        if let Some(sub) = &mut self.attention {
            let z = sub.norm.forward(x, mode);
            let a = sub.inner.forward(z, mode);
            sub.back.add_forward(a, x);
        }
        if let Some(sub) = &mut self.feed_forward {
            let z = sub.norm.forward(x, mode);
            let g = sub.inner.forward(z, mode);
            sub.back.add_forward(g, x);
        }
    }

    pub(crate) fn backward(&mut self, dx: &mut [f32]) {
        if let Some(sub) = &mut self.feed_forward {
            let dg = sub.back.backward(dx);
            let dz = sub.inner.backward(dg);
            sub.norm.backward(&dz, &sub.inner.inner.input, dx);
        }
        if let Some(sub) = &mut self.attention {
            let da = sub.back.backward(dx);
            let dz = sub.inner.backward(&da);
            sub.norm.backward(&dz, &sub.inner.qkv.input, dx);
        }
    }

    pub(crate) fn params(&mut self) -> impl Iterator<Item = &mut Param> {
        let attention = self.attention.iter_mut();
        let feed_forward = self.feed_forward.iter_mut();
        attention
            .flat_map(|sub| sub.inner.params().chain(sub.back.params()))
            .chain(feed_forward.flat_map(|sub| sub.inner.params().chain(sub.back.params())))
    }
}
