//! What each task's pool is made of. Choices were made on out-of-fold figures of the train split.

use crate::bits::Bits;
use crate::data::Dataset;
use crate::feature::{Arrangement, Wobble, patches};
use crate::motion::Wear;
use crate::nn::model::{Shape, Style};
use crate::search::Space;
use crate::train::Recipe;
use anyhow::{Context, Result, bail, ensure};
use secure_router_core::motion;
use secure_router_core::spec::{MAX_COLUMNS, ModelSpec, NamedModel, Opening, Words};
use serde::{Deserialize, Serialize};

/// Everything that decides a run, but its data and its seed.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) arrangement: Arrangement,
    /// Part of the training examples that a little of another example is mixed into.
    pub(crate) mix: f32,
    /// The train split is cut into this many folds.
    pub(crate) folds: usize,
    /// Of these, so many are validated on, each with copies of the models that have not seen it.
    pub(crate) copies: usize,
    /// Variants of each validated example that the router learns from, and of each other one.
    pub(crate) variants: [usize; 2],
    /// The models, cheapest first.
    pub(crate) choices: Vec<Choice>,
    pub(crate) models: Vec<Recipe>,
    pub(crate) router: Recipe,
    /// What a search may vary.
    pub(crate) space: Space,
    ends: Ends,
    schedule: Schedule,
}

const fn opening(shift: u8, index_bits: u8) -> Opening {
    Opening { shift, index_bits }
}

/// Words of a text that count: 94 of 100 snippets have no more. The dealer's stock for each inference holds all of the vocabulary for
/// each of them.
const WORDS: Words = Words { count: 32, bits: 14 };

/// Every opening and the output need at most 16 bits of a wire: the wires of the stream are sent
/// with the widest need of any reader, so one wide gate would make all of them wide.
const BITS: Bits = Bits {
    input_frac: 4,
    qkv: opening(6, 10),
    score: opening(6, 8),
    mix: opening(6, 10),
    ffn_in: opening(8, 8),
    output: 16,
    index_room: 1.5,
};

/// How finely a model's wires are rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Precision {
    /// 14-bit wires.
    Coarse,
    /// 16-bit wires, activation tables of 8 bits.
    #[default]
    Usual,
    /// 16-bit wires, activation tables of 12 bits: a sixteenth of their rounding noise for sixteen times their stock.
    Fine,
}

impl Precision {
    const fn bits(self) -> Bits {
        match self {
            Self::Usual => BITS,
            Self::Fine => Bits { ffn_in: opening(4, 12), ..BITS },
            Self::Coarse => Bits {
                qkv: opening(5, 9),
                score: opening(5, 8),
                mix: opening(5, 9),
                ffn_in: opening(6, 8),
                output: 14,
                ..BITS
            },
        }
    }
}

/// Tokens, width, heads, columns of the feed-forward part, layers.
pub(crate) type Sizes = [usize; 5];

/// One model as it is chosen, by hand or by a search.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Choice {
    pub(crate) name: String,
    pub(crate) sizes: Sizes,
    /// Columns of the embedding, where inputs are words.
    #[serde(default)]
    pub(crate) columns: usize,
    #[serde(default)]
    pub(crate) precision: Precision,
}

fn usual(name: &str, sizes: Sizes) -> Choice {
    Choice { name: name.to_owned(), sizes, columns: 0, precision: Precision::Usual }
}

fn fine(name: &str, sizes: Sizes) -> Choice {
    Choice { precision: Precision::Fine, ..usual(name, sizes) }
}

/// Sizes of a task's inputs and answers, and the room of its indices.
#[derive(Clone, Copy, Debug)]
struct Ends {
    /// Values, unless inputs are words.
    inputs: usize,
    words: Option<Words>,
    classes: usize,
    input_frac: u8,
    index_room: f32,
}

/// Epochs and learning rate of models whose layers have up to `LARGE` weights, and of others; epochs of the router.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    small: (usize, f32),
    large: (usize, f32),
    router: usize,
}

const LARGE: usize = 20_000;

/// All of a task but what follows from it.
struct Plan {
    arrangement: Arrangement,
    mix: f32,
    folds: usize,
    copies: usize,
    variants: [usize; 2],
    models: Vec<Choice>,
    space: Space,
    ends: Ends,
    schedule: Schedule,
}

