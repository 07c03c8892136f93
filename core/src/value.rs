//! Fixed-point values at the edge: what an application measures, in steps that a pool takes.

use fixed::types::I16F16;

use crate::session::SessionError;
use crate::spec::PoolSpec;

/// Writes `values` as the pool's input steps, rounded to nearest (halves up).
///
/// ```
/// # use secure_router_core::value::steps;
/// use fixed::types::I16F16;
/// let mut out = [0; 2];
/// steps(&[I16F16::from_num(1.5), I16F16::from_num(-0.26)], 4, 8, &mut out)?;
/// assert_eq!(out, [24, -4]);
/// # Ok::<(), secure_router_core::session::SessionError>(())
/// ```
///
/// # Errors
/// [`SessionError::InputLength`] when the lengths differ; [`SessionError::InputRange`] names the
/// first value that `bits` signed bits do not hold.
pub fn steps(values: &[I16F16], frac: u8, bits: u8, out: &mut [i16]) -> Result<(), SessionError> {
    if values.len() != out.len() {
        return Err(SessionError::InputLength { expected: out.len(), found: values.len() });
    }
    let limit = 1i64 << (bits.clamp(1, 16) - 1);
    let shift = 16 - u32::from(frac.min(16));
    for (index, (value, slot)) in values.iter().zip(out).enumerate() {
        let half = (1i64 << shift) >> 1;
        let step = (i64::from(value.to_bits()) + half) >> shift;
        if !(-limit..limit).contains(&step) {
            return Err(SessionError::InputRange { index, bits });
        }
        *slot = step as i16;
    }
    Ok(())
}

/// As [`steps`], with the format of `pool`.
///
/// # Errors
/// As [`steps`].
pub fn steps_for(pool: &PoolSpec, values: &[I16F16], out: &mut [i16]) -> Result<(), SessionError> {
    steps(values, pool.input_frac, pool.input_bits, out)
}
