//! The board's UART with receive interrupts and a ring buffer, as `embedded-io` traits.
//!
//! The interrupt handler moves received bytes into a ring of [`board::RING`] bytes while the firmware
//! computes, and the firmware sleeps while it waits for one. Nothing is lost in silence: a
//! byte that the device or the ring had no room for, or that arrived damaged, is latched, and
//! every read fails with it until [`Uart::clear`].

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use cortex_m::interrupt;
use cortex_m::interrupt::InterruptNumber;
use cortex_m::peripheral::{NVIC, SCB, SYST, scb::VectActive};
use embedded_io::{ErrorKind, ErrorType, Read, ReadReady, Write};

use crate::ring::Ring;
use crate::span::paused;
use crate::{board, tick};

#[cfg_attr(uart = "cmsdk", path = "uart/cmsdk.rs")]
#[cfg_attr(uart = "pl011", path = "uart/pl011.rs")]
#[cfg_attr(uart = "stm32", path = "uart/stm32.rs")]
#[cfg_attr(uart = "nrf51", path = "uart/nrf51.rs")]
mod device;

static RECEIVED: Ring<{ board::RING }> = Ring::new();
/// The first error since the last `clear`, or 0.
static LATCHED: AtomicU8 = AtomicU8::new(0);
/// The interrupt is masked, since the ring was full.
static HELD: AtomicBool = AtomicBool::new(false);
/// What a full ring means: hold (true) or lose.
static HOLDS: AtomicBool = AtomicBool::new(true);

/// What went wrong on the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Error {
    /// The device had no room for a received byte.
    Overrun = 1,
    /// The ring had no room for a received byte.
    RingFull = 2,
    /// A byte without its stop bit: noise, another rate, or a line held low.
    Framing = 3,
    /// A byte with the wrong parity, or in which the line changed while it was sampled.
    Noise = 4,
    /// Nothing arrived in the time given with [`Uart::set_timeout`].
    TimedOut = 5,
}

impl Error {
    const LATCHING: [Self; 4] = [Self::Overrun, Self::RingFull, Self::Framing, Self::Noise];
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Overrun => "the UART lost a byte",
            Self::RingFull => "the receive ring lost a byte",
            Self::Framing => "a byte came without its stop bit",
            Self::Noise => "a byte came damaged",
            Self::TimedOut => "nothing came in time",
        })
    }
}

impl core::error::Error for Error {}

impl embedded_io::Error for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Overrun | Self::RingFull => ErrorKind::OutOfMemory,
            Self::Framing | Self::Noise => ErrorKind::InvalidData,
            Self::TimedOut => ErrorKind::TimedOut,
        }
    }
}

/// What happens to bytes that come while the ring is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// They wait in the UART, which stops the peer: right where the line has flow control (RTS
    /// and CTS wired, or QEMU's socket). Without it, the UART overruns and says so.
    Hold,
    /// They are lost and [`Error::RingFull`] is latched: right where the line has none and the
    /// firmware would rather know at once.
    Lose,
}

/// UART 0.
pub struct Uart {
    syst: SYST,
    timeout: Option<u32>,
}

#[derive(Clone, Copy)]
struct Interrupt;

// SAFETY: the number is the board's constant; it does not change.
unsafe impl InterruptNumber for Interrupt {
    fn number(self) -> u16 {
        board::IRQ
    }
}

impl Uart {
    /// Sets up UART 0 for 115,200 baud, 8 data bits, no parity, and starts receiving. Takes
    /// SysTick, by which it measures time-outs, so there can be only one.
    pub fn new(mut syst: SYST) -> Self {
        device::start();
        tick::start(&mut syst);
        // SAFETY: no critical section is open whose masking this would break.
        unsafe { NVIC::unmask(Interrupt) };
        Self { syst, timeout: None }
    }

    /// How long a read waits for its first byte before it fails; `None` waits for ever.
    pub fn set_timeout(&mut self, millis: Option<u32>) {
        self.timeout = millis;
    }

    /// Chooses what a full ring does; at first it holds.
    pub fn set_flow(&mut self, flow: Flow) {
        HOLDS.store(flow == Flow::Hold, Ordering::Relaxed);
        self.resume();
    }

    /// Whether the ring is full and the UART holds the peer back.
    pub fn is_holding(&self) -> bool {
        HELD.load(Ordering::Relaxed)
    }

