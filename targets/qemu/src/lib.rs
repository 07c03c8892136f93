//! Starts the device's firmware in QEMU, its UART bridged to a socket.
//!
//! ```no_run
//! use std::io::Read;
//! use secure_router_qemu::{Board, Launch};
//!
//! # fn main() -> std::io::Result<()> {
//! let board = Board::named("mps2-an386")?;
//! let mut qemu = Launch::new(board, "target/firmware/mps2-an386/selftest.elf")
//!     .directory("run") // where the names in `word`s are looked up
//!     .word("inputs=inputs.bin")
//!     .start()?;
//! let mut ready = [0; 4];
//! qemu.line.read_exact(&mut ready)?; // the firmware speaks first
//! let end = qemu.wait()?;
//! assert_eq!(end.code, Some(0), "{}", end.console);
//! # Ok(())
//! # }
//! ```
//!
//! Keep [`Qemu::line`] open until the firmware has ended: QEMU drops what the firmware has not
//! read yet when the peer closes. A harness on an async runtime takes `line.try_clone()`.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const QEMU: &str = "qemu-system-arm";

/// A board the firmware runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Board {
    /// Its name, which is also the firmware's feature and the folder of its ELF files.
    pub name: &'static str,
    file: &'static str,
}

macro_rules! boards {
    ($($name:literal),* $(,)?) => {
        &[$(Board { name: $name, file: include_str!(concat!("../../boards/", $name, ".toml")) }),*]
    };
}

impl Board {
    /// Every board.
    pub const ALL: &[Self] =
        boards!["lm3s6965evb", "microbit", "mps2-an386", "mps2-an500", "mps2-an505", "netduinoplus2",];

    /// The board of this name.
    pub fn named(name: &str) -> io::Result<Self> {
        let found = Self::ALL.iter().find(|board| board.name == name).copied();
        found.ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|board| board.name).collect();
            let names = names.join(", ");
            io::Error::new(io::ErrorKind::NotFound, format!("no board {name}; there are {names}"))
        })
    }

    /// Its processor, such as `Cortex-M3`.
    pub fn cpu(self) -> &'static str {
        self.field("cpu")
    }

    /// The target the firmware is built for.
    pub fn target(self) -> &'static str {
        self.field("target")
    }

    /// QEMU's name for it.
    pub fn machine(self) -> &'static str {
        self.field("machine")
    }

    /// Tokens of a linear gate that its firmware masks at a time.
    pub fn tile(self) -> u16 {
        self.number("tile")
    }

    /// Words of work space of its firmware.
    pub fn work_words(self) -> usize {
        self.number("work")
    }

    /// Most values of an input of its firmware.
    pub fn input_values(self) -> usize {
        self.number("input")
    }

    // The build script of the firmware refuses a file in which these are no numbers.
    fn number<N: std::str::FromStr + Default>(self, key: &str) -> N {
        self.field(key).parse().unwrap_or_default()
    }

    fn field(self, key: &str) -> &'static str {
        self.file
            .lines()
            .filter_map(|line| line.split_once('='))
            .find(|(k, _)| k.trim() == key)
            .map_or("", |(_, value)| value.trim().trim_matches('"'))
    }
}

impl fmt::Display for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.cpu())
    }
}

/// Bytes that firmware takes before it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Code, constants, and what static data starts as.
    pub flash: u32,
    /// Static data.
    pub ram: u32,
}

impl Sizes {
    /// Reads the sections of a little-endian 32-bit ELF file.
    pub fn of(elf: &Path) -> io::Result<Self> {
        let bytes = std::fs::read(elf)?;
        let parse = || -> Option<Self> {
            let half = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
            let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
            if bytes.get(..6)? != [0x7f, b'E', b'L', b'F', 1, 1] {
                return None;
            }
            let (table, entry, count) = (word(32)? as usize, half(46)?, half(48)?);
            let mut sizes = Self { flash: 0, ram: 0 };
            for index in 0..count {
                let at = table + usize::from(index) * usize::from(entry);
                let (kind, flags, size) = (word(at + 4)?, word(at + 8)?, word(at + 20)?);
                const NO_BITS: u32 = 8;
                const WRITE: u32 = 1;
                const ALLOCATED: u32 = 2;
                if flags & ALLOCATED != 0 {
                    sizes.flash += if kind == NO_BITS { 0 } else { size };
                    sizes.ram += if flags & WRITE == 0 { 0 } else { size };
                }
            }
            Some(sizes)
        };
        parse().ok_or_else(|| {
            let message = format!("{}: not a 32-bit ELF file", elf.display());
            io::Error::new(io::ErrorKind::InvalidData, message)
        })
    }
}

