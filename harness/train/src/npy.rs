//! The three `.npy` arrays of the speech package: version 1 headers, little endian, C order.

use anyhow::{Context, Result, bail, ensure};
use std::path::Path;

/// Reads an array of `f32`.
pub(crate) fn read_f32(path: &Path) -> Result<Vec<f32>> {
    let body = read(path, "<f4")?;
    Ok(body.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

/// Reads an array of `i64` that holds sizes or labels.
pub(crate) fn read_usize(path: &Path) -> Result<Vec<usize>> {
    let body = read(path, "<i8")?;
    body.as_chunks::<8>()
        .0
        .iter()
        .map(|b| usize::try_from(i64::from_le_bytes(*b)).context("negative number"))
        .collect::<Result<_>>()
        .with_context(|| path.display().to_string())
}

fn read(path: &Path, descr: &str) -> Result<Vec<u8>> {
    let mut bytes =
        std::fs::read(path).with_context(|| format!("cannot read {} (run fetch.sh first)", path.display()))?;
    ensure!(bytes.len() >= 10 && bytes.starts_with(b"\x93NUMPY\x01"), "{} is not a version 1 npy file", path.display());
    let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let Some(header) = bytes.get(10..start) else { bail!("{}: truncated header", path.display()) };
    let header = String::from_utf8_lossy(header);
    ensure!(
        header.contains(descr) && header.contains("'fortran_order': False"),
        "{}: expected {descr} in C order, found {header}",
        path.display()
    );
    Ok(bytes.split_off(start))
}
