//! The router: how likely is each model to be right on this input? Models know their own training data
//! by heart, so the router learns from models that have not seen the example (out of fold), on several
//! variants of each, and less from the others. It is the cheapest model as well: one trunk learns the utilities and the classes.

use crate::calibration::Calibration;
use crate::cross_fit::CrossFit;
use crate::data::folds;
use crate::integer::{Integers, integers};
use crate::nn::Mode;
use crate::nn::loss::{argmax, softmax};
use crate::nn::model::Model;
use crate::rng::Rng;
use crate::train::{Judged, Recipe, logit_scale, predict, taught, train};
use anyhow::Result;
use indicatif::ProgressBar;
use rayon::prelude::*;
use secure_router_core::model::{UTILITY_MAX, UTILITY_SPREAD};

/// Examples with, for every model, how right an out-of-fold copy of it is. In folds that nobody validates all copies have
/// seen the example; then an answer is as right as a copy of the largest model thinks it. That favours the largest, and
/// is known of many more examples; calibration takes the bias out in the mean.
pub(crate) struct Judgements<'a> {
    inputs: Vec<Vec<f32>>,
    labels: Vec<usize>,
    /// Of the validated examples, which come first, per variant: one value in [0, 1] per model.
    utilities: Vec<Vec<f32>>,
    /// Folds of the router's own cross-fitting, of the validated examples.
    pub(crate) folds: Vec<usize>,
    /// Per such fold the copies of all models that have not seen it. They alone teach the router that is trained without
    /// the fold: what a teacher knows its pupil knows.
    unseeing: Vec<&'a [Model]>,
    /// Teaches the classes to the router that is trained on all examples.
    largest: &'a Model,
    models: usize,
    classes: usize,
}

impl<'a> Judgements<'a> {
    /// `out_of_fold[fold][model]` was trained without the examples of `fold`, `largest` with all. The first of the
    /// `variants` is the example itself; of an example that nobody validates there are `others`. A single validated fold is cut into
    /// `parts` for the router.
    pub(crate) fn collect(
        run: &CrossFit,
        out_of_fold: &'a [Vec<Model>],
        largest: &'a Model,
        [variants, others]: [usize; 2],
        parts: usize,
    ) -> Self {
        let (models, classes) = (out_of_fold[0].len(), run.classes());
        let judge = |i: usize| {
            let example = &run.data.examples[i];
            let mut rng = Rng::new(run.seed, &format!("variants {i}"));
            let mut inputs: Vec<f32> = run.real_input(i).collect();
            let unseen = out_of_fold.get(run.folds[i]);
            let variants = if unseen.is_some() { variants } else { others };
            for _ in 1..variants {
                inputs.extend(run.features.variant_on_grid(example, &mut rng));
            }
            let mut utilities = vec![0.0; variants * models];
            for (m, model) in unseen.into_iter().flatten().enumerate() {
                let said = said(&mut model.clone(), &inputs, classes);
                for (p, row) in said.chunks_exact(classes).zip(utilities.chunks_exact_mut(models)) {
                    // Half hit or miss, half confidence: the latter tells a narrow hit from a clear one.
                    let hit = if argmax(p) == example.label { 1.0 } else { 0.0 };
                    row[m] = 0.5 * (hit + p[example.label]);
                }
            }
            (inputs, utilities)
        };
        let others = (0..run.folds.len()).filter(|&i| run.folds[i] >= out_of_fold.len());
        let order: Vec<usize> = run.validated.iter().copied().chain(others).collect();
        let labels = order.iter().map(|&i| run.data.examples[i].label).collect();
        let judged: Vec<(Vec<f32>, Vec<f32>)> = order.into_par_iter().map(judge).collect();
        let (inputs, mut utilities): (Vec<_>, Vec<_>) = judged.into_iter().unzip();
        utilities.truncate(run.validated.len());
        let (folds, unseeing) = if let [copies] = out_of_fold {
            let examples = run.validated.iter().map(|&i| &run.data.examples[i]);
            (folds(examples, parts, run.seed), vec![copies.as_slice(); parts])
        } else {
            let folds = run.validated.iter().map(|&i| run.folds[i]).collect();
            (folds, out_of_fold.iter().map(Vec::as_slice).collect())
        };
        Self { inputs, labels, utilities, folds, unseeing, largest, models, classes }
    }

