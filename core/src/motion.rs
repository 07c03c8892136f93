//! Windows of a motion sensor as an input: how strongly each axis moves, and how fast.
//!
//! A window is [`FRAMES`] rows of [`AXES`] numbers, taken 50 times a second: acceleration along three axes, gravity
//! included, then rotation about them, in the [`UNITS`]. To these six series come the lengths of the
//! two vectors, which do not depend on how the sensor is mounted.
//!
//! The input is a matrix of [`TOKENS`] rows, each of 64 frames under a Hann window, a quarter of a window apart. A row
//! has nine values per series: its mean, of which 64 steps are 1 g or 1 rad/s, and the logarithms of the energy in eight
//! bands of [`EDGES`], of which four steps are a doubling. What is learnt of them is the server's; these numbers
//! are public and the same for every pool.
//!
//! Time depends on nothing that was measured: there is no branch on it here, no index, and no multiplication wider
//! than 32 bits. The machine code of no firmware has been scanned for what a compiler put in.

/// Rows of a window.
pub const FRAMES: usize = 128;
/// Numbers in a row: acceleration, rotation.
pub const AXES: usize = 6;
/// What 1 g, and 1 rad/s, are in a window.
pub const UNITS: [i16; AXES] = [2048, 2048, 2048, 1024, 1024, 1024];
/// Rows of an input.
pub const TOKENS: usize = 5;
/// Values in a row of an input.
pub const VALUES: usize = SERIES * EDGES.len();
/// Values of an input.
pub const INPUT: usize = TOKENS * VALUES;
/// Fractional bits of a value of an input.
pub const FRAC: u8 = 3;
/// Largest value of an input: what a signed byte holds.
pub const MOST: i32 = i8::MAX as i32;

/// Limits of the bands, in multiples of 50/64 Hz; each ends before the next begins.
pub const EDGES: [usize; 9] = [1, 2, 3, 4, 6, 8, 12, 16, 32];

/// Axes, and the lengths of their two vectors.
const SERIES: usize = AXES + 2;
/// Frames under one Hann window, and the period of all sines.
const PERIOD: usize = 64;
/// Frames from one token to the next. The tokens share the sums over these.
const HOP: usize = 16;
const HOPS: usize = FRAMES / HOP;
const HOPS_PER_TOKEN: usize = PERIOD / HOP;
const _: () = assert!(HOPS + 1 == TOKENS + HOPS_PER_TOKEN && PERIOD / HOP == 4);

/// What brings a sum of 64 readings to steps of a mean: of acceleration, of rotation, and of the lengths of both.
const SHIFTS: [u32; SERIES] = [11, 11, 11, 10, 10, 10, 11, 10];
/// Bits of a spectral line that are dropped before it is squared.
const LINE_SHIFT: u32 = 4;
/// Energy that is added to every band: what is far below a sensor's noise does not matter.
const FLOOR: u64 = 1 << 12;
/// Value of an energy of 2^28, about the middle.
const MIDDLE: i32 = 28 * STEPS;
/// Steps of an octave.
const STEPS: i32 = 4;

/// 256 times the cosine of `n / 64` of a turn. Half a turn apart they are exact opposites, so that a constant has
/// no part in any line.
const COSINE: [i32; PERIOD] = {
    const QUARTER: [i32; 17] = [256, 255, 251, 245, 237, 226, 213, 198, 181, 162, 142, 121, 98, 74, 50, 25, 0];
    let mut table = [0; PERIOD];
    let mut n = 0;
    while n < PERIOD {
        let folded = if n <= PERIOD / 2 { n } else { PERIOD - n };
        table[n] = if folded <= 16 { QUARTER[folded] } else { -QUARTER[32 - folded] };
        n += 1;
    }
    table
};

/// A complex number.
type Line = [i32; 2];

/// Writes a `window` as an input of whole numbers from -[`MOST`] to [`MOST`].
///
/// ```
/// # use secure_router_core::motion::{AXES, FRAMES, INPUT, MOST, VALUES, input};
/// let still = [[0, 0, 2048, 0, 0, 0]; FRAMES];
/// let mut out = [0; INPUT];
/// input(&still, &mut out);
/// // The third axis feels 1 g, in the mean of each token; nothing moves.
/// assert_eq!(out[2 * 9..][..9], [64, -64, -64, -64, -64, -64, -64, -64, -64]);
/// ```
pub fn input(window: &[[i16; AXES]; FRAMES], out: &mut [i16; INPUT]) {
    for (index, shift) in SHIFTS.into_iter().enumerate() {
        let series = window.map(|row| {
            let [x, y, z, a, b, c] = row.map(i32::from);
            match index.checked_sub(AXES) {
                None => row.map(i32::from).get(index).copied().unwrap_or(0),
                Some(0) => length([x, y, z]),
                Some(_) => length([a, b, c]),
            }
        });
        let described = describe(&series, shift);
        for (row, values) in out.chunks_exact_mut(VALUES).zip(described) {
            for (out, value) in row.iter_mut().skip(index * EDGES.len()).zip(values) {
                *out = value;
            }
        }
    }
}

