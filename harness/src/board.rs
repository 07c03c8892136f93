//! A board in QEMU as the device: its files, its UART bridged to the server, its report.
//!
//! What a board has in flash, its generator and its sensor are files in a directory of the run's
//! own, which the firmware reads by semihosting. The UART carries protocol bytes only.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use secure_router_core::circuit::{Program, Slot};
use secure_router_core::device::work_words;
use secure_router_core::rand_core::TryRng;
use secure_router_core::session::{LinkProfile, MAX_CONTROL_BYTES, RECOMMENDED_LAMBDA};
use secure_router_core::spec::PoolSpec;
pub use secure_router_qemu::{Board, End, Sizes, can_count};
use secure_router_qemu::{Launch, Qemu};

use crate::link::Moved;
use crate::provision::DeviceFile;

const TARGETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../targets");
const REPORT: &str = "answers.txt";
const COUNTERS: &str = "counters.log";

/// The board of `qemu:BOARD`.
///
/// # Errors
/// Says which boards there are.
pub fn parse(text: &str) -> Result<Board> {
    let name = text.strip_prefix("qemu:").context("a device is qemu:BOARD")?;
    Ok(Board::named(name)?)
}

/// Where the firmware of a board is built to; `FIRMWARE_OUT` names another folder than `target`.
#[must_use]
pub fn firmware(board: Board) -> PathBuf {
    let out =
        std::env::var_os("FIRMWARE_OUT").map_or_else(|| Path::new(TARGETS).join("../target/firmware"), PathBuf::from);
    out.join(board.name).join("device.elf")
}

/// Builds the firmware of a board, or finds that it is up to date.
///
/// # Errors
/// What the build said.
pub fn build(board: Board) -> Result<PathBuf> {
    let script = Path::new(TARGETS).join("build.sh");
    let output = Command::new(&script)
        .args([board.name, "device"])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", script.display()))?;
    ensure!(
        output.status.success(),
        "the firmware cannot be built:\n{}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(firmware(board))
}

/// Why a board cannot run a program.
///
/// # Errors
/// A program that cannot be built.
pub fn unfit(board: Board, pool: &PoolSpec, slot: Slot) -> Result<Option<String>> {
    let (needed, have) = (work_words(&Program::of(pool, slot)?, board.tile())?, board.work_words());
    if needed > have {
        return Ok(Some(format!("it needs {needed} words of work space, {} has {have}", board.name)));
    }
    let (needed, have) = (usize::from(pool.input_len), board.input_values());
    Ok((needed > have).then(|| format!("its input has {needed} values, {} takes {have}", board.name)))
}

/// What a board is to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The board.
    pub board: Board,
    /// The firmware; what [`build`] makes unless set.
    pub firmware: PathBuf,
    /// Names of the programs that answer each input; none for all that fit.
    pub programs: Vec<String>,
    /// Weight of cost in the router's choice.
    pub lambda: u16,
    /// The link that the router reckons with.
    pub link: LinkProfile,
    /// How long the firmware waits for the server's bytes.
    pub patience: Duration,
    /// How long the run may take.
    pub limit: Duration,
    /// Plugin that counts instructions, into the file `spans` of the run's directory.
    pub plugin: Option<PathBuf>,
}

impl Plan {
    /// The plan to ask every program that fits, on a UART.
    #[must_use]
    pub fn new(board: Board) -> Self {
        Self {
            board,
            firmware: firmware(board),
            programs: Vec::new(),
            lambda: RECOMMENDED_LAMBDA,
            link: LinkProfile::UART,
            patience: Duration::from_secs(60),
            limit: Duration::from_secs(1800),
            plugin: None,
        }
    }
}

/// A directory with the files that the firmware finds by name.
#[derive(Debug)]
pub struct Files(PathBuf);

