//! Spoken digits: recordings of MFCC frames of any length.

use crate::data::{Dataset, Example, SPLIT_SEED, Split};
use crate::npy;
use crate::rng::Rng;
use anyhow::{Result, ensure};
use std::path::Path;

const CLASSES: usize = 10;
/// MFCC coefficients of a frame.
const COEFFICIENTS: usize = 13;
const TEST_PER_CLASS: usize = 75;

pub(super) fn split(dir: &Path) -> Result<Split> {
    let values = npy::read_f32(&dir.join("X.npy"))?;
    let labels = npy::read_usize(&dir.join("y.npy"))?;
    let lengths = npy::read_usize(&dir.join("lengths.npy"))?;
    split_classes(recordings(&values, &lengths, &labels)?)
}

fn recordings(values: &[f32], lengths: &[usize], labels: &[usize]) -> Result<Dataset> {
    ensure!(labels.len() == lengths.len(), "as many labels as lengths expected");
    ensure!(
        lengths.iter().sum::<usize>() * COEFFICIENTS == values.len() && !lengths.contains(&0),
        "lengths do not add up to the frames"
    );
    ensure!(labels.iter().all(|&l| l < CLASSES), "a label is not a digit");
    let mut rest = values;
    let examples = (0u32..).zip(lengths.iter().zip(labels)).map(|(group, (&length, &label))| {
        let (own, others) = rest.split_at(length * COEFFICIENTS);
        rest = others;
        Example { values: own.to_vec(), label, group }
    });
    Ok(Dataset {
        examples: examples.collect(),
        kind: "speech".to_owned(),
        name: "speech".to_owned(),
        channels: COEFFICIENTS,
        classes: (0..CLASSES).map(|c| c.to_string()).collect(),
        source: "Free Spoken Digit Dataset, CC BY-SA 4.0; see NOTICE.md".to_owned(),
    })
}

/// Splits class by class: the first of a fixed shuffle are test, the others train.
fn split_classes(all: Dataset) -> Result<Split> {
    let mut rng = Rng::new(SPLIT_SEED, "split");
    let mut order: Vec<usize> = (0..all.examples.len()).collect();
    rng.shuffle(&mut order);
    let mut taken = [0; CLASSES];
    let mut is_test = vec![false; all.examples.len()];
    for &i in &order {
        let taken = &mut taken[all.examples[i].label];
        is_test[i] = *taken < TEST_PER_CLASS;
        *taken += usize::from(is_test[i]);
    }
    ensure!(taken == [TEST_PER_CLASS; CLASSES], "a class has fewer than {TEST_PER_CLASS} recordings");
    Ok(all.split(|i, _| is_test[i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_is_stratified_and_fixed() {
        let toy = || {
            let values: Vec<f32> = (0..13_000).map(|v| (v / 13) as f32).collect();
            recordings(&values, &[1; 1000], &(0..1000).map(|i| i % 10).collect::<Vec<_>>()).unwrap()
        };
        let first = split_classes(toy()).unwrap();
        assert_eq!(first.test.len(), TEST_PER_CLASS * CLASSES);
        assert_eq!(first.train.examples.len(), 1000 - TEST_PER_CLASS * CLASSES);
        assert!((0..10).all(|c| first.test.examples().iter().filter(|e| e.label == c).count() == TEST_PER_CLASS));
        assert_eq!(split_classes(toy()).unwrap(), first);
    }
}
