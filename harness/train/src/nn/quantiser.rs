//! A wire's step: where training rounds, and what export divides by.

use super::noise::LANES;
use super::{Mode, Rounding};

/// Rounds a wire to multiples of its step; the gradient passes straight through.
#[derive(Clone, Debug, Default)]
pub(crate) struct Quantiser {
    /// Largest magnitude seen while observing.
    pub(crate) seen: f32,
    /// Zero until calibrated.
    pub(crate) step: f32,
}

/// The nearest integer of a value below 2^22: adding this much leaves no bits for a fraction. The
/// library's `round` is a call on targets without such an instruction, which the loops here feel.
fn nearest(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    x + SHIFT - SHIFT
}

impl Quantiser {
    pub(crate) fn apply(&mut self, x: &mut [f32], mode: &mut Mode) {
        if mode.observe {
            // Without their signs, floats are in the order of their bits, whose maximum vectorises.
            let largest = x.iter().fold(0, |max, v| v.abs().to_bits().cast_signed().max(max));
            self.seen = self.seen.max(f32::from_bits(largest.cast_unsigned()));
        }
        let (step, inverse) = (self.step, self.step.recip());
        match &mut mode.rounding {
            Rounding::Off => {}
            Rounding::Nearest => {
                for v in x {
                    *v = nearest(*v * inverse) * step;
                }
            }
            Rounding::Stochastic(noise) => {
                // Uniform noise of one step, centred, before rounding to nearest.
                let mut round = |values: &mut [f32]| {
                    for (v, noise) in values.iter_mut().zip(noise.draw()) {
                        *v = nearest(*v * inverse + noise) * step;
                    }
                };
                let (lanes, rest) = x.as_chunks_mut::<LANES>();
                lanes.iter_mut().for_each(|values| round(values));
                round(rest);
            }
        }
    }

    /// A table's output is rounded once, when the table is made: never at random.
    pub(crate) fn apply_to_table(&mut self, x: &mut [f32], mode: &Mode) {
        let observe = mode.observe;
        let rounding = match mode.rounding {
            Rounding::Off => Rounding::Off,
            _ => Rounding::Nearest,
        };
        self.apply(x, &mut Mode { batch_statistics: false, observe, rounding });
    }

    /// Sets the step so that the largest value seen becomes `limit`.
    pub(crate) fn calibrate(&mut self, limit: f32) {
        self.step = self.seen.max(1e-6) / limit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::noise::Noise;
    use crate::rng::Rng;

    #[test]
    fn rounding_is_to_the_step_and_unbiased() {
        let mut quantiser = Quantiser { seen: 0.0, step: 0.5 };
        let mut x = vec![0.3, -0.3, 1.1];
        quantiser.apply(&mut x, &mut Mode::NEAREST.clone());
        assert_eq!(x, [0.5, -0.5, 1.0]);
        let mut mode = Mode::NEAREST;
        mode.rounding = Rounding::Stochastic(Noise::new(Rng::new(1, "test")));
        let mut x = vec![0.3; 100_000];
        quantiser.apply(&mut x, &mut mode);
        let mean = x.iter().sum::<f32>() / x.len() as f32;
        assert!((mean - 0.3).abs() < 5e-3, "{mean}");
    }

    #[test]
    fn calibrating_maps_the_largest_to_the_limit() {
        let mut quantiser = Quantiser::default();
        let mut mode = Mode::FLOAT;
        mode.observe = true;
        quantiser.apply(&mut [1.0, -6.0, 2.0], &mut mode);
        quantiser.calibrate(60.0);
        assert!((quantiser.step - 0.1).abs() < 1e-6);
    }
}
