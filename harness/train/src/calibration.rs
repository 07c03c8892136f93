//! From a router's outputs to probabilities: one slope and one offset per model (Platt, 1999), fitted on examples
//! that neither the router nor the models were trained on. Both fold into the router's last weights.

use crate::nn::function::sigmoid;

/// `sigmoid(slope * output + offset)` is how likely the model is to be right.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Calibration {
    pub(crate) slope: f32,
    pub(crate) offset: f32,
}

/// A higher output never means a lower probability, and none is stretched without end.
const SLOPES: (f64, f64) = (0.1, 4.0);

impl Calibration {
    /// Newton's method on the logistic loss, with Platt's targets, which keep it finite where all are right.
    pub(crate) fn fit(outputs: &[f32], right: &[bool]) -> Self {
        const STEPS: usize = 50;
        const RIDGE: f64 = 1e-3;
        let hits = right.iter().filter(|r| **r).count() as f64;
        let (high, low) = ((hits + 1.0) / (hits + 2.0), 1.0 / (right.len() as f64 - hits + 2.0));
        let (mut slope, mut offset) = (1.0f64, 0.0f64);
        for _ in 0..STEPS {
            // The ridge pulls the slope to 1.
            let (mut ga, mut gb) = (RIDGE * (slope - 1.0), 0.0);
            let (mut haa, mut hab, mut hbb) = (RIDGE, 0.0, 1e-9);
            for (&x, &right) in outputs.iter().zip(right) {
                let x = f64::from(x);
                let p = 1.0 / (1.0 + (-(slope * x + offset)).exp());
                let error = p - if right { high } else { low };
                let weight = p * (1.0 - p);
                ga += error * x;
                gb += error;
                haa += weight * x * x;
                hab += weight * x;
                hbb += weight;
            }
            let determinant = (haa * hbb - hab * hab).max(1e-9);
            let step = |d: f64| (d / determinant).clamp(-1.0, 1.0);
            slope = (slope - step(hbb * ga - hab * gb)).clamp(SLOPES.0, SLOPES.1);
            offset -= step(haa * gb - hab * ga);
        }
        Self { slope: slope as f32, offset: offset as f32 }
    }

    /// The logit of the probability.
    pub(crate) fn adjusted(self, output: f32) -> f32 {
        self.slope * output + self.offset
    }

    pub(crate) fn probability(self, output: f32) -> f32 {
        sigmoid(self.adjusted(output))
    }
}

/// Expected calibration error over ten bins of equal width (Guo et al., 2017).
pub(crate) fn expected_error(probabilities: &[f32], right: &[bool]) -> f64 {
    const BINS: usize = 10;
    let mut gaps = [0.0f64; BINS];
    for (&p, &right) in probabilities.iter().zip(right) {
        let bin = ((p * BINS as f32) as usize).min(BINS - 1);
        gaps[bin] += f64::from(p) - if right { 1.0 } else { 0.0 };
    }
    gaps.iter().map(|gap| gap.abs()).sum::<f64>() / probabilities.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn fitting_finds_slope_and_offset() {
        let mut rng = Rng::new(1, "calibration");
        let outputs: Vec<f32> = (0..20_000).map(|_| 2.0 * rng.normal()).collect();
        let truth = Calibration { slope: 0.6, offset: 1.2 };
        let right: Vec<bool> = outputs.iter().map(|&x| rng.unit() < truth.probability(x)).collect();
        let found = Calibration::fit(&outputs, &right);
        assert!((found.slope - 0.6).abs() < 0.03 && (found.offset - 1.2).abs() < 0.06, "{found:?}");
        let error =
            |c: Calibration| expected_error(&outputs.iter().map(|&x| c.probability(x)).collect::<Vec<_>>(), &right);
        assert!(error(found) < 0.01, "{}", error(found));
        assert!(
            error(Calibration { slope: 1.0, offset: 0.0 }) > 0.1,
            "{}",
            error(Calibration { slope: 1.0, offset: 0.0 })
        );
    }

    #[test]
    fn fitting_stays_finite_without_a_single_miss() {
        let found = Calibration::fit(&[1.0, 2.0, 3.0, 4.0], &[true; 4]);
        assert!(found.slope.is_finite() && found.offset.is_finite(), "{found:?}");
        assert!(found.probability(2.0) > 0.5 && found.probability(2.0) < 1.0);
    }
}