impl Files {
    /// Writes them into `directory`. The counters are a link to `counters`, which is made if the
    /// device never ran.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(directory: &Path, keys: &DeviceFile, counters: &Path, inputs: &[&[i16]]) -> Result<Self> {
        let files = Self(directory.to_owned());
        files.put("device.key", keys.firmware().as_slice())?;
        std::fs::OpenOptions::new().append(true).create(true).open(counters).context("cannot make the counters")?;
        let counters = counters.canonicalize()?;
        #[cfg(unix)]
        std::os::unix::fs::symlink(counters, directory.join(COUNTERS)).context("cannot link the counters")?;
        #[cfg(not(unix))]
        bail!("{} cannot be linked on this system", counters.display());
        let length = u16::try_from(inputs.first().map_or(0, |input| input.len())).context("inputs are too long")?;
        let values = inputs.iter().copied().flatten().flat_map(|value| value.to_le_bytes());
        let bytes: Vec<u8> = length.to_le_bytes().into_iter().chain(values).collect();
        files.put("inputs.bin", &bytes)?;
        Ok(files)
    }

    /// Gives the next session its randomness; the firmware spends it.
    ///
    /// # Errors
    /// The file system's.
    pub fn entropy(&self, bytes: &[u8]) -> Result<()> {
        self.put("entropy.bin", bytes)
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options
            .open(self.0.join(name))
            .and_then(|mut file| file.write_all(bytes))
            .with_context(|| format!("cannot write {name}"))
    }

    /// Starts the board, its line bridged to the server. `tap` sees every piece of bytes and may
    /// change it.
    ///
    /// # Errors
    /// QEMU's, and those of the connection to the server.
    pub fn start(&self, plan: &Plan, server: &str, tap: impl Tap) -> Result<Running> {
        // Left from an earlier run of this directory.
        for old in [REPORT, "spans"] {
            let _ = std::fs::remove_file(self.0.join(old));
        }
        let link = format!("link={},{}", plan.link.bytes_per_second, plan.link.round_trip_us);
        let mut launch = Launch::new(plan.board, &plan.firmware)
            .directory(&self.0)
            .limit(plan.limit)
            .word(format!("lambda={}", plan.lambda))
            .word(link)
            .word(format!("timeout={}", plan.patience.as_millis()));
        if !plan.programs.is_empty() {
            launch = launch.word(format!("programs={}", plan.programs.join(",").replace(' ', "_")));
        }
        if let Some(plugin) = &plan.plugin {
            launch = launch.count(plugin, &self.0.join("spans"));
        }
        let server = TcpStream::connect(server).with_context(|| format!("cannot reach the server at {server}"))?;
        server.set_nodelay(true)?;
        let qemu = launch.start()?;
        let line = &qemu.line;
        let up = Some(pipe(line.try_clone()?, server.try_clone()?, Way::Up, tap.clone()));
        let down = Some(pipe(server.try_clone()?, line.try_clone()?, Way::Down, tap));
        Ok(Running { qemu: Some(qemu), bridge: [up, down], server, report: self.0.join(REPORT), read: 0 })
    }

    /// The instructions of each span of the last run, if the plan had the plugin: whether it was
    /// offline, and how many.
    ///
    /// # Errors
    /// A run that left none.
    pub fn spans(&self) -> Result<Vec<(bool, u64)>> {
        let text = std::fs::read_to_string(self.0.join("spans")).context("the run counted nothing")?;
        let lines = text.lines().filter(|line| !line.starts_with("total "));
        let parse = |line: &str| {
            let (phase, count) = line.split_once(' ')?;
            Some((phase == "offline", count.parse().ok()?))
        };
        lines.map(|line| parse(line).with_context(|| format!("the plugin said {line:?}"))).collect()
    }

    /// Starts the board with fresh randomness.
    ///
    /// # Errors
    /// As [`start`](Self::start), and of the system's random source.
    pub fn start_fresh(&self, plan: &Plan, server: &str) -> Result<Running> {
        let mut bytes = [0; 32];
        getrandom::SysRng.try_fill_bytes(&mut bytes).context("the system's random source failed")?;
        self.entropy(&bytes)?;
        self.start(plan, server, |_, _: &mut Vec<u8>| {})
    }
}

/// A direction on the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the device.
    Up,
    /// To the device.
    Down,
}

/// What stands on the line between device and server.
pub trait Tap: Fn(Way, &mut Vec<u8>) + Clone + Send + 'static {}
impl<T: Fn(Way, &mut Vec<u8>) + Clone + Send + 'static> Tap for T {}

fn pipe(mut from: TcpStream, mut to: TcpStream, way: Way, tap: impl Tap) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut bytes = vec![0; MAX_CONTROL_BYTES];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            let mut piece = bytes.get(..count).unwrap_or(&[]).to_vec();
            tap(way, &mut piece);
            if to.write_all(&piece).is_err() {
                break;
            }
        }
        // A side that ended ends the other one, which then says why.
        let _ = to.shutdown(Shutdown::Write);
    })
}

