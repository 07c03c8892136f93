//! A trained model as the integers that the parties compute with.

use crate::bits::Bits;
use crate::feature::step;
use crate::nn::function::{gelu, sigmoid};
use crate::nn::linear::Linear;
use crate::nn::model::Model;
use crate::nn::norm::Norm;
use anyhow::{Result, bail, ensure};

/// Weights, biases and tables in gate order; a linear gate's weights lie term by term.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Integers {
    pub(crate) weights: Vec<i16>,
    pub(crate) biases: Vec<i32>,
    pub(crate) tables: Vec<i16>,
}

/// One wire of the concatenation that every linear gate reads: what one unit of it is worth and
/// how it enters the stream (width x columns).
struct Term {
    step: f64,
    columns: usize,
    into_stream: Vec<f64>,
}

/// The stream as an affine function of the wires so far. It is never rounded: products of trained
/// matrices are multiplied out here, and each product is rounded once.
struct Composer<'a> {
    model: &'a Model,
    terms: Vec<Term>,
    integers: Integers,
    name: &'a str,
}

/// The integers of `model`. `output_scale` is how many units of the last accumulators a 1 of each
/// output is worth.
pub(crate) fn integers(
    model: &Model,
    bits: &Bits,
    output_scale: impl Fn(usize) -> f64,
    name: &str,
) -> Result<Integers> {
    let mut composer = Composer { model, terms: Vec::new(), integers: Integers::default(), name };
    let step = composer.input_step(bits)?;
    composer.add_term(step, &model.embed);
    for block in &model.blocks {
        if let Some(sub) = &block.attention {
            let inner = &sub.inner;
            let width = model.shape.width;
            let power = f64::from(1u32 << bits.qkv.shift);
            let scale = |o: usize| {
                let step = [&inner.query, &inner.key, &inner.value][o / width].step;
                power / f64::from(step)
            };
            composer.linear(&sub.norm, &inner.qkv, scale, false)?;
            let bias = inner.score_bias.value[0];
            composer.table(bits.score.index_bits, |v| sigmoid(v * inner.score.step + bias) / inner.weight.step)?;
            composer.add_term(inner.output.step, &sub.back);
        }
        if let Some(sub) = &block.feed_forward {
            let inner = &sub.inner;
            let scale = f64::from(1u32 << bits.ffn_in.shift) / f64::from(inner.index.step);
            composer.linear(&sub.norm, &inner.inner, |_| scale, false)?;
            composer.table(bits.ffn_in.index_bits, |v| gelu(v * inner.index.step) / inner.output.step)?;
            composer.add_term(inner.output.step, &sub.back);
        }
    }
    composer.linear(&model.norm, &model.head, output_scale, true)?;
    Ok(composer.integers)
}

/// Largest weight of an embedding.
const LARGEST_OF_WORDS: f32 = 127.0;

impl Composer<'_> {
    /// What one unit of the first wire is worth: of values by their format; of words as the embedding is rounded, whose weights
    /// are the first of all.
    fn input_step(&mut self, bits: &Bits) -> Result<f32> {
        let Some(words) = &self.model.words else { return Ok(step(bits.input_frac)) };
        let largest = words.weight.value.iter().fold(f32::MIN_POSITIVE, |max, w| max.max(w.abs()));
        let step = largest / LARGEST_OF_WORDS;
        for w in &words.weight.value {
            self.integers.weights.push(narrow(f64::from(w / step), self.name, "weight of a word")?);
        }
        Ok(step)
    }

    fn add_term(&mut self, step: f32, back: &Linear) {
        let into_stream = back.weight.value.iter().map(|&w| f64::from(w)).collect();
        self.terms.push(Term { step: f64::from(step), columns: back.inputs, into_stream });
    }

    /// Folds `norm` into `linear` and composes both with the stream. A pooled gate reads the sum
    /// over tokens where the model takes the mean.
    fn linear(&mut self, norm: &Norm, linear: &Linear, scale: impl Fn(usize) -> f64, pooled: bool) -> Result<()> {
        let (tokens, width) = (self.model.shape.tokens, self.model.shape.width);
        let Norm::Batch(norm) = norm else {
            bail!("{}: a layer norm cannot be folded", self.name);
        };
        let inverse = norm.remembered_scale();
        let folded: Vec<f64> = linear
            .weight
            .value
            .chunks_exact(width)
            .enumerate()
            .flat_map(|(o, row)| {
                let scale = scale(o);
                row.iter().zip(&inverse).map(move |(&w, &i)| f64::from(w) * f64::from(i) * scale)
            })
            .collect();
        let share = if pooled { 1.0 / tokens as f64 } else { 1.0 };
        for term in &self.terms {
            for row in folded.chunks_exact(width) {
                let mut composed = vec![0.0; term.columns];
                for (&f, stream) in row.iter().zip(term.into_stream.chunks_exact(term.columns)) {
                    for (c, s) in composed.iter_mut().zip(stream) {
                        *c += f * s;
                    }
                }
                for c in composed {
                    self.integers.weights.push(narrow(c * term.step * share, self.name, "weight")?);
                }
            }
        }
        let position = &self.model.position.value;
        let mut starts: Vec<Vec<f64>> = position
            .chunks_exact(width)
            .map(|row| row.iter().zip(&norm.mean).map(|(&p, &m)| f64::from(p) - f64::from(m)).collect())
            .collect();
        if pooled {
            let mean = (0..width).map(|c| starts.iter().map(|row| row[c]).sum::<f64>() * share);
            starts = vec![mean.collect()];
        }
        for start in starts {
            for (o, row) in folded.chunks_exact(width).enumerate() {
                let own = linear.bias.as_ref().map_or(0.0, |b| f64::from(b.value[o]) * scale(o));
                let sum: f64 = own + row.iter().zip(&start).map(|(f, s)| f * s).sum::<f64>();
                let bias = sum.round();
                ensure!(bias.abs() < f64::from(i32::MAX), "{}: a bias leaves 32 bits", self.name);
                self.integers.biases.push(bias as i32);
            }
        }
        Ok(())
    }

    fn table(&mut self, index_bits: u8, f: impl Fn(f32) -> f32) -> Result<()> {
        self.integers.tables.extend(table(index_bits, f, self.name)?);
        Ok(())
    }
}