/// Mean and energies of one series, a row per token.
fn describe(series: &[i32; FRAMES], shift: u32) -> [[i16; EDGES.len()]; TOKENS] {
    let mut rows = [[0; EDGES.len()]; TOKENS];
    let mut set = |place: usize, values: [i32; TOKENS]| {
        for (row, value) in rows.iter_mut().zip(values) {
            if let Some(out) = row.get_mut(place) {
                *out = limited(value) as i16;
            }
        }
    };
    set(0, line(series, 0).map(|[sum, _]| ((sum >> 8) + (1 << (shift - 1))) >> shift));
    // Under a Hann window the neighbours of a line count. Without its mean a series has no line 0.
    let (mut left, mut middle) = ([[0; 2]; TOKENS], line(series, 1));
    for (place, band) in EDGES.windows(2).enumerate() {
        let mut energies = [FLOOR; TOKENS];
        for k in band.iter().fold(0..0, |lines, edge| lines.end..*edge) {
            let right = line(series, k + 1);
            for (token, energy) in energies.iter_mut().enumerate() {
                *energy +=
                    hann(token, [&left, &middle, &right].map(|lines| lines.get(token).copied().unwrap_or([0; 2])));
            }
            (left, middle) = (middle, right);
        }
        set(place + 1, energies.map(|energy| logarithm(energy) - MIDDLE));
    }
    rows
}

/// Energy of the middle one of three lines under a Hann window. All phases are those of the series' begin; a token
/// begins a quarter of a period after the one before it.
fn hann(token: usize, [left, [re, im], right]: [Line; 3]) -> u64 {
    let (left, right) = (turned(left, (4 - token % 4) % 4), turned(right, token % 4));
    square(re - ((left[0] >> 1) + (right[0] >> 1))) + square(im - ((left[1] >> 1) + (right[1] >> 1)))
}

/// Line `k` of the spectrum of each token, 256 times as large, with the phase of the series' begin.
fn line(series: &[i32; FRAMES], k: usize) -> [Line; TOKENS] {
    let mut hops = [[0; 2]; HOPS];
    for (at, (sum, hop)) in hops.iter_mut().zip(series.chunks_exact(HOP)).enumerate() {
        for (n, value) in hop.iter().enumerate() {
            let angle = k * (at * HOP + n);
            let cosine = |angle: usize| COSINE.get(angle % PERIOD).copied().unwrap_or(0);
            let [re, im] = sum;
            *re += value * cosine(angle);
            *im -= value * cosine(angle + 3 * PERIOD / 4);
        }
    }
    core::array::from_fn(|token| {
        let part = |axis: fn(&Line) -> i32| hops.iter().skip(token).take(HOPS_PER_TOKEN).map(axis).sum();
        [part(|[re, _]| *re), part(|[_, im]| *im)]
    })
}

/// Times the `quarters`-th power of the imaginary unit; `quarters` is public.
const fn turned([re, im]: Line, quarters: usize) -> Line {
    match quarters {
        1 => [-im, re],
        2 => [-re, -im],
        3 => [im, -re],
        _ => [re, im],
    }
}

/// The square of a part of a line, without a wide multiplication: some processors take longer for larger numbers.
fn square(part: i32) -> u64 {
    const HALF: u32 = 14;
    let magnitude = part.unsigned_abs() >> LINE_SHIFT;
    let (high, low) = (magnitude >> HALF, magnitude & ((1 << HALF) - 1));
    (u64::from(high * high) << (2 * HALF)) + (u64::from(high * low) << (HALF + 1)) + u64::from(low * low)
}

/// The Euclidean length of a vector of readings, rounded down.
fn length(axes: [i32; 3]) -> i32 {
    let mut rest: u32 = axes.map(|a| (a * a).cast_unsigned()).iter().sum();
    let (mut root, mut bit) = (0u32, 1 << 30);
    while bit > 0 {
        let trial = root + bit;
        let fits = !((u64::from(rest).wrapping_sub(u64::from(trial)) >> 32) as u32);
        rest -= trial & fits;
        root = (root >> 1) + (bit & fits);
        bit >>= 2;
    }
    root.cast_signed()
}

/// The logarithm to base 2 in [`STEPS`], linear between powers of two.
fn logarithm(mut energy: u64) -> i32 {
    let mut exponent = 63;
    for shift in [32, 16, 8, 4, 2, 1] {
        // All ones where the highest bits are zeros.
        let zeros = (energy >> (64 - shift)).wrapping_sub(1) >> 63;
        let mask = zeros.wrapping_neg();
        energy = (energy & !mask) | ((energy << shift) & mask);
        exponent -= shift * zeros as i32;
    }
    exponent * STEPS + ((energy >> 61) & 3) as i32
}

