//! Links on the command line.

use anyhow::{Context, Result, bail};
use secure_router_core::session::LinkProfile;

/// `uart`, `ble`, `lan`, or `BYTES_PER_SECOND,ROUND_TRIP_MS`.
pub(crate) fn parse(text: &str) -> Result<LinkProfile> {
    if let Some(link) = LinkProfile::named(text) {
        return Ok(link);
    }
    let Some((bytes, milliseconds)) = text.split_once(',') else {
        bail!("a link is uart, ble, lan, or BYTES_PER_SECOND,ROUND_TRIP_MS");
    };
    let bytes_per_second =
        bytes.trim().parse().ok().filter(|rate| *rate > 0).context("bytes per second must be a positive number")?;
    let milliseconds: f64 = milliseconds.trim().parse().context("the round trip is a number of milliseconds")?;
    if !(0.0..=60_000.0).contains(&milliseconds) {
        bail!("the round trip must be between 0 and 60000 ms");
    }
    Ok(LinkProfile { bytes_per_second, round_trip_us: (milliseconds * 1e3) as u32 })
}
