//! The whole model: embed, blocks, mean over tokens, norm, head.

use super::Mode;
use super::block::Block;
use super::embedding::Embedding;
use super::linear::Linear;
use super::norm::Norm;
use super::param::Param;
use crate::rng::Rng;
use secure_router_core::spec::Words;

/// Sizes of a model. `width` is that of the stream, which no wire shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// What inputs are made of, unless of values.
    pub(crate) words: Option<Words>,
    pub(crate) tokens: usize,
    pub(crate) features: usize,
    pub(crate) width: usize,
    pub(crate) heads: usize,
    pub(crate) ffn: usize,
    pub(crate) layers: usize,
    pub(crate) outputs: usize,
}

impl Shape {
    /// Numbers of one input.
    pub(crate) fn inputs(&self) -> usize {
        self.words.map_or(self.tokens * self.features, |words| words.count.into())
    }
}

/// What a model is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// Batch norm and sigmoid attention, for the protocol's gates.
    Gates,
    /// Layer norm and softmax attention: what the former is compared with, in float.
    Usual,
}

#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) shape: Shape,
    /// Vectors of words, if inputs are made of words.
    pub(crate) words: Option<Embedding>,
    pub(crate) embed: Linear,
    /// Tokens x width.
    pub(crate) position: Param,
    pub(crate) blocks: Vec<Block>,
    pub(crate) norm: Norm,
    pub(crate) head: Linear,
}

impl Model {
    pub(crate) fn new(shape: Shape, style: Style, rng: &mut Rng) -> Self {
        let Shape { tokens, width, .. } = shape;
        let mut position = Param::normal(tokens * width, 0.3, rng);
        position.decays = false;
        Self {
            shape,
            words: shape.words.map(|words| Embedding::new(words, tokens, shape.features, rng)),
            embed: Linear::new(shape.features, width, 1.0, rng).without_bias(),
            position,
            blocks: (0..shape.layers).map(|_| Block::new(shape, style, rng)).collect(),
            norm: Norm::new(style, width),
            head: Linear::new(width, shape.outputs, 0.5, rng),
        }
    }

    /// Logits of a batch of inputs, `outputs` per example.
    pub(crate) fn forward(&mut self, inputs: &[f32], mode: &mut Mode) -> Vec<f32> {
        let Shape { tokens, width, .. } = self.shape;
        let inputs = match &mut self.words {
            Some(words) => words.forward(inputs),
            None => inputs.to_vec(),
        };
        let mut x = self.embed.forward(inputs);
        for example in x.chunks_exact_mut(tokens * width) {
            for (x, p) in example.iter_mut().zip(&self.position.value) {
                *x += p;
            }
        }
        for block in &mut self.blocks {
            block.forward(&mut x, mode);
        }
        let mut pooled = vec![0.0; x.len() / tokens];
        for (pooled, example) in pooled.chunks_exact_mut(width).zip(x.chunks_exact(tokens * width)) {
            for row in example.chunks_exact(width) {
                pooled.iter_mut().zip(row).for_each(|(p, x)| *p += x);
            }
            pooled.iter_mut().for_each(|p| *p /= tokens as f32);
        }
        let z = self.norm.forward(&pooled, mode);
        self.head.forward(z)
    }

    /// Adds to every gradient, for the batch of the last `forward`.
    pub(crate) fn backward(&mut self, dlogits: &[f32]) {
        let Shape { tokens, width, .. } = self.shape;
        let dz = self.head.backward(dlogits);
        let mut dpooled = vec![0.0; dz.len()];
        self.norm.backward(&dz, &self.head.input, &mut dpooled);
        let mut dx = Vec::with_capacity(dpooled.len() * tokens);
        for row in dpooled.chunks_exact(width) {
            for _ in 0..tokens {
                dx.extend(row.iter().map(|d| d / tokens as f32));
            }
        }
        for block in self.blocks.iter_mut().rev() {
            block.backward(&mut dx);
        }
        for example in dx.chunks_exact(tokens * width) {
            for (grad, d) in self.position.grad.iter_mut().zip(example) {
                *grad += d;
            }
        }
        match &mut self.words {
            Some(words) => words.backward(&self.embed.backward(&dx)),
            None => self.embed.backward_first(&dx),
        }
    }

