//! The router: how likely is each model to be right on this input, and what is the better answer
//! worth? Models know their own training data by heart, so the router learns from models that have
//! not seen the example (out of fold), on several variants of each.

use crate::cross_fit::CrossFit;
use crate::data::folds;
use crate::integer::{Integers, integers, table};
use crate::nn::Mode;
use crate::nn::function::sigmoid;
use crate::nn::loss::{argmax, softmax};
use crate::nn::model::Model;
use crate::rng::Rng;
use crate::task::UTILITY;
use crate::train::{Judged, Recipe, predict, train};
use anyhow::Result;
use indicatif::ProgressBar;
use rayon::prelude::*;
use secure_router_core::circuit::Slot;
use secure_router_core::cost::{Cost, router_scores};
use secure_router_core::model::UTILITY_MAX;
use secure_router_core::session::LinkProfile;
use secure_router_core::spec::PoolSpec;

/// Validated examples with, for every model, how right an out-of-fold copy of it is.
pub(crate) struct Judgements {
    inputs: Vec<Vec<f32>>,
    /// Per example and variant: one value in [0, 1] per model.
    right: Vec<Vec<f32>>,
    labels: Vec<usize>,
    /// Folds of the router's own cross-fitting.
    pub(crate) folds: Vec<usize>,
    models: usize,
    classes: usize,
}

impl Judgements {
    /// `out_of_fold[fold][model]` was trained without the examples of `fold`. The first of the
    /// `variants` is the example itself.
    pub(crate) fn collect(run: &CrossFit, out_of_fold: &[Vec<Model>], variants: usize, fold_count: usize) -> Self {
        let (models, classes) = (out_of_fold[0].len(), run.classes());
        let judge = |&i: &usize| {
            let example = &run.data.examples[i];
            let mut rng = Rng::new(run.seed, &format!("variants {i}"));
            let mut inputs: Vec<f32> = run.real_input(i).collect();
            for _ in 1..variants {
                inputs.extend(run.features.variant_on_grid(example, &mut rng));
            }
            let mut right = vec![0.0; variants * models];
            for (m, model) in out_of_fold[run.folds[i]].iter().enumerate() {
                let logits = predict(&mut model.clone(), &inputs, &Mode::NEAREST);
                for (v, p) in softmax(&logits, classes).chunks_exact(classes).enumerate() {
                    // Half hit or miss, half confidence: the latter tells a narrow hit from a clear one.
                    let hit = if argmax(p) == example.label { 1.0 } else { 0.0 };
                    right[v * models + m] = 0.5 * (hit + p[example.label]);
                }
            }
            (inputs, right)
        };
        let judged: Vec<(Vec<f32>, Vec<f32>)> = run.validated.par_iter().map(judge).collect();
        let (inputs, right) = judged.into_iter().unzip();
        let examples = || run.validated.iter().map(|&i| &run.data.examples[i]);
        Self {
            inputs,
            right,
            labels: examples().map(|e| e.label).collect(),
            folds: folds(examples(), fold_count, run.seed),
            models,
            classes,
        }
    }

    /// What a router is trained on; without one fold if `held_out` is given. The class itself is an
    /// auxiliary target: it shapes the trunk, and its outputs are dropped afterwards.
    fn source(&self, held_out: Option<usize>) -> Judged {
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        for i in (0..self.folds.len()).filter(|&i| held_out != Some(self.folds[i])) {
            inputs.extend_from_slice(&self.inputs[i]);
            for right in self.right[i].chunks_exact(self.models) {
                targets.extend_from_slice(right);
                targets.extend((0..self.classes).map(|c| if c == self.labels[i] { 1.0 } else { 0.0 }));
            }
        }
        Judged { inputs, targets, outputs: self.models + self.classes }
    }
}

/// Head-room of the index of a utility. It costs little: most of the range is where the sigmoid is flat.
const UTILITY_ROOM: f32 = 2.5;

/// A trained router with its integers.
pub(crate) struct Router {
    pub(crate) size: usize,
    pub(crate) integers: Integers,
}

/// Trains on all folds but `held_out`.
pub(crate) fn train_router(
    judgements: &Judgements,
    recipe: &Recipe,
    held_out: Option<usize>,
    seed: u64,
    bar: &ProgressBar,
) -> Result<Router> {
    let source = judgements.source(held_out);
    let rng = Rng::new(seed, &format!("router without {held_out:?}"));
    let mut model = train(recipe, &source, rng, bar);
    model.keep_outputs(judgements.models);
    let logits = predict(&mut model, &source.inputs, &Mode::NEAREST);
    let largest = logits.iter().fold(0f32, |max, l| max.max(l.abs()));
    let half = (1u32 << (UTILITY.index_bits - 1)) as f32;
    let step = largest * UTILITY_ROOM / half;
    let scale = f64::from(1u32 << UTILITY.shift) / f64::from(step);
    let mut integers = integers(&model, &recipe.bits, scale, "router")?;
    integers.tables.extend(table(UTILITY.index_bits, |v| UTILITY_MAX as f32 * sigmoid(v * step), "router")?);
    Ok(Router { size: model.size(), integers })
}

