//! `g = GELU(W1 z + b1)`: one table gate with its linear gate. The block multiplies `g` by W2.

use super::Mode;
use super::function::gelu_and_slope;
use super::linear::Linear;
use super::param::Param;
use super::quantiser::Quantiser;
use crate::rng::Rng;

#[derive(Clone, Debug)]
pub(crate) struct FeedForward {
    pub(crate) inner: Linear,
    pub(crate) index: Quantiser,
    pub(crate) output: Quantiser,
    /// Of GELU at its last inputs.
    slope: Vec<f32>,
}

impl FeedForward {
    pub(crate) fn new(width: usize, ffn: usize, rng: &mut Rng) -> Self {
        Self {
            inner: Linear::new(width, ffn, 1.0, rng),
            index: Quantiser::default(),
            output: Quantiser::default(),
            slope: Vec::new(),
        }
    }

    pub(crate) fn forward(&mut self, z: Vec<f32>, mode: &mut Mode) -> Vec<f32> {
        let mut g = self.inner.forward(z);
        self.index.apply(&mut g, mode);
        self.slope.resize(g.len(), 0.0);
        for (g, slope) in g.iter_mut().zip(&mut self.slope) {
            (*g, *slope) = gelu_and_slope(*g);
        }
        self.output.apply_to_table(&mut g, mode);
        g
    }

    pub(crate) fn backward(&mut self, mut dg: Vec<f32>) -> Vec<f32> {
        for (d, slope) in dg.iter_mut().zip(&self.slope) {
            *d *= slope;
        }
        self.inner.backward(&dg)
    }

    pub(crate) fn params(&mut self) -> impl Iterator<Item = &mut Param> {
        self.inner.params()
    }
}
