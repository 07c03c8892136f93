//! From raw data to a split, task by task. Nothing here is seen by training but the train half.

mod image;
mod sensor;
mod speech;
mod table;
mod text;

pub(crate) use image::SIDE;
pub(crate) use table::{Columns, read as read_table};

use crate::data::Split;
use anyhow::{Result, bail};
use std::path::Path;

/// Tasks whose raw data `fetch.sh` brings.
pub(crate) const FETCHED: [&str; 4] = ["speech", "sensor", "image", "text"];

/// Where data come without a split, one of so many parts is tested on.
const PARTS: usize = 5;

/// Splits the raw data of `task` in `dir`.
pub(crate) fn split(task: &str, dir: &Path) -> Result<Split> {
    match task {
        "speech" => speech::split(dir),
        "sensor" => sensor::split(dir),
        "image" => image::split(dir),
        "text" => text::split(dir),
        _ => bail!("unknown task `{task}` (known: {})", FETCHED.join(", ")),
    }
}

fn names(classes: &[&str]) -> Vec<String> {
    classes.iter().map(|c| (*c).to_owned()).collect()
}