fn limited(value: i32) -> i32 {
    let most = |value: i32| MOST + ((value - MOST) & ((value - MOST) >> 31));
    -most(-most(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::f64::consts::TAU;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// What the values mean, with floating point.
    fn plainly(window: &[[i16; AXES]; FRAMES]) -> Vec<f64> {
        let length = |v: &[i16]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt().floor();
        let series: Vec<Vec<f64>> = (0..SERIES)
            .map(|s| {
                let of = |row: &[i16; AXES]| match s {
                    6 => length(&row[..3]),
                    7 => length(&row[3..]),
                    s => f64::from(row[s]),
                };
                window.iter().map(of).collect()
            })
            .collect();
        let mut out = Vec::new();
        for token in 0..TOKENS {
            for (s, series) in series.iter().enumerate() {
                let frames = &series[16 * token..][..64];
                let mean = frames.iter().sum::<f64>() / 64.0;
                out.push(mean / if [3, 4, 5, 7].contains(&s) { 16.0 } else { 32.0 });
                let energy = |k: usize| {
                    let part = |phase: f64| -> f64 {
                        let term = |(n, v): (usize, &f64)| {
                            let turn = n as f64 / 64.0;
                            (v - mean) * (1.0 - (TAU * turn).cos()) * (TAU * turn * k as f64 + phase).cos()
                        };
                        frames.iter().enumerate().map(term).sum()
                    };
                    (part(0.0).powi(2) + part(TAU / 4.0).powi(2)) * 256.0
                };
                for band in EDGES.windows(2) {
                    let energy: f64 = (band[0]..band[1]).map(energy).sum();
                    out.push(4.0 * ((energy + FLOOR as f64).log2() - 28.0));
                }
            }
        }
        out
    }

    /// A walk: some sines, an offset, noise.
    fn walk(scale: f64) -> [[i16; AXES]; FRAMES] {
        let mut state = 1u32;
        core::array::from_fn(|t| {
            core::array::from_fn(|axis| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let noise = f64::from(state >> 16) / 65536.0 - 0.5;
                let (t, axis) = (t as f64, axis as f64);
                let sines = (0.21 * t + axis).sin() + 0.3 * (0.83 * t * (1.0 + 0.1 * axis)).sin();
                (scale * (sines + 0.02 * noise + 0.4 * axis - 1.0)) as i16
            })
        })
    }

    #[test]
    fn values_are_means_and_logarithms_of_band_energies() {
        for scale in [30.0, 700.0, 2000.0, 6000.0] {
            let window = walk(scale);
            let mut out = [0; INPUT];
            input(&window, &mut out);
            for (i, (value, wanted)) in out.iter().zip(plainly(&window)).enumerate() {
                let wanted = wanted.clamp(-127.0, 127.0);
                // A step, how far straight pieces are from a logarithm, and what cosines of eight bits leak into weak bands.
                let far = if i % EDGES.len() == 0 { 0.6 } else { 3.0 };
                assert!((f64::from(*value) - wanted).abs() < far, "{scale}, {i}: {value} for {wanted}");
            }
        }
    }

    #[test]
    fn a_length_is_the_root_of_the_squares_rounded_down() {
        for axes in [[0, 0, 0], [3, 4, 12], [-32768, -32768, -32768], [1, 1, 1], [2047, -1, 5]] {
            let squares: f64 = axes.iter().map(|a| f64::from(*a).powi(2)).sum();
            assert_eq!(length(axes), squares.sqrt() as i32);
        }
    }

    #[test]
    fn a_line_is_squared_without_its_last_bits() {
        for part in [0, 15, -16, 31, 1 << 20, -1_860_000_000, i32::MIN] {
            assert_eq!(square(part), u64::from(part.unsigned_abs() >> 4).pow(2));
        }
    }

    #[test]
    fn logarithms_are_exact_at_quarters_of_octaves() {
        for (energy, log) in [(1, 0), (2, 4), (3, 6), (1 << 28, 112), (7 << 26, 115), (u64::MAX, 255)] {
            assert_eq!(logarithm(energy), log, "{energy}");
        }
    }

    fn windows() -> impl Strategy<Value = Vec<[i16; AXES]>> {
        let extreme = prop_oneof![Just(i16::MIN), Just(i16::MAX), Just(0)];
        prop_oneof![
            proptest::collection::vec(any::<[i16; AXES]>(), FRAMES),
            proptest::collection::vec(proptest::array::uniform6(extreme), FRAMES),
        ]
    }

    proptest! {
        /// The largest numbers come from what swings between the ends with a line's own period.
        #[test]
        fn no_window_overflows(window in windows(), k in 1usize..32) {
            let mut out = [0; INPUT];
            input(&core::array::from_fn(|n| window[n]), &mut out);
            prop_assert!(out.iter().all(|v| i32::from(*v).abs() <= MOST));
            let swing: [[i16; AXES]; FRAMES] =
                core::array::from_fn(|n| [if COSINE[n * k % PERIOD] < 0 { i16::MIN } else { i16::MAX }; AXES]);
            input(&swing, &mut out);
        }
    }
}
