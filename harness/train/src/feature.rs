//! From an example to the device's private input: arrange, normalise, quantise.

use crate::data::{Dataset, Example};
use crate::motion::{self, Wear};
use crate::rng::Rng;
use secure_router_core::motion::{FRAC, INPUT};
use secure_router_core::spec::Words;
use secure_router_core::text;

/// What one unit of an integer input of `frac` fractional bits is worth.
pub(crate) fn step(frac: u8) -> f32 {
    1.0 / (1u32 << frac) as f32
}

/// How the values of an example become an input of fixed length.
#[derive(Clone, Debug)]
pub(crate) enum Arrangement {
    /// Rows in time, brought to `frames` rows by linear interpolation.
    Series { frames: usize, wobble: Wobble },
    /// Windows of acceleration in g and rotation in rad/s, of which the device sends the spectra.
    Motion(Wear),
    /// A square picture: the input place of each of its pixels, and what a variant may do.
    Picture { side: usize, order: Vec<usize> },
    /// Columns in no order; a variant adds noise.
    Columns { count: usize },
    /// The bytes of a text; a variant leaves out words.
    Text { words: Words },
}

impl Arrangement {
    /// Fractional bits of the integer input: its values are in standard deviations, in octaves and halves of a g, or
    /// counts.
    pub(crate) fn input_frac(&self) -> u8 {
        match self {
            Self::Text { .. } => 0,
            Self::Motion(_) => FRAC,
            Self::Series { .. } | Self::Picture { .. } | Self::Columns { .. } => 4,
        }
    }
}

/// How far the variants of a time series go, in parts of its length and in deviations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wobble {
    /// Cut off or repeated at either end.
    pub(crate) ends: f32,
    /// Pace.
    pub(crate) bend: f32,
    pub(crate) noise: (f32, f32),
    pub(crate) offset: f32,
    pub(crate) gain: f32,
}

/// Order of the pixels of a picture: quarters of quarters, so that four tokens and sixteen tokens
/// are both runs of neighbouring pixels. `side` is a multiple of four.
pub(crate) fn patches(side: usize) -> Vec<usize> {
    let (half, quarter) = (side / 2, side / 4);
    let mut order = Vec::with_capacity(side * side);
    for outer in 0..4 {
        for inner in 0..4 {
            let top = outer / 2 * half + inner / 2 * quarter;
            let left = outer % 2 * half + inner % 2 * quarter;
            for row in top..top + quarter {
                order.extend((left..left + quarter).map(|column| row * side + column));
            }
        }
    }
    order
}

const SPACE: f32 = b' ' as f32;

/// A text without a `share` of its words.
fn leave_out(bytes: &[f32], share: f32, rng: &mut Rng) -> Vec<f32> {
    let words = bytes.split(|b| *b == SPACE).filter(|_| rng.unit() >= share);
    words.flat_map(|word| word.iter().chain(&[SPACE])).copied().collect()
}

/// Features of one task: the arrangement, and mean and scale of each channel over the train split.
#[derive(Clone, Debug)]
pub(crate) struct Features {
    arrangement: Arrangement,
    pub(crate) mean: Vec<f32>,
    pub(crate) scale: Vec<f32>,
}

impl Features {
    pub(crate) fn of(train: &Dataset, arrangement: Arrangement) -> Self {
        let channels = train.channels;
        if matches!(arrangement, Arrangement::Text { .. } | Arrangement::Motion(_)) {
            return Self { arrangement, mean: vec![0.0], scale: vec![1.0] };
        }
        let (mut sum, mut squares, mut n) = (vec![0f64; channels], vec![0f64; channels], 0f64);
        for row in train.examples.iter().flat_map(|e| e.values.chunks_exact(channels)) {
            for (c, &value) in row.iter().enumerate() {
                sum[c] += f64::from(value);
                squares[c] += f64::from(value).powi(2);
            }
            n += 1.0;
        }
        let mean: Vec<f64> = sum.iter().map(|s| s / n).collect();
        // What never changes tells nothing: its scale is zero.
        let inverse = |deviation: f64| if deviation > 1e-9 { deviation.recip() } else { 0.0 };
        let scale = squares.iter().zip(&mean).map(|(s, m)| inverse((s / n - m * m).max(0.0).sqrt()) as f32).collect();
        Self { arrangement, mean: mean.iter().map(|m| *m as f32).collect(), scale }
    }

