//! A trained tensor with its gradient and its two Adam moments.

use crate::rng::Rng;

#[derive(Clone, Debug)]
pub(crate) struct Param {
    pub(crate) value: Vec<f32>,
    pub(crate) grad: Vec<f32>,
    pub(crate) moment1: Vec<f32>,
    pub(crate) moment2: Vec<f32>,
    /// Matrices decay; biases, positions and scalars do not.
    pub(crate) decays: bool,
}

impl Param {
    pub(crate) fn constant(len: usize, value: f32) -> Self {
        let zeros = vec![0.0; len];
        Self { value: vec![value; len], grad: zeros.clone(), moment1: zeros.clone(), moment2: zeros, decays: false }
    }

    /// Normal start values of the given deviation; decays.
    pub(crate) fn normal(len: usize, deviation: f32, rng: &mut Rng) -> Self {
        let mut param = Self::constant(len, 0.0);
        param.value.fill_with(|| deviation * rng.normal());
        param.decays = true;
        param
    }

    /// Without the first `count` entries, for use without further training.
    pub(crate) fn without(&self, count: usize) -> Self {
        let mut param = Self::constant(self.value.len() - count, 0.0);
        param.value.copy_from_slice(&self.value[count..]);
        param
    }
}