impl Ends {
    fn of(train: &Dataset, frames: usize) -> Self {
        let Bits { input_frac, index_room, .. } = BITS;
        Self { inputs: frames * train.channels, words: None, classes: train.classes.len(), input_frac, index_room }
    }

    /// For inputs that may be unlike any of the train split: other people, other devices.
    const fn with_more_room(self) -> Self {
        Self { index_room: 2.0, ..self }
    }

    fn recipe(self, choice: &Choice, schedule: Schedule) -> Recipe {
        let [tokens, width, heads, ffn, layers] = choice.sizes;
        let features = if self.words.is_some() { choice.columns } else { self.inputs / tokens };
        let shape = Shape { words: self.words, tokens, features, width, heads, ffn, layers, outputs: self.classes };
        let attention = if heads > 0 { 4 * width * width } else { 0 };
        let (epochs, rate) =
            if layers * (attention + 2 * width * ffn) > LARGE { schedule.large } else { schedule.small };
        let bits = Bits { input_frac: self.input_frac, index_room: self.index_room, ..choice.precision.bits() };
        Recipe { name: choice.name.clone(), shape, bits, style: Style::Gates, epochs, rate }
    }
}

/// The cheapest model with an output more per model, so that a request that is sent to it is
/// answered already.
fn router(models: &[Recipe], epochs: usize) -> Recipe {
    let cheapest = &models[0];
    let shape = Shape { outputs: models.len() + cheapest.shape.outputs, ..cheapest.shape };
    Recipe { name: "router".to_owned(), shape, epochs, rate: 0.003, ..cheapest.clone() }
}

impl Task {
    /// The task that `train` is the train split of, with its own models or those that were `chosen`.
    pub(crate) fn of(train: &Dataset, chosen: Option<&[Choice]>) -> Result<Self> {
        let plan = match train.kind.as_str() {
            "speech" => Plan::speech(train),
            "sensor" => Plan::sensor(train),
            "image" => Plan::image(train),
            "table" => Plan::table(train)?,
            "text" => Plan::text(train),
            kind => bail!("the train file is of an unknown kind `{kind}`"),
        };
        let frames = match plan.arrangement {
            Arrangement::Series { .. } => None,
            Arrangement::Motion(_) => Some(motion::FRAMES),
            Arrangement::Picture { side, .. } => Some(side * side),
            Arrangement::Text { .. } => None,
            Arrangement::Columns { .. } => Some(1),
        };
        let fits = |values: &[f32]| frames.is_none_or(|f| values.len() == f * train.channels);
        ensure!(train.examples.iter().all(|e| fits(&e.values)), "an example has the wrong length");
        let (have, least) = (train.examples.len(), 10 * train.classes.len());
        ensure!(
            have >= least,
            "{have} train examples are too few, at least {least} are needed; --quick keeps a fifth of them"
        );
        let choices = chosen.unwrap_or(&plan.models).to_vec();
        ensure!(choices.len() > 1, "a pool with a router needs at least two models");
        for (n, Choice { name, .. }) in choices.iter().enumerate() {
            let taken = name == "router" || choices[..n].iter().any(|earlier| earlier.name == *name);
            ensure!(!taken, "a model cannot be called `{name}`: another program of the pool is");
        }
        for Choice { name, sizes: [tokens, width, heads, ..], columns, .. } in &choices {
            let (inputs, parts) = match plan.ends.words {
                Some(words) => (words.count.into(), "words"),
                None => (plan.ends.inputs, "values"),
            };
            ensure!(
                *tokens > 0 && inputs.is_multiple_of(*tokens),
                "model `{name}`: inputs of {inputs} {parts} cannot be cut into {tokens} tokens"
            );
            ensure!(
                (*columns > 0) == plan.ends.words.is_some(),
                "model `{name}`: `columns` are those of an embedding of words"
            );
            ensure!(
                *width > 0 && (*heads == 0 || width.is_multiple_of(*heads)),
                "model `{name}`: heads must divide the width"
            );
        }
        Ok(plan.with(choices))
    }

    /// How a model of the space is trained.
    pub(crate) fn recipe(&self, choice: &Choice) -> Recipe {
        self.ends.recipe(choice, self.schedule)
    }
}