    pub(crate) fn params(&mut self) -> impl Iterator<Item = &mut Param> {
        let words = self.words.iter_mut().map(|words| &mut words.weight);
        words
            .chain(self.embed.params())
            .chain(std::iter::once(&mut self.position))
            .chain(self.blocks.iter_mut().flat_map(Block::params))
            .chain(self.head.params())
    }

    /// Drops the first `count` outputs.
    pub(crate) fn drop_outputs(&mut self, count: usize) {
        self.shape.outputs -= count;
        self.head.outputs -= count;
        self.head.weight = self.head.weight.without(count * self.shape.width);
        self.head.bias = self.head.bias.as_ref().map(|b| b.without(count));
    }

    /// Output `o` becomes `slope` times what it was, plus `offset`.
    pub(crate) fn adjust_output(&mut self, o: usize, slope: f32, offset: f32) {
        let width = self.shape.width;
        self.head.weight.value[o * width..][..width].iter_mut().for_each(|w| *w *= slope);
        if let Some(bias) = &mut self.head.bias {
            bias.value[o] = slope * bias.value[o] + offset;
        }
    }

    /// Trained numbers.
    pub(crate) fn size(&mut self) -> usize {
        self.params().map(|p| p.value.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::loss;

    const SHAPE: Shape =
        Shape { words: None, tokens: 4, features: 3, width: 6, heads: 2, ffn: 5, layers: 2, outputs: 3 };

    fn loss_of(model: &mut Model, inputs: &[f32], targets: &[f32], mode: &Mode) -> f64 {
        let logits = model.forward(inputs, &mut mode.clone());
        loss::cross_entropy(&logits, targets, SHAPE.outputs).0
    }

    /// Every parameter's gradient against the slope of the loss, a few entries of each.
    fn check(style: Style, mode: &Mode, words: Option<Words>) {
        let mut rng = Rng::new(5, "gradient");
        let shape = Shape { words, ..SHAPE };
        let mut model = Model::new(shape, style, &mut rng);
        // As large as what is learned.
        model.words.iter_mut().flat_map(|words| &mut words.weight.value).for_each(|value| *value *= 20.0);
        let batch = 6;
        let inputs: Vec<f32> = (0..batch * shape.inputs())
            .map(|_| match words {
                Some(words) => rng.below(1 << words.bits) as f32,
                None => rng.normal(),
            })
            .collect();
        let targets: Vec<f32> = (0..batch * SHAPE.outputs)
            .map(|i| if i % SHAPE.outputs == i / SHAPE.outputs % 3 { 0.8 } else { 0.1 })
            .collect();
        let logits = model.forward(&inputs, &mut mode.clone());
        let (_, dlogits) = loss::cross_entropy(&logits, &targets, SHAPE.outputs);
        model.backward(&dlogits);
        let grads: Vec<Vec<f32>> = model.params().map(|p| p.grad.clone()).collect();
        for (which, grad) in grads.iter().enumerate() {
            for i in (0..grad.len()).step_by(grad.len().div_ceil(7)) {
                let eps = 1e-2f32;
                let mut at = |delta: f32| {
                    model.params().nth(which).unwrap().value[i] += delta;
                    let loss = loss_of(&mut model, &inputs, &targets, mode);
                    model.params().nth(which).unwrap().value[i] -= delta;
                    loss
                };
                let slope = (at(eps) - at(-eps)) / f64::from(2.0 * eps);
                let error = (slope - f64::from(grad[i])).abs();
                assert!(error < 2e-3 + 0.02 * slope.abs(), "{which}[{i}]: {slope} {}", grad[i]);
            }
        }
    }

    #[test]
    fn gradients_match_slopes_with_batch_statistics() {
        let mut mode = Mode::FLOAT;
        mode.batch_statistics = true;
        check(Style::Gates, &mode, None);
        check(Style::Gates, &mode, Some(Words { count: 12, bits: 3 }));
    }

    #[test]
    fn gradients_match_slopes_with_remembered_statistics() {
        check(Style::Gates, &Mode::FLOAT, None);
    }

    #[test]
    fn gradients_match_slopes_in_the_usual_style() {
        check(Style::Usual, &Mode::FLOAT, None);
    }
}
