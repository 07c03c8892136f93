//! Noise for rounding at random: a number for each value of each wire, which takes more of them
//! than all else in a run. So several generators stand side by side, and vectorise.

use crate::rng::Rng;

/// Values that are drawn at once.
pub(crate) const LANES: usize = 8;

/// Marsaglia's xorshift generator of period 2^128 - 1, once per lane.
#[derive(Clone, Debug)]
pub(crate) struct Noise {
    state: [[u32; LANES]; 4],
}

impl Noise {
    pub(crate) fn new(mut rng: Rng) -> Self {
        Self { state: [(); 4].map(|()| [(); LANES].map(|()| (rng.next_u64() >> 32) as u32)) }
    }

    /// Uniform between -1/2 and 1/2.
    #[inline]
    pub(crate) fn draw(&mut self) -> [f32; LANES] {
        let [x, y, z, mut w] = self.state;
        self.state = [y, z, w, w];
        for (w, x) in w.iter_mut().zip(x) {
            let t = x ^ (x << 11);
            *w ^= (*w >> 19) ^ t ^ (t >> 8);
        }
        self.state[3] = w;
        w.map(|w| w.cast_signed() as f32 / (1u64 << 32) as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lane_is_uniform_and_unlike_its_neighbour() {
        let mut noise = Noise::new(Rng::new(1, "noise"));
        let n = 100_000;
        let mut moments = [[0.0; 3]; LANES];
        for _ in 0..n {
            let drawn = noise.draw();
            for (lane, sums) in moments.iter_mut().enumerate() {
                let (one, other) = (f64::from(drawn[lane]), f64::from(drawn[(lane + 1) % LANES]));
                assert!(one.abs() <= 0.5);
                sums.iter_mut().zip([one, one * one, one * other]).for_each(|(sum, v)| *sum += v / f64::from(n));
            }
        }
        for [mean, square, product] in moments {
            assert!(mean.abs() < 5e-3 && (square - 1.0 / 12.0).abs() < 2e-3 && product.abs() < 2e-3, "{moments:?}");
        }
    }
}