    fn channels(&self) -> usize {
        self.mean.len()
    }

    /// Values of one input.
    pub(crate) fn inputs(&self) -> usize {
        match &self.arrangement {
            Arrangement::Series { frames, .. } => frames * self.channels(),
            Arrangement::Motion(_) => INPUT,
            Arrangement::Picture { side, .. } => side * side,
            Arrangement::Columns { count } => *count,
            Arrangement::Text { words } => words.count.into(),
        }
    }

    /// The example as inference sees it.
    fn plain(&self, example: &Example) -> Vec<f32> {
        match &self.arrangement {
            Arrangement::Series { frames, .. } => self.resample(example, *frames, |s| s),
            Arrangement::Motion(_) => {
                motion::spectra(&example.values).into_iter().map(|v| self.real(v.into())).collect()
            }
            Arrangement::Picture { order, .. } => order.iter().map(|&i| self.normal(i, example.values[i])).collect(),
            Arrangement::Text { words } => Self::text(*words, &example.values),
            Arrangement::Columns { .. } => example.values.iter().enumerate().map(|(i, &v)| self.normal(i, v)).collect(),
        }
    }

    fn normal(&self, i: usize, value: f32) -> f32 {
        let c = i % self.channels();
        (value - self.mean[c]) * self.scale[c]
    }

    /// A variant of the example for training.
    fn variant(&self, example: &Example, rng: &mut Rng) -> Vec<f32> {
        match &self.arrangement {
            Arrangement::Series { frames, wobble } => self.wobbled(example, *frames, wobble, rng),
            Arrangement::Motion(wear) => {
                let level = rng.between(wear.noise.0, wear.noise.1);
                let spectra = motion::spectra(&motion::worn(&example.values, wear, rng));
                spectra.into_iter().map(|v| self.real(v.into()) + level * rng.normal()).collect()
            }
            Arrangement::Picture { side, order } => self.moved(example, *side, order, rng),
            Arrangement::Columns { .. } => {
                let level = rng.between(0.0, 0.15);
                self.plain(example).into_iter().map(|v| v + level * rng.normal()).collect()
            }
            Arrangement::Text { words } => Self::text(*words, &leave_out(&example.values, rng.between(0.0, 0.5), rng)),
        }
    }

    /// What inputs are made of, unless of values.
    pub(crate) const fn words(&self) -> Option<Words> {
        if let Arrangement::Text { words } = self.arrangement { Some(words) } else { None }
    }

    /// What the device makes of a text.
    fn text(words: Words, bytes: &[f32]) -> Vec<f32> {
        let bytes: Vec<u8> = bytes.iter().map(|&b| b as u8).collect();
        let mut input = vec![0; words.count.into()];
        text::input(&bytes, words.bits, &mut input);
        input.into_iter().map(f32::from).collect()
    }

    /// Other ends, another pace, another microphone or mounting.
    fn wobbled(&self, example: &Example, frames: usize, wobble: &Wobble, rng: &mut Rng) -> Vec<f32> {
        let ends = wobble.ends;
        let (start, end) = (rng.between(-ends, ends), rng.between(1.0 - ends, 1.0 + ends));
        let bend = rng.between(-wobble.bend, wobble.bend);
        let mut out =
            self.resample(example, frames, |s| start + (end - start) * (s + bend * (std::f32::consts::PI * s).sin()));
        let level = rng.between(wobble.noise.0, wobble.noise.1);
        let offset: Vec<f32> = self.mean.iter().map(|_| wobble.offset * rng.normal()).collect();
        let gain: Vec<f32> = self.mean.iter().map(|_| 1.0 + wobble.gain * rng.normal()).collect();
        for row in out.chunks_exact_mut(self.channels()) {
            for (c, value) in row.iter_mut().enumerate() {
                *value = *value * gain[c] + offset[c] + level * rng.normal();
            }
        }
        out
    }