/// A line of the firmware's report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A program of the pool and its name.
    Program(Slot, String),
    /// The router gives the answers of this model itself.
    Own(Slot),
    /// An inference was prepared, in one offline span.
    Prepared(Slot, Moved),
    /// The router chose, in one online span.
    Routed(Slot),
    /// An answer, in one online span: behind that of the route, if there is one.
    Answer {
        /// Which input.
        index: usize,
        /// What was asked.
        asked: Slot,
        /// The model that answered.
        model: Slot,
        /// The class.
        class: usize,
        /// Online bytes at the UART.
        moved: Moved,
        /// The logits.
        logits: Vec<i32>,
    },
    /// A program that does not fit the board.
    Unfit(Slot),
    /// The deepest that the stack was, in bytes; the last line.
    Stack(usize),
}

impl Line {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        let kind = words.next()?;
        if kind == "program" {
            let code = words.next()?.parse().ok()?;
            return Some(Self::Program(Slot::from_code(code), text.splitn(3, ' ').nth(2)?.to_owned()));
        }
        let numbers = words.map(|word| word.parse().ok()).collect::<Option<Vec<i64>>>()?;
        let slot = |code: i64| u8::try_from(code).ok().map(Slot::from_code);
        let moved = |sent: i64, received: i64| {
            Some(Moved { sent: u64::try_from(sent).ok()?, received: u64::try_from(received).ok()? })
        };
        match (kind, numbers.as_slice()) {
            ("prepared", [code, sent, received, _]) => Some(Self::Prepared(slot(*code)?, moved(*sent, *received)?)),
            ("routed", [code, _]) => Some(Self::Routed(slot(*code)?)),
            ("own", [code]) => Some(Self::Own(slot(*code)?)),
            ("unfit", [code]) => Some(Self::Unfit(slot(*code)?)),
            ("stack", [bytes]) => Some(Self::Stack(usize::try_from(*bytes).ok()?)),
            ("answer", [index, asked, model, class, sent, received, _, logits @ ..]) => Some(Self::Answer {
                index: usize::try_from(*index).ok()?,
                asked: slot(*asked)?,
                model: slot(*model)?,
                class: usize::try_from(*class).ok()?,
                moved: moved(*sent, *received)?,
                logits: logits.iter().map(|logit| i32::try_from(*logit).ok()).collect::<Option<_>>()?,
            }),
            _ => None,
        }
    }
}

/// A board that runs.
#[derive(Debug)]
pub struct Running {
    qemu: Option<Qemu>,
    bridge: [Option<JoinHandle<()>>; 2],
    server: TcpStream,
    report: PathBuf,
    /// Bytes of the report that were read.
    read: usize,
}

impl Running {
    /// The next line of the report, as soon as the firmware has written it; none at its end.
    ///
    /// # Errors
    /// A report that is none.
    pub fn next_line(&mut self) -> Result<Option<Line>> {
        loop {
            // Asked before the report is read: whatever an ended board wrote is then there.
            let ended = self.qemu.as_mut().is_none_or(|qemu| qemu.has_ended().unwrap_or(true));
            let text = match std::fs::read(&self.report) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                Err(error) => return Err(error).context("cannot read the board's report"),
            };
            let rest = text.get(self.read..).unwrap_or(&[]);
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8_lossy(rest.get(..end).unwrap_or(&[]));
                self.read += end + 1;
                return Line::parse(&line).with_context(|| format!("the board reported {line:?}")).map(Some);
            }
            if ended {
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends the run at once, as a power cut would.
    ///
    /// # Errors
    /// The operating system's.
    pub fn kill(mut self) -> Result<End> {
        let end = self.qemu.take().context("the run has ended")?.kill()?;
        self.join();
        Ok(end)
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// A run over its limit.
    pub fn wait(mut self) -> Result<End> {
        let end = self.qemu.take().context("the run has ended")?.wait()?;
        self.join();
        Ok(end)
    }

    fn join(&mut self) {
        for thread in &mut self.bridge {
            let _ = thread.take().map(JoinHandle::join);
            // The device's last bytes are on their way to the server, and nobody is left to hear it.
            let _ = self.server.shutdown(Shutdown::Both);
        }
    }
}

/// Ends a run that must have gone well.
///
/// # Errors
/// What the firmware said when it stopped.
pub fn finish(running: Running) -> Result<End> {
    let end = running.wait()?;
    match end.code {
        Some(0) => Ok(end),
        Some(code) => bail!("the board stopped with code {code}: {}", end.console.trim()),
        None => bail!("QEMU was killed: {}", end.console.trim()),
    }
}

/// Latency as seen from outside: time from a line of the report to the next.
#[derive(Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Milliseconds since the last lap.
    pub fn lap(&mut self) -> f64 {
        let before = std::mem::replace(&mut self.0, Instant::now());
        (self.0 - before).as_secs_f64() * 1e3
    }
}
