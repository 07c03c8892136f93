//! Borrowed matrices, and the three products that a linear layer and its gradients need, over
//! `matrixmultiply`.

use std::array::from_fn;

/// A borrowed row-major matrix, possibly to be read transposed.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    pub(crate) fn new(data: &'a [f32], cols: usize) -> Self {
        assert!(cols > 0 && data.len().is_multiple_of(cols), "ragged matrix");
        Self { data, rows: data.len() / cols, cols, row_stride: cols, col_stride: 1 }
    }

    /// `cols` columns from `first` on.
    pub(crate) fn columns(self, first: usize, cols: usize) -> Self {
        assert!(first + cols <= self.cols, "no such columns");
        Self { data: &self.data[first * self.col_stride..], cols, ..self }
    }

    pub(crate) const fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) const fn cols(&self) -> usize {
        self.cols
    }

    /// A copy of `ROWS x COLS` entries, zeros outside the matrix.
    #[inline]
    pub(crate) fn panel<const ROWS: usize, const COLS: usize>(self, top: usize, left: usize) -> [[f32; COLS]; ROWS] {
        if self.col_stride == 1 {
            return self.panel_of_rows(top, left);
        }
        let across: [[f32; ROWS]; COLS] = self.transposed().panel_of_rows(left, top);
        from_fn(|i| from_fn(|j| across[j][i]))
    }

    #[inline]
    fn panel_of_rows<const ROWS: usize, const COLS: usize>(self, top: usize, left: usize) -> [[f32; COLS]; ROWS] {
        let mut panel = [[0.0; COLS]; ROWS];
        let cols = COLS.min(self.cols - left);
        for (i, row) in panel.iter_mut().enumerate().take(self.rows - top) {
            let data = &self.data[(top + i) * self.row_stride + left..];
            match data.first_chunk() {
                Some(whole) if cols == COLS => *row = *whole,
                _ => row[..cols].copy_from_slice(&data[..cols]),
            }
        }
        panel
    }

    pub(crate) fn transposed(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// `out = a b`, or `out += a b` if `accumulate`.
pub(crate) fn multiply(a: Matrix, b: Matrix, out: &mut [f32], accumulate: bool) {
    assert!(a.cols == b.rows && out.len() == a.rows * b.cols, "shapes do not match");
    // SAFETY: `Matrix::new` tied rows x cols and strides to the length of `data`, transposition
    // swaps both pairs, `columns` keeps within them, and the shapes were just checked, so every access is in bounds.
    unsafe {
        matrixmultiply::sgemm(
            a.rows,
            a.cols,
            b.cols,
            1.0,
            a.data.as_ptr(),
            a.row_stride as isize,
            a.col_stride as isize,
            b.data.as_ptr(),
            b.row_stride as isize,
            b.col_stride as isize,
            if accumulate { 1.0 } else { 0.0 },
            out.as_mut_ptr(),
            b.cols as isize,
            1,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiplies_plain_and_transposed() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]; // 2 x 3
        let b = [1.0, 0.0, 2.0, 1.0, 0.0, 3.0]; // 3 x 2
        let mut out = [0.0; 4];
        multiply(Matrix::new(&a, 3), Matrix::new(&b, 2), &mut out, false);
        assert_eq!(out, [5.0, 11.0, 14.0, 23.0]);
        let mut out = [1.0; 9];
        multiply(Matrix::new(&a, 3).transposed(), Matrix::new(&b, 2).transposed(), &mut out, true);
        assert_eq!(out, [2.0, 7.0, 13.0, 3.0, 10.0, 16.0, 4.0, 13.0, 19.0]);
    }
}
