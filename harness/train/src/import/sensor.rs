//! Activities: windows of accelerometer and gyroscope, split by person and never by window.

use super::names;
use crate::data::{Dataset, Example, Split};
use crate::npy;
use anyhow::{Result, ensure};
use std::path::Path;

const CHANNELS: usize = 6;
const WINDOW: usize = 128;
const STRIDE: usize = 64;
/// Labels 1 to 6; those above are the short transitions between postures and are left out.
const CLASSES: [&str; 6] = ["walking", "upstairs", "downstairs", "sitting", "standing", "lying"];
/// The people of the original data set's test part.
const TEST_PEOPLE: [u32; 9] = [2, 4, 9, 10, 12, 13, 18, 20, 24];

pub(super) fn split(dir: &Path) -> Result<Split> {
    let values = npy::read_f32(&dir.join("X.npy"))?;
    let [labels, people, runs] = ["y.npy", "person.npy", "run.npy"].map(|name| npy::read_usize(&dir.join(name)));
    let all = windows(&values, &labels?, &people?, &runs?)?;
    let split = all.split(|_, example| TEST_PEOPLE.contains(&example.group));
    ensure!(!split.train.examples.is_empty() && split.test.len() > 0, "people are missing");
    Ok(split)
}

/// Windows that lie within one label of one recording.
fn windows(values: &[f32], labels: &[usize], people: &[usize], runs: &[usize]) -> Result<Dataset> {
    ensure!(
        values.len() == CHANNELS * labels.len() && people.len() == labels.len() && runs.len() == labels.len(),
        "the four arrays differ in length"
    );
    let mut examples = Vec::new();
    let mut start = 0;
    while start < labels.len() {
        let same = |i: &usize| labels[*i] == labels[start] && people[*i] == people[start] && runs[*i] == runs[start];
        let end = start + (start..labels.len()).take_while(same).count();
        let label = labels[start].wrapping_sub(1);
        if label < CLASSES.len() {
            for at in (start..end).step_by(STRIDE).take_while(|at| at + WINDOW <= end) {
                let values = values[at * CHANNELS..(at + WINDOW) * CHANNELS].to_vec();
                examples.push(Example { values, label, group: u32::try_from(people[start])? });
            }
        }
        start = end;
    }
    Ok(Dataset {
        examples,
        kind: "sensor".to_owned(),
        name: "sensor".to_owned(),
        channels: CHANNELS,
        classes: names(&CLASSES),
        source: "HAPT, UCI Machine Learning Repository; not redistributed, see fetch.sh".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_stay_within_a_label_and_a_recording() {
        // 300 rows of walking, cut by a new recording after 200, then a transition, then 128 of lying.
        let labels = [[1; 300].as_slice(), &[8; 150], &[6; 128]].concat();
        let runs: Vec<usize> = (0..578).map(|i| usize::from(i >= 200)).collect();
        let values: Vec<f32> = (0..578 * CHANNELS).map(|i| (i / CHANNELS) as f32).collect();
        let found = windows(&values, &labels, &[3; 578], &runs).unwrap().examples;
        let starts: Vec<(f32, usize)> = found.iter().map(|e| (e.values[0], e.label)).collect();
        assert_eq!(starts, [(0.0, 0), (64.0, 0), (450.0, 5)]);
        assert!(found.iter().all(|e| e.values.len() == WINDOW * CHANNELS && e.group == 3));
    }
}
