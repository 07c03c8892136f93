//! What another model is worth beside the cheapest, by how far the cheapest one's answer is ahead of its next: `worth * 2^-(lead /
//! halving)^2`, by least squares, on examples that neither has seen. A lead tells where an answer is unsure; a line in the trunk's last
//! wires cannot.

use secure_router_core::routing::Advantage;

/// In probability and in logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Worth {
    pub(crate) worth: f64,
    pub(crate) halving: f64,
}

impl Worth {
    pub(crate) const NONE: Self = Self { worth: 0.0, halving: 1.0 };

    /// Of `(lead, gain)`: the gain is 1 where the other model alone is right, -1 where the cheapest alone is.
    pub(crate) fn fit(points: &[(f64, f64)]) -> Self {
        /// As much as this sum of squares without a gain.
        const RIDGE: f64 = 1.0;
        /// Halvings that are tried, each a tenth longer than the one before.
        const HALVINGS: i32 = 70;
        let fitted = |halving: f64| {
            let (mut products, mut squares) = (0.0, RIDGE);
            for (lead, gain) in points {
                let part = bell(lead / halving);
                products += part * gain;
                squares += part * part;
            }
            (products.max(0.0) * products.max(0.0) / squares, Self { worth: products.max(0.0) / squares, halving })
        };
        let tried = (0..HALVINGS).map(|i| fitted(0.02 * 1.1f64.powi(i)));
        let best = tried.max_by(|(one, _), (other, _)| one.total_cmp(other)).map(|(_, worth)| worth);
        best.filter(|worth| worth.worth > 0.0).unwrap_or(Self::NONE)
    }

    /// At a lead.
    pub(crate) fn at(self, lead: f64) -> f64 {
        self.worth * bell(lead / self.halving)
    }

    /// As the server reckons: `step` is the probability of a step of utility, and `unit` the logits of a step of a difference.
    pub(crate) fn advantage(self, step: f64, unit: f64) -> Advantage {
        let sixteenths = |value: f64| (16.0 * value).round().clamp(0.0, f64::from(u16::MAX)) as u16;
        Advantage { worth: sixteenths(self.worth / step), halving: sixteenths(self.halving / unit) }
    }
}

/// Half as high at 1.
fn bell(x: f64) -> f64 {
    (-x * x).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn fitting_finds_the_curve_and_nothing_in_noise() {
        let mut rng = Rng::new(1, "worth");
        let truth = Worth { worth: 0.4, halving: 1.5 };
        let points = |rng: &mut Rng, truth: Worth| -> Vec<(f64, f64)> {
            let point = |rng: &mut Rng| {
                let lead = f64::from(rng.between(0.0, 12.0));
                let (alone, chance) = (f64::from(rng.unit()) < truth.at(lead), rng.unit());
                let noise = f64::from(u8::from(chance < 0.02)) - f64::from(u8::from(chance > 0.98));
                (lead, if alone { 1.0 } else { noise })
            };
            (0..20_000).map(|_| point(rng)).collect()
        };
        let found = Worth::fit(&points(&mut rng, truth));
        assert!((found.worth - 0.4).abs() < 0.04 && (found.halving - 1.5).abs() < 0.25, "{found:?}");
        let nothing = Worth::fit(&points(&mut rng, Worth::NONE));
        assert!((0..12).all(|lead| nothing.at(lead.into()) < 0.05), "{nothing:?}");
        assert_eq!(Worth::fit(&[]), Worth::NONE);
        assert_eq!(Worth::fit(&[(1.0, -1.0); 9]), Worth::NONE);
    }

    #[test]
    fn the_server_reckons_in_steps_of_its_own() {
        let truth = Worth { worth: 0.4, halving: 1.5 };
        assert_eq!(truth.advantage(0.001, 0.05), Advantage { worth: 6400, halving: 480 });
        assert_eq!(Worth::NONE.advantage(0.001, 0.05).worth, 0);
    }
}
