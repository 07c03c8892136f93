//! Fashion items: 28 x 28 pictures in IDX files, with their own test part.

use super::names;
use crate::data::{Dataset, Example, Split};
use crate::held_out::HeldOut;
use anyhow::{Context, Result, ensure};
use std::path::Path;

pub(crate) const SIDE: usize = 28;
const CLASSES: [&str; 10] =
    ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"];

pub(super) fn split(dir: &Path) -> Result<Split> {
    let part = |name: &str| -> Result<Dataset> {
        let read = |kind: &str| {
            let path = dir.join(format!("{name}-{kind}-ubyte"));
            std::fs::read(&path).with_context(|| format!("cannot read {} (run fetch.sh first)", path.display()))
        };
        pictures(&read("images-idx3")?, &read("labels-idx1")?).with_context(|| format!("the {name} files"))
    };
    Ok(Split { train: part("train")?, test: HeldOut::new(part("t10k")?) })
}

fn pictures(images: &[u8], labels: &[u8]) -> Result<Dataset> {
    let (sizes, pixels) = idx(images, 3)?;
    let (counts, labels) = idx(labels, 1)?;
    ensure!(sizes[1..] == [SIDE, SIDE] && sizes[0] == counts[0], "sizes do not match");
    ensure!(labels.iter().all(|&l| usize::from(l) < CLASSES.len()), "a label is not a class");
    let each = (0u32..).zip(pixels.chunks_exact(SIDE * SIDE).zip(labels));
    let examples = each.map(|(group, (pixels, &label))| Example {
        values: pixels.iter().map(|&p| f32::from(p) / 255.0).collect(),
        label: usize::from(label),
        group,
    });
    Ok(Dataset {
        examples: examples.collect(),
        kind: "image".to_owned(),
        name: "image".to_owned(),
        channels: 1,
        classes: names(&CLASSES),
        source: "Fashion-MNIST, MIT, Zalando SE".to_owned(),
    })
}

/// Sizes and bytes of an IDX file of unsigned bytes.
fn idx(file: &[u8], dimensions: usize) -> Result<(Vec<usize>, &[u8])> {
    let (magic, rest) = file.split_first_chunk::<4>().context("truncated")?;
    ensure!(magic[..3] == [0, 0, 8] && usize::from(magic[3]) == dimensions, "not an IDX file of bytes");
    let (sizes, data) = rest.split_at_checked(4 * dimensions).context("truncated")?;
    let sizes: Vec<usize> = sizes.as_chunks::<4>().0.iter().map(|b| u32::from_be_bytes(*b) as usize).collect();
    let expected = sizes.iter().try_fold(1usize, |product, s| product.checked_mul(*s));
    ensure!(expected == Some(data.len()), "the sizes do not fit the file");
    Ok((sizes, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_idx_and_refuses_what_is_cut_off() {
        let mut images = vec![0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28];
        images.extend([255; 2 * SIDE * SIDE]);
        let labels = [0, 0, 8, 1, 0, 0, 0, 2, 9, 4];
        let found = pictures(&images, &labels).unwrap();
        assert_eq!((found.examples[0].label, found.examples[1].label), (9, 4));
        assert!(found.examples[1].values.iter().all(|v| *v == 1.0));
        images.pop();
        assert!(pictures(&images, &labels).is_err());
        assert!(pictures(&images[..10], &labels).is_err());
    }
}
