//! The normalisation before a linear layer, by style.

use super::Mode;
use super::batch_norm::BatchNorm;
use super::layer_norm::LayerNorm;
use super::model::Style;

#[derive(Clone, Debug)]
pub(crate) enum Norm {
    Batch(BatchNorm),
    Layer(LayerNorm),
}

impl Norm {
    pub(crate) fn new(style: Style, width: usize) -> Self {
        match style {
            Style::Gates => Self::Batch(BatchNorm::new(width)),
            Style::Usual => Self::Layer(LayerNorm::new(width)),
        }
    }

    pub(crate) fn forward(&mut self, x: &[f32], mode: &Mode) -> Vec<f32> {
        match self {
            Self::Batch(norm) => norm.forward(x, mode),
            Self::Layer(norm) => norm.forward(x),
        }
    }

    /// Adds the gradient of the input to `dx`; `z` is what the last forward pass returned.
    pub(crate) fn backward(&self, dz: &[f32], z: &[f32], dx: &mut [f32]) {
        match self {
            Self::Batch(norm) => norm.backward(dz, z, dx),
            Self::Layer(norm) => norm.backward(dz, z, dx),
        }
    }
}
