//! The desktop device beside what another process, or an accident, has left.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::path::Path;
use std::process::{Command, Output};

use anyhow::Result;
use secure_router::device::FileCounters;
use secure_router::stock::Store;
use secure_router_core::circuit::Slot;
use secure_router_tests::exact::public_key;
use secure_router_tests::process::Processes;

const PROGRAM: &str = env!("CARGO_BIN_EXE_secure-router");

fn device(processes: &Processes, command: &str, arguments: &[&str]) -> Result<Output> {
    let keys = processes.directory().join("device-a.json");
    let mut device = Command::new(PROGRAM);
    device.args([command, "--server", &processes.address(), "--keys"]).arg(keys);
    Ok(device.args(arguments).output()?)
}

#[test]
fn a_batch_gets_over_a_gap_in_the_stock() -> Result<()> {
    let mut processes = Processes::start_routing(Path::new(PROGRAM), &["a".to_owned()], "device")?;
    let prepared = device(&processes, "prepare", &["--program", "router", "--count", "2"])?;
    assert_eq!(String::from_utf8_lossy(&prepared.stdout), "router: 2 inferences in stock\n");
    // What is spent is stored durably, and all that came before with it.
    assert!(device(&processes, "device", &["--program", "micro"])?.status.success());
    // A counter that was dealt and lost: what is prepared next lies behind a gap.
    processes.stop();
    let key = public_key(processes.directory(), "a")?;
    Store::open(&processes.stock())?.skip(&key, Slot::Router, 2, 3)?;
    processes.restart()?;
    let answered = device(&processes, "device", &["--quota", "4,1,1", "--batch", "4", "--count", "4"])?;
    assert!(answered.status.success(), "{}", String::from_utf8_lossy(&answered.stderr));
    assert_eq!(String::from_utf8(answered.stdout)?.lines().count(), 4);
    Ok(())
}

/// Each of them would burn what the other is about to use.
#[test]
fn two_processes_do_not_share_a_device() -> Result<()> {
    let processes = Processes::start(Path::new(PROGRAM), &["a".to_owned()])?;
    // Where the command looks for them, beside the key file.
    let counters = processes.directory().join("device-a.counters");
    let held = FileCounters::open(&counters)?;
    let refused = device(&processes, "device", &[])?;
    let said = String::from_utf8(refused.stderr)?;
    assert!(!refused.status.success() && said.contains("another process is using the counters"), "{said}");
    drop(held);
    let answered = device(&processes, "device", &["--program", "micro"])?;
    assert!(answered.status.success(), "{}", String::from_utf8_lossy(&answered.stderr));
    assert!(counters.exists());
    Ok(())
}