    /// Every fold that a router is trained without, and none.
    pub(crate) fn held_out(&self) -> Vec<Option<usize>> {
        (0..self.unseeing.len()).map(Some).chain([None]).collect()
    }

    /// What a router is trained on; without one fold if `held_out` is given.
    fn source(&self, held_out: Option<usize>) -> Judged {
        let judges = self.unseeing[held_out.unwrap_or(0)];
        let used: Vec<usize> =
            (0..self.inputs.len()).filter(|&i| held_out.is_none() || self.folds.get(i).copied() != held_out).collect();
        // Judges, largest last, and behind them who teaches the classes, if that is not the last judge.
        let own = || judges.iter().chain(held_out.is_none().then_some(self.largest)).cloned().collect::<Vec<Model>>();
        let targets = |own: &mut Vec<Model>, &i: &usize| {
            // Where the utilities are known, the teacher alone is asked.
            let known = self.utilities.get(i);
            let asked = if known.is_some() { own.len() - 1 } else { 0 };
            let said: Vec<Vec<f32>> =
                own[asked..].iter_mut().map(|model| said(model, &self.inputs[i], self.classes)).collect();
            let utilities = known.cloned().unwrap_or_else(|| self.esteem(&said[..self.models]));
            let classes = said.last().into_iter().flat_map(|said| said.chunks_exact(self.classes));
            let row = |(utilities, classes): (&[f32], &[f32])| {
                let mut classes = classes.to_vec();
                taught(&mut classes, self.labels[i]);
                [utilities, &classes].concat()
            };
            utilities.chunks_exact(self.models).zip(classes).flat_map(row).collect::<Vec<f32>>()
        };
        let targets = used.par_iter().map_init(own, targets).collect::<Vec<_>>().concat();
        let inputs = used.iter().flat_map(|&i| &self.inputs[i]).copied().collect();
        Judged { inputs, targets, models: self.models, classes: self.classes }
    }

    /// How likely each model's answer is, per variant, in the eyes of the last of those that have `said` something.
    fn esteem(&self, said: &[Vec<f32>]) -> Vec<f32> {
        let Some(last) = said.last() else { return Vec::new() };
        let rows = last.chunks_exact(self.classes).enumerate();
        let answer = |v: usize, said: &[f32]| argmax(&said[v * self.classes..][..self.classes]);
        rows.flat_map(|(v, last)| said.iter().map(move |said| last[answer(v, said)])).collect()
    }

    /// Outputs for the validated examples, each of the one of `routers` that has not seen it.
    pub(crate) fn outputs(&self, routers: &[TrainedRouter]) -> Vec<Vec<f32>> {
        let of = |(inputs, &fold): (&Vec<f32>, &usize)| {
            let model = &routers[fold].model;
            let size = model.shape.inputs();
            predict(&mut model.clone(), &inputs[..size], &Mode::NEAREST)
        };
        self.inputs.par_iter().zip(&self.folds).map(of).collect()
    }
}

/// What a model says of each class, per input.
fn said(model: &mut Model, inputs: &[f32], classes: usize) -> Vec<f32> {
    softmax(&predict(model, inputs, &Mode::NEAREST), classes)
}

/// A router as it was trained, and the largest logit on what it was trained on.
pub(crate) struct TrainedRouter {
    model: Model,
    logit: f32,
}

/// A router's integers, and those of the model that it answers for.
pub(crate) struct Router {
    pub(crate) size: usize,
    /// What a logit of 1 is worth in accumulators.
    pub(crate) logit: f64,
    pub(crate) integers: Integers,
    pub(crate) answering: Integers,
}

/// How a router's outputs become utilities: 255 steps from `floor` to certainty, and on beyond both.
pub(crate) struct Utilities {
    /// Of each model.
    pub(crate) calibrations: Vec<Calibration>,
    pub(crate) floor: f32,
}

