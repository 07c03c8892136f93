//! Arm's CMSDK APB UART, on every MPS2 board. It has no FIFO.

use super::Error;
use crate::board::{BASE, CLOCK};
use crate::register::Register;

// SAFETY: the registers of a CMSDK UART at `BASE`.
const DATA: Register = unsafe { Register::new(BASE, 0x00) };
// SAFETY: as above.
const STATE: Register = unsafe { Register::new(BASE, 0x04) };
// SAFETY: as above.
const CTRL: Register = unsafe { Register::new(BASE, 0x08) };
// SAFETY: as above.
const INTCLEAR: Register = unsafe { Register::new(BASE, 0x0c) };
// SAFETY: as above.
const BAUDDIV: Register = unsafe { Register::new(BASE, 0x10) };

const TX_FULL: u32 = 1 << 0;
const RX_FULL: u32 = 1 << 1;
const RX_OVERRUN: u32 = 1 << 3;
const TX_RX_AND_RX_INTERRUPT: u32 = 0b1011;
const RX_INTERRUPT: u32 = 1 << 1;

pub(super) fn start() {
    BAUDDIV.write(CLOCK / 115_200);
    CTRL.write(TX_RX_AND_RX_INTERRUPT);
    // QEMU looks at its socket again when DATA is read; the first byte may come a second late
    // otherwise. The peer sends nothing before the device has spoken.
    let _ = DATA.read();
}

pub(super) fn acknowledge() {
    INTCLEAR.write(RX_INTERRUPT);
}

#[inline(always)]
pub(super) fn has_received() -> bool {
    STATE.read() & RX_FULL != 0
}

#[inline(always)]
pub(super) fn received() -> Result<u8, Error> {
    Ok(DATA.read() as u8)
}

pub(super) fn line_status() -> Result<(), Error> {
    if STATE.read() & RX_OVERRUN != 0 {
        STATE.write(RX_OVERRUN);
        return Err(Error::Overrun);
    }
    Ok(())
}

#[inline(always)]
pub(super) fn send(byte: u8) {
    while STATE.read() & TX_FULL != 0 {}
    DATA.write(byte.into());
}

pub(super) fn flush() {
    while STATE.read() & TX_FULL != 0 {}
}
