//! Windows of acceleration and rotation, of which the device sends the spectra.

use crate::rng::Rng;
use secure_router_core::motion::{AXES, FRAMES, INPUT, UNITS, input};

/// How differently other people wear other sensors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wear {
    /// Deviation of the angle by which both vectors are turned, in radians.
    pub(crate) turn: f32,
    /// Deviation of the gain of an axis.
    pub(crate) gain: f32,
    /// Noise on the values of the input, in units of eight steps.
    pub(crate) noise: (f32, f32),
}

/// What the device makes of a window in g and rad/s.
pub(crate) fn spectra(window: &[f32]) -> Vec<i8> {
    let mut readings = [[0; AXES]; FRAMES];
    for (row, values) in readings.iter_mut().zip(window.chunks_exact(AXES)) {
        *row = std::array::from_fn(|axis| (values[axis] * f32::from(UNITS[axis])).round() as i16);
    }
    let mut values = [0; INPUT];
    input(&readings, &mut values);
    values.into_iter().map(|v| v as i8).collect()
}

/// The window as a sensor at another angle and of other gains would have seen it.
pub(crate) fn worn(window: &[f32], wear: &Wear, rng: &mut Rng) -> Vec<f32> {
    let turn = Turn::random(wear.turn * rng.normal(), rng);
    let gains = [(); AXES].map(|()| 1.0 + wear.gain * rng.normal());
    let mut worn = window.to_vec();
    for row in worn.chunks_exact_mut(AXES) {
        row.as_chunks_mut::<3>().0.iter_mut().for_each(|axes| *axes = turn.apply(*axes));
        row.iter_mut().zip(gains).for_each(|(value, gain)| *value *= gain);
    }
    worn
}

/// A rotation by `angle` about a random axis (Rodrigues).
struct Turn {
    axis: [f32; 3],
    sin: f32,
    cos: f32,
}

impl Turn {
    fn random(angle: f32, rng: &mut Rng) -> Self {
        let axis = [(); 3].map(|()| rng.normal());
        let length = axis.iter().map(|a| a * a).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
        let (sin, cos) = angle.sin_cos();
        Self { axis: axis.map(|a| a / length), sin, cos }
    }

    fn apply(&self, [x, y, z]: [f32; 3]) -> [f32; 3] {
        let [a, b, c] = self.axis;
        let along = (a * x + b * y + c * z) * (1.0 - self.cos);
        let across = [b * z - c * y, c * x - a * z, a * y - b * x];
        let part = |value: f32, axis: f32, across: f32| value * self.cos + across * self.sin + axis * along;
        [part(x, a, across[0]), part(y, b, across[1]), part(z, c, across[2])]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_keeps_lengths_and_angles() {
        let mut rng = Rng::new(1, "turn");
        let turn = Turn::random(0.7, &mut rng);
        let dot = |a: [f32; 3], b: [f32; 3]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let (a, b) = ([1.0, 2.0, -0.5], [0.3, -1.0, 2.0]);
        let (turned, other) = (turn.apply(a), turn.apply(b));
        assert!((dot(turned, turned) - dot(a, a)).abs() < 1e-4);
        assert!((dot(turned, other) - dot(a, b)).abs() < 1e-4);
        assert!(turn.apply(turn.axis).iter().zip(turn.axis).all(|(one, other)| (one - other).abs() < 1e-5));
        assert!((turned[0] - a[0]).abs() > 0.05);
    }

    #[test]
    fn a_still_sensor_keeps_its_weight_however_it_is_worn() {
        let still = [0.0, 0.0, 1.0, 0.0, 0.0, 0.0].repeat(FRAMES);
        let wear = Wear { turn: 0.5, gain: 0.0, noise: (0.0, 0.0) };
        let weight = 6 * 9;
        let values = [spectra(&still), spectra(&worn(&still, &wear, &mut Rng::new(1, "worn")))];
        assert_eq!(values.each_ref().map(|values| values.len()), [INPUT; 2]);
        assert!(values.iter().all(|values| (values[weight] - 64).abs() <= 1));
        assert_ne!(values[0][2 * 9], values[1][2 * 9]);
    }
}
