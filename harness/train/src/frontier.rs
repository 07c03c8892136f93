//! Where a pool stands between accuracy and time: what a lambda comes to, and which one to recommend.

use crate::nn::loss::argmax;
use anyhow::Result;
use secure_router_core::circuit::Slot;
use secure_router_core::cost::{Cost, router_scores};
use secure_router_core::session::LinkProfile;
use secure_router_core::spec::PoolSpec;

/// One example that neither router nor models were trained on: the router's utilities, and whether each model is right.
pub(crate) struct Case {
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
        Ok(router_scores(&self.spec, lambda, u8::MAX, &self.link)?.to_vec())
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
    /// The same as the router expects it, by its calibrated utilities: in steps, a mean over the cases.
    pub(crate) expected: f64,
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
    let (mut right, mut expected) = (0usize, 0.0);
    for case in cases {
        let chosen = case.route(&costs);
        expected += f64::from(case.utilities[chosen]);
        counts[chosen] += 1;
        right += usize::from(case.in_range && case.right[chosen]);
    }
    let n = cases.len().max(1) as f64;
    let shares: Vec<f64> = counts.iter().map(|&c| c as f64 / n).collect();
    let time = shares.iter().zip(&prices.routed).map(|(s, &t)| s * t as f64).sum();
    Ok(Operation {
        lambda,
        accuracy: right as f64 / n,
        expected: expected / n,
        shares,
        time,
        cost: time / prices.dearest(),
    })
}

/// Accuracy that the recommended `lambda` may be expected to give up against the largest model: half of the half point
/// that is worth mentioning, the other half being for what validation cannot know.
const TOLERANCE: f64 = 0.0025;

/// Operations over a grid of lambdas, dearest first; of equal ones the first.
pub(crate) fn operations(cases: &[Case], prices: &Prices) -> Result<Vec<Operation>> {
    // In units of 1/256: at 256 the dearest model must be sure to be right where the others fail.
    let grid = (0..16).chain((16..64).step_by(2)).chain((64..=256).step_by(8));
    let mut curve = grid.map(|lambda| operate(cases, prices, lambda)).collect::<Result<Vec<_>>>()?;
    curve.dedup_by(|a, b| a.shares == b.shares);
    Ok(curve)
}

/// Of the operations that cost less than always asking the largest model, the cheapest one that is expected to lose
/// little against that, where a step of utility is `step`, or the best one if all lose more; the last one if none costs
/// less. Expectations are steadier than hits: these differ in few examples.
pub(crate) fn choose<'c>(cases: &[Case], curve: &'c [Operation], step: f64) -> Option<&'c Operation> {
    let last = |case: &Case| case.utilities.last().copied().map_or(0.0, f64::from);
    let largest = cases.iter().map(last).sum::<f64>() / cases.len().max(1) as f64;
    let paying = || curve.iter().filter(|o| o.cost < 1.0);
    let good = paying().filter(|o| step * (largest - o.expected) <= TOLERANCE);
    good.min_by(|a, b| a.time.total_cmp(&b.time))
        .or_else(|| paying().max_by(|a, b| a.expected.total_cmp(&b.expected)))
        .or_else(|| curve.last())
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
        let easy = || Case { utilities: vec![254, 100, 254], right: vec![true, false, true], in_range: true };
        let hard = || Case { utilities: vec![100, 100, 250], right: vec![false, false, true], in_range: true };
        let cases: Vec<Case> = (0..100).map(|i| if i % 10 == 0 { hard() } else { easy() }).collect();
        let train = toy("sensor", 6, 128, 40);
        let pool = crate::run::assemble(&train, &Task::of(&train, None).unwrap(), Vec::new()).unwrap();
        let prices = Prices::of(&pool.spec, LinkProfile::UART).unwrap();
        let curve = operations(&cases, &prices).unwrap();
        assert!(curve.windows(2).all(|pair| pair[1].time < pair[0].time), "a higher lambda is cheaper");
        let chosen = choose(&cases, &curve, 1.0 / 255.0).unwrap();
        assert_eq!(chosen.accuracy, 1.0);
        assert!((chosen.shares[2] - 0.1).abs() < 1e-9);
        let time = 0.9 * prices.routed[0] as f64 + 0.1 * prices.routed[2] as f64;
        assert!((chosen.time - time).abs() < 1e-6 * time);
        // Where every one is expected to lose too much the best is taken.
        let worse: Vec<Operation> =
            curve.iter().map(|o| Operation { expected: o.expected - 5.0, ..o.clone() }).collect();
        assert_eq!(choose(&cases, &worse, 1.0).unwrap().accuracy, 1.0);
        // What costs as much as the largest model is no choice.
        let dear: Vec<Operation> = curve.iter().map(|o| Operation { cost: o.cost + 0.95, ..o.clone() }).collect();
        let cheapest = choose(&cases, &dear, 1.0 / 255.0).unwrap();
        assert_eq!(cheapest.lambda, curve.last().unwrap().lambda);
    }
}