/// One validated example: the router's utilities, and whether each model is right.
pub(crate) struct Case {
    pub(crate) utilities: Vec<i32>,
    pub(crate) right: Vec<bool>,
    /// Whether the router's values fitted their bits.
    pub(crate) in_range: bool,
}

/// What the programs of a pool cost on the link that `lambda` is recommended for.
pub(crate) struct Prices {
    spec: PoolSpec,
    /// Online bytes of each model by itself, both ways, and of the router.
    pub(crate) bytes: Vec<u64>,
    pub(crate) router_bytes: u64,
    /// Online time of each model by itself, in microseconds.
    pub(crate) models: Vec<u64>,
    /// The same with the router before it.
    pub(crate) routed: Vec<u64>,
}

impl Prices {
    const LINK: LinkProfile = LinkProfile::UART;

    pub(crate) fn of(spec: &PoolSpec) -> Result<Self> {
        let router = Cost::of(spec, Slot::Router, 1)?;
        let models =
            (0..spec.models.len() as u8).map(|m| Cost::of(spec, Slot::Model(m), 1)).collect::<Result<Vec<_>, _>>()?;
        let time = |cost: &Cost| cost.online.latency_us(&Self::LINK);
        Ok(Self {
            spec: spec.clone(),
            bytes: models.iter().map(|m| m.online.bytes()).collect(),
            router_bytes: router.online.bytes(),
            routed: models.iter().map(|m| time(&router.then(m))).collect(),
            models: models.iter().map(time).collect(),
        })
    }

    /// What the server adds to the utilities for a request with this `lambda`.
    pub(crate) fn scores(&self, lambda: u16) -> Result<Vec<i32>> {
        Ok(router_scores(&self.spec, lambda, u8::MAX, &Self::LINK)?.to_vec())
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

/// Routes the cases with `lambda`.
fn operate(cases: &[Case], prices: &Prices, lambda: u16) -> Result<Operation> {
    let costs = prices.scores(lambda)?;
    let mut counts = vec![0usize; costs.len()];
    let mut right = 0usize;
    for case in cases {
        let scores: Vec<i32> = case.utilities.iter().zip(&costs).map(|(u, c)| u + c).collect();
        let chosen = argmax(&scores);
        counts[chosen] += 1;
        right += usize::from(case.in_range && case.right[chosen]);
    }
    let n = cases.len().max(1) as f64;
    let shares: Vec<f64> = counts.iter().map(|&c| c as f64 / n).collect();
    let time = shares.iter().zip(&prices.routed).map(|(s, &t)| s * t as f64).sum();
    Ok(Operation { lambda, accuracy: right as f64 / n, shares, time, cost: time / prices.dearest() })
}

/// Accuracy that the recommended `lambda` may give up against the largest model.
const TOLERANCE: f64 = 0.001;

/// Operations over a grid of lambdas, dearest first; of equal ones the first.
pub(crate) fn operations(cases: &[Case], prices: &Prices) -> Result<Vec<Operation>> {
    // In units of 1/256: at 256 the dearest model must be sure to be right where the others fail.
    let grid = (0..16).chain((16..64).step_by(2)).chain((64..=256).step_by(8));
    let mut curve = grid.map(|lambda| operate(cases, prices, lambda)).collect::<Result<Vec<_>>>()?;
    curve.dedup_by(|a, b| a.shares == b.shares);
    Ok(curve)
}

/// The cheapest operation that loses next to nothing against the largest model's `accuracy`; the
/// best one if all lose more.
pub(crate) fn choose(curve: &[Operation], accuracy: f64) -> Option<&Operation> {
    let good = curve.iter().filter(|o| o.accuracy >= accuracy - TOLERANCE);
    good.min_by(|a, b| a.time.total_cmp(&b.time))
        .or_else(|| curve.iter().max_by(|a, b| a.accuracy.total_cmp(&b.accuracy)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Task;
    use crate::task::tests::toy;

    #[test]
    fn lambda_sends_easy_cases_to_the_cheap_model() {
        let easy = || Case { utilities: vec![250, 100, 254], right: vec![true, false, true], in_range: true };
        let hard = || Case { utilities: vec![100, 100, 250], right: vec![false, false, true], in_range: true };
        let cases: Vec<Case> = (0..100).map(|i| if i % 10 == 0 { hard() } else { easy() }).collect();
        let train = toy("speech", 13, 20, 40);
        let pool = crate::run::assemble(&train, &Task::of(&train).unwrap(), Vec::new()).unwrap();
        let prices = Prices::of(&pool.spec).unwrap();
        let curve = operations(&cases, &prices).unwrap();
        assert!(curve.windows(2).all(|pair| pair[1].time < pair[0].time), "a higher lambda is cheaper");
        let chosen = choose(&curve, 1.0).unwrap();
        assert_eq!(chosen.accuracy, 1.0);
        assert!((chosen.shares[2] - 0.1).abs() < 1e-9);
        let time = 0.9 * prices.routed[0] as f64 + 0.1 * prices.routed[2] as f64;
        assert!((chosen.time - time).abs() < 1e-6 * time);
        // Nothing is as good as more than all: the best is taken.
        assert_eq!(choose(&curve, 1.1).unwrap().accuracy, 1.0);
    }
}
