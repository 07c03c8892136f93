//! Batch norm without gain and offset: the linear layer that follows has both, and export folds
//! the whole into its weights.

use super::Mode;

const EPSILON: f32 = 1e-5;
const MOMENTUM: f32 = 0.03;

#[derive(Clone, Debug)]
pub(crate) struct BatchNorm {
    pub(crate) mean: Vec<f32>,
    variance: Vec<f32>,
    normal: Vec<f32>,
    scale: Vec<f32>,
    of_batch: bool,
}

impl BatchNorm {
    pub(crate) fn new(width: usize) -> Self {
        Self {
            mean: vec![0.0; width],
            variance: vec![1.0; width],
            normal: Vec::new(),
            scale: vec![1.0; width],
            of_batch: false,
        }
    }

    /// `1 / deviation` of each column, as remembered.
    pub(crate) fn remembered_scale(&self) -> Vec<f32> {
        self.variance.iter().map(|v| (v + EPSILON).sqrt().recip()).collect()
    }

    pub(crate) fn forward(&mut self, x: &[f32], mode: &Mode) -> Vec<f32> {
        let width = self.mean.len();
        self.of_batch = mode.batch_statistics;
        let mean = if mode.batch_statistics {
            let n = (x.len() / width) as f32;
            let mean = column_sums(x, width, |_, v| v / n);
            let variance = column_sums(x, width, |c, v| (v - mean[c]).powi(2) / n);
            remember(&mut self.mean, &mean);
            remember(&mut self.variance, &variance);
            self.scale = variance.iter().map(|v| (v + EPSILON).sqrt().recip()).collect();
            mean
        } else {
            self.scale = self.remembered_scale();
            self.mean.clone()
        };
        let mut z = x.to_vec();
        for row in z.chunks_exact_mut(width) {
            for ((value, mean), scale) in row.iter_mut().zip(&mean).zip(&self.scale) {
                *value = (*value - mean) * scale;
            }
        }
        self.normal.clone_from(&z);
        z
    }

    /// Adds the gradient of the input to `dx`.
    pub(crate) fn backward(&mut self, dz: &[f32], dx: &mut [f32]) {
        let width = self.mean.len();
        let n = (dz.len() / width) as f32;
        let (mean_dz, mean_dz_z) = if self.of_batch {
            let mut dz_z = dz.to_vec();
            for (product, z) in dz_z.iter_mut().zip(&self.normal) {
                *product *= z;
            }
            (column_sums(dz, width, |_, v| v / n), column_sums(&dz_z, width, |_, v| v / n))
        } else {
            (vec![0.0; width], vec![0.0; width])
        };
        let rows = dz.chunks_exact(width).zip(self.normal.chunks_exact(width));
        for (dx, (dz, z)) in dx.chunks_exact_mut(width).zip(rows) {
            for c in 0..width {
                dx[c] += self.scale[c] * (dz[c] - mean_dz[c] - z[c] * mean_dz_z[c]);
            }
        }
    }
}

fn column_sums(x: &[f32], width: usize, f: impl Fn(usize, f32) -> f32) -> Vec<f32> {
    let mut sums = vec![0.0; width];
    for row in x.chunks_exact(width) {
        for (c, (sum, &v)) in sums.iter_mut().zip(row).enumerate() {
            *sum += f(c, v);
        }
    }
    sums
}

fn remember(kept: &mut [f32], new: &[f32]) {
    for (kept, new) in kept.iter_mut().zip(new) {
        *kept += MOMENTUM * (new - *kept);
    }
}