    /// Shifted by up to a pixel, mirrored half of the time, a little brighter or noisier.
    fn moved(&self, example: &Example, side: usize, order: &[usize], rng: &mut Rng) -> Vec<f32> {
        const SHIFT: usize = 1;
        let (down, right) = (rng.below(2 * SHIFT + 1), rng.below(2 * SHIFT + 1));
        let mirrored = rng.unit() < 0.5;
        let (gain, level) = (1.0 + 0.1 * rng.normal(), rng.between(0.0, 0.1));
        let pixel = |&i: &usize| {
            let (row, mut column) = (i / side, i % side);
            if mirrored {
                column = side - 1 - column;
            }
            let inside = |at: usize, shift: usize| (at + shift).checked_sub(SHIFT).filter(|at| *at < side);
            let value = match (inside(row, down), inside(column, right)) {
                (Some(row), Some(column)) => example.values[row * side + column],
                _ => 0.0,
            };
            self.normal(0, value * gain) + level * rng.normal()
        };
        order.iter().map(pixel).collect()
    }

    /// Normalised values at `frames` places; `place` maps [0, 1] to the example's [0, 1].
    fn resample(&self, example: &Example, frames: usize, place: impl Fn(f32) -> f32) -> Vec<f32> {
        let channels = self.channels();
        let last = example.values.len() / channels - 1;
        let mut out = Vec::with_capacity(frames * channels);
        for t in 0..frames {
            let s = place(t as f32 / (frames - 1) as f32).clamp(0.0, 1.0) * last as f32;
            let left = (s as usize).min(last);
            let right = (left + 1).min(last);
            let weight = s - left as f32;
            for c in 0..channels {
                let (a, b) = (example.values[left * channels + c], example.values[right * channels + c]);
                out.push(self.normal(c, a + weight * (b - a)));
            }
        }
        out
    }

    /// The integers that the device feeds in.
    pub(crate) fn quantised(&self, example: &Example) -> Vec<i16> {
        self.plain(example).into_iter().map(|v| self.quantise(v)).collect()
    }

    /// A variant on the integer grid, as real values.
    pub(crate) fn variant_on_grid(&self, example: &Example, rng: &mut Rng) -> Vec<f32> {
        self.variant(example, rng).into_iter().map(|v| self.real(self.quantise(v))).collect()
    }

    /// The example itself on the integer grid, as real values.
    pub(crate) fn on_grid(&self, example: &Example) -> Vec<f32> {
        self.quantised(example).into_iter().map(|v| self.real(v)).collect()
    }

    /// Words of two texts, in any order.
    pub(crate) fn mixed_text(&self, example: &Example, other: &Example, rng: &mut Rng) -> Example {
        let share = rng.unit();
        let both = [leave_out(&example.values, 1.0 - share, rng), leave_out(&other.values, share, rng)].concat();
        let mut words: Vec<&[f32]> = both.split(|b| *b == SPACE).filter(|word| !word.is_empty()).collect();
        rng.shuffle(&mut words);
        Example { values: words.join(&SPACE), ..example.clone() }
    }

    /// A variant with a `share` of a variant of `other`, on the integer grid, as real values.
    pub(crate) fn mixed_on_grid(&self, example: &Example, other: &Example, share: f32, rng: &mut Rng) -> Vec<f32> {
        let (mut values, others) = (self.variant(example, rng), self.variant(other, rng));
        for (v, o) in values.iter_mut().zip(others) {
            *v = self.real(self.quantise(*v + share * (o - *v)));
        }
        values
    }

    /// What one unit of the integer input is worth.
    pub(crate) fn step(&self) -> f32 {
        step(self.arrangement.input_frac())
    }

    /// Rounds a normalised value to the device's integer.
    fn quantise(&self, value: f32) -> i16 {
        let limit = self.words().map_or(127.0, |words| f32::from((1i16 << words.bits) - 1));
        (value / self.step()).round().clamp(-limit, limit) as i16
    }

