//! Proves what the device stands on, in QEMU: the UART, the host's files, faults, and counting.
//!
//! The word `mode=` chooses: `files`, `measure`, `panic`, `fault`, or without it the line. There
//! the firmware says `RDY` and a newline, then serves commands of one letter and a length (u32,
//! little-endian), and ends with exit code 0 at `Q`, 1 if the line fails.
#![no_std]
#![no_main]

use core::hint::black_box;

use cortex_m_rt::entry;
use embedded_io::{Read, ReadReady, Write};
use secure_router_firmware::semi::{self, File, Words};
use secure_router_firmware::span::{Phase, measured, ticks};
use secure_router_firmware::uart::{self, Flow, Uart};
use secure_router_firmware::{board, stack};

#[entry]
fn main() -> ! {
    let words = Words::new();
    let code = match words.value("mode") {
        Some("panic") => panic_on_purpose(),
        Some("fault") => cortex_m::asm::udf(),
        Some("files") => report(files(&words)),
        Some("measure") => report(measure(&words)),
        _ => report(line()),
    };
    semi::exit(code)
}

#[allow(clippy::panic, reason = "this is what is tested")]
fn panic_on_purpose() -> ! {
    panic!("asked to")
}

fn report<E: embedded_io::Error>(result: Result<(), E>) -> u8 {
    match result {
        Ok(()) => 0,
        Err(error) => {
            semi::print(board::NAME);
            semi::print(": error kind ");
            semi::print_number(error.kind() as u32);
            semi::print("\n");
            1
        }
    }
}

/// FNV-1a, carried on over pieces.
fn checksum(sum: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(sum, |h, &b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193))
}
const CHECKSUM_START: u32 = 0x811c_9dc5;

fn line() -> Result<(), uart::Error> {
    let Some(peripherals) = cortex_m::Peripherals::take() else {
        return Ok(());
    };
    let mut uart = Uart::new(peripherals.SYST);
    uart.set_timeout(Some(20_000));
    uart.write_all(b"RDY\n")?;
    loop {
        let mut head = [0; 5];
        read_exact(&mut uart, &mut head)?;
        let [command, length @ ..] = head;
        let length = u32::from_le_bytes(length);
        match command {
            b'E' => echo(&mut uart, length)?,
            b'R' => sink(&mut uart, length)?,
            b'T' => source(&mut uart, length)?,
            b'H' => {
                // The peer sends on while the firmware computes, until the ring is full.
                while !uart.is_holding() {}
                sink(&mut uart, length)?;
            }
            b'O' => overrun(&mut uart)?,
            b'W' => {
                uart.set_timeout(Some(length));
                let outcome = uart.read(&mut [0]);
                uart.set_timeout(Some(20_000));
                uart.write_all(&[outcome.map_or_else(|e| e as u8, |_| 0)])?;
            }
            b'S' => span(&mut uart)?,
            b'Q' => return Ok(()),
            _ => return Err(uart::Error::Framing),
        }
        uart.flush()?;
    }
}

fn read_exact(uart: &mut Uart, out: &mut [u8]) -> Result<(), uart::Error> {
    uart.read_exact(out).map_err(|e| match e {
        embedded_io::ReadExactError::Other(e) => e,
        embedded_io::ReadExactError::UnexpectedEof => uart::Error::TimedOut,
    })
}

fn pieces(
    uart: &mut Uart,
    length: u32,
    mut each: impl FnMut(&mut Uart, &[u8]) -> Result<(), uart::Error>,
) -> Result<(), uart::Error> {
    let mut buffer = [0; 256];
    let mut left = length as usize;
    while left > 0 {
        let most = left.min(buffer.len());
        let count = uart.read(&mut buffer[..most])?;
        each(uart, &buffer[..count])?;
        left -= count;
    }
    Ok(())
}

/// `length` bytes in, the same bytes out, and their checksum.
fn echo(uart: &mut Uart, length: u32) -> Result<(), uart::Error> {
    let mut sum = CHECKSUM_START;
    pieces(uart, length, |uart, bytes| {
        sum = checksum(sum, bytes);
        uart.write_all(bytes)
    })?;
    uart.write_all(&sum.to_le_bytes())
}