/// How to start the firmware.
#[derive(Clone, Debug)]
pub struct Launch {
    board: Board,
    elf: PathBuf,
    directory: PathBuf,
    words: Vec<String>,
    extra: Vec<OsString>,
    limit: Duration,
}

impl Launch {
    /// The board with this firmware.
    pub fn new(board: Board, elf: impl Into<PathBuf>) -> Self {
        Self {
            board,
            elf: elf.into(),
            directory: PathBuf::from("."),
            words: Vec::new(),
            extra: Vec::new(),
            limit: Duration::from_secs(60),
        }
    }

    /// The directory QEMU runs in, where the firmware finds the files it has names for.
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = directory.into();
        self
    }

    /// A word for the firmware, such as `in=inputs.bin`. It may hold no space: the firmware sees
    /// all words as one line.
    pub fn word(mut self, word: impl Into<String>) -> Self {
        self.words.push(word.into());
        self
    }

    /// How long the run may take before it is killed; a minute unless set.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Counts instructions in marked spans with the plugin, into the file `out`.
    pub fn count(mut self, plugin: &Path, out: &Path) -> Self {
        let mut option = plugin.as_os_str().to_owned();
        option.push(",out=");
        option.push(out);
        self.extra.extend(["-plugin".into(), option]);
        self
    }

    /// Lets virtual time pass by instructions, one a nanosecond, so that the firmware's own
    /// clock counts them.
    pub fn icount(mut self) -> Self {
        self.extra.extend(["-icount".into(), "shift=0".into()]);
        self
    }

    /// Starts QEMU and waits until it has connected.
    pub fn start(self) -> io::Result<Qemu> {
        let elf = self.elf.canonicalize().map_err(|error| {
            let elf = self.elf.display();
            let hint = format!("{elf}: {error}; build it with targets/build.sh");
            io::Error::new(error.kind(), hint)
        })?;
        let mut semihosting = String::from("enable=on,target=native,arg=firmware");
        for word in &self.words {
            if word.is_empty() || word.contains([' ', '\0']) {
                let message = format!("not a word for the firmware: {word:?}");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
            semihosting.push_str(",arg=");
            semihosting.push_str(&word.replace(',', ",,"));
        }
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let mut child = Command::new(QEMU)
            .args(["-machine", self.board.machine()])
            .args(["-display", "none", "-monitor", "none"])
            .args([
                "-chardev",
                &format!("socket,id=line,host=127.0.0.1,port={port},nodelay=on"),
                "-serial",
                "chardev:line",
                "-semihosting-config",
                &semihosting,
            ])
            .args(&self.extra)
            .arg("-kernel")
            .arg(&elf)
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("{QEMU}: {error}")))?;
        let console = Arc::new(Mutex::new(Vec::new()));
        let readers = [
            child.stdout.take().map(|out| collect(out, &console)),
            child.stderr.take().map(|err| collect(err, &console)),
        ];
        let process = Process::watched(child, self.limit);
        let mut qemu = Starting { process, readers: readers.into_iter().flatten().collect(), console };
        match accept(&listener, &mut qemu.process) {
            Ok(line) => Ok(Qemu { line, process: qemu.process, readers: qemu.readers, console: qemu.console }),
            Err(error) => {
                let Starting { process, readers, console } = qemu;
                drop(process);
                let said = join(readers, &console);
                Err(io::Error::new(error.kind(), format!("QEMU did not start: {error}: {}", said.trim())))
            }
        }
    }
}

struct Starting {
    process: Process,
    readers: Vec<JoinHandle<()>>,
    console: Arc<Mutex<Vec<u8>>>,
}

fn collect(mut from: impl Read + Send + 'static, into: &Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    let into = Arc::clone(into);
    thread::spawn(move || {
        let mut piece = [0; 1024];
        while let Ok(count @ 1..) = from.read(&mut piece) {
            let mut all = into.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend_from_slice(&piece[..count]);
        }
    })
}

