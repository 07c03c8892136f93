//! Labelled examples, their folds, and the train file. What is tested on is in `held_out.rs`.

use crate::held_out::HeldOut;
use crate::rng::Rng;
use anyhow::{Context, Result, ensure};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// One example: rows of channels, and what it is an example of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Example {
    pub(crate) values: Vec<f32>,
    pub(crate) label: usize,
    /// Examples of one group (one person, say) stay together in every split.
    pub(crate) group: u32,
}

/// Examples of one task.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Dataset {
    /// The kind of task, which decides features and shapes; see `task.rs`.
    pub(crate) kind: String,
    /// The public name of the task.
    pub(crate) name: String,
    pub(crate) channels: usize,
    pub(crate) classes: Vec<String>,
    /// Where the data come from and under which licence.
    pub(crate) source: String,
    pub(crate) examples: Vec<Example>,
}

impl Dataset {
    /// The same task with other examples.
    pub(crate) fn with(&self, examples: Vec<Example>) -> Self {
        Self { examples, ..self.without_examples() }
    }

    fn without_examples(&self) -> Self {
        Self {
            kind: self.kind.clone(),
            name: self.name.clone(),
            channels: self.channels,
            classes: self.classes.clone(),
            source: self.source.clone(),
            examples: Vec::new(),
        }
    }

    /// Two sets: the examples that are to be tested on, and the others.
    pub(crate) fn split(mut self, is_test: impl Fn(usize, &Example) -> bool) -> Split {
        let (mut train, mut test) = (Vec::new(), Vec::new());
        for (i, example) in std::mem::take(&mut self.examples).into_iter().enumerate() {
            if is_test(i, &example) { test.push(example) } else { train.push(example) }
        }
        Split { train: self.with(train), test: HeldOut::new(self.with(test)) }
    }

    /// Every `step`-th example.
    pub(crate) fn thinned(mut self, step: usize) -> Self {
        self.examples = self.examples.into_iter().step_by(step).collect();
        self
    }
}

/// What is trained on and what is tested on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Split {
    pub(crate) train: Dataset,
    pub(crate) test: HeldOut,
}

/// The split never changes with the training seed, so that every pool faces the same test file.
pub(crate) const SPLIT_SEED: u64 = 2026;

/// Assigns each example to one of `count` folds, in a shuffle of `seed`: no group is cut, and each
/// class is spread as evenly as the groups allow.
pub(crate) fn folds<'a>(examples: impl Iterator<Item = &'a Example>, count: usize, seed: u64) -> Vec<usize> {
    let examples: Vec<&Example> = examples.collect();
    let mut groups: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (i, example) in examples.iter().enumerate() {
        groups.entry(example.group).or_default().push(i);
    }
    let mut order: Vec<Vec<usize>> = groups.into_values().collect();
    Rng::new(seed, "folds").shuffle(&mut order);
    let classes = examples.iter().map(|e| e.label + 1).max().unwrap_or(0);
    let mut taken = vec![vec![0usize; classes]; count];
    let mut fold = vec![0; examples.len()];
    for group in order {
        let crowd = |f: &usize| group.iter().map(|&i| taken[*f][examples[i].label]).sum::<usize>();
        let chosen = (0..count).min_by_key(crowd).unwrap_or(0);
        for i in group {
            taken[chosen][examples[i].label] += 1;
            fold[i] = chosen;
        }
    }
    fold
}

/// Writes train examples as they are; featurising is left to training, which augments before it.
pub(crate) fn write_train(path: &Path, train: &Dataset) -> Result<()> {
    let examples = &train.examples;
    let values: Vec<u8> = examples.iter().flat_map(|e| &e.values).flat_map(|v| v.to_le_bytes()).collect();
    let lengths: Vec<u8> = examples.iter().flat_map(|e| (e.values.len() as u32).to_le_bytes()).collect();
    let groups: Vec<u8> = examples.iter().flat_map(|e| e.group.to_le_bytes()).collect();
    let labels: Vec<u8> = examples.iter().map(|e| e.label as u8).collect();
    let n = examples.len();
    let tensors = [
        ("values", Dtype::F32, vec![values.len() / 4], &values[..]),
        ("lengths", Dtype::U32, vec![n], &lengths),
        ("groups", Dtype::U32, vec![n], &groups),
        ("labels", Dtype::U8, vec![n], &labels),
    ];
    let about = [
        ("kind", train.kind.clone()),
        ("name", train.name.clone()),
        ("channels", train.channels.to_string()),
        ("classes", train.classes.join(",")),
        ("source", train.source.clone()),
    ];
    write_tensors(path, &tensors, about.map(|(key, text)| (key.to_owned(), text)).into())
}

pub(crate) fn read_train(path: &Path) -> Result<Dataset> {
    let bytes = read_file(path).context("run `split` first")?;
    parse_train(&bytes).with_context(|| format!("{} is not a train file", path.display()))
}