impl Plan {
    fn with(self, choices: Vec<Choice>) -> Task {
        let Self { arrangement, mix, folds, copies, variants, space, ends, schedule, .. } = self;
        let models: Vec<Recipe> = choices.iter().map(|c| ends.recipe(c, schedule)).collect();
        let router = router(&models, schedule.router);
        Task { arrangement, mix, folds, copies, variants, choices, models, router, space, ends, schedule }
    }

    fn speech(train: &Dataset) -> Self {
        const FRAMES: usize = 32;
        let wobble = Wobble { ends: 0.07, bend: 0.06, noise: (0.05, 0.3), offset: 0.12, gain: 0.06 };
        Self {
            arrangement: Arrangement::Series { frames: FRAMES, wobble },
            mix: 0.4,
            folds: 5,
            copies: 5,
            variants: [12, 2],
            models: vec![
                fine("micro", [1, 64, 0, 64, 1]),
                usual("small", [16, 32, 2, 64, 1]),
                usual("large", [16, 64, 4, 128, 3]),
            ],
            space: Space { tokens: vec![1, 4, 8, 16], most_layers: 3, columns: vec![0] },
            ends: Ends::of(train, FRAMES),
            schedule: Schedule { small: (80, 0.004), large: (70, 0.003), router: 16 },
        }
    }

    fn sensor(train: &Dataset) -> Self {
        // Few windows get more epochs; those of HAPT get 25 and 18.
        let epochs = |passes: usize| (passes / train.examples.len()).clamp(10, 200);
        Self {
            arrangement: Arrangement::Motion(Wear { turn: 0.25, gain: 0.12, noise: (0.0, 0.2) }),
            mix: 0.0,
            folds: 5,
            copies: 5,
            variants: [4, 2],
            models: vec![fine("micro", [1, 64, 0, 64, 1]), usual("large", [5, 96, 4, 192, 2])],
            space: Space { tokens: vec![1, motion::TOKENS], most_layers: 4, columns: vec![0] },
            ends: Ends { input_frac: motion::FRAC, inputs: motion::INPUT, ..Ends::of(train, 1) }.with_more_room(),
            schedule: Schedule { small: (epochs(186_000), 0.004), large: (epochs(134_000), 0.003), router: 16 },
        }
    }

    fn image(train: &Dataset) -> Self {
        let side = crate::import::SIDE;
        Self {
            arrangement: Arrangement::Picture { side, order: patches(side) },
            mix: 0.0,
            folds: 6,
            copies: 1,
            variants: [4, 2],
            models: vec![fine("micro", [1, 192, 0, 192, 1]), usual("large", [16, 64, 4, 128, 3])],
            space: Space { tokens: vec![1, 4, 16], most_layers: 4, columns: vec![0] },
            ends: Ends::of(train, side * side),
            schedule: Schedule { small: (16, 0.004), large: (30, 0.004), router: 12 },
        }
    }

    /// Texts as their first words. The teacher of mixed words knows no order.
    fn text(train: &Dataset) -> Self {
        let epochs = (500_000 / train.examples.len()).clamp(10, 200);
        let model = |name, columns, sizes| Choice { columns, ..fine(name, sizes) };
        Self {
            arrangement: Arrangement::Text { words: WORDS },
            mix: 0.0,
            folds: 6,
            copies: 1,
            variants: [24, 12],
            models: vec![model("micro", 4, [1, 32, 0, 16, 1]), model("large", 8, [16, 32, 2, 64, 1])],
            space: Space { tokens: vec![1, 16], most_layers: 2, columns: vec![4, 16] },
            ends: Ends { input_frac: 0, words: Some(WORDS), ..Ends::of(train, 1).with_more_room() },
            schedule: Schedule { small: (epochs, 0.004), large: (epochs, 0.004), router: 10 },
        }
    }

