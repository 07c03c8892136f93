//! Opinions of film snippets: which sign has the mean of twenty people's ratings?

use super::{PARTS, names};
use crate::data::{Dataset, Example, SPLIT_SEED, Split, folds};
use anyhow::{Context, Result, ensure};
use std::collections::HashMap;
use std::path::Path;

const CLASSES: [&str; 2] = ["negative", "positive"];

pub(super) fn split(dir: &Path) -> Result<Split> {
    let path = dir.join("snippets.txt");
    let lines = std::fs::read_to_string(&path);
    let lines = lines.with_context(|| format!("cannot read {} (run fetch.sh first)", path.display()))?;
    let all = snippets(&lines).with_context(|| path.display().to_string())?;
    let part = folds(all.examples.iter(), PARTS, SPLIT_SEED);
    Ok(all.split(|i, _| part[i] == 0))
}

/// Lines of a number, the mean rating and the snippet. A mean of zero is of neither class.
fn snippets(lines: &str) -> Result<Dataset> {
    let mut known = HashMap::new();
    let mut examples = Vec::new();
    for (line, text) in (1..).zip(lines.lines()) {
        let fields: Vec<&str> = text.split('\t').collect();
        let [_, rating, snippet] = fields[..] else {
            anyhow::bail!("line {line} has {} fields, 3 are expected", fields.len());
        };
        let rating: f32 = rating.parse().with_context(|| format!("line {line}: `{rating}` is not a rating"))?;
        if rating != 0.0 {
            // A snippet that occurs twice is on one side of every split.
            let next = known.len() as u32;
            let group = *known.entry(snippet).or_insert(next);
            examples.push(Example { values: bytes(snippet), label: usize::from(rating > 0.0), group });
        }
    }
    ensure!(!examples.is_empty(), "there is no snippet");
    Ok(Dataset {
        examples,
        kind: "text".to_owned(),
        name: "text".to_owned(),
        channels: 1,
        classes: names(&CLASSES),
        source: "film snippets rated for VADER, Hutto and Gilbert 2014; not redistributed, see fetch.sh".to_owned(),
    })
}

/// A text as the values of an example; what the device makes of it is left to [`crate::feature`].
pub(super) fn bytes(text: &str) -> Vec<f32> {
    text.bytes().map(f32::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snippets_are_bags_by_sign_and_a_mean_of_zero_is_left_out() {
        let found =
            snippets("1\t2.5\tA fine film.\n2\t0\tA film.\r\n3\t-0.1\tA poor film\n4\t1\tA poor film\n").unwrap();
        let labels: Vec<(usize, u32)> = found.examples.iter().map(|e| (e.label, e.group)).collect();
        assert_eq!(labels, [(1, 0), (0, 1), (1, 1)]);
        assert_eq!(found.examples[0].values, bytes("A fine film."));
        let error = |lines: &str| format!("{:#}", snippets(lines).unwrap_err());
        assert_eq!(error("1\t2.5\ta\n2\t1"), "line 2 has 2 fields, 3 are expected");
        assert!(error("1\tgood\ta").starts_with("line 1: `good` is not a rating"));
        assert_eq!(error(""), "there is no snippet");
    }
}
