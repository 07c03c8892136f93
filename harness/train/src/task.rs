//! What each task's pool is made of. Choices were made on out-of-fold figures of the train split.

use crate::bits::Bits;
use crate::data::Dataset;
use crate::feature::{Arrangement, Wobble, patches};
use crate::nn::model::{Shape, Style};
use crate::train::Recipe;
use anyhow::{Context, Result, bail, ensure};
use secure_router_core::spec::{MAX_COLUMNS, ModelSpec, NamedModel, Opening};
use secure_router_core::text;

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
    /// Variants of each validated example that the router learns from.
    pub(crate) variants: usize,
    /// The models, cheapest first.
    pub(crate) models: Vec<Recipe>,
    pub(crate) router: Recipe,
}

const fn opening(shift: u8, index_bits: u8) -> Opening {
    Opening { shift, index_bits }
}

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

/// Tokens, width, heads, columns of the feed-forward part, layers.
type Sizes = [usize; 5];

/// Sizes of a task's inputs and answers.
#[derive(Clone, Copy)]
struct Ends {
    inputs: usize,
    classes: usize,
    bits: Bits,
}

impl Ends {
    fn of(train: &Dataset, frames: usize) -> Self {
        Self { inputs: frames * train.channels, classes: train.classes.len(), bits: BITS }
    }

    /// For inputs that may be unlike any of the train split: other people, other devices.
    fn with_more_room(self) -> Self {
        Self { bits: Bits { index_room: 2.0, ..self.bits }, ..self }
    }

    fn shape(self, [tokens, width, heads, ffn, layers]: Sizes, outputs: usize) -> Shape {
        Shape { tokens, features: self.inputs / tokens, width, heads, ffn, layers, outputs }
    }

    fn model(self, name: &'static str, sizes: Sizes, epochs: usize, rate: f32) -> Recipe {
        let shape = self.shape(sizes, self.classes);
        Recipe { name, shape, bits: self.bits, style: Style::Gates, epochs, rate }
    }

    /// The cheapest model with an output more per model, so that a request that is sent to it is
    /// answered already.
    fn router(self, models: &[Recipe], epochs: usize) -> Recipe {
        let cheapest = &models[0];
        let shape = Shape { outputs: models.len() + self.classes, ..cheapest.shape };
        Recipe { name: "router", shape, epochs, rate: 0.003, ..cheapest.clone() }
    }
}

impl Task {
    /// The task that `train` is the train split of.
    pub(crate) fn of(train: &Dataset) -> Result<Self> {
        let task = match train.kind.as_str() {
            "speech" => Self::speech(train),
            "sensor" => Self::sensor(train),
            "image" => Self::image(train),
            "table" => Self::table(train)?,
            "text" => Self::text(train),
            kind => bail!("the train file is of an unknown kind `{kind}`"),
        };
        let frames = match task.arrangement {
            Arrangement::Series { .. } => None,
            Arrangement::Picture { side, .. } => Some(side * side),
            Arrangement::Text { .. } => None,
            Arrangement::Columns { .. } => Some(1),
        };
        let fits = |values: &[f32]| frames.is_none_or(|f| values.len() == f * train.channels);
        ensure!(train.examples.iter().all(|e| fits(&e.values)), "an example has the wrong length");
        ensure!(train.examples.len() >= 10 * train.classes.len(), "the train file holds too few examples");
        Ok(task)
    }

    fn speech(train: &Dataset) -> Self {
        const FRAMES: usize = 32;
        let ends = Ends::of(train, FRAMES);
        let wobble = Wobble { ends: 0.07, bend: 0.06, noise: (0.05, 0.3), offset: 0.12, gain: 0.06 };
        let models = vec![
            ends.model("micro", [1, 32, 0, 64, 1], 80, 0.004),
            ends.model("small", [16, 32, 2, 64, 1], 80, 0.004),
            ends.model("large", [16, 64, 4, 128, 3], 70, 0.003),
        ];
        Self {
            arrangement: Arrangement::Series { frames: FRAMES, wobble },
            mix: 0.4,
            folds: 5,
            copies: 5,
            variants: 12,
            router: ends.router(&models, 16),
            models,
        }
    }

    fn sensor(train: &Dataset) -> Self {
        const FRAMES: usize = 128;
        let ends = Ends::of(train, FRAMES).with_more_room();
        let wobble = Wobble { ends: 0.05, bend: 0.04, noise: (0.0, 0.15), offset: 0.1, gain: 0.08 };
        let models = vec![
            ends.model("micro", [16, 32, 0, 32, 1], 30, 0.005),
            ends.model("nano", [8, 16, 1, 16, 1], 30, 0.005),
            ends.model("small", [16, 32, 2, 64, 1], 25, 0.004),
            ends.model("large", [16, 64, 4, 128, 4], 18, 0.003),
        ];
        Self {
            arrangement: Arrangement::Series { frames: FRAMES, wobble },
            mix: 0.4,
            folds: 5,
            copies: 5,
            variants: 4,
            router: ends.router(&models, 16),
            models,
        }
    }

