//! Small statistics of the report: spread, intervals, calibration, information.

use serde::Serialize;

/// Mean and spread of one figure over pools.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// Pools that have the figure.
    pub(crate) count: usize,
    pub(crate) mean: f64,
    /// Sample standard deviation; 0 for one value.
    pub(crate) deviation: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    pub(crate) fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = mean(values.iter().copied());
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        let deviation = if values.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 };
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        Self {
            count: values.len(),
            mean,
            deviation,
            least,
            most: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }
}

/// Mean; 0 for no value.
pub(crate) fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, count), v| (sum + v, count + 1));
    sum / count.max(1) as f64
}

/// 95 % interval of a proportion (Wilson, 1927).
pub(crate) fn wilson(hits: usize, count: usize) -> (f64, f64) {
    const Z: f64 = 1.959_964;
    if count == 0 {
        return (0.0, 1.0);
    }
    let (n, p) = (count as f64, hits as f64 / count as f64);
    let centre = p + Z * Z / (2.0 * n);
    let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    ((centre - half) / scale, (centre + half) / scale)
}

/// Predictions of one bin, and what became of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Bin {
    pub(crate) count: usize,
    pub(crate) predicted: f64,
    pub(crate) right: f64,
    /// 95 % interval of `right`.
    pub(crate) interval: (f64, f64),
}

/// Ten bins of equal count: where predictions crowd, bins are narrow.
pub(crate) fn reliability(predictions: &[(f64, bool)]) -> Vec<Bin> {
    const BINS: usize = 10;
    let mut sorted = predictions.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let bins = sorted.chunks(sorted.len().div_ceil(BINS).max(1)).map(|members| {
        let hits = members.iter().filter(|(_, right)| *right).count();
        Bin {
            count: members.len(),
            predicted: mean(members.iter().map(|(p, _)| *p)),
            right: hits as f64 / members.len() as f64,
            interval: wilson(hits, members.len()),
        }
    });
    bins.collect()
}

/// Expected calibration error (Guo et al., 2017): the mean gap of the bins, by count.
pub(crate) fn calibration_error(bins: &[Bin]) -> f64 {
    let count: usize = bins.iter().map(|bin| bin.count).sum();
    bins.iter().map(|bin| (bin.predicted - bin.right).abs() * bin.count as f64).sum::<f64>() / count.max(1) as f64
}

/// Entropy of counts in bits, plug-in.
pub(crate) fn entropy(counts: impl Iterator<Item = usize> + Clone) -> f64 {
    let total = counts.clone().sum::<usize>() as f64;
    let term = |count: usize| {
        let p = count as f64 / total;
        if count == 0 { 0.0 } else { -p * p.log2() }
    };
    counts.map(term).sum()
}

/// What `left` tells of `right`, in bits: plug-in, less the bias of the plug-in by Miller (1955); so it may be below 0.
pub(crate) fn information(left: &[usize], right: &[usize]) -> f64 {
    let size = |values: &[usize]| values.iter().max().map_or(0, |most| most + 1);
    let (rows, columns) = (size(left), size(right));
    let mut joint = vec![0usize; rows * columns];
    left.iter().zip(right).for_each(|(l, r)| joint[l * columns + r] += 1);
    let row = |r: usize| joint[r * columns..][..columns].iter().sum::<usize>();
    let column = |c: usize| joint.iter().skip(c).step_by(columns).sum::<usize>();
    let (rows, columns): (Vec<_>, Vec<_>) = ((0..rows).map(row).collect(), (0..columns).map(column).collect());
    let of = |counts: &[usize]| entropy(counts.iter().copied());
    let used = |counts: &[usize]| counts.iter().filter(|c| **c > 0).count() as f64;
    let plug_in = of(&rows) + of(&columns) - of(&joint);
    let bias = (used(&joint) - used(&rows) - used(&columns) + 1.0) / (2.0 * std::f64::consts::LN_2 * left.len() as f64);
    plug_in - bias
}

/// The same after `right` was shuffled, in the mean: what [`information`] finds where there is nothing.
pub(crate) fn noise_floor(left: &[usize], right: &[usize]) -> f64 {
    const SHUFFLES: usize = 100;
    let mut shuffled = right.to_vec();
    let mut rng = fastrand::Rng::with_seed(1);
    mean((0..SHUFFLES).map(|_| {
        rng.shuffle(&mut shuffled);
        information(left, &shuffled)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_is_mean_and_sample_deviation_of_those_that_have_the_figure() {
        let spread = Spread::of(&[1.0, 2.0, 3.0, 4.0]);
        assert_eq!((spread.count, spread.mean, spread.least, spread.most), (4, 2.5, 1.0, 4.0));
        assert!((spread.deviation - 1.290_994).abs() < 1e-6);
        assert_eq!(Spread::of(&[7.0]).deviation, 0.0);
    }

    #[test]
    fn wilson_is_the_published_interval() {
        // 10 of 10, and 5 of 10: values of the score interval without continuity correction.
        let (low, high) = wilson(10, 10);
        assert!((low - 0.7225).abs() < 1e-3 && (high - 1.0).abs() < 1e-9, "{low} {high}");
        let (low, high) = wilson(5, 10);
        assert!((low - 0.2366).abs() < 1e-3 && (high - 0.7634).abs() < 1e-3, "{low} {high}");
    }

    #[test]
    fn calibration_error_is_the_mean_gap() {
        // The lower half is right as often as predicted, the upper half a fifth less.
        let lower = (0..500).map(|i| (0.6, i % 5 < 3));
        let upper = (0..500).map(|i| (0.8, i % 5 < 3));
        let bins = reliability(&upper.chain(lower).collect::<Vec<_>>());
        assert_eq!(bins.iter().map(|b| b.count).collect::<Vec<_>>(), [100; 10]);
        assert!(bins.is_sorted_by(|a, b| a.predicted <= b.predicted));
        assert!((calibration_error(&bins) - 0.1).abs() < 1e-9);
        assert_eq!(reliability(&[(1.0, true)])[0].right, 1.0);
        assert!(reliability(&[]).is_empty());
    }

    #[test]
    fn information_is_all_nothing_or_between() {
        let label: Vec<usize> = (0..4000).map(|i| i % 4).collect();
        let told: Vec<usize> = label.iter().map(|l| l / 2).collect();
        assert!((information(&told, &label) - 1.0).abs() < 1e-3);
        let untold: Vec<usize> = (0..4000).map(|i| i / 4 % 2).collect();
        assert!(information(&untold, &label).abs() < 1e-3);
        assert!(noise_floor(&told, &label).abs() < 2e-4);
        assert!((entropy([1, 1, 2].into_iter()) - 1.5).abs() < 1e-12);
    }
}