    /// The user's own columns: tokens where their count allows it, or else no attention.
    fn table(train: &Dataset) -> Result<Self> {
        let columns = train.channels;
        let tokens = (4..=16).rev().find(|t| columns.is_multiple_of(*t) && columns > *t).unwrap_or(1);
        ensure!(
            columns / tokens <= usize::from(MAX_COLUMNS),
            "{columns} columns cannot be cut into 4 to 16 equal parts; add constant columns until they can"
        );
        let heads = |count: usize| if tokens == 1 { 0 } else { count };
        // Small data get more epochs, large data fewer.
        let epochs = |passes: usize| (passes / train.examples.len()).clamp(10, 200);
        let mut cuts = vec![1, tokens];
        cuts.retain(|t| columns / t <= usize::from(MAX_COLUMNS));
        cuts.dedup();
        Ok(Self {
            arrangement: Arrangement::Columns { count: columns },
            mix: 0.0,
            folds: 5,
            copies: 5,
            variants: [4, 2],
            models: vec![
                fine("micro", [cuts[0], 64, 0, 32, 1]),
                usual("small", [tokens, 32, heads(2), 64, 1]),
                usual("large", [tokens, 64, heads(4), 128, 3]),
            ],
            space: Space { tokens: cuts, most_layers: 3, columns: vec![0] },
            ends: Ends::of(train, 1).with_more_room(),
            schedule: Schedule { small: (epochs(250_000), 0.004), large: (epochs(150_000), 0.003), router: 16 },
        })
    }
}

impl Task {
    /// A smoke test: of little accuracy, in seconds.
    pub(crate) fn quick(mut self) -> Self {
        self.models.iter_mut().chain([&mut self.router]).for_each(|r| r.epochs = (r.epochs / 20).max(3));
        (self.folds, self.copies) = (2, self.copies.min(2));
        self
    }
}

impl Recipe {
    /// The public shape. Of the widths only that of queries, keys and values is visible.
    pub(crate) fn spec(&self) -> Result<ModelSpec> {
        let Shape { tokens, features, width, heads, ffn, layers, .. } = self.shape;
        Ok(ModelSpec {
            tokens: tokens.try_into()?,
            features: features.try_into()?,
            width: width.try_into()?,
            heads: heads.try_into()?,
            ffn: ffn.try_into()?,
            layers: layers.try_into()?,
            qkv: self.bits.qkv,
            score: self.bits.score,
            mix: self.bits.mix,
            ffn_in: self.bits.ffn_in,
            output_bits: self.bits.output,
        })
    }

    pub(crate) fn named(&self) -> Result<NamedModel> {
        let name = self.name.as_str().try_into().ok().context("name too long")?;
        Ok(NamedModel { name, spec: self.spec()? })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::data::Example;
    use crate::rng::Rng;

    /// Every kind of task, with channels and rows of an example.
    pub(crate) const KINDS: [(&str, usize, usize); 7] = [
        ("speech", 13, 9),
        ("sensor", 6, 128),
        ("image", 1, 784),
        ("text", 1, 50),
        ("table", 24, 1),
        ("table", 7, 1),
        ("table", 1, 1),
    ];

    /// Examples of two classes that a line parts, of the given kind of task.
    pub(crate) fn toy(kind: &str, channels: usize, rows: usize, count: usize) -> Dataset {
        let mut rng = Rng::new(1, "toy");
        let example = |i: usize| Example {
            values: (0..channels * rows).map(|_| rng.normal() + if i.is_multiple_of(2) { 0.7 } else { -0.7 }).collect(),
            label: i % 2,
            group: i as u32,
        };
        Dataset {
            kind: kind.to_owned(),
            name: "toy".to_owned(),
            channels,
            classes: vec!["a".to_owned(), "b".to_owned()],
            source: "none".to_owned(),
            examples: (0..count).map(example).collect(),
        }
    }

    #[test]
    fn every_task_has_a_valid_pool() {
        for (kind, channels, rows) in KINDS {
            let train = toy(kind, channels, rows, 40);
            let task = Task::of(&train, None).unwrap();
            crate::run::assemble(&train, &task, Vec::new()).unwrap();
            let inputs = crate::feature::Features::of(&train, task.arrangement.clone()).inputs();
            assert!(task.models.iter().all(|m| m.shape.inputs() == inputs), "{kind}");
        }
        assert!(Task::of(&toy("table", 1031, 1, 40), None).is_err());
        assert!(Task::of(&toy("image", 1, 783, 40), None).is_err());
        assert!(Task::of(&toy("speech", 13, 9, 10), None).is_err());
    }
}
