//! The two functions that become tables. A table can hold any function, so these are chosen to be
//! cheap to train: a sigmoid, and the sigmoid form of GELU.

/// `e^x` by range reduction and a polynomial (relative error below 1e-6): branch-free, so that the
/// compiler vectorises the loops over it, and the same on every machine, unlike a library's.
fn exp(x: f32) -> f32 {
    /// Adding and subtracting this rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 87.0);
    let n = x * std::f32::consts::LOG2_E + ROUND - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = p * r + c;
    }
    (p * r * r + r + 1.0) * f32::from_bits(((n as i32 + 127) << 23) as u32)
}

pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

const GELU_SLOPE: f32 = 1.702;

pub(crate) fn gelu(x: f32) -> f32 {
    x * sigmoid(GELU_SLOPE * x)
}

pub(crate) fn gelu_derivative(x: f32) -> f32 {
    let s = sigmoid(GELU_SLOPE * x);
    s + GELU_SLOPE * x * s * (1.0 - s)
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
    fn gelu_derivative_is_its_slope() {
        for i in -50..=50 {
            let x = i as f32 / 10.0;
            let slope = (gelu(x + 1e-2) - gelu(x - 1e-2)) / 2e-2;
            assert!((slope - gelu_derivative(x)).abs() < 1e-3, "{x}");
        }
    }
}
