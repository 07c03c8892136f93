//! The training loop: augmented batches, soft targets, quantisation that comes in by stages.

use crate::bits::{Bits, calibrate};
use crate::data::Example;
use crate::feature::Features;
use crate::lexicon::Lexicon;
use crate::nn::loss::{cross_entropy, softmax, squares_gradient};
use crate::nn::model::{Model, Shape, Style};
use crate::nn::noise::Noise;
use crate::nn::optimiser::Optimiser;
use crate::nn::{Mode, Rounding};
use crate::rng::Rng;
use indicatif::ProgressBar;

/// Everything that decides how one model is trained, but its data.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    pub(crate) name: String,
    pub(crate) shape: Shape,
    pub(crate) bits: Bits,
    pub(crate) style: Style,
    pub(crate) epochs: usize,
    pub(crate) rate: f32,
}

const BATCH: usize = 64;
const DECAY: f32 = 0.03;
/// Part of the run before any wire is rounded.
const FLOAT_PART: f32 = 0.35;
/// Part of the run after which statistics and steps stand still, so that the last epochs train
/// exactly the function that is exported.
const MOVING_PART: f32 = 0.8;
const SMOOTHING: f32 = 0.05;
/// Part of the targets that a teacher gives.
const TAUGHT: f32 = 0.7;

/// One batch: inputs on the integer grid (as real values) and soft targets.
pub(crate) struct Batch {
    pub(crate) inputs: Vec<f32>,
    pub(crate) targets: Vec<f32>,
}

/// Where batches come from. Each call is one epoch, a function of `rng` alone.
pub(crate) trait Source: Sync {
    fn epoch(&self, rng: &mut Rng) -> Vec<Batch>;
    /// Gradient of the loss for logits of a batch.
    fn gradient(&self, logits: &[f32], targets: &[f32]) -> Vec<f32>;
}

/// Trains a model; bit-identical for the same generator and source.
pub(crate) fn train(recipe: &Recipe, source: &dyn Source, mut rng: Rng, bar: &ProgressBar) -> Model {
    let mut model = Model::new(recipe.shape, recipe.style, &mut rng);
    let mut noise = Rng::new(rng.next_u64(), "rounding");
    let mut step = 0;
    let mut optimiser = None;
    for epoch in 0..recipe.epochs {
        let part = epoch as f32 / recipe.epochs as f32;
        let moving = part < MOVING_PART;
        let rounding = if part < FLOAT_PART || recipe.style == Style::Usual {
            Rounding::Off
        } else {
            Rounding::Stochastic(Noise::new(Rng::new(noise.next_u64(), "epoch")))
        };
        let mut mode = Mode { batch_statistics: moving, observe: true, rounding };
        if moving {
            forget_ranges(&mut model);
        }
        let batches = source.epoch(&mut rng);
        let optimiser = *optimiser.get_or_insert(Optimiser {
            rate: recipe.rate,
            decay: DECAY,
            steps: recipe.epochs * batches.len(),
        });
        for batch in &batches {
            let logits = model.forward(&batch.inputs, &mut mode);
            model.backward(&source.gradient(&logits, &batch.targets));
            optimiser.step(&mut model, step);
            step += 1;
        }
        if moving {
            calibrate(&mut model, &recipe.bits);
        }
        bar.inc(1);
    }
    if recipe.style == Style::Gates {
        settle_ranges(&mut model, recipe, source, &mut rng);
    }
    model
}

/// Takes the steps to export from the finished model: every example in several variants.
fn settle_ranges(model: &mut Model, recipe: &Recipe, source: &dyn Source, rng: &mut Rng) {
    const EPOCHS: usize = 3;
    forget_ranges(model);
    let mut mode = Mode { observe: true, ..Mode::NEAREST };
    for batch in (0..EPOCHS).flat_map(|_| source.epoch(rng)) {
        model.forward(&batch.inputs, &mut mode);
    }
    calibrate(model, &recipe.bits);
}

fn forget_ranges(model: &mut Model) {
    for block in &mut model.blocks {
        if let Some(sub) = &mut block.attention {
            let a = &mut sub.inner;
            for q in [&mut a.query, &mut a.key, &mut a.value, &mut a.score, &mut a.output] {
                q.seen = 0.0;
            }
        }
        if let Some(sub) = &mut block.feed_forward {
            sub.inner.index.seen = 0.0;
            sub.inner.output.seen = 0.0;
        }
    }
}

/// Logits of many inputs, in batches that bound the memory.
pub(crate) fn predict(model: &mut Model, inputs: &[f32], mode: &Mode) -> Vec<f32> {
    let size = model.shape.inputs();
    inputs.chunks(256 * size).flat_map(|i| model.forward(i, &mut mode.clone())).collect()
}

/// Labelled examples for a classifier, augmented anew each epoch.
pub(crate) struct Labelled<'a> {
    pub(crate) examples: Vec<&'a Example>,
    pub(crate) features: &'a Features,
    pub(crate) classes: usize,
    pub(crate) mix: f32,
    /// A larger model, trained on the same examples.
    pub(crate) teacher: Option<&'a Model>,
    /// Teaches all models of texts instead.
    pub(crate) lexicon: Option<Lexicon>,
}

