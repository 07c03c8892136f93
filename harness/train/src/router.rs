//! The router: how likely is each model to be right on this input? Models know their own training data
//! by heart, so the router learns from models that have not seen the example (out of fold), on several
//! variants of each. It is the cheapest model as well: one trunk learns the utilities and the classes.

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

/// Validated examples with, for every model, how right an out-of-fold copy of it is.
pub(crate) struct Judgements {
    inputs: Vec<Vec<f32>>,
    /// Per example and variant: one value in [0, 1] per model, and one per class.
    targets: Vec<Vec<f32>>,
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
            let mut targets = vec![0.0; variants * (models + classes)];
            for (m, model) in out_of_fold[run.folds[i]].iter().enumerate() {
                let logits = predict(&mut model.clone(), &inputs, &Mode::NEAREST);
                let variants = softmax(&logits, classes);
                for (p, targets) in variants.chunks_exact(classes).zip(targets.chunks_exact_mut(models + classes)) {
                    // Half hit or miss, half confidence: the latter tells a narrow hit from a clear one.
                    let hit = if argmax(p) == example.label { 1.0 } else { 0.0 };
                    targets[m] = 0.5 * (hit + p[example.label]);
                    // The largest model comes last: it teaches the classes.
                    targets[models..].copy_from_slice(p);
                }
            }
            for targets in targets.chunks_exact_mut(models + classes) {
                taught(&mut targets[models..], example.label);
            }
            (inputs, targets)
        };
        let judged: Vec<(Vec<f32>, Vec<f32>)> = run.validated.par_iter().map(judge).collect();
        let (inputs, targets) = judged.into_iter().unzip();
        let examples = run.validated.iter().map(|&i| &run.data.examples[i]);
        Self { inputs, targets, folds: folds(examples, fold_count, run.seed), models, classes }
    }

    /// What a router is trained on; without one fold if `held_out` is given.
    fn source(&self, held_out: Option<usize>) -> Judged {
        let used = |of: &[Vec<f32>]| -> Vec<f32> {
            let each = of.iter().zip(&self.folds).filter(|(_, fold)| held_out != Some(**fold));
            each.flat_map(|(values, _)| values).copied().collect()
        };
        Judged { inputs: used(&self.inputs), targets: used(&self.targets), models: self.models, classes: self.classes }
    }
}

/// Head-room of the index of a utility. It costs little: most of the range is where the sigmoid is flat.
const UTILITY_ROOM: f32 = 2.5;

/// A trained router with its integers, and those of the model that it answers for.
pub(crate) struct Router {
    pub(crate) size: usize,
    pub(crate) integers: Integers,
    pub(crate) answering: Integers,
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
    let outputs = predict(&mut model, &source.inputs, &Mode::NEAREST);
    let (models, utility) = (judgements.models, recipe.compared()?);
    let largest = |from: usize, to: usize| {
        let rows = outputs.chunks_exact(source.outputs());
        rows.flat_map(|row| &row[from..to]).fold(0f32, |max, o| max.max(o.abs()))
    };
    let half = (1u32 << (utility.index_bits - 1)) as f32;
    let step = largest(0, models) * UTILITY_ROOM / half;
    let utility_scale = f64::from(1u32 << utility.shift) / f64::from(step);
    let logit_scale = logit_scale(&recipe.bits, largest(models, source.outputs()));
    let scale = |output: usize| if output < models { utility_scale } else { logit_scale };
    let mut integers = integers(&model, &recipe.bits, scale, "router")?;
    integers.tables.extend(table(utility.index_bits, |v| UTILITY_MAX as f32 * sigmoid(v * step), "router")?);
    let size = model.size();
    model.drop_outputs(models);
    let answering = crate::integer::integers(&model, &recipe.bits, |_| logit_scale, "router")?;
    Ok(Router { size, integers, answering })
}
