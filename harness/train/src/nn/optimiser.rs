//! AdamW with a warm-up and a cosine fall of the learning rate.

use super::model::Model;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Optimiser {
    pub(crate) rate: f32,
    pub(crate) decay: f32,
    pub(crate) steps: usize,
}

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.99;
const WARM_UP: f32 = 0.05;
/// Longest gradient that is taken as it is.
const CLIP: f32 = 2.0;

impl Optimiser {
    fn rate_at(&self, step: usize) -> f32 {
        let done = step as f32 / self.steps as f32;
        let cosine = 0.5 * (1.0 + (std::f32::consts::PI * done).cos());
        self.rate * (0.01 + 0.99 * cosine) * (done / WARM_UP).min(1.0)
    }

    /// Moves every parameter and clears every gradient; `step` counts from 0.
    pub(crate) fn step(&self, model: &mut Model, step: usize) {
        let squares: f32 = model.params().flat_map(|p| &p.grad).map(|g| g * g).sum();
        let shrink = (CLIP / squares.sqrt().max(1e-12)).min(1.0);
        let rate = self.rate_at(step);
        let power = (step + 1).min(10_000) as i32;
        let (unbias1, unbias2) = (1.0 - BETA1.powi(power), 1.0 - BETA2.powi(power));
        for param in model.params() {
            let keep = if param.decays { 1.0 - rate * self.decay } else { 1.0 };
            let moments = param.moment1.iter_mut().zip(&mut param.moment2);
            for ((value, grad), (m1, m2)) in param.value.iter_mut().zip(&mut param.grad).zip(moments) {
                let g = *grad * shrink;
                *m1 = BETA1 * *m1 + (1.0 - BETA1) * g;
                *m2 = BETA2 * *m2 + (1.0 - BETA2) * g * g;
                let direction = *m1 / unbias1 / ((*m2 / unbias2).sqrt() + 1e-8);
                *value = *value * keep - rate * direction;
                *grad = 0.0;
            }
        }
    }
}
