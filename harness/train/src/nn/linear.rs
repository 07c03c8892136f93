//! `y = W x + b`, row by row.

use super::matrix::{Matrix, multiply};
use super::param::Param;
use crate::rng::Rng;

#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// Outputs x inputs, row-major.
    pub(crate) weight: Param,
    /// Absent where a batch norm follows and would remove it.
    pub(crate) bias: Option<Param>,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// Of the last forward pass.
    pub(crate) input: Vec<f32>,
}

impl Linear {
    pub(crate) fn new(inputs: usize, outputs: usize, gain: f32, rng: &mut Rng) -> Self {
        Self {
            weight: Param::normal(inputs * outputs, gain / (inputs as f32).sqrt(), rng),
            bias: Some(Param::constant(outputs, 0.0)),
            inputs,
            outputs,
            input: Vec::new(),
        }
    }

    pub(crate) fn without_bias(mut self) -> Self {
        self.bias = None;
        self
    }

    pub(crate) fn forward(&mut self, x: Vec<f32>) -> Vec<f32> {
        let rows = x.len() / self.inputs;
        let mut y = match &self.bias {
            Some(bias) => bias.value.repeat(rows),
            None => vec![0.0; rows * self.outputs],
        };
        self.add_forward(x, &mut y);
        y
    }

    /// Adds `W x` to `y`.
    pub(crate) fn add_forward(&mut self, x: Vec<f32>, y: &mut [f32]) {
        let weight = Matrix::new(&self.weight.value, self.inputs).transposed();
        multiply(Matrix::new(&x, self.inputs), weight, y, true);
        self.input = x;
    }

    /// Adds to the gradients of weight and bias.
    fn accumulate(&mut self, dy: &[f32]) {
        let dy_matrix = Matrix::new(dy, self.outputs);
        let x = Matrix::new(&self.input, self.inputs);
        multiply(dy_matrix.transposed(), x, &mut self.weight.grad, true);
        if let Some(bias) = &mut self.bias {
            for row in dy.chunks_exact(self.outputs) {
                for (grad, d) in bias.grad.iter_mut().zip(row) {
                    *grad += d;
                }
            }
        }
    }

    /// Gradient of the input; adds to the gradients of weight and bias.
    pub(crate) fn backward(&mut self, dy: &[f32]) -> Vec<f32> {
        self.accumulate(dy);
        let mut dx = vec![0.0; self.input.len()];
        let weight = Matrix::new(&self.weight.value, self.inputs);
        multiply(Matrix::new(dy, self.outputs), weight, &mut dx, false);
        dx
    }

    /// As `backward`, for the first layer of a model.
    pub(crate) fn backward_first(&mut self, dy: &[f32]) {
        self.accumulate(dy);
    }

    pub(crate) fn params(&mut self) -> impl Iterator<Item = &mut Param> {
        std::iter::once(&mut self.weight).chain(&mut self.bias)
    }
}
