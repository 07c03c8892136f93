//! Where a pool stands between accuracy and time: what a lambda comes to, and which one to recommend.

use crate::nn::loss::argmax;
use anyhow::Result;
use secure_router_core::circuit::Slot;
use secure_router_core::cost::{Cost, router_scores};
use secure_router_core::session::LinkProfile;
use secure_router_core::spec::PoolSpec;

/// One example that neither router nor models were trained on: the router's utilities, and whether each model is right.
pub(crate) struct Case {
    /// In accumulators, as [`Prices::scores`].
    pub(crate) utilities: Vec<i32>,
    pub(crate) right: Vec<bool>,
    /// Whether the router's values fitted their bits.
    pub(crate) in_range: bool,
}

/// What the programs of a pool cost on a link.
pub(crate) struct Prices {
    spec: PoolSpec,
    link: LinkProfile,
    /// Online bytes of each model by itself, both ways, and of the router, if there is one.
    pub(crate) bytes: Vec<u64>,
    pub(crate) router_bytes: u64,
    /// Online time of each model by itself, in microseconds.
    pub(crate) models: Vec<u64>,
    /// The same with the router before it.
    pub(crate) routed: Vec<u64>,
}

impl Prices {
    pub(crate) fn of(spec: &PoolSpec, link: LinkProfile) -> Result<Self> {
        let router = spec.router.is_some().then(|| Cost::of(spec, Slot::Router, 1)).transpose()?;
        let models =
            (0..spec.models.len() as u8).map(|m| Cost::of(spec, Slot::Model(m), 1)).collect::<Result<Vec<_>, _>>()?;
        let time = |cost: &Cost| cost.online.latency_us(&link);
        Ok(Self {
            spec: spec.clone(),
            link,
            bytes: models.iter().map(|m| m.online.bytes()).collect(),
            router_bytes: router.map_or(0, |r| r.online.bytes()),
            routed: (0..models.len() as u8)
                .filter(|_| router.is_some())
                .map(|m| Cost::routed(spec, m, 1).map(|cost| time(&cost)))
                .collect::<Result<_, _>>()?,
            models: models.iter().map(time).collect(),
        })
    }

    /// What the server adds to the utilities for a request with this `lambda`.
    pub(crate) fn scores(&self, lambda: u16) -> Result<Vec<i32>> {
        let scores = router_scores(&self.spec, lambda, u8::MAX, &self.link)?;
        Ok(scores.iter().map(|score| score << self.step_bits()).collect())
    }

    /// A step of utility is `2^step_bits` of an accumulator.
    pub(crate) fn step_bits(&self) -> u8 {
        self.spec.router.map_or(0, |router| router.trunk.difference().shift)
    }

    /// Time of the dearest model, in microseconds.
    pub(crate) fn dearest(&self) -> f64 {
        self.models.iter().copied().max().unwrap_or(1) as f64
    }
}

/// What a `lambda` comes to.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) lambda: u16,
    /// Part of the cases answered rightly.
    pub(crate) accuracy: f64,
    /// Part of the cases sent to each model.
    pub(crate) shares: Vec<f64>,
    /// Mean online time, router included, in microseconds.
    pub(crate) time: f64,
    /// The same over that of the dearest model by itself.
    pub(crate) cost: f64,
}

impl Case {
    /// The model that the router chooses when the server adds `costs`.
    fn route(&self, costs: &[i32]) -> usize {
        let scores: Vec<i32> = self.utilities.iter().zip(costs).map(|(u, c)| u + c).collect();
        argmax(&scores)
    }
}

/// Part of the cases that both judgements of them send to one model.
pub(crate) fn agreement(one: &[Case], other: &[Case], prices: &Prices, lambda: u16) -> Result<f64> {
    let costs = prices.scores(lambda)?;
    let same = one.iter().zip(other).filter(|(a, b)| a.route(&costs) == b.route(&costs)).count();
    Ok(same as f64 / one.len().max(1) as f64)
}

/// Routes the cases with `lambda`.
pub(crate) fn operate(cases: &[Case], prices: &Prices, lambda: u16) -> Result<Operation> {
    let costs = prices.scores(lambda)?;
    let mut counts = vec![0usize; costs.len()];
    let mut right = 0usize;
    for case in cases {
        let chosen = case.route(&costs);
        counts[chosen] += 1;
        right += usize::from(case.in_range && case.right[chosen]);
    }
    let n = cases.len().max(1) as f64;
    let shares: Vec<f64> = counts.iter().map(|&c| c as f64 / n).collect();
    let time = shares.iter().zip(&prices.routed).map(|(s, &t)| s * t as f64).sum();
    Ok(Operation { lambda, accuracy: right as f64 / n, shares, time, cost: time / prices.dearest() })
}

/// Accuracy that the recommended `lambda` may be expected to give up against the largest model: of the half point that is
/// worth mentioning, one half. The other is for what validation cannot know.
const TOLERANCE: f64 = 0.0025;

/// Operations over a grid of lambdas, dearest first; of equal ones the first.
pub(crate) fn operations(cases: &[Case], prices: &Prices) -> Result<Vec<Operation>> {
    // In units of 1/256: at 256 the dearest model must be sure to be right where the others fail.
    let grid = (0..16).chain((16..64).step_by(2)).chain((64..=256).step_by(8));
    let mut curve = grid.map(|lambda| operate(cases, prices, lambda)).collect::<Result<Vec<_>>>()?;
    curve.dedup_by(|a, b| a.shares == b.shares);
    Ok(curve)
}