/// `length` bytes in, their checksum out.
fn sink(uart: &mut Uart, length: u32) -> Result<(), uart::Error> {
    let mut sum = CHECKSUM_START;
    pieces(uart, length, |_, bytes| {
        sum = checksum(sum, bytes);
        Ok(())
    })?;
    uart.write_all(&sum.to_le_bytes())
}

/// `length` bytes of a pattern out.
fn source(uart: &mut Uart, length: u32) -> Result<(), uart::Error> {
    let mut state = 0x1234_5678u32;
    for _ in 0..length {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        uart.write_all(&[(state >> 24) as u8])?;
    }
    Ok(())
}

/// Says `k`, lets the ring run over, and answers with the error that reading then gives, twice:
/// it stays until it is cleared. Drops what still comes up to a zero byte, then says `c`.
fn overrun(uart: &mut Uart) -> Result<(), uart::Error> {
    uart.set_flow(Flow::Lose);
    uart.write_all(b"k")?;
    while uart.read_ready().is_ok() {}
    let first = uart.read(&mut [0; 16]).map_or_else(|e| e as u8, |_| 0);
    let again = uart.read(&mut [0; 16]).map_or_else(|e| e as u8, |_| 0);
    uart.set_flow(Flow::Hold);
    uart.clear();
    uart.write_all(&[first, again])?;
    let mut byte = [1];
    while byte != [0] {
        uart.read(&mut byte)?;
    }
    uart.write_all(b"c")
}

/// A span with transport in the middle of it, whose count must not depend on the transport.
fn span(uart: &mut Uart) -> Result<(), uart::Error> {
    measured(Phase::Online, || {
        let mut bytes = [0; 64];
        read_exact(uart, &mut bytes)?;
        let sum = placeholder(&bytes);
        uart.write_all(&sum.to_le_bytes())
    })
}

/// Stands for an inference until there is one: an int8 matrix times the input.
#[inline(never)]
fn placeholder(input: &[u8; 64]) -> u32 {
    let mut sum = 0u32;
    for row in 0..64u32 {
        for (column, &x) in (0u32..).zip(input) {
            let weight = black_box(row ^ column) as i8;
            sum = sum.wrapping_add((i32::from(weight) * i32::from(x as i8)).cast_unsigned());
        }
    }
    black_box(sum)
}

/// Copies the file `in=` to the file `out=`, bytes inverted, and counts its runs in the file
/// `key=`, as a device does with its inputs, its answers and its counter.
fn files(words: &Words) -> Result<(), semi::Error> {
    let name = |key| words.value(key).ok_or(semi::Error::Name);
    let mut input = File::open(name("in")?)?;
    let mut output = File::create(name("out")?)?;
    let mut buffer = [0; 100];
    loop {
        let count = input.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        buffer[..count].iter_mut().for_each(|b| *b = !*b);
        output.write_all(&buffer[..count])?;
    }
    let mut runs = [0];
    File::open(name("key")?)?.read(&mut runs)?;
    File::update(name("key")?)?.write_all(&[runs[0].wrapping_add(1)])
}

/// Runs the placeholder on three inputs in marked spans, and writes what the firmware itself
/// can tell to the file `out=`.
fn measure(words: &Words) -> Result<(), semi::Error> {
    if let Some(peripherals) = cortex_m::Peripherals::take() {
        // Its clock is what `ticks` counts with.
        let _ = Uart::new(peripherals.SYST);
    }
    let mut out = File::create(words.value("out").ok_or(semi::Error::Name)?)?;
    let mut line = |key: &str, value: u32| {
        out.write_all(key.as_bytes())?;
        out.write_all(b" ")?;
        out.write_all(semi::decimal(value, &mut [0; 10]).as_bytes())?;
        out.write_all(b"\n")
    };
    for fill in [0, 1, 0xff] {
        let input = black_box([fill; 64]);
        measured(Phase::Offline, || placeholder(&input));
        line("offline-ticks", ticks())?;
        measured(Phase::Online, || placeholder(&input));
        line("online-ticks", ticks())?;
    }
    let painted = stack::paint();
    placeholder(&black_box([1; 64]));
    line("stack", painted.peak() as u32)
}
