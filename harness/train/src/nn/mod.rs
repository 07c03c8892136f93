//! A small transformer with a hand-written backward pass and quantisation inside it.
//!
//! Tensors are row-major `Vec<f32>`; a row is one token of one example. Each layer keeps what its
//! backward pass needs, so a model is trained by one thread and runs train side by side.

pub(crate) mod attention;
pub(crate) mod batch_norm;
pub(crate) mod block;
pub(crate) mod embedding;
pub(crate) mod feed_forward;
pub(crate) mod function;
pub(crate) mod layer_norm;
pub(crate) mod linear;
pub(crate) mod loss;
pub(crate) mod matrix;
pub(crate) mod model;
pub(crate) mod noise;
pub(crate) mod norm;
pub(crate) mod optimiser;
pub(crate) mod param;
pub(crate) mod quantiser;
pub(crate) mod small;

use noise::Noise;

/// How one forward pass is to be run.
#[derive(Clone, Debug)]
pub(crate) struct Mode {
    /// Normalise by the statistics of this batch (and remember them), not by the remembered ones.
    pub(crate) batch_statistics: bool,
    /// Let quantisers remember the largest value that they see.
    pub(crate) observe: bool,
    pub(crate) rounding: Rounding,
}

/// What a quantiser does with a value between two steps.
#[derive(Clone, Debug)]
pub(crate) enum Rounding {
    /// Leave it: the float model.
    Off,
    /// Take the nearest step: the integer reference.
    Nearest,
    /// Up or down at random, unbiased: what the protocol's carry does, and the training noise.
    Stochastic(Noise),
}

impl Mode {
    pub(crate) const FLOAT: Self = Self { batch_statistics: false, observe: false, rounding: Rounding::Off };
    pub(crate) const NEAREST: Self = Self { batch_statistics: false, observe: false, rounding: Rounding::Nearest };
}
