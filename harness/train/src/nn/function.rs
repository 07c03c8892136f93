//! The two functions that become tables. A table can hold any function, so these are chosen to be
//! cheap to train: a sigmoid, and the sigmoid form of GELU.

/// `e^x` by range reduction and a polynomial (relative error below 1e-6): branch-free, so that the
/// compiler vectorises the loops over it, and the same on every machine, unlike a library's.
fn exp(x: f32) -> f32 {
    /// Adding this rounds to the nearest integer, which is then in the last bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 87.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = p * r + c;
    }
    (p * r * r + r + 1.0) * f32::from_bits((rounded.to_bits() + 127) << 23)
}

pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

const GELU_SLOPE: f32 = 1.702;

pub(crate) fn gelu(x: f32) -> f32 {
    gelu_and_slope(x).0
}

/// GELU and its derivative, which share the sigmoid.
pub(crate) fn gelu_and_slope(x: f32) -> (f32, f32) {
    let s = sigmoid(GELU_SLOPE * x);
    (x * s, s + GELU_SLOPE * x * s * (1.0 - s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_matches_the_library() {
        for i in -800..=800 {
            let x = i as f32 / 10.0;
            assert!((exp(x) / x.exp() - 1.0).abs() < 2e-6, "{x}");
        }
    }

    #[test]
    fn gelu_comes_with_its_slope() {
        for i in -50..=50 {
            let x = i as f32 / 10.0;
            let slope = (gelu(x + 1e-2) - gelu(x - 1e-2)) / 2e-2;
            assert!((slope - gelu_and_slope(x).1).abs() < 1e-3, "{x}");
        }
    }
}