    fn image(train: &Dataset) -> Self {
        let side = crate::import::SIDE;
        let ends = Ends::of(train, side * side);
        let models = vec![
            ends.model("micro", [1, 32, 0, 64, 1], 12, 0.003),
            ends.model("nano", [4, 32, 1, 32, 1], 15, 0.004),
            ends.model("small", [16, 32, 2, 64, 1], 12, 0.003),
            ends.model("large", [16, 64, 4, 128, 4], 10, 0.002),
        ];
        Self {
            arrangement: Arrangement::Picture { side, order: patches(side) },
            mix: 0.2,
            folds: 6,
            copies: 1,
            variants: 4,
            router: ends.router(&models, 12),
            models,
        }
    }

    /// Texts as rows of words' codes. Attention loses here, since the teacher of mixed words knows no
    /// order: the models differ in how finely they read the codes.
    fn text(train: &Dataset) -> Self {
        /// Columns of a word's code: inputs then have as many values as most boards have room for.
        const COLUMNS: usize = 64;
        let mut ends = Ends::of(train, text::TOKENS * COLUMNS).with_more_room();
        ends.bits.input_frac = 0;
        let epochs = (500_000 / train.examples.len()).clamp(10, 200);
        let model = |name, ffn, rate| ends.model(name, [text::TOKENS, COLUMNS, 0, ffn, 1], epochs, rate);
        let models = vec![model("micro", 32, 0.005), model("small", 64, 0.004), model("large", 128, 0.004)];
        Self {
            arrangement: Arrangement::Text { columns: COLUMNS },
            mix: 0.0,
            folds: 5,
            copies: 3,
            variants: 8,
            router: ends.router(&models, 10),
            models,
        }
    }

    /// The user's own columns: tokens where their count allows it, or else no attention.
    fn table(train: &Dataset) -> Result<Self> {
        let columns = train.channels;
        let ends = Ends::of(train, 1).with_more_room();
        let tokens = (4..=16).rev().find(|t| columns.is_multiple_of(*t) && columns > *t).unwrap_or(1);
        ensure!(
            columns / tokens <= usize::from(MAX_COLUMNS),
            "{columns} columns cannot be cut into 4 to 16 equal parts; add constant columns until they can"
        );
        let fewer = if tokens.is_multiple_of(2) { tokens / 2 } else { tokens };
        let heads = |count: usize| if tokens == 1 { 0 } else { count };
        // Small data get more epochs, large data fewer.
        let epochs = |passes: usize| (passes / train.examples.len()).clamp(10, 200);
        let models = vec![
            ends.model("micro", [fewer, 16, 0, 16, 1], epochs(300_000), 0.005),
            ends.model("nano", [fewer, 16, heads(1), 16, 1], epochs(300_000), 0.005),
            ends.model("small", [tokens, 32, heads(2), 64, 1], epochs(250_000), 0.004),
            ends.model("large", [tokens, 64, heads(4), 128, 3], epochs(150_000), 0.003),
        ];
        Ok(Self {
            arrangement: Arrangement::Columns { count: columns },
            mix: 0.0,
            folds: 5,
            copies: 5,
            variants: 4,
            router: ends.router(&models, 16),
            models,
        })
    }

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

    /// How outputs are opened to be compared.
    pub(crate) fn compared(&self) -> Result<Opening> {
        Ok(self.spec()?.compared())
    }

    pub(crate) fn named(&self) -> Result<NamedModel> {
        let name = self.name.try_into().ok().context("name too long")?;
        Ok(NamedModel { name, spec: self.spec()? })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::data::Example;
    use crate::rng::Rng;

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
        for (kind, channels, rows) in [
            ("speech", 13, 9),
            ("sensor", 6, 128),
            ("image", 1, 784),
            ("text", 1, 50),
            ("table", 24, 1),
            ("table", 7, 1),
            ("table", 1, 1),
        ] {
            let train = toy(kind, channels, rows, 40);
            let task = Task::of(&train).unwrap();
            crate::run::assemble(&train, &task, Vec::new()).unwrap();
            let inputs = crate::feature::Features::of(&train, task.arrangement.clone()).inputs();
            assert!(task.models.iter().all(|m| m.shape.tokens * m.shape.features == inputs), "{kind}");
        }
        assert!(Task::of(&toy("table", 1031, 1, 40)).is_err());
        assert!(Task::of(&toy("image", 1, 783, 40)).is_err());
        assert!(Task::of(&toy("speech", 13, 9, 10)).is_err());
    }
}