fn join(readers: Vec<JoinHandle<()>>, console: &Mutex<Vec<u8>>) -> String {
    for reader in readers {
        let _ = reader.join();
    }
    let all = console.lock().unwrap_or_else(PoisonError::into_inner);
    String::from_utf8_lossy(&all).into_owned()
}

fn accept(listener: &TcpListener, process: &mut Process) -> io::Result<TcpStream> {
    let start = Instant::now();
    loop {
        match listener.accept() {
            Ok((line, _)) => {
                line.set_nonblocking(false)?;
                line.set_nodelay(true)?;
                return Ok(line);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if process.ended()?.is_some() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "it ended before it connected"));
        }
        if start.elapsed() > Duration::from_secs(20) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Firmware that runs. Killed when dropped.
#[derive(Debug)]
pub struct Qemu {
    /// The other end of the firmware's UART 0.
    pub line: TcpStream,
    process: Process,
    readers: Vec<JoinHandle<()>>,
    console: Arc<Mutex<Vec<u8>>>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// The firmware's exit code; none if QEMU was killed.
    pub code: Option<i32>,
    /// What the firmware and QEMU wrote to standard output and standard error.
    pub console: String,
}

impl Qemu {
    /// Whether the firmware has ended.
    pub fn has_ended(&mut self) -> io::Result<bool> {
        self.process.ended().map(|status| status.is_some())
    }

    /// Waits until the firmware ends; fails if that took longer than the limit.
    pub fn wait(mut self) -> io::Result<End> {
        let code = loop {
            if let Some(status) = self.process.ended()? {
                break status.code();
            }
            thread::sleep(Duration::from_millis(2));
        };
        let console = join(std::mem::take(&mut self.readers), &self.console);
        if self.process.late.load(Ordering::Relaxed) {
            let message = format!("the firmware did not end in time: {}", console.trim());
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        Ok(End { code, console })
    }

    /// Ends the run at once, as a power cut would.
    pub fn kill(mut self) -> io::Result<End> {
        self.process.kill()?;
        self.wait()
    }

    /// What the firmware and QEMU have written so far.
    pub fn console(&self) -> String {
        join(Vec::new(), &self.console)
    }
}

/// A child process with a limit.
#[derive(Debug)]
struct Process {
    child: Arc<Mutex<Child>>,
    late: Arc<AtomicBool>,
    // Dropped first, which ends the watch.
    _alive: mpsc::Sender<()>,
}

impl Process {
    fn watched(child: Child, limit: Duration) -> Self {
        let child = Arc::new(Mutex::new(child));
        let late = Arc::new(AtomicBool::new(false));
        let (alive, ended) = mpsc::channel();
        let (watched, flag) = (Arc::clone(&child), Arc::clone(&late));
        thread::spawn(move || {
            if ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                let mut child = watched.lock().unwrap_or_else(PoisonError::into_inner);
                if let Ok(None) = child.try_wait() {
                    flag.store(true, Ordering::Relaxed);
                    let _ = child.kill();
                }
            }
        });
        Self { child, late, _alive: alive }
    }

    fn ended(&mut self) -> io::Result<Option<std::process::ExitStatus>> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        child.try_wait()
    }

    fn kill(&mut self) -> io::Result<()> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        child.kill()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Whether this QEMU takes the counting plugin: it must be built with plugins, and serve the
/// interface's version.
pub fn can_count(plugin: &Path) -> bool {
    let mut option = plugin.as_os_str().to_owned();
    option.push(",out=/dev/null");
    // Without a machine QEMU loads the plugin, then stops at the end of the monitor's input.
    let probe = Command::new(QEMU)
        .args(["-machine", "none", "-display", "none", "-serial", "none"])
        .args(["-monitor", "stdio", "-plugin"])
        .arg(option)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut probe) = probe else { return false };
    if let Some(mut monitor) = probe.stdin.take() {
        let _ = io::Write::write_all(&mut monitor, b"quit\n");
    }
    let mut process = Process::watched(probe, Duration::from_secs(20));
    loop {
        match process.ended() {
            Ok(Some(status)) => return status.success(),
            Ok(None) => thread::sleep(Duration::from_millis(5)),
            Err(_) => return false,
        }
    }
}