/// How much likelier the largest model is to be right than another one, by how far its utility is above: a line, fitted
/// to cases that neither has seen. Differences that decide are smaller than the router believes, since the better of
/// two estimates flatters itself.
#[derive(Clone, Copy, Debug)]
struct Advantage {
    level: f64,
    slope: f64,
}

impl Advantage {
    /// Least squares; few data leave the slope at `step`, what a difference of 1 says it is worth.
    fn fit(cases: &[Case], m: usize, step: f64) -> Self {
        /// As much as a hundred cases that lie a tenth of probability from the mean.
        const RIDGE: f64 = 1.0;
        let points: Vec<(f64, f64)> = cases.iter().filter(|c| c.in_range).map(|case| case.against_last(m)).collect();
        let n = points.len().max(1) as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
        let (x, y) = (mean(|p| p.0), mean(|p| p.1));
        let ridge = RIDGE / (step * step);
        let products: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
        let squares: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
        let slope = (products + ridge * step) / (squares + ridge);
        Self { level: y - slope * x, slope }
    }
}

impl Case {
    /// By how much the largest model's utility is above that of model `m`, and by how much it is right and `m` not.
    fn against_last(&self, m: usize) -> (f64, f64) {
        let last = self.right.len() - 1;
        let hit = |m: usize| f64::from(u8::from(self.right[m]));
        (f64::from(self.utilities[last] - self.utilities[m]), hit(last) - hit(m))
    }
}

/// Of the operations that cost less than always asking the largest model, the cheapest one that may be expected to lose
/// little against that, or the best one if all lose more; the last one if none costs less. `step` is what a step of
/// utility is worth as a probability. Expectations are steadier than hits: these differ in few examples.
pub(crate) fn choose<'c>(
    cases: &[Case],
    curve: &'c [Operation],
    prices: &Prices,
    step: f64,
) -> Result<Option<&'c Operation>> {
    let models = prices.models.len();
    let step = step / f64::from(1u32 << prices.step_bits());
    let advantages: Vec<Advantage> = (0..models).map(|m| Advantage::fit(cases, m, step)).collect();
    let lost = |operation: &Operation| -> Result<f64> {
        let costs = prices.scores(operation.lambda)?;
        let of = |case: &Case| {
            if !case.in_range {
                return f64::from(u8::from(case.right[models - 1]));
            }
            let to = case.route(&costs);
            let Advantage { level, slope } = advantages[to];
            if to + 1 == models { 0.0 } else { level + slope * case.against_last(to).0 }
        };
        Ok(cases.iter().map(of).sum::<f64>() / cases.len().max(1) as f64)
    };
    let largest = prices.models.last().copied().unwrap_or(0) as f64;
    let paying = curve.iter().filter(|o| o.time < largest);
    let judged = paying.map(|o| Ok((lost(o)?, o))).collect::<Result<Vec<_>>>()?;
    let good = judged.iter().filter(|(lost, _)| *lost <= TOLERANCE).min_by(|(_, a), (_, b)| a.time.total_cmp(&b.time));
    let best = || judged.iter().min_by(|(a, _), (b, _)| a.total_cmp(b));
    Ok(good.or_else(best).map(|(_, o)| *o).or_else(|| curve.last()))
}

/// Part of the cases that model `m` alone answers rightly.
pub(crate) fn accuracy(cases: &[Case], m: usize) -> f64 {
    cases.iter().filter(|c| c.right[m]).count() as f64 / cases.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Task;
    use crate::task::tests::toy;

    #[test]
    fn lambda_sends_easy_cases_to_the_cheap_model() {
        let steps = |steps: [i32; 3]| steps.map(|s| s << 4).to_vec();
        let easy = || Case { utilities: steps([254, 100, 254]), right: vec![true, false, true], in_range: true };
        let hard = || Case { utilities: steps([100, 100, 250]), right: vec![false, false, true], in_range: true };
        let cases: Vec<Case> = (0..100).map(|i| if i % 10 == 0 { hard() } else { easy() }).collect();
        let train = toy("speech", 13, 9, 40);
        let pool = crate::run::assemble(&train, &Task::of(&train, None).unwrap(), Vec::new()).unwrap();
        let prices = Prices::of(&pool.spec, LinkProfile::UART).unwrap();
        let curve = operations(&cases, &prices).unwrap();
        assert!(curve.windows(2).all(|pair| pair[1].time < pair[0].time), "a higher lambda is cheaper");
        let choose = |cases: &[Case], curve| choose(cases, curve, &prices, 1.0 / 255.0).unwrap().unwrap().clone();
        let chosen = choose(&cases, &curve);
        assert_eq!(chosen.accuracy, 1.0);
        assert!((chosen.shares[2] - 0.1).abs() < 1e-9);
        let time = 0.9 * prices.routed[0] as f64 + 0.1 * prices.routed[2] as f64;
        assert!((chosen.time - time).abs() < 1e-6 * time);
        // What costs as much as the largest model is no choice.
        let dear: Vec<Operation> =
            curve.iter().map(|o| Operation { time: o.time + prices.dearest(), ..o.clone() }).collect();
        assert_eq!(choose(&cases, &dear).lambda, curve.last().unwrap().lambda);
        // Where the largest model is better than the router believes, everywhere, the dearest choice is the best.
        let doubted =
            |i: i32| Case { utilities: steps([200 - i, 0, 200]), right: vec![false, false, true], in_range: true };
        let doubted: Vec<Case> = (0..100).map(doubted).collect();
        let curve = operations(&doubted, &prices).unwrap();
        let dearest = curve.iter().find(|o| o.time < prices.dearest()).unwrap();
        assert_eq!(choose(&doubted, &curve).lambda, dearest.lambda);
    }
}