impl Utilities {
    /// Fitted on `outputs` of routers that have not seen their examples, of which `right` tells which
    /// models are. The floor is as high, and a step as fine, as the models' estimates for one example lie near each other.
    pub(crate) fn fit(outputs: &[Vec<f32>], right: &[Vec<bool>], models: usize) -> Self {
        const FLOORS: [f32; 3] = [0.75, 0.5, 0.0];
        /// Head-room for estimates of other examples.
        const ROOM: f32 = 1.5;
        let calibrations: Vec<Calibration> = (0..models)
            .map(|m| {
                let column: Vec<f32> = outputs.iter().map(|o| o[m]).collect();
                let right: Vec<bool> = right.iter().map(|r| r[m]).collect();
                Calibration::fit(&column, &right)
            })
            .collect();
        let spread = |outputs: &Vec<f32>| {
            let all = || calibrations.iter().zip(outputs).map(|(c, &o)| c.adjusted(o));
            all().fold(f32::MIN, f32::max) - all().fold(f32::MAX, f32::min)
        };
        let widest = ROOM * outputs.iter().map(spread).fold(0f32, f32::max);
        let fits = |floor: f32| widest <= UTILITY_SPREAD as f32 * (1.0 - floor) / UTILITY_MAX as f32;
        let floor = FLOORS.into_iter().find(|floor| fits(*floor)).unwrap_or(0.0);
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
    let mut logit = 0f32;
    for row in found.chunks_exact(source.outputs()) {
        logit = row[judgements.models..].iter().fold(logit, |max, l| max.max(l.abs()));
    }
    TrainedRouter { model, logit }
}

impl TrainedRouter {
    pub(crate) fn export(mut self, recipe: &Recipe, utilities: &Utilities) -> Result<Router> {
        let (models, difference) = (utilities.calibrations.len(), recipe.spec()?.difference());
        for (m, Calibration { slope, offset }) in utilities.calibrations.iter().enumerate() {
            self.model.adjust_output(m, *slope, offset - utilities.floor);
        }
        let utility_scale = f64::from(1u32 << difference.shift) / utilities.step();
        let logit_scale = logit_scale(&recipe.bits, self.logit);
        let scale = |output: usize| if output < models { utility_scale } else { logit_scale };
        let router = integers(&self.model, &recipe.bits, scale, "router")?;
        let size = self.model.size();
        self.model.drop_outputs(models);
        let answering = integers(&self.model, &recipe.bits, |_| logit_scale, "router")?;
        Ok(Router { size, logit: logit_scale, integers: router, answering })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Task;
    use crate::task::tests::toy;

    /// Otherwise a router would be better on what it is held to than on unknown inputs, and its calibration too sure.
    #[test]
    fn no_router_is_taught_by_a_model_that_has_seen_what_it_is_held_to() {
        let data = toy("sensor", 6, 128, 60);
        let mut task = Task::of(&data, None).unwrap().quick();
        (task.folds, task.copies) = (3, 2);
        let features = crate::feature::Features::of(&data, task.arrangement.clone());
        let run = CrossFit::new(&data, features, &task, 1, 1).unwrap();
        let recipe = Recipe { epochs: 6, ..task.models[0].clone() };
        let model = |held_out| run.train_one(&recipe, held_out, None);
        let (copies, largest) = ([vec![model(Some(0))], vec![model(Some(1))]], model(None));
        let judgements = Judgements::collect(&run, &copies, &largest, [1; 2], 5);
        assert!(judgements.folds.len() < data.examples.len());
        let near = |a: &f32, b: &f32| (a - b).abs() < 1e-5;
        for (held_out, (teacher, judge)) in
            judgements.held_out().into_iter().zip([(&copies[0], 0), (&copies[1], 1), (&vec![largest.clone()], 0)])
        {
            let Judged { inputs, targets, classes, .. } = judgements.source(held_out);
            let seen = run.folds.iter().filter(|fold| held_out != Some(**fold)).count();
            assert_eq!(targets.len(), seen * (1 + classes));
            let told = |model: &Model| said(&mut model.clone(), &inputs, classes);
            let (taught_by, judged_by) = (told(&teacher[0]), told(&copies[judge][0]));
            for (example, target) in targets.chunks_exact(1 + classes).enumerate() {
                let of = |all: &[f32]| all[example * classes..][..classes].to_vec();
                let mixed = |label: usize| {
                    let mut told = of(&taught_by);
                    taught(&mut told, label);
                    told
                };
                let same = |label| mixed(label).iter().zip(&target[1..]).all(|(a, b)| near(a, b));
                assert!((0..classes).any(same), "{held_out:?}");
                // The last third is of the fold that nobody validates.
                if example >= seen - run.folds.iter().filter(|fold| **fold == 2).count() {
                    let judged = of(&judged_by);
                    assert!(near(&judged[argmax(&judged)], &target[0]), "{held_out:?}");
                }
            }
        }
    }
}