fn parse_train(bytes: &[u8]) -> Result<Dataset> {
    let file = SafeTensors::deserialize(bytes)?;
    let (_, header) = SafeTensors::read_metadata(bytes)?;
    let about = header.metadata().clone().unwrap_or_default();
    let text = |key: &str| about.get(key).cloned().with_context(|| format!("it names no {key}"));
    let four = |name: &str| -> Result<Vec<[u8; 4]>> { Ok(file.tensor(name)?.data().as_chunks::<4>().0.to_vec()) };
    let classes: Vec<String> = text("classes")?.split(',').map(str::to_owned).collect();
    let channels: usize = text("channels")?.parse()?;
    let values: Vec<f32> = four("values")?.into_iter().map(f32::from_le_bytes).collect();
    let lengths: Vec<usize> = four("lengths")?.into_iter().map(|b| u32::from_le_bytes(b) as usize).collect();
    let groups: Vec<u32> = four("groups")?.into_iter().map(u32::from_le_bytes).collect();
    let labels = file.tensor("labels")?.data().to_vec();
    ensure!(channels > 0 && lengths.iter().all(|l| *l > 0 && l.is_multiple_of(channels)), "ragged rows");
    ensure!(labels.len() == lengths.len() && groups.len() == lengths.len(), "its lists differ in length");
    ensure!(lengths.iter().sum::<usize>() == values.len(), "lengths do not add up to the values");
    ensure!(labels.iter().all(|&l| usize::from(l) < classes.len()), "a label is of no class");
    let mut rest = &values[..];
    let examples = lengths.iter().zip(groups).zip(labels).map(|((&length, group), label)| {
        let (own, others) = rest.split_at(length);
        rest = others;
        Example { values: own.to_vec(), label: usize::from(label), group }
    });
    let examples = examples.collect();
    Ok(Dataset { kind: text("kind")?, name: text("name")?, channels, classes, source: text("source")?, examples })
}

type NamedTensor<'a> = (&'a str, Dtype, Vec<usize>, &'a [u8]);

/// Writes tensors under their names.
pub(crate) fn write_tensors(path: &Path, tensors: &[NamedTensor], about: HashMap<String, String>) -> Result<()> {
    let views: Vec<(String, TensorView)> = tensors
        .iter()
        .map(|(name, kind, shape, data)| Ok((name.to_string(), TensorView::new(*kind, shape.clone(), data)?)))
        .collect::<Result<_>>()?;
    let about = (!about.is_empty()).then_some(about);
    let bytes = sort_header(&safetensors::serialize(views, about)?)?;
    std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// Puts the header's keys in order: the crate writes metadata in the order of a hash map, which
/// differs from run to run, and the same seed is to give the same file.
fn sort_header(file: &[u8]) -> Result<Vec<u8>> {
    const ALIGNMENT: usize = 8;
    let (length, rest) = file.split_first_chunk::<8>().context("no header")?;
    let length = usize::try_from(u64::from_le_bytes(*length))?;
    let (header, data) = rest.split_at_checked(length).context("truncated header")?;
    // serde_json's map is sorted.
    let sorted: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header)?;
    let mut header = serde_json::to_vec(&sorted)?;
    header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
    Ok([&(header.len() as u64).to_le_bytes()[..], &header, data].concat())
}

pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toy(n: usize, groups: usize) -> Dataset {
        let example =
            |i: usize| Example { values: vec![i as f32; 2 * (1 + i % 3)], label: i % 10, group: (i % groups) as u32 };
        Dataset {
            kind: "speech".to_owned(),
            name: "toy".to_owned(),
            channels: 2,
            classes: (0..10).map(|c| c.to_string()).collect(),
            source: "none".to_owned(),
            examples: (0..n).map(example).collect(),
        }
    }

    #[test]
    fn folds_are_balanced_class_by_class() {
        let toy = toy(200, 200);
        let fold = folds(toy.examples.iter(), 4, 1);
        for class in 0..10 {
            let count = |f| (0..200).filter(|&i| fold[i] == f && toy.examples[i].label == class).count();
            assert_eq!([0, 1, 2, 3].map(count), [5; 4]);
        }
        assert_ne!(fold, folds(toy.examples.iter(), 4, 2));
    }

    #[test]
    fn folds_cut_no_group() {
        let toy = toy(300, 7);
        let fold = folds(toy.examples.iter(), 3, 1);
        assert!((0..300).all(|i| fold[i] == fold[i % 7]));
        assert!((0..3).all(|f| fold.contains(&f)));
    }

    #[test]
    fn split_is_disjoint_and_complete() {
        let Split { train, test } = toy(100, 100).split(|i, _| i % 4 == 0);
        let test = test.examples();
        assert_eq!((train.examples.len(), test.len()), (75, 25));
        assert!(test.iter().all(|t| !train.examples.contains(t)));
    }

    #[test]
    fn train_file_round_trips() {
        let path = std::env::temp_dir().join(format!("train-{}.safetensors", std::process::id()));
        write_train(&path, &toy(20, 3)).unwrap();
        let read = read_train(&path);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read.unwrap(), toy(20, 3));
    }
}
