//! Sigmoid attention: `P = sigmoid(q.k / sqrt(d) + bias)`, `a = P v`. No row of P is normalised,
//! so each entry is a table of one score; the bias starts at `-log L`, which makes the sum of a
//! row start near one. The block multiplies `a` by Wo.

use super::Mode;
use super::function::sigmoid;
use super::linear::Linear;
use super::loss::softmax;
use super::model::Style;
use super::param::Param;
use super::quantiser::Quantiser;
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
    /// One block per example and head: q, k and v as `d x L` (token index fastest).
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
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
            q: Vec::new(),
            k: Vec::new(),
            v: Vec::new(),
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
        let (tokens, depth, scale) = (self.tokens, self.depth(), self.scale());
        let qkv = self.qkv.forward(z);
        self.q = self.gather(&qkv, 0);
        self.k = self.gather(&qkv, self.width);
        self.v = self.gather(&qkv, 2 * self.width);
        self.query.apply(&mut self.q, mode);
        self.key.apply(&mut self.k, mode);
        self.value.apply(&mut self.v, mode);

        let block = tokens * depth;
        let mut scores = vec![0.0; self.q.len() / block * tokens * tokens];
        let operands = self.q.chunks_exact(block).zip(self.k.chunks_exact(block));
        for (s, (q, k)) in scores.chunks_exact_mut(tokens * tokens).zip(operands) {
            outer_sums(q, k, scale, tokens, s);
        }
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

        let mut a = vec![0.0; self.v.len()];
        let mut transposed = vec![0.0; tokens * tokens];
        let operands = self.v.chunks_exact(block).zip(self.p.chunks_exact(tokens * tokens));
        for (a, (v, p)) in a.chunks_exact_mut(block).zip(operands) {
            transpose(p, tokens, &mut transposed);
            rows_by_matrix(v, &transposed, tokens, a);
        }
        self.output.apply(&mut a, mode);
        let mut out = vec![0.0; a.len()];
        self.scatter(&a, &mut out, 0, self.width);
        out
    }

    pub(crate) fn backward(&mut self, da: &[f32]) -> Vec<f32> {
        let (tokens, depth, scale) = (self.tokens, self.depth(), self.scale());
        let (block, square) = (tokens * depth, tokens * tokens);
        let mut da_blocks = vec![0.0; da.len()];
        self.gather_into(da, 0, self.width, &mut da_blocks);

        let mut dq = vec![0.0; da.len()];
        let mut dk = vec![0.0; da.len()];
        let mut dv = vec![0.0; da.len()];
        let mut ds = vec![0.0; square];
        let mut transposed = vec![0.0; square];
        for i in 0..da.len() / block {
            let of_block = i * block..(i + 1) * block;
            let of_square = i * square..(i + 1) * square;
            let da = &da_blocks[of_block.clone()];
            let (q, k) = (&self.q[of_block.clone()], &self.k[of_block.clone()]);
            // dP[t][j] = sum_d da[d][t] v[d][j], then through the sigmoid or softmax.
            ds.fill(0.0);
            outer_sums(da, &self.v[of_block.clone()], 1.0, tokens, &mut ds);
            let weights = &self.weights[of_square.clone()];
            match self.style {
                Style::Gates => {
                    for (ds, s) in ds.iter_mut().zip(weights) {
                        *ds *= s * (1.0 - s);
                        self.score_bias.grad[0] += *ds;
                    }
                }
                Style::Usual => {
                    for (ds, p) in ds.chunks_exact_mut(tokens).zip(weights.chunks_exact(tokens)) {
                        let mean: f32 = ds.iter().zip(p).map(|(d, p)| d * p).sum();
                        ds.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - mean));
                    }
                }
            }
            ds.iter_mut().for_each(|d| *d *= scale);
            rows_by_matrix(da, &self.p[of_square], tokens, &mut dv[of_block.clone()]);
            rows_by_matrix(q, &ds, tokens, &mut dk[of_block.clone()]);
            transpose(&ds, tokens, &mut transposed);
            rows_by_matrix(k, &transposed, tokens, &mut dq[of_block]);
        }
        let mut dqkv = vec![0.0; 3 * da.len()];
        self.scatter(&dq, &mut dqkv, 0, 3 * self.width);
        self.scatter(&dk, &mut dqkv, self.width, 3 * self.width);
        self.scatter(&dv, &mut dqkv, 2 * self.width, 3 * self.width);
        self.qkv.backward(&dqkv)
    }

    pub(crate) fn params(&mut self) -> impl Iterator<Item = &mut Param> {
        self.qkv.params().chain(std::iter::once(&mut self.score_bias))
    }

    fn gather(&self, rows: &[f32], first: usize) -> Vec<f32> {
        let mut blocks = vec![0.0; rows.len() / 3];
        self.gather_into(rows, first, 3 * self.width, &mut blocks);
        blocks
    }

    /// Rows of tokens to `d x L` blocks.
    fn gather_into(&self, rows: &[f32], first: usize, stride: usize, blocks: &mut [f32]) {
        let size = self.tokens * self.width;
        let examples = rows.chunks_exact(self.tokens * stride).zip(blocks.chunks_exact_mut(size));
        for (rows, blocks) in examples {
            for (t, row) in rows.chunks_exact(stride).enumerate() {
                for c in 0..self.width {
                    blocks[c * self.tokens + t] = row[first + c];
                }
            }
        }
    }

    /// The inverse of `gather_into`.
    fn scatter(&self, blocks: &[f32], rows: &mut [f32], first: usize, stride: usize) {
        let size = self.tokens * self.width;
        let examples = rows.chunks_exact_mut(self.tokens * stride).zip(blocks.chunks_exact(size));
        for (rows, blocks) in examples {
            for (t, row) in rows.chunks_exact_mut(stride).enumerate() {
                for c in 0..self.width {
                    row[first + c] = blocks[c * self.tokens + t];
                }
            }
        }
    }
}

/// `out[t][j] += scale * sum_d a[d][t] b[d][j]`.
fn outer_sums(a: &[f32], b: &[f32], scale: f32, tokens: usize, out: &mut [f32]) {
    for (a, b) in a.chunks_exact(tokens).zip(b.chunks_exact(tokens)) {
        for (out, &a) in out.chunks_exact_mut(tokens).zip(a) {
            let a = a * scale;
            for (out, b) in out.iter_mut().zip(b) {
                *out += a * b;
            }
        }
    }
}

/// `out[d][t] += sum_j a[d][j] m[j][t]`.
fn rows_by_matrix(a: &[f32], m: &[f32], tokens: usize, out: &mut [f32]) {
    for (a, out) in a.chunks_exact(tokens).zip(out.chunks_exact_mut(tokens)) {
        for (m, &a) in m.chunks_exact(tokens).zip(a) {
            for (out, m) in out.iter_mut().zip(m) {
                *out += a * m;
            }
        }
    }
}

fn transpose(m: &[f32], size: usize, out: &mut [f32]) {
    for (i, row) in m.chunks_exact(size).enumerate() {
        for (j, v) in row.iter().enumerate() {
            out[j * size + i] = *v;
        }
    }
}
