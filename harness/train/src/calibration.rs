//! From a router's outputs to probabilities: a line per model, by least squares, on examples that neither the router nor
//! the models were trained on. It folds into the router's last weights, so that a utility costs no table.

/// `slope * output + offset` is how likely the model is to be right.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Calibration {
    pub(crate) slope: f32,
    pub(crate) offset: f32,
}

/// A higher output never means a lower probability, and none is stretched without end.
const SLOPES: (f64, f64) = (0.1, 4.0);

impl Calibration {
    pub(crate) fn fit(outputs: &[f32], right: &[bool]) -> Self {
        /// As much as this sum of squares with the slope 1, which few data leave as it is.
        const RIDGE: f64 = 1.0;
        let n = outputs.len().max(1) as f64;
        let hit = |right: &bool| f64::from(u8::from(*right));
        let x = outputs.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        let y = right.iter().map(hit).sum::<f64>() / n;
        let (mut products, mut squares) = (RIDGE, RIDGE);
        for (output, right) in outputs.iter().zip(right) {
            let output = f64::from(*output) - x;
            products += output * (hit(right) - y);
            squares += output * output;
        }
        let slope = (products / squares).clamp(SLOPES.0, SLOPES.1);
        Self { slope: slope as f32, offset: (y - slope * x) as f32 }
    }

    /// The estimate, which a line may put below 0 or above 1.
    pub(crate) fn adjusted(self, output: f32) -> f32 {
        self.slope * output + self.offset
    }

    pub(crate) fn probability(self, output: f32) -> f32 {
        self.adjusted(output).clamp(0.0, 1.0)
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
        let outputs: Vec<f32> = (0..20_000).map(|_| rng.unit()).collect();
        let truth = Calibration { slope: 0.6, offset: 0.3 };
        let right: Vec<bool> = outputs.iter().map(|&x| rng.unit() < truth.probability(x)).collect();
        let found = Calibration::fit(&outputs, &right);
        assert!((found.slope - 0.6).abs() < 0.03 && (found.offset - 0.3).abs() < 0.02, "{found:?}");
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
        let found = Calibration::fit(&[0.7, 0.8, 0.9, 1.0], &[true; 4]);
        assert!(found.slope.is_finite() && found.offset.is_finite(), "{found:?}");
        assert!(found.probability(0.8) > 0.9);
    }
}
