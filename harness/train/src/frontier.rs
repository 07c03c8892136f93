//! Where a pool stands between accuracy and time: what a lambda comes to, and which one to recommend.

use crate::nn::loss::argmax;
use crate::worth::Worth;
use anyhow::Result;
use secure_router_core::circuit::Slot;
use secure_router_core::cost::{Cost, router_scores};
use secure_router_core::routing::{Advantage, aim, margin};
use secure_router_core::session::LinkProfile;
use secure_router_core::spec::PoolSpec;

/// One example that neither router nor models were trained on: the router's utilities, and whether each model is right.
pub(crate) struct Case {
    /// In accumulators, as [`Prices::scores`].
    pub(crate) utilities: Vec<i32>,
    /// How far the router's own answer is ahead of its next, in logits, or in units of [`Prices::by_lead`].
    pub(crate) lead: f64,
    pub(crate) right: Vec<bool>,
    /// Whether the router's values fitted their bits.
    pub(crate) in_range: bool,
}

/// What the programs of a pool cost on a link.
pub(crate) struct Prices {
    spec: PoolSpec,
    link: LinkProfile,
    /// Of each model, and what a step of a difference is worth in units of leads.
    advantages: Vec<Advantage>,
    unit: f64,
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
            advantages: Vec::new(),
            unit: 1.0,
            bytes: models.iter().map(|m| m.online.bytes()).collect(),
            router_bytes: router.map_or(0, |r| r.online.bytes()),
            routed: (0..models.len() as u8)
                .filter(|_| router.is_some())
                .map(|m| Cost::routed(spec, m, 1).map(|cost| time(&cost)))
                .collect::<Result<_, _>>()?,
            models: models.iter().map(time).collect(),
        })
    }

    /// The first model is chosen by the lead of the router's own answer: leads are counted in `unit`s of a step of a difference.
    pub(crate) fn by_lead(self, advantages: Vec<Advantage>, unit: f64) -> Self {
        Self { advantages, unit, ..self }
    }

    /// How the router leans for a request with this `lambda`.
    fn leaning(&self, lambda: u16) -> Result<Leaning> {
        let mut scores = router_scores(&self.spec, lambda, u8::MAX, &self.link)?;
        aim(&self.advantages, &mut scores);
        let margin = f64::from(margin(&self.advantages, &scores)) * self.unit;
        Ok(Leaning { margin, scores: scores.iter().map(|score| score << self.step_bits()).collect() })
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

/// What the server adds to the utilities, and the lead from which the router's own answer is given.
struct Leaning {
    scores: Vec<i32>,
    margin: f64,
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
    /// The model that the router chooses.
    fn route(&self, leaning: &Leaning) -> usize {
        if self.lead >= leaning.margin {
            return 0;
        }
        let scores: Vec<i32> = self.utilities.iter().zip(&leaning.scores).map(|(u, c)| u + c).collect();
        1 + argmax(&scores[1..])
    }
}

/// Part of the cases that both judgements of them send to one model.
pub(crate) fn agreement(one: &[Case], other: &[Case], prices: &Prices, lambda: u16) -> Result<f64> {
    let leaning = prices.leaning(lambda)?;
    let same = one.iter().zip(other).filter(|(a, b)| a.route(&leaning) == b.route(&leaning)).count();
    Ok(same as f64 / one.len().max(1) as f64)
}

/// Routes the cases with `lambda`.
pub(crate) fn operate(cases: &[Case], prices: &Prices, lambda: u16) -> Result<Operation> {
    let leaning = prices.leaning(lambda)?;
    let mut counts = vec![0usize; leaning.scores.len()];
    let mut right = 0usize;
    for case in cases {
        let chosen = case.route(&leaning);
        counts[chosen] += 1;
        right += usize::from(case.in_range && case.right[chosen]);
    }
    let n = cases.len().max(1) as f64;
    let shares: Vec<f64> = counts.iter().map(|&c| c as f64 / n).collect();
    let time = shares.iter().zip(&prices.routed).map(|(s, &t)| s * t as f64).sum();
    Ok(Operation { lambda, accuracy: right as f64 / n, shares, time, cost: time / prices.dearest() })
}

/// Accuracy that the recommended `lambda` may be expected to give up against the largest model: a fifth of the half point that is
/// worth mentioning. The rest is for what validation cannot know.
const TOLERANCE: f64 = 0.001;

/// Operations over a grid of lambdas, dearest first; of equal ones the first.
pub(crate) fn operations(cases: &[Case], prices: &Prices) -> Result<Vec<Operation>> {
    // In units of 1/256: at 256 the dearest model must be sure to be right where the others fail.
    let grid = (0..16).chain((16..64).step_by(2)).chain((64..=256).step_by(8));
    let mut curve = grid.map(|lambda| operate(cases, prices, lambda)).collect::<Result<Vec<_>>>()?;
    curve.dedup_by(|a, b| a.shares == b.shares);
    Ok(curve)
}

/// Of the operations that cost less than always asking the largest model, the cheapest one that may be expected to lose
/// little against that, or the best one if all lose more; the last one if none costs less. `worth` is that of the models
/// beside the first. Expectations are steadier than hits: these differ in few examples.
pub(crate) fn choose<'c>(
    cases: &[Case],
    curve: &'c [Operation],
    prices: &Prices,
    worth: &[Worth],
) -> Result<Option<&'c Operation>> {
    let models = prices.models.len();
    let lost = |operation: &Operation| -> Result<f64> {
        let leaning = prices.leaning(operation.lambda)?;
        let of = |case: &Case| {
            if !case.in_range {
                return f64::from(u8::from(case.right[models - 1]));
            }
            worth[models - 1].at(case.lead) - worth[case.route(&leaning)].at(case.lead)
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
        let easy =
            || Case { utilities: steps([254, 100, 254]), lead: 10.0, right: vec![true, false, true], in_range: true };
        let hard =
            || Case { utilities: steps([100, 100, 250]), lead: 0.0, right: vec![false, false, true], in_range: true };
        let cases: Vec<Case> = (0..100).map(|i| if i % 10 == 0 { hard() } else { easy() }).collect();
        let train = toy("speech", 13, 9, 40);
        let pool = crate::run::assemble(&train, &Task::of(&train, None).unwrap(), Vec::new()).unwrap();
        // The model between is right where the first is, and worth nothing beside it.
        let advantages = [(0, 0), (0, 0), (255 * 16, 16)];
        let advantages = advantages.map(|(worth, halving)| Advantage { worth, halving }).to_vec();
        let prices = Prices::of(&pool.spec, LinkProfile::UART).unwrap().by_lead(advantages, 1.0);
        let worth = [Worth::NONE, Worth::NONE, Worth { worth: 1.0, halving: 1.0 }];
        let curve = operations(&cases, &prices).unwrap();
        assert!(curve.windows(2).all(|pair| pair[1].time < pair[0].time), "a higher lambda is cheaper");
        let choose = |cases: &[Case], curve| choose(cases, curve, &prices, &worth).unwrap().unwrap().clone();
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
        let doubted = |i: i32| Case {
            utilities: steps([200 - i, 0, 200]),
            lead: 0.0,
            right: vec![false, false, true],
            in_range: true,
        };
        let doubted: Vec<Case> = (0..100).map(doubted).collect();
        let curve = operations(&doubted, &prices).unwrap();
        let dearest = curve.iter().find(|o| o.time < prices.dearest()).unwrap();
        assert_eq!(choose(&doubted, &curve).lambda, dearest.lambda);
    }
}
