//! Inputs for a pool: test files, and what somebody asks about.

use std::path::Path;

use anyhow::{Context, Result, bail};
use safetensors::{Dtype, SafeTensors};
use secure_router_core::spec::PoolSpec;
use secure_router_core::{motion, text};

use crate::pool::{shorts, tensor};

/// Labelled inputs, in the steps that the pool takes.
pub struct Examples {
    /// Inputs.
    pub inputs: Vec<Vec<i16>>,
    /// Labels.
    pub labels: Vec<usize>,
}

impl Examples {
    /// Reads a file of `inputs` (I8 or, of words, I16, one row each) and `labels` (U8).
    ///
    /// # Errors
    /// Says what the file lacks, or that its rows are not the pool's inputs.
    pub fn load(path: &Path, input_len: u16) -> Result<Self> {
        Self::read(path, Some(input_len))
    }

    /// Texts without labels, as inputs of a pool that takes words.
    ///
    /// # Errors
    /// Says that the pool takes no text, or which text has no word (by its place, since it is private).
    pub fn of_texts(texts: &[String], pool: &PoolSpec) -> Result<Self> {
        let Some(words) = pool.words() else { bail!("the pool `{}` takes no text", pool.task) };
        let input = |(nth, text): (usize, &String)| {
            let mut input = vec![0; usize::from(words.count)];
            text::input(text.as_bytes(), words.bits, &mut input);
            if input.iter().all(|value| *value == 0) {
                bail!("text {nth} has no word of two letters");
            }
            Ok(input)
        };
        Ok(Self { inputs: (1..).zip(texts).map(input).collect::<Result<_>>()?, labels: Vec::new() })
    }

    /// One window of a motion sensor without a label: a file of 128 lines, each with acceleration in g along three
    /// axes and rotation in rad/s about them, divided by commas; 50 lines are a second.
    ///
    /// # Errors
    /// Says that the pool takes no windows of motion, or which line is not six numbers in range.
    pub fn of_motion(path: &Path, pool: &PoolSpec) -> Result<Self> {
        if usize::from(pool.input_len) != motion::INPUT || pool.input_frac != motion::FRAC {
            bail!("the pool `{}` takes no windows of motion", pool.task);
        }
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let rows: Vec<[i16; motion::AXES]> = (1..)
            .zip(text.lines())
            .map(|(line, row)| readings(row).with_context(|| format!("line {line} is not six numbers in range")))
            .collect::<Result<_>>()?;
        let count = rows.len();
        let window = rows.try_into().ok().with_context(|| format!("{count} lines are no window of 128"))?;
        let mut input = [0; motion::INPUT];
        motion::input(&window, &mut input);
        Ok(Self { inputs: vec![input.to_vec()], labels: Vec::new() })
    }

    /// As [`load`](Self::load), of inputs of any length, for a device that will say whether it fits.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn of_any_length(path: &Path) -> Result<Self> {
        Self::read(path, None)
    }

    fn read(path: &Path, input_len: Option<u16>) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read the inputs {}", path.display()))?;
        let read = || -> Result<Self> {
            let file = SafeTensors::deserialize(&bytes)?;
            let inputs = file.tensor("inputs")?;
            let [count, len] = *inputs.shape() else { bail!("`inputs` is not a matrix") };
            if let Some(taken) = input_len.filter(|taken| usize::from(*taken) != len) {
                bail!("an input has {len} values, this pool takes {taken}");
            }
            if len == 0 {
                bail!("an input has no values");
            }
            let values: Vec<i16> = if inputs.dtype() == Dtype::I16 {
                shorts(&file, "inputs")?
            } else {
                tensor(&file, "inputs", Dtype::I8)?.iter().map(|v| i16::from(*v as i8)).collect()
            };
            let inputs = values.chunks_exact(len).map(<[i16]>::to_vec).collect();
            let labels: Vec<usize> = tensor(&file, "labels", Dtype::U8)?.iter().map(|b| usize::from(*b)).collect();
            if labels.len() != count {
                bail!("{count} inputs, but {} labels", labels.len());
            }
            Ok(Self { inputs, labels })
        };
        read().with_context(|| format!("{} is not a file of inputs", path.display()))
    }
}

/// A line of a window as the device counts.
fn readings(line: &str) -> Option<[i16; motion::AXES]> {
    let mut numbers = line.split(',').map(|number| number.trim().parse::<f64>().ok());
    let mut row = [0; motion::AXES];
    for (reading, unit) in row.iter_mut().zip(motion::UNITS) {
        let value = (numbers.next()?? * f64::from(unit)).round();
        *reading = (f64::from(i16::MIN)..=f64::from(i16::MAX)).contains(&value).then_some(value as i16)?;
    }
    numbers.next().is_none().then_some(row)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;
    use crate::pool::Pool;

    #[test]
    fn texts_are_inputs_of_a_pool_of_text_alone() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/pools/speech/pool.safetensors");
        let mut spec = Pool::load(Path::new(path)).unwrap().spec;
        let texts = |texts: &[&str], spec: &PoolSpec| {
            let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
            Examples::of_texts(&texts, spec).map(|examples| examples.inputs).map_err(|error| error.to_string())
        };
        assert_eq!(texts(&["fine"], &spec).unwrap_err(), "the pool `speech` takes no text");
        (spec.input_len, spec.input_bits, spec.input_frac, spec.word_bits) = (24, 13, 0, 12);
        let mut expected = vec![0; 24];
        text::input(b"a fine film", 12, &mut expected);
        assert_eq!(texts(&["A fine film!", "poor"], &spec).unwrap()[0], expected);
        assert_eq!(texts(&["fine", "?!"], &spec).unwrap_err(), "text 2 has no word of two letters");
    }

    #[test]
    fn a_window_of_motion_is_an_input_of_its_pools() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/pools/speech/pool.safetensors");
        let mut spec = Pool::load(Path::new(path)).unwrap().spec;
        let file = tempfile::NamedTempFile::new().unwrap();
        let window = |text: &str, spec: &PoolSpec| {
            std::fs::write(file.path(), text).unwrap();
            Examples::of_motion(file.path(), spec).map(|examples| examples.inputs).map_err(|error| error.to_string())
        };
        let still = "0, 0.5,-1,0,0,0.25\n".repeat(128);
        assert_eq!(window(&still, &spec).unwrap_err(), "the pool `speech` takes no windows of motion");
        (spec.input_frac, spec.input_len) = (motion::FRAC, 360);
        let mut expected = [0; motion::INPUT];
        motion::input(&[[0, 1024, -2048, 0, 0, 256]; 128], &mut expected);
        assert_eq!(window(&still, &spec).unwrap(), [expected.to_vec()]);
        assert_eq!(window(&still[1..], &spec).unwrap_err(), "line 1 is not six numbers in range");
        assert_eq!(window(&still.replace("-1", "16"), &spec).unwrap_err(), "line 1 is not six numbers in range");
        assert_eq!(window(&still.replace("0.25", "0,0"), &spec).unwrap_err(), "line 1 is not six numbers in range");
        assert_eq!(window("0,0,0,0,0,NaN", &spec).unwrap_err(), "line 1 is not six numbers in range");
        assert_eq!(window("0,0,0,0,0,0", &spec).unwrap_err(), "1 lines are no window of 128");
    }
}
