//! The router: how likely is each model to be right on this input? Models know their own training data
//! by heart, so the router learns from models that have not seen the example (out of fold), on several
//! variants of each. It is the cheapest model as well: one trunk learns the utilities and the classes.

use crate::calibration::Calibration;
use crate::cross_fit::CrossFit;
use crate::data::folds;
use crate::integer::{Integers, integers, table};
use crate::nn::Mode;
use crate::nn::function::sigmoid;
use crate::nn::loss::{argmax, softmax};
use crate::nn::model::Model;
use crate::rng::Rng;
use crate::train::{Judged, Recipe, UNKNOWN, logit_scale, predict, taught, train};
use anyhow::Result;
use indicatif::ProgressBar;
use rayon::prelude::*;
use secure_router_core::model::UTILITY_MAX;

/// Examples with, for every model, how right an out-of-fold copy of it is. Where no copy is out of fold, only
/// the classes are taught.
pub(crate) struct Judgements {
    inputs: Vec<Vec<f32>>,
    /// Per example and variant: one value in [0, 1] per model, or `UNKNOWN`, and one per class.
    targets: Vec<Vec<f32>>,
    /// Folds of the router's own cross-fitting, of the validated examples. These come first.
    pub(crate) folds: Vec<usize>,
    models: usize,
    classes: usize,
}

impl Judgements {
    /// `out_of_fold[fold][model]` was trained without the examples of `fold`. The first of the `variants` is the
    /// example itself. No teacher has seen an example that is validated: what it knows would spoil validation.
    pub(crate) fn collect(run: &CrossFit, out_of_fold: &[Vec<Model>], variants: usize, fold_count: usize) -> Self {
        let (models, classes) = (out_of_fold[0].len(), run.classes());
        let judge = |i: usize| {
            let example = &run.data.examples[i];
            let mut rng = Rng::new(run.seed, &format!("variants {i}"));
            let mut inputs: Vec<f32> = run.real_input(i).collect();
            let unseen = out_of_fold.get(run.folds[i]);
            let variants = if unseen.is_some() { variants } else { 1 };
            for _ in 1..variants {
                inputs.extend(run.features.variant_on_grid(example, &mut rng));
            }
            let mut targets = vec![UNKNOWN; variants * (models + classes)];
            // The largest model comes last: it teaches the classes.
            for (m, model) in unseen.unwrap_or(&out_of_fold[0]).iter().enumerate() {
                let logits = predict(&mut model.clone(), &inputs, &Mode::NEAREST);
                let variants = softmax(&logits, classes);
                for (p, targets) in variants.chunks_exact(classes).zip(targets.chunks_exact_mut(models + classes)) {
                    if unseen.is_some() {
                        // Half hit or miss, half confidence: the latter tells a narrow hit from a clear one.
                        let hit = if argmax(p) == example.label { 1.0 } else { 0.0 };
                        targets[m] = 0.5 * (hit + p[example.label]);
                    }
                    targets[models..].copy_from_slice(p);
                }
            }
            for targets in targets.chunks_exact_mut(models + classes) {
                taught(&mut targets[models..], example.label);
            }
            (inputs, targets)
        };
        let others = (0..run.folds.len()).filter(|&i| run.folds[i] >= out_of_fold.len());
        let order: Vec<usize> = run.validated.iter().copied().chain(others).collect();
        let judged: Vec<(Vec<f32>, Vec<f32>)> = order.into_par_iter().map(judge).collect();
        let (inputs, targets) = judged.into_iter().unzip();
        let examples = run.validated.iter().map(|&i| &run.data.examples[i]);
        Self { inputs, targets, folds: folds(examples, fold_count, run.seed), models, classes }
    }

    /// What a router is trained on; without one fold if `held_out` is given.
    fn source(&self, held_out: Option<usize>) -> Judged {
        let used = |of: &[Vec<f32>]| -> Vec<f32> {
            let folds = self.folds.iter().copied().map(Some).chain(std::iter::repeat(None));
            let each = of.iter().zip(folds).filter(|(_, fold)| fold.is_none() || *fold != held_out);
            each.flat_map(|(values, _)| values).copied().collect()
        };
        Judged { inputs: used(&self.inputs), targets: used(&self.targets), models: self.models, classes: self.classes }
    }

    /// Outputs for the validated examples, each of the one of `routers` that has not seen it.
    pub(crate) fn outputs(&self, routers: &[TrainedRouter]) -> Vec<Vec<f32>> {
        let of = |(inputs, &fold): (&Vec<f32>, &usize)| {
            let model = &routers[fold].model;
            let size = model.shape.tokens * model.shape.features;
            predict(&mut model.clone(), &inputs[..size], &Mode::NEAREST)
        };
        self.inputs.par_iter().zip(&self.folds).map(of).collect()
    }
}

/// Head-room of the index of a utility, above the range of all variants that the router was trained on.
const UTILITY_ROOM: f32 = 1.6;

/// A router as it was trained, the range of its outputs and the largest logit on what it was trained on.
pub(crate) struct TrainedRouter {
    model: Model,
    /// Per model.
    outputs: Vec<(f32, f32)>,
    logit: f32,
}

