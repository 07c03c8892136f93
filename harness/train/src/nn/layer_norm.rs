//! Layer norm, for the float baseline only: its statistics depend on the input, so no gate folds it.

const EPSILON: f32 = 1e-5;

#[derive(Clone, Debug)]
pub(crate) struct LayerNorm {
    width: usize,
    /// One per row.
    scale: Vec<f32>,
}

impl LayerNorm {
    pub(crate) fn new(width: usize) -> Self {
        Self { width, scale: Vec::new() }
    }

    pub(crate) fn forward(&mut self, x: &[f32]) -> Vec<f32> {
        let n = self.width as f32;
        let mut z = x.to_vec();
        self.scale.clear();
        for row in z.chunks_exact_mut(self.width) {
            let mean = row.iter().sum::<f32>() / n;
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n;
            let scale = (variance + EPSILON).sqrt().recip();
            row.iter_mut().for_each(|v| *v = (*v - mean) * scale);
            self.scale.push(scale);
        }
        z
    }

    /// Adds the gradient of the input to `dx`.
    pub(crate) fn backward(&self, dz: &[f32], z: &[f32], dx: &mut [f32]) {
        let n = self.width as f32;
        let rows = dz.chunks_exact(self.width).zip(z.chunks_exact(self.width));
        for ((dx, (dz, z)), scale) in dx.chunks_exact_mut(self.width).zip(rows).zip(&self.scale) {
            let mean_dz = dz.iter().sum::<f32>() / n;
            let mean_dz_z = dz.iter().zip(z).map(|(d, z)| d * z).sum::<f32>() / n;
            for ((dx, dz), z) in dx.iter_mut().zip(dz).zip(z) {
                *dx += scale * (dz - mean_dz - z * mean_dz_z);
            }
        }
    }
}
