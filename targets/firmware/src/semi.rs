//! Semihosting: the host's files, its console, the words given to the firmware, the exit code.
//!
//! Each call stops the whole machine until the host has answered, so time spent here is no
//! measure of anything.

use core::fmt;

const OPEN: u32 = 0x01;
const CLOSE: u32 = 0x02;
const WRITE: u32 = 0x05;
const READ: u32 = 0x06;
const SEEK: u32 = 0x0a;
const LENGTH: u32 = 0x0c;
const GET_CMDLINE: u32 = 0x15;
const EXIT_EXTENDED: u32 = 0x20;
const APPLICATION_EXIT: usize = 0x2_0026;
const FAILED: usize = usize::MAX;

/// One semihosting operation; the meaning of `block` and of the result is the operation's.
///
/// # Safety
///
/// `block` is what Arm's semihosting specification asks for this operation, and every address
/// in it points to memory that may be read, or written where the operation writes.
unsafe fn call(operation: u32, block: *mut usize) -> usize {
    let result;
    // SAFETY: the trap reads and writes only what `block` names, which the caller answers for.
    unsafe {
        core::arch::asm!("bkpt #0xab", inlateout("r0") operation as usize => result, in("r1") block,
            options(nostack));
    }
    result
}

/// A file operation that the host refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The file could not be opened.
    Open,
    /// Nothing could be read, or less than was asked for.
    Read,
    /// Not everything could be written.
    Write,
    /// A name is too long or holds a NUL byte.
    Name,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "the host's file could not be opened",
            Self::Read => "the host's file could not be read",
            Self::Write => "the host's file could not be written",
            Self::Name => "not a file name the host can take",
        })
    }
}

impl core::error::Error for Error {}

impl embedded_io::Error for Error {
    fn kind(&self) -> embedded_io::ErrorKind {
        match self {
            Self::Open => embedded_io::ErrorKind::NotFound,
            Self::Name => embedded_io::ErrorKind::InvalidInput,
            Self::Read | Self::Write => embedded_io::ErrorKind::Other,
        }
    }
}

/// How a file is opened; the numbers are those of C's `fopen` modes in the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Read = 1,
    ReadWrite = 3,
    Create = 5,
    Append = 9,
}

/// An open file of the host, or a pipe or device it has a name for. Closed on drop.
#[derive(Debug)]
pub struct File {
    handle: usize,
}

impl File {
    /// Opens a file to read.
    pub fn open(name: &str) -> Result<Self, Error> {
        Self::with_mode(name, Mode::Read)
    }

    /// Makes a file to write, emptied if it is there.
    pub fn create(name: &str) -> Result<Self, Error> {
        Self::with_mode(name, Mode::Create)
    }

    /// Opens a file that is there, to read and to write from its start.
    pub fn update(name: &str) -> Result<Self, Error> {
        Self::with_mode(name, Mode::ReadWrite)
    }

    /// Goes to the end of the file. Not by opening it to append: QEMU takes that for opening it
    /// to write at its start.
    pub fn seek_end(&mut self) -> Result<(), Error> {
        let mut block = [self.handle];
        // SAFETY: SYS_FLEN takes a handle and returns the file's length.
        let length = unsafe { call(LENGTH, block.as_mut_ptr()) };
        let mut block = [self.handle, length];
        // SAFETY: SYS_SEEK takes a handle and a position; it returns 0 if it went there.
        if length == FAILED || unsafe { call(SEEK, block.as_mut_ptr()) } != 0 {
            return Err(Error::Write);
        }
        Ok(())
    }

    fn with_mode(name: &str, mode: Mode) -> Result<Self, Error> {
        let mut bytes = [0; 128];
        if name.len() >= bytes.len() || name.bytes().any(|b| b == 0) {
            return Err(Error::Name);
        }
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        let mut block = [bytes.as_ptr() as usize, mode as usize, name.len()];
        // SAFETY: SYS_OPEN takes a NUL-ended name, a mode and the name's length.
        match unsafe { call(OPEN, block.as_mut_ptr()) } {
            FAILED => Err(Error::Open),
            handle => Ok(Self { handle }),
        }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let mut block = [self.handle];
        // SAFETY: SYS_CLOSE takes a handle. A failure leaves nothing to do.
        unsafe { call(CLOSE, block.as_mut_ptr()) };
    }
}

impl embedded_io::ErrorType for File {
    type Error = Error;
}

impl embedded_io::Read for File {
    fn read(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        let mut block = [self.handle, out.as_mut_ptr() as usize, out.len()];
        // SAFETY: SYS_READ takes a handle and a buffer to write with its length; it returns how
        // much of the buffer is left unfilled.
        let left = unsafe { call(READ, block.as_mut_ptr()) };
        out.len().checked_sub(left).ok_or(Error::Read)
    }
}

impl embedded_io::Write for File {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let mut block = [self.handle, bytes.as_ptr() as usize, bytes.len()];
        // SAFETY: SYS_WRITE takes a handle and a buffer to read with its length; it returns how
        // much is left unwritten.
        let left = unsafe { call(WRITE, block.as_mut_ptr()) };
        match bytes.len().checked_sub(left) {
            None | Some(0) => Err(Error::Write),
            Some(written) => Ok(written),
        }
    }

    fn flush(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// The words that the host gave with `-semihosting-config arg=...`, without the first, which
/// names the program.
pub struct Words {
    bytes: [u8; 512],
    length: usize,
}

impl Words {
    /// Asks the host; without words, or with too many for 512 bytes, there are none.
    pub fn new() -> Self {
        let mut words = Self { bytes: [0; 512], length: 0 };
        let mut block = [words.bytes.as_mut_ptr() as usize, words.bytes.len()];
        // SAFETY: SYS_GET_CMDLINE takes a buffer to write with its length, and replaces the
        // length by that of the text without its NUL.
        if unsafe { call(GET_CMDLINE, block.as_mut_ptr()) } == 0 {
            words.length = block[1].min(words.bytes.len());
        }
        words
    }

    /// The words in their order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        str::from_utf8(&self.bytes[..self.length])
            .unwrap_or("")
            .trim_end_matches('\0')
            .split(' ')
            .filter(|word| !word.is_empty())
            .skip(1)
    }

    /// The rest of the first word that starts with `key` and `=`.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }
}

impl Default for Words {
    fn default() -> Self {
        Self::new()
    }
}

/// Ends QEMU with this exit code.
pub fn exit(code: u8) -> ! {
    let mut block = [APPLICATION_EXIT, usize::from(code)];
    loop {
        // SAFETY: SYS_EXIT_EXTENDED takes a reason and a code, and does not return.
        unsafe { call(EXIT_EXTENDED, block.as_mut_ptr()) };
    }
}

/// Writes text to the host's console.
pub fn print(text: &str) {
    use embedded_io::Write as _;
    // `:tt` opened for appending is standard error, which stays apart from a piped standard
    // output. There is no one to tell if the console is gone.
    if let Ok(mut console) = File::with_mode(":tt", Mode::Append) {
        let _ = console.write_all(text.as_bytes());
    }
}

/// Writes a decimal number to the host's console.
pub fn print_number(number: u32) {
    print(decimal(number, &mut [0; 10]));
}

/// The number's digits, without the weight of `core::fmt`.
pub fn decimal(mut number: u32, digits: &mut [u8; 10]) -> &str {
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return str::from_utf8(&digits[first..]).unwrap_or("?");
        }
    }
}
