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
use secure_router_core::model::UTILITY_MAX;

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