    /// Forgets what was received and any error: the start of a new session.
    pub fn clear(&mut self) {
        interrupt::free(|_| {
            RECEIVED.clear();
            LATCHED.store(0, Ordering::Relaxed);
        });
        self.resume();
    }

    /// Lets the interrupt handler go on after the ring was full.
    fn resume(&mut self) {
        if HELD.load(Ordering::Relaxed) {
            interrupt::free(|_| {
                HELD.store(false, Ordering::Relaxed);
                receive();
                if !HELD.load(Ordering::Relaxed) {
                    // SAFETY: it was unmasked before the ring was full, and the critical
                    // section that is open here masks by PRIMASK.
                    unsafe { NVIC::unmask(Interrupt) };
                }
            });
        }
    }

    fn check(&self) -> Result<(), Error> {
        let latched = LATCHED.load(Ordering::Relaxed);
        match Error::LATCHING.iter().find(|&&e| e as u8 == latched) {
            Some(&error) => Err(error),
            None => Ok(()),
        }
    }

    /// Waits for at least one byte and takes what there is.
    fn take(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        let mut deadline = self.timeout.map(tick::Deadline::after);
        loop {
            self.check()?;
            let count = RECEIVED.pop(out);
            if count > 0 {
                self.resume();
                return Ok(count);
            }
            if deadline.as_mut().is_some_and(tick::Deadline::passed) {
                return Err(Error::TimedOut);
            }
            interrupt::free(|_| {
                if RECEIVED.is_empty() && LATCHED.load(Ordering::Relaxed) == 0 {
                    tick::sleep(&mut self.syst);
                }
            });
        }
    }
}

/// Moves what the device has received into the ring. Called by the interrupt handler, or with
/// interrupts masked.
fn receive() {
    device::acknowledge();
    while device::has_received() {
        if RECEIVED.is_full() && HOLDS.load(Ordering::Relaxed) {
            HELD.store(true, Ordering::Relaxed);
            NVIC::mask(Interrupt);
            return;
        }
        match device::received() {
            Ok(byte) if RECEIVED.push(byte) => {}
            Ok(_) => latch(Error::RingFull),
            Err(error) => latch(error),
        }
    }
    if let Err(error) = device::line_status() {
        latch(error);
    }
}

fn latch(error: Error) {
    if LATCHED.load(Ordering::Relaxed) == 0 {
        LATCHED.store(error as u8, Ordering::Relaxed);
    }
}

/// Every exception without a handler of its own, the UART's interrupt among them. The marks keep
/// it out of a span's count: the first instruction pauses, and after the last mark only the
/// return is left, which the counter leaves out as well.
// SAFETY: keeps the stack aligned and all registers but those that exception entry has saved.
#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn DefaultHandler() {
    core::arch::naked_asm!(
        "mov r11, r11",
        "push {{r0, lr}}",
        "bl {handle}",
        "mov r12, r12",
        "pop {{r0, pc}}",
        handle = sym handle_exception,
    );
}

#[allow(clippy::panic, reason = "an interrupt nobody asked for is a bug with nobody to tell")]
extern "C" fn handle_exception() {
    match SCB::vect_active() {
        VectActive::Interrupt { irqn } if u16::from(irqn) == board::IRQ => receive(),
        _ => panic!("unexpected exception"),
    }
}

impl ErrorType for Uart {
    type Error = Error;
}

impl Read for Uart {
    fn read(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        if out.is_empty() {
            return Ok(0);
        }
        paused(|| self.take(out))
    }

    // One call for a whole message, so that how its bytes happened to arrive shows in no count.
    fn read_exact(&mut self, out: &mut [u8]) -> Result<(), embedded_io::ReadExactError<Self::Error>> {
        paused(|| {
            let mut filled = 0;
            while filled < out.len() {
                filled += self.take(&mut out[filled..])?;
            }
            Ok(())
        })
    }
}

impl ReadReady for Uart {
    fn read_ready(&mut self) -> Result<bool, Error> {
        self.check()?;
        Ok(!RECEIVED.is_empty())
    }
}

impl Write for Uart {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        paused(|| {
            for &byte in bytes {
                device::send(byte);
            }
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<(), Error> {
        paused(device::flush);
        Ok(())
    }
}