/// A router's integers, and those of the model that it answers for.
pub(crate) struct Router {
    pub(crate) size: usize,
    pub(crate) integers: Integers,
    pub(crate) answering: Integers,
}

/// How a router's outputs become utilities: 255 steps from `floor` to certainty.
pub(crate) struct Utilities {
    /// Of each model.
    pub(crate) calibrations: Vec<Calibration>,
    pub(crate) floor: f32,
}

impl Utilities {
    /// Fitted on `outputs` of routers that have not seen their examples, of which `right` tells which
    /// models are. The floor is high, for a fine step, where few examples are below it with every model.
    pub(crate) fn fit(outputs: &[Vec<f32>], right: &[Vec<bool>], models: usize) -> Self {
        const FLOORS: [f32; 3] = [0.75, 0.5, 0.0];
        const BELOW: f64 = 0.01;
        let calibrations: Vec<Calibration> = (0..models)
            .map(|m| {
                let column: Vec<f32> = outputs.iter().map(|o| o[m]).collect();
                let right: Vec<bool> = right.iter().map(|r| r[m]).collect();
                Calibration::fit(&column, &right)
            })
            .collect();
        let best = |o: &Vec<f32>| calibrations.iter().zip(o).map(|(c, &o)| c.probability(o)).fold(0f32, f32::max);
        let best: Vec<f32> = outputs.iter().map(best).collect();
        let few = |floor: f32| best.iter().filter(|b| **b < floor).count() as f64 <= BELOW * best.len() as f64;
        let floor = FLOORS.into_iter().find(|f| few(*f)).unwrap_or(0.0);
        Self { calibrations, floor }
    }

    /// Probabilities of one row of outputs.
    pub(crate) fn probabilities(&self, outputs: &[f32]) -> Vec<f32> {
        self.calibrations.iter().zip(outputs).map(|(c, &o)| c.probability(o)).collect()
    }

    /// What one step of utility is worth, as a probability.
    pub(crate) fn step(&self) -> f64 {
        f64::from(1.0 - self.floor) / f64::from(UTILITY_MAX)
    }

    fn steps(&self, logit: f32) -> f32 {
        UTILITY_MAX as f32 * ((sigmoid(logit) - self.floor) / (1.0 - self.floor)).max(0.0)
    }
}

/// Trains on all folds but `held_out`.
pub(crate) fn train_router(
    judgements: &Judgements,
    recipe: &Recipe,
    held_out: Option<usize>,
    seed: u64,
    bar: &ProgressBar,
) -> TrainedRouter {
    let source = judgements.source(held_out);
    let rng = Rng::new(seed, &format!("router without {held_out:?}"));
    let mut model = train(recipe, &source, rng, bar);
    let found = predict(&mut model, &source.inputs, &Mode::NEAREST);
    let models = judgements.models;
    let mut outputs = vec![(f32::MAX, f32::MIN); models];
    let mut logit = 0f32;
    for row in found.chunks_exact(source.outputs()) {
        let (utilities, logits) = row.split_at(models);
        outputs.iter_mut().zip(utilities).for_each(|((low, high), o)| (*low, *high) = (low.min(*o), high.max(*o)));
        logit = logits.iter().fold(logit, |max, l| max.max(l.abs()));
    }
    TrainedRouter { model, outputs, logit }
}

impl TrainedRouter {
    pub(crate) fn export(mut self, recipe: &Recipe, utilities: &Utilities) -> Result<Router> {
        let (models, utility) = (self.outputs.len(), recipe.compared()?);
        // One table serves all models: the middle of all their ranges is its index 0.
        let adjusted = |(c, (low, high)): (&Calibration, &(f32, f32))| (c.adjusted(*low), c.adjusted(*high));
        let ranges: Vec<(f32, f32)> = utilities.calibrations.iter().zip(&self.outputs).map(adjusted).collect();
        let low = ranges.iter().map(|r| r.0).fold(f32::MAX, f32::min);
        let high = ranges.iter().map(|r| r.1).fold(f32::MIN, f32::max);
        let middle = 0.5 * (low + high);
        for (m, Calibration { slope, offset }) in utilities.calibrations.iter().enumerate() {
            self.model.adjust_output(m, *slope, offset - middle);
        }
        let half = (1u32 << (utility.index_bits - 1)) as f32;
        let step = 0.5 * (high - low) * UTILITY_ROOM / half;
        let utility_scale = f64::from(1u32 << utility.shift) / f64::from(step);
        let logit_scale = logit_scale(&recipe.bits, self.logit);
        let scale = |output: usize| if output < models { utility_scale } else { logit_scale };
        let mut router = integers(&self.model, &recipe.bits, scale, "router")?;
        router.tables.extend(table(utility.index_bits, |v| utilities.steps(middle + v * step), "router")?);
        let size = self.model.size();
        self.model.drop_outputs(models);
        let answering = integers(&self.model, &recipe.bits, |_| logit_scale, "router")?;
        Ok(Router { size, integers: router, answering })
    }
}
