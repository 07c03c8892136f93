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

    pub(crate) fn backward(&mut self, dz: &[f32], dx: &mut [f32]) {
        match self {
            Self::Batch(norm) => norm.backward(dz, dx),
            Self::Layer(norm) => norm.backward(dz, dx),
        }
    }
}