impl Labelled<'_> {
    /// Mixtures of the words of two texts, and what the lexicon thinks of them.
    fn texts(&self, lexicon: &Lexicon, chosen: &[usize], rng: &mut Rng) -> Batch {
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        for &i in chosen {
            let other = self.examples[rng.below(self.examples.len())];
            let mixture = self.features.mixed_text(self.examples[i], other, rng);
            inputs.extend(self.features.on_grid(&mixture));
            targets.extend(lexicon.probabilities(&mixture.values));
        }
        Batch { inputs, targets }
    }

    fn batch(&self, chosen: &[usize], teacher: Option<&mut Model>, rng: &mut Rng) -> Batch {
        if let Some(lexicon) = &self.lexicon {
            return self.texts(lexicon, chosen, rng);
        }
        let classes = self.classes;
        let mut inputs = Vec::with_capacity(chosen.len() * self.features.inputs());
        let mut targets = vec![SMOOTHING / classes as f32; chosen.len() * classes];
        for (row, &i) in chosen.iter().enumerate() {
            let one = self.examples[i];
            let mut share = 0.0;
            let mut label = one.label;
            if rng.unit() < self.mix {
                // Mix in a little of another example.
                let other = self.examples[rng.below(self.examples.len())];
                share = rng.between(0.0, 0.35);
                inputs.extend(self.features.mixed_on_grid(one, other, share, rng));
                label = other.label;
            } else {
                inputs.extend(self.features.variant_on_grid(one, rng));
            }
            targets[row * classes + one.label] += (1.0 - SMOOTHING) * (1.0 - share);
            targets[row * classes + label] += (1.0 - SMOOTHING) * share;
        }
        if let Some(teacher) = teacher {
            let taught = softmax(&teacher.forward(&inputs, &mut Mode::FLOAT.clone()), classes);
            targets.iter_mut().zip(taught).for_each(|(t, taught)| *t += TAUGHT * (taught - *t));
        }
        Batch { inputs, targets }
    }
}

impl Source for Labelled<'_> {
    fn epoch(&self, rng: &mut Rng) -> Vec<Batch> {
        let mut order: Vec<usize> = (0..self.examples.len()).collect();
        rng.shuffle(&mut order);
        let mut teacher = self.teacher.cloned();
        order.chunks_exact(BATCH.min(order.len())).map(|chosen| self.batch(chosen, teacher.as_mut(), rng)).collect()
    }

    fn gradient(&self, logits: &[f32], targets: &[f32]) -> Vec<f32> {
        cross_entropy(logits, targets, self.classes).1
    }
}

/// Mixes the `label` into what a teacher says of one example.
pub(crate) fn taught(targets: &mut [f32], label: usize) {
    let smooth = SMOOTHING / targets.len() as f32;
    for (class, target) in targets.iter_mut().enumerate() {
        let own = smooth + if class == label { 1.0 - SMOOTHING } else { 0.0 };
        *target = TAUGHT * *target + (1.0 - TAUGHT) * own;
    }
}

/// The range of an accumulator over the largest logit on the train split: differences, which have the same bits, may
/// be twice as large, and logits of unknown inputs larger.
const OUTPUT_ROOM: f64 = 4.0;

/// What a logit of 1 is worth in units of an accumulator that must hold `largest` with head-room.
pub(crate) fn logit_scale(bits: &Bits, largest: f32) -> f64 {
    f64::from(1u32 << (bits.output - 1)) / OUTPUT_ROOM / f64::from(largest)
}

/// Fixed inputs for the router, each with a yes-or-no target per model and one distribution over the
/// classes.
pub(crate) struct Judged {
    pub(crate) inputs: Vec<f32>,
    pub(crate) targets: Vec<f32>,
    pub(crate) models: usize,
    pub(crate) classes: usize,
}

impl Judged {
    pub(crate) const fn outputs(&self) -> usize {
        self.models + self.classes
    }
}

impl Source for Judged {
    fn epoch(&self, rng: &mut Rng) -> Vec<Batch> {
        let count = self.targets.len() / self.outputs();
        let size = self.inputs.len() / count.max(1);
        let mut order: Vec<usize> = (0..count).collect();
        rng.shuffle(&mut order);
        order
            .chunks_exact(BATCH.min(order.len()))
            .map(|chosen| {
                let rows = |data: &[f32], width: usize| {
                    chosen.iter().flat_map(|&i| &data[i * width..][..width]).copied().collect()
                };
                Batch { inputs: rows(&self.inputs, size), targets: rows(&self.targets, self.outputs()) }
            })
            .collect()
    }

    fn gradient(&self, logits: &[f32], targets: &[f32]) -> Vec<f32> {
        let rows = |values: &[f32], from: usize, to: usize| -> Vec<f32> {
            values.chunks_exact(self.outputs()).flat_map(|row| &row[from..to]).copied().collect()
        };
        let (models, outputs) = (self.models, self.outputs());
        let part = |from, to| (rows(logits, from, to), rows(targets, from, to));
        let (logits, targets) = part(0, models);
        let utilities = squares_gradient(&logits, &targets, models);
        let (logits, targets) = part(models, outputs);
        let (_, classes) = cross_entropy(&logits, &targets, self.classes);
        let joined = utilities.chunks_exact(models).zip(classes.chunks_exact(self.classes));
        joined.flat_map(|(utilities, classes)| utilities.iter().chain(classes)).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Task;
    use crate::task::tests::toy;

    #[test]
    fn the_same_seed_gives_the_same_model() {
        let data = toy("speech", 13, 5, 80);
        let task = Task::of(&data, None).unwrap();
        let features = Features::of(&data, task.arrangement);
        let recipe = Recipe { epochs: 5, ..task.models[0].clone() };
        let weights = |label: &str| -> Vec<u32> {
            let examples = data.examples.iter().collect();
            let source = Labelled { examples, features: &features, classes: 2, mix: 0.4, teacher: None, lexicon: None };
            let mut model = train(&recipe, &source, Rng::new(1, label), &ProgressBar::hidden());
            model.params().flat_map(|p| &p.value).map(|v| v.to_bits()).collect()
        };
        assert_eq!(weights("a"), weights("a"));
        assert_ne!(weights("a"), weights("b"));
    }
}
