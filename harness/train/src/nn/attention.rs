//! Sigmoid attention: `P = sigmoid(q.k / sqrt(d) + bias)`, `a = P v`. No row of P is normalised,
//! so each entry is a table of one score; the bias starts at `-log L`, which makes the sum of a
//! row start near one. The block multiplies `a` by Wo.

use super::Mode;
use super::function::sigmoid;
use super::linear::Linear;
use super::loss::softmax;
use super::matrix::Matrix;
use super::model::Style;
use super::param::Param;
use super::quantiser::Quantiser;
use super::small::add_product;
use crate::rng::Rng;

#[derive(Clone, Debug)]
pub(crate) struct Attention {
    pub(crate) qkv: Linear,
    pub(crate) score_bias: Param,
    pub(crate) query: Quantiser,
    pub(crate) key: Quantiser,
    pub(crate) value: Quantiser,
    pub(crate) score: Quantiser,
    pub(crate) weight: Quantiser,
    pub(crate) output: Quantiser,
    style: Style,
    tokens: usize,
    heads: usize,
    width: usize,
    /// Rounded, `3 x width` columns per token.
    wires: Vec<f32>,
    /// Before and after the table's rounding: `L x L` per example and head.
    weights: Vec<f32>,
    p: Vec<f32>,
}

impl Attention {
    pub(crate) fn new(tokens: usize, width: usize, heads: usize, style: Style, rng: &mut Rng) -> Self {
        Self {
            qkv: Linear::new(width, 3 * width, 1.0, rng),
            score_bias: Param::constant(1, -(tokens as f32).ln()),
            query: Quantiser::default(),
            key: Quantiser::default(),
            value: Quantiser::default(),
            score: Quantiser::default(),
            weight: Quantiser::default(),
            output: Quantiser::default(),
            style,
            tokens,
            heads,
            width,
            wires: Vec::new(),
            weights: Vec::new(),
            p: Vec::new(),
        }
    }

    /// Columns of one head.
    pub(crate) fn depth(&self) -> usize {
        self.width / self.heads
    }

    fn scale(&self) -> f32 {
        (self.depth() as f32).sqrt().recip()
    }

    pub(crate) fn forward(&mut self, z: Vec<f32>, mode: &mut Mode) -> Vec<f32> {
        let (tokens, width, scale) = (self.tokens, self.width, self.scale());
        let (square, squares) = (tokens * tokens, self.heads * tokens * tokens);
        self.wires = self.qkv.forward(z);
        for row in self.wires.chunks_exact_mut(3 * width) {
            let (q, kv) = row.split_at_mut(width);
            let (k, v) = kv.split_at_mut(width);
            self.query.apply(q, mode);
            self.key.apply(k, mode);
            self.value.apply(v, mode);
        }

        let examples = self.wires.len() / (3 * width * tokens);
        let mut scores = vec![0.0; examples * squares];
        for (scores, wires) in scores.chunks_exact_mut(squares).zip(self.wires.chunks_exact(3 * width * tokens)) {
            for (head, s) in scores.chunks_exact_mut(square).enumerate() {
                let [q, k, _] = self.of_head(wires, head);
                add_product(q, k.transposed(), s, tokens);
            }
        }
        scores.iter_mut().for_each(|s| *s *= scale);
        self.score.apply(&mut scores, mode);
        match self.style {
            Style::Gates => {
                let bias = self.score_bias.value[0];
                scores.iter_mut().for_each(|s| *s = sigmoid(*s + bias));
            }
            Style::Usual => scores = softmax(&scores, tokens),
        }
        self.weights.clone_from(&scores);
        self.p = scores;
        self.weight.apply_to_table(&mut self.p, mode);

        let mut a = vec![0.0; self.wires.len() / 3];
        let operands = self.p.chunks_exact(squares).zip(self.wires.chunks_exact(3 * width * tokens));
        for (a, (p, wires)) in a.chunks_exact_mut(width * tokens).zip(operands) {
            for (head, p) in p.chunks_exact(square).enumerate() {
                let [_, _, v] = self.of_head(wires, head);
                add_product(Matrix::new(p, tokens), v, &mut a[head * self.depth()..], width);
            }
        }
        self.output.apply(&mut a, mode);
        a
    }

    pub(crate) fn backward(&mut self, da: &[f32]) -> Vec<f32> {
        let (tokens, width, depth, scale) = (self.tokens, self.width, self.depth(), self.scale());
        let (square, squares) = (tokens * tokens, self.heads * tokens * tokens);
        let mut dwires = vec![0.0; 3 * da.len()];
        let mut ds = vec![0.0; square];
        let mut bias_grads = vec![0.0; tokens];
        let gradients = dwires.chunks_exact_mut(3 * width * tokens).zip(da.chunks_exact(width * tokens));
        for (i, (dwires, da)) in gradients.enumerate() {
            let wires = &self.wires[i * 3 * width * tokens..][..3 * width * tokens];
            for head in 0..self.heads {
                let of_square = i * squares + head * square..i * squares + (head + 1) * square;
                let [q, k, v] = self.of_head(wires, head);
                let da = Matrix::new(da, width).columns(head * depth, depth);
                // dP = da V^T, then through the sigmoid or softmax.
                ds.fill(0.0);
                add_product(da, v.transposed(), &mut ds, tokens);
                let rows = ds.chunks_exact_mut(tokens).zip(self.weights[of_square.clone()].chunks_exact(tokens));
                for (ds, weights) in rows {
                    match self.style {
                        Style::Gates => {
                            for ((ds, s), grad) in ds.iter_mut().zip(weights).zip(&mut bias_grads) {
                                *ds *= s * (1.0 - s);
                                *grad += *ds;
                                *ds *= scale;
                            }
                        }
                        Style::Usual => {
                            let mean: f32 = ds.iter().zip(weights).map(|(d, p)| d * p).sum();
                            ds.iter_mut().zip(weights).for_each(|(d, p)| *d = p * (*d - mean) * scale);
                        }
                    }
                }
                let (p, ds) = (Matrix::new(&self.p[of_square], tokens), Matrix::new(&ds, tokens));
                let [dq, dk, dv] = [0, 1, 2].map(|which| which * width + head * depth);
                add_product(ds, k, &mut dwires[dq..], 3 * width);
                add_product(ds.transposed(), q, &mut dwires[dk..], 3 * width);
                add_product(p.transposed(), da, &mut dwires[dv..], 3 * width);
            }
        }
        self.score_bias.grad[0] += bias_grads.iter().sum::<f32>();
        self.qkv.backward(&dwires)
    }

    /// Queries, keys and values of one head of one example: a row per token.
    fn of_head<'a>(&self, wires: &'a [f32], head: usize) -> [Matrix<'a>; 3] {
        let all = Matrix::new(wires, 3 * self.width);
        [0, 1, 2].map(|which| all.columns(which * self.width + head * self.depth(), self.depth()))
    }

    pub(crate) fn params(&mut self) -> impl Iterator<Item = &mut Param> {
        self.qkv.params().chain(std::iter::once(&mut self.score_bias))
    }
}
