//! `secure-router cost`: the cost model of a pool, from its public spec alone.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use secure_router::pool::{Pool, slot_name};
use secure_router_core::cost::Cost;
use secure_router_core::session::LinkProfile;
use serde::Serialize;

#[derive(Args)]
pub(crate) struct CostOf {
    /// The trained pool.
    #[arg(long, default_value = crate::demo::POOL)]
    pool: PathBuf,
    /// The link: uart, ble, lan, or BYTES_PER_SECOND,ROUND_TRIP_MS.
    #[arg(long, default_value = "uart", value_parser = crate::links::parse)]
    link: LinkProfile,
    /// Answers are logits instead of labels.
    #[arg(long)]
    logits: bool,
    /// Tokens that the device masks at a time.
    #[arg(long, default_value_t = crate::infer::TILE)]
    tile: u16,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// One program's costs, as printed.
#[derive(Serialize)]
struct Row {
    name: String,
    weights: u32,
    online_up_bytes: u64,
    online_down_bytes: u64,
    round_trips: f64,
    link_ms: f64,
    offline_device_up_bytes: u64,
    offline_device_down_bytes: u64,
    dealer_to_server_bytes: u64,
    device_ram_bytes: usize,
    device_blocks_offline: u64,
    device_blocks_online: u64,
    server_ram_bytes: u64,
    dealer_ram_bytes: u64,
}

impl CostOf {
    pub(crate) fn run(self) -> Result<()> {
        let pool = Pool::load(&self.pool)?;
        let pool = if self.logits { pool.with_logits() } else { pool };
        let rows = pool.spec.slots().map(|slot| {
            let cost = Cost::of(&pool.spec, slot, self.tile)?;
            Ok(Row {
                name: slot_name(&pool.spec, slot),
                weights: cost.weights,
                online_up_bytes: cost.online.up,
                online_down_bytes: cost.online.down,
                round_trips: f64::from(cost.online.half_trips) / 2.0,
                link_ms: cost.online.latency_us(&self.link) as f64 / 1e3,
                offline_device_up_bytes: cost.offline.up,
                offline_device_down_bytes: cost.offline.down,
                dealer_to_server_bytes: cost.dealer_to_server,
                device_ram_bytes: cost.device_ram_bytes(pool.spec.input_len),
                device_blocks_offline: cost.device_blocks_offline,
                device_blocks_online: cost.device_blocks_online,
                server_ram_bytes: cost.server_ram_bytes(),
                dealer_ram_bytes: cost.dealer_ram_bytes(),
            })
        });
        let rows = rows.collect::<Result<Vec<_>>>()?;
        if self.json {
            say!("{}", serde_json::to_string_pretty(&rows)?);
            return Ok(());
        }
        say!(
            "{:<10} {:>8} {:>9} {:>9} {:>6} {:>9} {:>10} {:>12} {:>10} {:>9} {:>9}",
            "program",
            "weights",
            "up B",
            "down B",
            "trips",
            "link ms",
            "offline B",
            "dealer B",
            "device B",
            "PRG off",
            "PRG on"
        );
        for row in &rows {
            say!(
                "{:<10} {:>8} {:>9} {:>9} {:>6} {:>9.1} {:>10} {:>12} {:>10} {:>9} {:>9}",
                row.name,
                row.weights,
                row.online_up_bytes,
                row.online_down_bytes,
                row.round_trips,
                row.link_ms,
                row.offline_device_up_bytes + row.offline_device_down_bytes,
                row.dealer_to_server_bytes,
                row.device_ram_bytes,
                row.device_blocks_offline,
                row.device_blocks_online,
            );
        }
        say!(
            "\nper inference: bytes up and down on the device's link, round trips, time on the link without computing,\n\
             offline bytes on the device's link, bytes from dealer to server, static RAM of the device, ChaCha blocks\n\
             that the device computes offline and online ({} tokens masked at a time)",
            self.tile
        );
        Ok(())
    }
}
