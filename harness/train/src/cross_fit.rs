//! Cross-fitting: every model is trained once on all examples, for the pool, and once without each
//! validated fold. The copies give honest validation figures on the train split, and the router its
//! targets.

use crate::data::{Dataset, Example, folds};
use crate::feature::Features;
use crate::frontier::Case;
use crate::integer::{Integers, integers};
use crate::lexicon::Lexicon;
use crate::nn::Mode;
use crate::nn::loss::argmax;
use crate::nn::model::Model;
use crate::pool::Pool;
use crate::reference::{Estimates, Interpreter, WIDEST, Watch};
use crate::rng::Rng;
use crate::router::Router;
use crate::task::Task;
use crate::train::{Labelled, Recipe, logit_scale, predict, train};
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;
use secure_router_core::circuit::{Program, Slot};
use secure_router_core::clear::{Nearest, Reference};
use secure_router_core::routing::Bias;
use secure_router_core::spec::PoolSpec;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Inputs that one interpreter runs before it is made anew, for another thread.
const CHUNK: usize = 500;

/// The train split of one run, in folds.
pub(crate) struct CrossFit<'a> {
    pub(crate) data: &'a Dataset,
    pub(crate) features: Features,
    /// All inputs, after each other.
    inputs: Vec<i16>,
    pub(crate) folds: Vec<usize>,
    /// Folds below this number are validated on.
    copies: usize,
    /// The examples of those folds.
    pub(crate) validated: Vec<usize>,
    mix: f32,
    pub(crate) seed: u64,
    pub(crate) bar: ProgressBar,
}

impl<'a> CrossFit<'a> {
    pub(crate) fn new(data: &'a Dataset, features: Features, task: &Task, seed: u64, epochs: u64) -> Result<Self> {
        let inputs: Vec<Vec<i16>> = data.examples.par_iter().map(|e| features.quantised(e)).collect();
        let bar = ProgressBar::new(epochs);
        bar.set_style(ProgressStyle::with_template("{msg:10} {wide_bar} {pos}/{len} epochs, {eta} left")?);
        let folds = folds(data.examples.iter(), task.folds, seed);
        let validated = (0..folds.len()).filter(|&i| folds[i] < task.copies).collect();
        let inputs = inputs.concat();
        Ok(Self { data, features, inputs, folds, copies: task.copies, validated, mix: task.mix, seed, bar })
    }

    pub(crate) fn classes(&self) -> usize {
        self.data.classes.len()
    }

    fn input(&self, i: usize) -> &[i16] {
        let size = self.features.inputs();
        &self.inputs[i * size..][..size]
    }

    /// Example `i` as real values on the integer grid.
    pub(crate) fn real_input(&self, i: usize) -> impl Iterator<Item = f32> {
        self.input(i).iter().map(|&v| self.features.real(v))
    }

    /// Out-of-fold copies (per fold, per model) and, if `finals`, the models themselves but the first, for which the
    /// router answers. The last recipe's models teach the others.
    pub(crate) fn train_models(&self, recipes: &[Recipe], finals: bool) -> Result<(Vec<Vec<Model>>, Vec<Model>)> {
        let (largest, others) = recipes.split_last().context("a pool has at least one model")?;
        let held_out: Vec<Option<usize>> = (0..self.copies).map(Some).chain(finals.then_some(None)).collect();
        let teachers = in_parallel(&held_out, |fold| self.train_one(largest, *fold, None));
        // Longest first, so that no core idles at the end.
        let jobs: Vec<(usize, usize)> =
            (0..others.len()).rev().flat_map(|r| (0..held_out.len()).map(move |h| (r, h))).collect();
        let needed = |&(r, h): &(usize, usize)| r > 0 || held_out[h].is_some();
        let jobs: Vec<(usize, usize)> = jobs.into_iter().filter(needed).collect();
        let taught = in_parallel(&jobs, |&(r, h)| self.train_one(&others[r], held_out[h], Some(&teachers[h])));
        let mut models: Vec<Vec<Model>> = held_out.iter().map(|_| Vec::new()).collect();
        // Cheapest recipe first again.
        for ((_, h), model) in jobs.into_iter().zip(taught).rev() {
            models[h].push(model);
        }
        models.iter_mut().zip(teachers).for_each(|(models, teacher)| models.push(teacher));
        let of_all = if finals { models.pop() } else { None };
        Ok((models, of_all.unwrap_or_default()))
    }

