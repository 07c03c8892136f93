//! Batch norm without gain and offset: the linear layer that follows has both, and export folds
//! the whole into its weights.

use super::Mode;

const EPSILON: f32 = 1e-5;
const MOMENTUM: f32 = 0.03;

#[derive(Clone, Debug)]
pub(crate) struct BatchNorm {
    pub(crate) mean: Vec<f32>,
    variance: Vec<f32>,
    scale: Vec<f32>,
    of_batch: bool,
}

impl BatchNorm {
    pub(crate) fn new(width: usize) -> Self {
        Self { mean: vec![0.0; width], variance: vec![1.0; width], scale: vec![1.0; width], of_batch: false }
    }

    /// `1 / deviation` of each column, as remembered.
    pub(crate) fn remembered_scale(&self) -> Vec<f32> {
        self.variance.iter().map(|v| (v + EPSILON).sqrt().recip()).collect()
    }

    pub(crate) fn forward(&mut self, x: &[f32], mode: &Mode) -> Vec<f32> {
        let width = self.mean.len();
        self.of_batch = mode.batch_statistics;
        let mean = if mode.batch_statistics {
            let mean = column_means(x.chunks_exact(width), width, |c, row| row[c]);
            let variance = column_means(x.chunks_exact(width), width, |c, row| (row[c] - mean[c]).powi(2));
            remember(&mut self.mean, &mean);
            remember(&mut self.variance, &variance);
            self.scale = variance.iter().map(|v| (v + EPSILON).sqrt().recip()).collect();
            mean
        } else {
            self.scale = self.remembered_scale();
            self.mean.clone()
        };
        let mut z = Vec::with_capacity(x.len());
        for row in x.chunks_exact(width) {
            z.extend(row.iter().zip(&mean).zip(&self.scale).map(|((value, mean), scale)| (value - mean) * scale));
        }
        z
    }

    /// Adds the gradient of the input to `dx`.
    pub(crate) fn backward(&self, dz: &[f32], z: &[f32], dx: &mut [f32]) {
        let width = self.mean.len();
        let rows = || dz.chunks_exact(width).zip(z.chunks_exact(width));
        let (mean_dz, mean_dz_z) = if self.of_batch {
            (column_means(rows(), width, |c, (dz, _)| dz[c]), column_means(rows(), width, |c, (dz, z)| dz[c] * z[c]))
        } else {
            (vec![0.0; width], vec![0.0; width])
        };
        for (dx, (dz, z)) in dx.chunks_exact_mut(width).zip(rows()) {
            for c in 0..width {
                dx[c] += self.scale[c] * (dz[c] - mean_dz[c] - z[c] * mean_dz_z[c]);
            }
        }
    }
}

/// Means over the rows of what `f` makes of each column.
fn column_means<Row: Copy>(
    rows: impl ExactSizeIterator<Item = Row>,
    width: usize,
    f: impl Fn(usize, Row) -> f32,
) -> Vec<f32> {
    let n = rows.len() as f32;
    let mut sums = vec![0.0; width];
    for row in rows {
        for (c, sum) in sums.iter_mut().enumerate() {
            *sum += f(c, row);
        }
    }
    sums.iter().map(|sum| sum / n).collect()
}

fn remember(kept: &mut [f32], new: &[f32]) {
    for (kept, new) in kept.iter_mut().zip(new) {
        *kept += MOMENTUM * (new - *kept);
    }
}
