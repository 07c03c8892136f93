//! The nRF51's UART, on the micro:bit's pins to its USB bridge. Its FIFO holds 6 bytes.

use super::Error;
use crate::board::BASE;
use crate::register::Register;

// SAFETY: the registers of an nRF51 UART at `BASE`.
const STARTRX: Register = unsafe { Register::new(BASE, 0x000) };
// SAFETY: as above.
const STARTTX: Register = unsafe { Register::new(BASE, 0x008) };
// SAFETY: as above.
const RXDRDY: Register = unsafe { Register::new(BASE, 0x108) };
// SAFETY: as above.
const TXDRDY: Register = unsafe { Register::new(BASE, 0x11c) };
// SAFETY: as above.
const INTENSET: Register = unsafe { Register::new(BASE, 0x304) };
// SAFETY: as above.
const ERRORSRC: Register = unsafe { Register::new(BASE, 0x480) };
// SAFETY: as above.
const ENABLE: Register = unsafe { Register::new(BASE, 0x500) };
// SAFETY: as above.
const PSELTXD: Register = unsafe { Register::new(BASE, 0x50c) };
// SAFETY: as above.
const PSELRXD: Register = unsafe { Register::new(BASE, 0x514) };
// SAFETY: as above.
const RXD: Register = unsafe { Register::new(BASE, 0x518) };
// SAFETY: as above.
const TXD: Register = unsafe { Register::new(BASE, 0x51c) };
// SAFETY: as above.
const BAUDRATE: Register = unsafe { Register::new(BASE, 0x524) };

pub(super) fn start() {
    PSELTXD.write(24);
    PSELRXD.write(25);
    BAUDRATE.write(0x01d7_e000); // 115,200
    ENABLE.write(4);
    INTENSET.write(1 << 2); // RXDRDY
    STARTRX.write(1);
    STARTTX.write(1);
}

pub(super) fn acknowledge() {}

#[inline(always)]
pub(super) fn has_received() -> bool {
    RXDRDY.read() != 0
}

#[inline(always)]
pub(super) fn received() -> Result<u8, Error> {
    RXDRDY.write(0); // before RXD: reading that raises it again if more is queued
    Ok(RXD.read() as u8)
}

pub(super) fn line_status() -> Result<(), Error> {
    const OVERRUN: u32 = 1 << 0;
    const PARITY: u32 = 1 << 1;
    let source = ERRORSRC.read();
    if source == 0 {
        return Ok(());
    }
    ERRORSRC.write(source);
    Err(if source & OVERRUN != 0 {
        Error::Overrun
    } else if source & PARITY != 0 {
        Error::Noise
    } else {
        Error::Framing
    })
}

#[inline(always)]
pub(super) fn send(byte: u8) {
    TXDRDY.write(0);
    TXD.write(byte.into());
    while TXDRDY.read() == 0 {}
}

pub(super) fn flush() {}
