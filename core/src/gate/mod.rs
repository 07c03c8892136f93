//! The gates, one file each, with the halves of every party side by side.
//!
//! | file | operand or response |
//! | --- | --- |
//! | [`embed`] | secret vectors of the device's words |
//! | [`linear`] | secret weights times shared wires |
//! | [`product`] | product of two shared matrices |
//! | [`combine`] | public combination, for the argmax |
//! | [`margin`] | response: whether a difference is clear, for the argmax |
//! | [`opening`] | how an operand becomes a masked index |
//! | [`remask`] | response: shared again as it is |
//! | [`requantise`] | response: rounding |
//! | [`table`] | response: any element-wise function |
//! | [`tell`] | response: the same, for the device |
//!
//! The input and output gates have no arithmetic of their own: the device adds its wire masks to
//! its input, and subtracts the operand's mask from what the server reveals.

pub mod combine;
pub mod embed;
pub mod linear;
pub mod margin;
pub mod opening;
pub mod product;
pub mod remask;
pub mod requantise;
pub mod table;
pub mod tell;

/// What gates compute in: the ring for shares, `i64` for the clear-text reference.
pub trait Scalar: Copy {
    /// Zero.
    const ZERO: Self;
    /// `self + other`; the ring wraps.
    #[must_use]
    fn plus(self, other: Self) -> Self;
    /// `self - other`; the ring wraps.
    #[must_use]
    fn minus(self, other: Self) -> Self;
}

impl Scalar for u32 {
    const ZERO: Self = 0;
    #[inline]
    fn plus(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
    #[inline]
    fn minus(self, other: Self) -> Self {
        self.wrapping_sub(other)
    }
}

impl Scalar for i64 {
    const ZERO: Self = 0;
    #[inline]
    fn plus(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
    #[inline]
    fn minus(self, other: Self) -> Self {
        self.wrapping_sub(other)
    }
}

/// A factor of a [`Scalar`].
pub trait Factor<X>: Copy {
    /// `self * x`; the ring wraps.
    #[must_use]
    fn times(self, x: X) -> X;
}

impl Factor<u32> for u32 {
    #[inline]
    fn times(self, x: u32) -> u32 {
        self.wrapping_mul(x)
    }
}

impl Factor<u32> for i16 {
    #[inline]
    fn times(self, x: u32) -> u32 {
        (i32::from(self) as u32).wrapping_mul(x)
    }
}

impl Factor<i64> for i16 {
    #[inline]
    fn times(self, x: i64) -> i64 {
        i64::from(self).wrapping_mul(x)
    }
}

impl Factor<i64> for i64 {
    #[inline]
    fn times(self, x: i64) -> i64 {
        self.wrapping_mul(x)
    }
}

/// The device's correction, which turns an operand's mask `m` into one that has a place in a stream: the mask of an
/// index, or of the wire that [`remask`] makes.
#[inline]
#[must_use]
pub fn correction(to: u32, mask: u32) -> u32 {
    to.wrapping_sub(mask)
}

#[inline]
fn dot<W: Factor<X>, X: Scalar>(weights: &[W], values: &[X]) -> X {
    weights.iter().zip(values).fold(X::ZERO, |sum, (weight, value)| sum.plus(weight.times(*value)))
}

/// `slice[at..at + len]`, empty when out of range: callers check sizes once, at their start.
fn part<T>(slice: &[T], at: u32, len: usize) -> &[T] {
    let at = at as usize;
    slice.get(at..at.saturating_add(len)).unwrap_or(&[])
}