    /// What a device's integer stands for.
    pub(crate) fn real(&self, value: i16) -> f32 {
        f32::from(value) * self.step()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: Words = Words { count: 32, bits: 14 };
    const WOBBLE: Wobble = Wobble { ends: 0.1, bend: 0.1, noise: (0.1, 0.2), offset: 0.1, gain: 0.1 };

    fn plain(arrangement: Arrangement, channels: usize) -> Features {
        Features { arrangement, mean: vec![0.0; channels], scale: vec![1.0; channels] }
    }

    fn example(values: Vec<f32>) -> Example {
        Example { values, label: 0, group: 0 }
    }

    #[test]
    fn resampling_keeps_the_ends_and_is_linear_between() {
        let features = plain(Arrangement::Series { frames: 32, wobble: WOBBLE }, 2);
        let out = features.plain(&example((0..63).flat_map(|t| [t as f32; 2]).collect()));
        assert_eq!(out[0], 0.0);
        assert!((out[2] - 2.0).abs() < 1e-4);
        assert_eq!(out[63], 62.0);
        assert_eq!(features.plain(&example(vec![3.0, 4.0])), [3.0, 4.0].repeat(32));
    }

    #[test]
    fn quantising_saturates() {
        let features = plain(Arrangement::Columns { count: 1 }, 1);
        assert_eq!([99.0, -99.0, 0.1].map(|v| features.quantise(v)), [127, -127, 2]);
    }

    #[test]
    fn a_constant_channel_is_ignored() {
        let dataset = Dataset {
            kind: String::new(),
            name: String::new(),
            channels: 2,
            classes: vec![],
            source: String::new(),
            examples: vec![example(vec![5.0, 1.0]), example(vec![5.0, 3.0])],
        };
        let features = Features::of(&dataset, Arrangement::Columns { count: 2 });
        assert_eq!(features.plain(&example(vec![7.0, 3.0])), [0.0, 1.0]);
    }

    #[test]
    fn patches_are_runs_of_every_pixel_once() {
        let order = patches(8);
        assert_eq!(order[..8], [0, 1, 8, 9, 2, 3, 10, 11]);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..64).collect::<Vec<_>>());
    }

    #[test]
    fn a_moved_picture_keeps_its_pixels_or_loses_them_at_the_edge() {
        let mut features = plain(Arrangement::Picture { side: 8, order: patches(8) }, 1);
        features.scale = vec![1.0];
        let mut values = vec![0.0; 64];
        values[3 * 8 + 4] = 50.0;
        let mut rng = Rng::new(1, "moved");
        for _ in 0..20 {
            let out = features.variant(&example(values.clone()), &mut rng);
            assert_eq!(out.iter().filter(|v| **v > 30.0).count(), 1);
        }
    }

    fn text(words: &str) -> Example {
        example(words.bytes().map(f32::from).collect())
    }

    #[test]
    fn a_text_becomes_the_devices_input() {
        let features = plain(Arrangement::Text { words: WORDS }, 1);
        let mut expected = [0; 32];
        text::input(b"A fine, fine film", 14, &mut expected);
        assert_eq!(features.quantised(&text("A fine, fine film")), expected);
        assert_eq!(features.on_grid(&text("A fine, fine film")), expected.map(f32::from));
    }

    #[test]
    fn a_mixed_text_has_words_of_both_and_no_others() {
        let features = plain(Arrangement::Text { words: WORDS }, 1);
        let (one, other) = ("aa bb cc dd", "ee ff gg");
        let mut rng = Rng::new(1, "mixed");
        let mut seen = std::collections::BTreeSet::new();
        let mut orders = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let mixed = features.mixed_text(&text(one), &text(other), &mut rng).values;
            let mixed: Vec<u8> = mixed.into_iter().map(|b| b as u8).collect();
            let mixed = String::from_utf8(mixed).unwrap();
            let words: Vec<String> = mixed.split_whitespace().map(str::to_owned).collect();
            assert!(words.iter().all(|word| one.contains(word) || other.contains(word)), "{mixed}");
            orders.insert(words.is_sorted());
            seen.extend(words);
        }
        assert_eq!((seen.len(), orders.len()), (7, 2));
    }
}
