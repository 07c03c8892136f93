//! The half of a split that is tested on. Nothing that trains can read it: what is held out can only be written to
//! the test file, and what is read from there is of another type than training takes.

use crate::data::{Dataset, read_file, write_tensors};
use crate::feature::Features;
use anyhow::{Context, Result};
use safetensors::tensor::{Dtype, SafeTensors};
use std::path::Path;

/// Examples on their way to the test file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HeldOut(Dataset);

impl HeldOut {
    pub(crate) const fn new(examples: Dataset) -> Self {
        Self(examples)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.examples.len()
    }

    #[cfg(test)]
    pub(crate) fn examples(&self) -> &[crate::data::Example] {
        &self.0.examples
    }

    /// Writes them as inference sees them: quantised.
    pub(crate) fn write(&self, path: &Path, features: &Features) -> Result<()> {
        let test = &self.0;
        let values = test.examples.iter().flat_map(|e| features.quantised(e));
        // A value fits a byte, a word does not.
        let (kind, inputs): (_, Vec<u8>) = match features.words() {
            None => (Dtype::I8, values.map(|v| (v as i8).cast_unsigned()).collect()),
            Some(_) => (Dtype::I16, values.flat_map(i16::to_le_bytes).collect()),
        };
        let labels: Vec<u8> = test.examples.iter().map(|e| e.label as u8).collect();
        let n = test.examples.len();
        let tensors =
            [("inputs", kind, vec![n, features.inputs()], &inputs[..]), ("labels", Dtype::U8, vec![n], &labels)];
        let about = [("source", test.source.clone()), ("classes", test.classes.join(","))];
        write_tensors(path, &tensors, about.map(|(key, text)| (key.to_owned(), text)).into())
    }
}

/// Device inputs with their labels, for the `evaluate` command.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TestSet {
    pub(crate) inputs: Vec<i16>,
    pub(crate) input_len: usize,
    pub(crate) labels: Vec<usize>,
}

impl TestSet {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = read_file(path)?;
        let file = SafeTensors::deserialize(&bytes).with_context(|| path.display().to_string())?;
        let inputs = file.tensor("inputs")?;
        let labels = file.tensor("labels")?.data().iter().map(|&b| usize::from(b)).collect();
        let input_len = inputs.shape().get(1).copied().filter(|l| *l > 0).context("the inputs are not a table")?;
        let inputs = match inputs.dtype() {
            Dtype::I16 => inputs.data().as_chunks::<2>().0.iter().map(|b| i16::from_le_bytes(*b)).collect(),
            _ => inputs.data().iter().map(|&b| b.cast_signed().into()).collect(),
        };
        Ok(Self { inputs, input_len, labels })
    }
}
