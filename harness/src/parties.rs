//! Dealer, server and device as processes on this machine, which speak TCP on loopback.

use std::collections::VecDeque;
use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use secure_router::provision;
use secure_router::server::Record;
use secure_router_core::circuit::Slot;
use secure_router_core::routing::Routing;
use secure_router_core::session::LinkProfile;
use secure_router_core::spec::PoolSpec;

use crate::infer::Answer;

/// A dealer and a server under way, with the keys of one device.
pub(crate) struct Parties {
    dealer_address: String,
    server_address: String,
    device_keys: PathBuf,
    // Ended before their directory goes.
    _server: Process,
    _dealer: Process,
    directory: tempfile::TempDir,
}

impl fmt::Display for Parties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dealer on {}, server on {}", self.dealer_address, self.server_address)
    }
}

impl Parties {
    /// Makes keys, and starts a dealer and the server of `pool`.
    pub(crate) fn start(pool: &Path, logits: bool, routing: Routing) -> Result<Self> {
        let directory = tempfile()?;
        let keys = directory.path().join("keys");
        let device_keys = provision::provision(&keys, "demo")?;
        let (server_keys, dealer_keys, _) = provision::paths(&keys, "demo");
        let (dealer, dealer_address) = Process::listening(
            party("deal")
                .arg("--listen=127.0.0.1:0")
                .arg("--keys")
                .arg(dealer_keys)
                .arg("--store")
                .arg(directory.path().join("dealer.redb")),
        )?;
        let (server, server_address) = Process::listening(
            party("serve")
                .args(["--listen=127.0.0.1:0", "--dealer", &dealer_address])
                .args(logits.then_some("--logits"))
                .arg(format!("--routing={routing}"))
                .arg("--keys")
                .arg(server_keys)
                .arg("--pool")
                .arg(pool)
                .arg("--stock")
                .arg(directory.path().join("stock.redb"))
                .arg("--records")
                .arg(directory.path().join("records")),
        )?;
        Ok(Self { dealer_address, server_address, device_keys, _server: server, _dealer: dealer, directory })
    }

    /// A device that answers `count` of `inputs`, every `step`-th, once its programs are named.
    pub(crate) fn device(&self, inputs: &Path, count: usize, step: usize, lambda: u16, link: &LinkProfile) -> Command {
        let mut device = party("device");
        device.args(["--json", "--server", &self.server_address, "--keys"]).arg(&self.device_keys);
        device.arg("--counters").arg(self.directory.path().join("counters")).arg("--inputs").arg(inputs);
        device.arg(format!("--count={count}")).arg(format!("--step={step}")).arg(format!("--lambda={lambda}"));
        device.arg(format!("--link={},{}", link.bytes_per_second, f64::from(link.round_trip_us) / 1e3));
        device
    }

    /// Runs a device, and hands on each of its answers.
    pub(crate) fn answers(&self, device: &mut Command, mut each: impl FnMut(Answer) -> Result<()>) -> Result<()> {
        let (mut device, lines) = Process::start(device.stdin(Stdio::null()))?;
        for line in lines.lines() {
            each(serde_json::from_str(&line?).context("the device said something else than an answer")?)?;
        }
        let status = device.0.wait()?;
        ensure!(status.success(), "the device process failed");
        Ok(())
    }

    /// The turns that the server has counted.
    pub(crate) fn half_trips(&self) -> HalfTrips {
        HalfTrips { path: self.directory.path().join("records"), read: 0, records: VecDeque::new() }
    }
}

/// Turns of the programs that ran, in the order of the answers.
pub(crate) struct HalfTrips {
    path: PathBuf,
    /// Records read so far.
    read: usize,
    records: VecDeque<Record>,
}

impl HalfTrips {
    /// Of the next answer, which `model` gave to a question to `slot`.
    pub(crate) fn of(&mut self, pool: &PoolSpec, slot: Slot, model: Slot) -> Result<u32> {
        let programs = match pool.routing {
            _ if slot == model => 1,
            Routing::Device => pool.slots().count(),
            _ if pool.router_answers(model) => 1,
            _ => 2,
        };
        (0..programs).map(|_| Ok(self.next()?.half_trips)).sum()
    }

    /// A device has its answer before the server has written down how it came about.
    fn next(&mut self) -> Result<Record> {
        const PATIENCE: Duration = Duration::from_secs(30);
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(record) = self.records.pop_front() {
                return Ok(record);
            }
            let text = std::fs::read_to_string(&self.path).context("the server left no records")?;
            for line in text.split_inclusive('\n').skip(self.read).filter(|line| line.ends_with('\n')) {
                self.records.push_back(serde_json::from_str(line).context("a record of the server is not one")?);
                self.read += 1;
            }
            ensure!(Instant::now() < deadline, "the server left too few records");
            if self.records.is_empty() {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

pub(crate) fn party(command: &str) -> Command {
    let mut party = Command::new(std::env::current_exe().unwrap_or_else(|_| "secure-router".into()));
    party.arg(command);
    party
}

/// A party's process; ended when it goes out of scope.
pub(crate) struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Result<(Self, BufReader<ChildStdout>)> {
        let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start a party")?;
        let stdout = child.stdout.take().context("a party has no output")?;
        Ok((Self(child), BufReader::new(stdout)))
    }

    /// Starts a party that listens, and waits until it says where. It ends with this process, however that ends.
    pub(crate) fn listening(command: &mut Command) -> Result<(Self, String)> {
        let (process, mut output) = Self::start(command.arg("--while-stdin-is-open").stdin(Stdio::piped()))?;
        let mut line = String::new();
        output.read_line(&mut line)?;
        match line.trim().strip_prefix("listening on ") {
            Some(address) => Ok((process, address.to_owned())),
            None => bail!("a party did not start"),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory of this run's own, removed at the end.
pub(crate) fn tempfile() -> Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix("secure-router-").tempdir().context("cannot make a temporary directory")
}
