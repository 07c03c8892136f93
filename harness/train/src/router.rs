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
use crate::train::{Judged, Recipe, logit_scale, predict, taught, train};
use anyhow::Result;
use indicatif::ProgressBar;
use rayon::prelude::*;
use secure_router_core::model::UTILITY_MAX;

/// Variants of an example that no copy is out of fold for: enough to learn the classes from.
const UNJUDGED_VARIANTS: usize = 2;

/// Examples with, for every model, how right an out-of-fold copy of it is; or, where no copy is out of fold, how right
/// the first fold's copy of it is in the eyes of that of the largest, which knows the label but does not say.
pub(crate) struct Judgements<'a> {
    inputs: Vec<Vec<f32>>,
    labels: Vec<usize>,
    /// Per example and variant: one value in [0, 1] per model.
    utilities: Vec<Vec<f32>>,
    /// Folds of the router's own cross-fitting, of the validated examples. These come first.
    pub(crate) folds: Vec<usize>,
    /// Who teaches the classes to the router that is trained without each of these folds: the copy of the largest
    /// model that has not seen them either. What a teacher knows its pupil knows.
    teachers: Vec<&'a Model>,
    /// Teaches the router that is trained on all examples.
    teacher: &'a Model,
    models: usize,
    classes: usize,
}

impl<'a> Judgements<'a> {
    /// `out_of_fold[fold][model]` was trained without the examples of `fold`, `largest` with all. The first of the
    /// `variants` is the example itself. A single validated fold is cut into `parts` for the router.
    pub(crate) fn collect(
        run: &CrossFit,
        out_of_fold: &'a [Vec<Model>],
        largest: &'a Model,
        variants: usize,
        parts: usize,
    ) -> Self {
        let (models, classes) = (out_of_fold[0].len(), run.classes());
        let judge = |i: usize| {
            let example = &run.data.examples[i];
            let mut rng = Rng::new(run.seed, &format!("variants {i}"));
            let mut inputs: Vec<f32> = run.real_input(i).collect();
            let unseen = out_of_fold.get(run.folds[i]);
            let variants = if unseen.is_some() { variants } else { variants.min(UNJUDGED_VARIANTS) };
            for _ in 1..variants {
                inputs.extend(run.features.variant_on_grid(example, &mut rng));
            }
            let said = |model: &Model| softmax(&predict(&mut model.clone(), &inputs, &Mode::NEAREST), classes);
            let of_models: Vec<Vec<f32>> = unseen.unwrap_or(&out_of_fold[0]).iter().map(said).collect();
            let (mut utilities, largest) = (vec![0.0; variants * models], &of_models[models - 1]);
            for (m, of_model) in of_models.iter().enumerate() {
                for (v, (p, largest)) in of_model.chunks_exact(classes).zip(largest.chunks_exact(classes)).enumerate() {
                    let answer = argmax(p);
                    utilities[v * models + m] = if unseen.is_some() {
                        // Half hit or miss, half confidence: the latter tells a narrow hit from a clear one.
                        let hit = if answer == example.label { 1.0 } else { 0.0 };
                        0.5 * (hit + p[example.label])
                    } else {
                        largest[answer]
                    };
                }
            }
            (inputs, utilities)
        };
        let others = (0..run.folds.len()).filter(|&i| run.folds[i] >= out_of_fold.len());
        let order: Vec<usize> = run.validated.iter().copied().chain(others).collect();
        let labels = order.iter().map(|&i| run.data.examples[i].label).collect();
        let judged: Vec<(Vec<f32>, Vec<f32>)> = order.into_par_iter().map(judge).collect();
        let (inputs, utilities) = judged.into_iter().unzip();
        let last = |copies: &'a Vec<Model>| copies.last();
        let (folds, teachers) = if let [copies] = out_of_fold {
            let examples = run.validated.iter().map(|&i| &run.data.examples[i]);
            (folds(examples, parts, run.seed), last(copies).into_iter().cycle().take(parts).collect())
        } else {
            (run.validated.iter().map(|&i| run.folds[i]).collect(), out_of_fold.iter().filter_map(last).collect())
        };
        Self { inputs, labels, utilities, folds, teachers, teacher: largest, models, classes }
    }

    /// Every fold that a router is trained without, and none.
    pub(crate) fn held_out(&self) -> Vec<Option<usize>> {
        (0..self.teachers.len()).map(Some).chain([None]).collect()
    }

    /// What a router is trained on; without one fold if `held_out` is given.
    fn source(&self, held_out: Option<usize>) -> Judged {
        let teacher = held_out.map_or(self.teacher, |fold| self.teachers[fold]);
        let own = self.folds.iter().copied().map(Some).chain(std::iter::repeat(None));
        let used: Vec<usize> = (0..self.inputs.len())
            .zip(own)
            .filter(|(_, own)| own.is_none() || *own != held_out)
            .map(|(i, _)| i)
            .collect();
        let taught = |teacher: &mut Model, &i: &usize| {
            let logits = predict(teacher, &self.inputs[i], &Mode::NEAREST);
            let classes = softmax(&logits, self.classes);
            let rows = self.utilities[i].chunks_exact(self.models).zip(classes.chunks_exact(self.classes));
            let row = |(utilities, classes): (&[f32], &[f32])| {
                let mut classes = classes.to_vec();
                taught(&mut classes, self.labels[i]);
                [utilities, &classes].concat()
            };
            rows.flat_map(row).collect::<Vec<f32>>()
        };
        let targets = used.par_iter().map_init(|| teacher.clone(), taught).collect::<Vec<_>>().concat();
        let inputs = used.iter().flat_map(|&i| &self.inputs[i]).copied().collect();
        Judged { inputs, targets, models: self.models, classes: self.classes }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Task;
    use crate::task::tests::toy;

    /// A pupil knows what its teacher knows: taught by a copy that has seen the held-out fold, a router would be
    /// better on it than on unknown inputs, and its calibration too sure.
    #[test]
    fn no_router_is_taught_by_a_model_that_has_seen_what_it_is_held_to() {
        let data = toy("sensor", 6, 128, 40);
        let task = Task::of(&data, None).unwrap().quick();
        let run = CrossFit::new(&data, &task, 1, 1).unwrap();
        let model = |held_out| run.train_one(&task.models[0], held_out, None);
        let (copies, largest) = ([vec![model(Some(0))], vec![model(Some(1))]], model(None));
        let judgements = Judgements::collect(&run, &copies, &largest, 1, 5);
        assert_eq!(judgements.folds, run.folds);
        let teachers = [&copies[0][0], &copies[1][0], &largest];
        for (held_out, teacher) in judgements.held_out().into_iter().zip(teachers) {
            let Judged { inputs, targets, models, classes } = judgements.source(held_out);
            let seen = run.folds.iter().filter(|fold| held_out != Some(**fold)).count();
            assert_eq!(targets.len(), seen * (models + classes));
            let told = softmax(&predict(&mut teacher.clone(), &inputs, &Mode::NEAREST), classes);
            for (target, told) in targets.chunks_exact(models + classes).zip(told.chunks_exact(classes)) {
                let mixed = |label: usize| {
                    let mut told = told.to_vec();
                    taught(&mut told, label);
                    told
                };
                let same = |label| mixed(label).iter().zip(&target[models..]).all(|(a, b)| (a - b).abs() < 1e-5);
                assert!((0..classes).any(same), "{held_out:?}");
            }
        }
    }
}
