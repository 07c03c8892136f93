//! Vectors of words, summed by token: what the embedding gate computes.

use super::param::Param;
use crate::rng::Rng;
use secure_router_core::spec::Words;

#[derive(Clone, Debug)]
pub(crate) struct Embedding {
    /// Vocabulary x features, row-major.
    pub(crate) weight: Param,
    words: Words,
    tokens: usize,
    features: usize,
    /// Words of the last forward pass.
    input: Vec<usize>,
}

impl Embedding {
    pub(crate) fn new(words: Words, tokens: usize, features: usize, rng: &mut Rng) -> Self {
        /// Small beside what is learned: words that never occur say little.
        const START: f32 = 0.05;
        let weight = Param::normal(features << words.bits, START, rng);
        Self { weight, words, tokens, features, input: Vec::new() }
    }

    /// Of each word of the batch in turn: its row of the weights, and its token's of the result.
    fn rows(&self) -> impl Iterator<Item = (std::ops::Range<usize>, std::ops::Range<usize>)> {
        let (features, each) = (self.features, usize::from(self.words.count) / self.tokens);
        let row = move |index: usize| index * features..(index + 1) * features;
        self.input.iter().enumerate().map(move |(i, word)| (row(*word), row(i / each)))
    }

    /// Inputs are numbers of words.
    pub(crate) fn forward(&mut self, inputs: &[f32]) -> Vec<f32> {
        self.input = inputs.iter().map(|word| *word as usize).collect();
        let examples = inputs.len() / usize::from(self.words.count);
        let mut out = vec![0.0; examples * self.tokens * self.features];
        for (word, token) in self.rows() {
            out[token].iter_mut().zip(&self.weight.value[word]).for_each(|(sum, value)| *sum += value);
        }
        out
    }

    /// Adds to the gradient, for the batch of the last `forward`.
    pub(crate) fn backward(&mut self, dy: &[f32]) {
        let mut grad = std::mem::take(&mut self.weight.grad);
        for (word, token) in self.rows() {
            grad[word].iter_mut().zip(&dy[token]).for_each(|(sum, d)| *sum += d);
        }
        self.weight.grad = grad;
    }
}