    pub(crate) fn train_one(&self, recipe: &Recipe, held_out: Option<usize>, teacher: Option<&Model>) -> Model {
        let used = self.data.examples.iter().zip(&self.folds).filter(|(_, f)| held_out != Some(**f));
        let examples: Vec<&Example> = used.map(|(e, _)| e).collect();
        let lexicon = (self.data.kind == "text").then(|| Lexicon::of(&examples, self.classes()));
        let source =
            Labelled { examples, lexicon, features: &self.features, classes: self.classes(), mix: self.mix, teacher };
        let rng = Rng::new(self.seed, &format!("{} without {held_out:?}", recipe.name));
        train(recipe, &source, rng, &self.bar)
    }

    /// Inputs of the examples whose fold is `wanted`, as real values.
    pub(crate) fn real_inputs(&self, wanted: impl Fn(usize) -> bool) -> Vec<f32> {
        (0..self.folds.len()).filter(|&i| wanted(self.folds[i])).flat_map(|i| self.real_input(i)).collect()
    }

    /// Integers whose logits have head-room on `inputs`, which the model was trained on.
    pub(crate) fn export(&self, model: &Model, recipe: &Recipe, inputs: &[f32]) -> Result<Integers> {
        let logits = predict(&mut model.clone(), inputs, &Mode::NEAREST);
        let largest = logits.iter().fold(0f32, |max, l| max.max(l.abs()));
        let scale = logit_scale(&recipe.bits, largest);
        integers(model, &recipe.bits, |_| scale, &recipe.name)
    }

    /// Per validated example and model, from `first` on: is the integer copy that has not seen it right? And per model:
    /// how often did a value leave its range? Such an answer is wrong.
    pub(crate) fn out_of_fold_hits(
        &self,
        recipes: &[Recipe],
        first: usize,
        spec: &PoolSpec,
        out_of_fold: &[Vec<Model>],
    ) -> Result<(Vec<Vec<bool>>, Vec<usize>)> {
        let mut hits = vec![vec![false; self.folds.len()]; recipes.len()];
        let mut out_of_range = vec![0; recipes.len()];
        for ((m, recipe), hits) in recipes.iter().enumerate().zip(&mut hits).skip(first) {
            let program = Program::of(spec, Slot::Model(m as u8))?;
            for (fold, copies) in out_of_fold.iter().enumerate() {
                let integers = self.export(&copies[m], recipe, &self.real_inputs(|f| f != fold))?;
                let held: Vec<usize> = (0..self.folds.len()).filter(|&i| self.folds[i] == fold).collect();
                let right = held.par_chunks(CHUNK).map(|held| {
                    let mut interpreter = Interpreter::new(program, &integers)?;
                    let each = held.iter().map(|&i| {
                        let logits = interpreter.run(self.input(i), Bias::NONE, &mut Nearest).ok();
                        logits.map(|l| argmax(l) == self.data.examples[i].label)
                    });
                    Ok(each.collect::<Vec<Option<bool>>>())
                });
                for (i, right) in held.iter().zip(right.collect::<Result<Vec<_>>>()?.concat()) {
                    hits[*i] = right == Some(true);
                    out_of_range[m] += usize::from(right.is_none());
                }
            }
        }
        let right = self.validated.iter().map(|&i| hits.iter().map(|of_model| of_model[i]).collect()).collect();
        Ok((right, out_of_range))
    }