/// Entries for all signed indices; that of `v` stands at `v mod 2^index_bits`.
pub(crate) fn table(index_bits: u8, f: impl Fn(f32) -> f32, name: &str) -> Result<Vec<i16>> {
    let half = 1i32 << (index_bits - 1);
    (0..half).chain(-half..0).map(|v| narrow(f64::from(f(v as f32)), name, "table entry")).collect()
}

fn narrow(value: f64, name: &str, what: &str) -> Result<i16> {
    let rounded = value.round();
    ensure!(
        (f64::from(i16::MIN)..=f64::from(i16::MAX)).contains(&rounded),
        "{name}: a {what} of {rounded} leaves 16 bits; use a smaller shift"
    );
    Ok(rounded as i16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Mode, Rounding};
    use crate::reference::Interpreter;
    use crate::rng::Rng;
    use crate::task::Task;
    use crate::task::tests::toy;
    use secure_router_core::circuit::Program;
    use secure_router_core::clear::Nearest;
    use secure_router_core::routing::Bias;
    use secure_router_core::spec::Output;

    /// A model of random weights whose statistics and ranges were taken from its inputs.
    fn random_model(recipe: &crate::train::Recipe, inputs: &[f32]) -> Model {
        let mut rng = Rng::new(4, "export");
        let mut model = Model::new(recipe.shape, recipe.style, &mut rng);
        let mut mode = Mode { batch_statistics: true, observe: false, rounding: Rounding::Off };
        for _ in 0..200 {
            model.forward(inputs, &mut mode);
        }
        mode = Mode { observe: true, ..Mode::FLOAT };
        model.forward(inputs, &mut mode);
        crate::bits::calibrate(&mut model, &recipe.bits);
        model
    }

    #[test]
    fn exported_integers_compute_what_was_trained() {
        let mut rng = Rng::new(9, "inputs");
        // Each input has a level of its own per coefficient, so that the means over tokens differ.
        let integer: Vec<[i16; 32 * 13]> = (0..64)
            .map(|_| {
                let levels = [(); 13].map(|()| 16.0 * rng.normal());
                std::array::from_fn(|i| (levels[i % 13] + 6.0 * rng.normal()) as i8 as i16)
            })
            .collect();
        let real: Vec<f32> = integer.as_flattened().iter().map(|&v| f32::from(v) * step(4)).collect();
        for mut recipe in Task::of(&toy("speech", 13, 32, 40), None).unwrap().models {
            // Fine weights: this test is about composing; what coarse ones cost is measured on data.
            recipe.bits.qkv.shift = 10;
            recipe.bits.ffn_in.shift = 12;
            recipe.bits.output = 28;
            let mut model = random_model(&recipe, &real);
            let logits = model.forward(&real, &mut Mode::NEAREST.clone());
            let largest = logits.iter().fold(0f32, |max, l| max.max(l.abs()));
            let scale = 262_144.0 / f64::from(largest);
            let integers = integers(&model, &recipe.bits, |_| scale, &recipe.name).unwrap();
            let program = Program::Model {
                spec: recipe.spec().unwrap(),
                words: None,
                classes: recipe.shape.outputs as u16,
                output: Output::Logits,
            };
            let mut interpreter = Interpreter::new(program, &integers).unwrap();
            let (mut error, mut size) = (0.0, 0.0);
            for (input, logits) in integer.iter().zip(logits.chunks_exact(recipe.shape.outputs)) {
                let found = interpreter.run(input, Bias::NONE, &mut Nearest).unwrap();
                for (found, &logit) in found.iter().zip(logits) {
                    error += (*found as f64 / scale - f64::from(logit)).powi(2);
                    size += f64::from(logit).powi(2);
                }
            }
            // Rounded weights, and roundings that fall the other way because of them.
            let relative = (error / size).sqrt();
            assert!(relative < 0.06, "{}: {relative}", &recipe.name);
        }
    }

    #[test]
    fn a_table_starts_at_zero_and_ends_at_minus_one() {
        let entries = table(3, |v| 2.0 * v, "test").unwrap();
        assert_eq!(entries, [0, 2, 4, 6, -8, -6, -4, -2]);
        assert!(table(8, |v| 1000.0 * v, "test").is_err());
    }
}
