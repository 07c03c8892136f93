//! Products of matrices as small as those of one attention head, which `matrix::multiply` would
//! spend most of its time on packing.

use super::matrix::Matrix;

/// Rows of a panel, and rows that it is multiplied with at once.
const DEPTH: usize = 16;

/// Adds `a b` to a matrix with rows `stride` apart.
pub(crate) fn add_product(a: Matrix, b: Matrix, out: &mut [f32], stride: usize) {
    assert!(a.cols() == b.rows(), "shapes do not match");
    if b.cols() <= 8 { add_panels::<8>(a, b, out, stride) } else { add_panels::<16>(a, b, out, stride) }
}

/// Takes `b` in panels, padded with zeros to a width that the compiler knows: a row of sums then
/// stays in registers.
fn add_panels<const WIDTH: usize>(a: Matrix, b: Matrix, out: &mut [f32], stride: usize) {
    for column in (0..b.cols()).step_by(WIDTH) {
        let width = WIDTH.min(b.cols() - column);
        for first in (0..b.rows()).step_by(DEPTH) {
            let depth = DEPTH.min(b.rows() - first);
            let panel = b.panel::<DEPTH, WIDTH>(first, column);
            for top in (0..a.rows()).step_by(DEPTH) {
                let left = a.panel::<DEPTH, DEPTH>(top, first);
                for (i, left) in (top..a.rows()).zip(&left) {
                    let mut sums = [0.0; WIDTH];
                    for (row, a) in panel[..depth].iter().zip(left) {
                        for (sum, b) in sums.iter_mut().zip(row) {
                            *sum += a * b;
                        }
                    }
                    for (out, sum) in out[i * stride + column..][..width].iter_mut().zip(sums) {
                        *out += sum;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::matrix::multiply;
    use crate::rng::Rng;

    #[test]
    fn agrees_with_the_large_product() {
        let mut rng = Rng::new(1, "small");
        for (rows, inner, cols) in [(16, 16, 16), (8, 16, 8), (1, 3, 9), (5, 17, 33), (20, 40, 7)] {
            let [a, b] =
                [rows * inner, inner * cols].map(|len| -> Vec<f32> { (0..len).map(|_| rng.normal()).collect() });
            let (straight, across) = (Matrix::new(&a, inner), Matrix::new(&b, inner).transposed());
            let mut expected = vec![0.0; rows * cols];
            multiply(straight, across, &mut expected, false);
            let stride = cols + 2;
            let mut out = vec![1.0; rows * stride];
            add_product(straight, across, &mut out, stride);
            for (out, expected) in out.chunks_exact(stride).zip(expected.chunks_exact(cols)) {
                assert!(out.iter().zip(expected).all(|(o, e)| (o - 1.0 - e).abs() < 1e-4), "{out:?} {expected:?}");
                assert_eq!(out[cols..], [1.0; 2]);
            }
        }
    }
}