    /// Accuracy of the copies of model `m` without rounding, on the validated examples.
    pub(crate) fn float_accuracy(&self, out_of_fold: &[Vec<Model>], m: usize) -> f64 {
        let mut hits = 0;
        for (fold, models) in out_of_fold.iter().enumerate() {
            let logits = predict(&mut models[m].clone(), &self.real_inputs(|f| f == fold), &Mode::FLOAT);
            let held = self.data.examples.iter().zip(&self.folds).filter(|(_, f)| **f == fold);
            let rows = logits.chunks_exact(self.classes());
            hits += rows.zip(held).filter(|(l, (e, _))| argmax(l) == e.label).count();
        }
        hits as f64 / self.validated.len() as f64
    }

    /// Per validated example: utilities and hit of the router that has not seen it (`folds` tells which),
    /// and the hits of models that have not.
    pub(crate) fn router_cases(
        &self,
        spec: &PoolSpec,
        routers: &[Router],
        folds: &[usize],
        right: Vec<Vec<bool>>,
        reference: &mut impl Reference,
    ) -> Result<Vec<Case>> {
        let program = Program::of(spec, Slot::Router)?;
        let mut interpreters =
            routers.iter().map(|r| Interpreter::new(program, &r.integers)).collect::<Result<Vec<_>>>()?;
        let cases = self.validated.iter().zip(folds).zip(right).map(|((&i, &fold), mut right)| {
            // A value out of range would be an arbitrary choice under the protocol: count it as wrong.
            let Ok(told) = interpreters[fold].run(self.input(i), Bias::NONE, reference) else {
                right[0] = false;
                return Ok(Case { utilities: vec![0; right.len()], lead: 0.0, right, in_range: false });
            };
            right[0] = argmax(&told[right.len()..]) == self.data.examples[i].label;
            let Estimates { utilities, lead, fits } = interpreters[fold].estimates()?;
            Ok(Case { utilities, lead: f64::from(lead) / routers[fold].logit, right, in_range: fits })
        });
        cases.collect()
    }

    /// Runs every program over the whole train split: an overflow is an error, the largest values
    /// are reported as `gate:seen/range`.
    pub(crate) fn check_ranges(&self, pool: &Pool) -> Result<Vec<(String, String)>> {
        let size = self.features.inputs();
        let named = pool.named()?;
        let programs = named.iter().zip(&pool.programs);
        let reports = programs.map(|((name, program), integers)| {
            let watches = self.inputs.par_chunks(CHUNK * size).map(|inputs| {
                let mut interpreter = Interpreter::new(*program, integers)?;
                let mut watch = Watch::default();
                for input in inputs.chunks_exact(size) {
                    interpreter.run(input, WIDEST, &mut watch).with_context(|| name.clone())?;
                }
                anyhow::Ok(watch)
            });
            let watch = watches.try_reduce(Watch::default, |a, b| Ok(a.merged(b)))?;
            Ok((name.clone(), Interpreter::new(*program, integers)?.ranges(&watch)))
        });
        reports.collect()
    }
}

/// The jobs' results in order. Threads take one job after the other, rather than halves of the list
/// as rayon would: jobs differ twentyfold.
pub(crate) fn in_parallel<Job: Sync, Done: Send + Sync>(jobs: &[Job], work: impl Fn(&Job) -> Done + Sync) -> Vec<Done> {
    let slots: Vec<OnceLock<Done>> = jobs.iter().map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    rayon::scope(|scope| {
        for _ in 0..rayon::current_num_threads() {
            scope.spawn(|_| {
                while let Some((job, slot)) = at(jobs, &slots, next.fetch_add(1, Ordering::Relaxed)) {
                    let _ = slot.set(work(job));
                }
            });
        }
    });
    slots.into_iter().filter_map(OnceLock::into_inner).collect()
}

fn at<'a, A, B>(a: &'a [A], b: &'a [B], i: usize) -> Option<(&'a A, &'a B)> {
    a.get(i).zip(b.get(i))
}
