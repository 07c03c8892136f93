//! UART 0 of the Stellaris parts, a PL011 with FIFOs of 16 bytes.

use super::Error;
use crate::board::{BASE, CLOCK};
use crate::register::Register;

const SYSTEM: usize = 0x400f_e000;
const PORT_A: usize = 0x4000_4000;
// SAFETY: the registers of a PL011 at `BASE`.
const DR: Register = unsafe { Register::new(BASE, 0x00) };
// SAFETY: as above.
const FR: Register = unsafe { Register::new(BASE, 0x18) };
// SAFETY: as above.
const IBRD: Register = unsafe { Register::new(BASE, 0x24) };
// SAFETY: as above.
const FBRD: Register = unsafe { Register::new(BASE, 0x28) };
// SAFETY: as above.
const LCRH: Register = unsafe { Register::new(BASE, 0x2c) };
// SAFETY: as above.
const CTL: Register = unsafe { Register::new(BASE, 0x30) };
// SAFETY: as above.
const IM: Register = unsafe { Register::new(BASE, 0x38) };
// SAFETY: as above.
const ICR: Register = unsafe { Register::new(BASE, 0x44) };
// SAFETY: the system control registers of a Stellaris part.
const RIS: Register = unsafe { Register::new(SYSTEM, 0x050) };
// SAFETY: as above.
const RCC: Register = unsafe { Register::new(SYSTEM, 0x060) };
// SAFETY: as above.
const RCGC1: Register = unsafe { Register::new(SYSTEM, 0x104) };
// SAFETY: as above.
const RCGC2: Register = unsafe { Register::new(SYSTEM, 0x108) };
// SAFETY: the registers of port A, whose pins 0 and 1 are the UART's.
const AFSEL: Register = unsafe { Register::new(PORT_A, 0x420) };
// SAFETY: as above.
const DEN: Register = unsafe { Register::new(PORT_A, 0x51c) };

const RX_EMPTY: u32 = 1 << 4;
const TX_FULL: u32 = 1 << 5;
const BUSY: u32 = 1 << 3;
const RX_AND_RX_TIMEOUT: u32 = 0x50;
const OVERRUN_INTERRUPT: u32 = 1 << 10;

/// 50 MHz by the PLL (200 MHz / 4) from the board's 8 MHz crystal.
fn start_clock() {
    const BYPASS: u32 = 1 << 11;
    const PLL_OFF: u32 = 1 << 13;
    const OUTPUT_OFF: u32 = 1 << 12;
    const DIVIDE: u32 = 1 << 22;
    const DIVISOR: u32 = 0xf << 23;
    const CRYSTAL: u32 = 0xf << 6;
    const SOURCE: u32 = 0b11 << 4;
    const MAIN_OFF: u32 = 1 << 0;
    const LOCKED: u32 = 1 << 6;
    RCC.modify(|r| (r | BYPASS) & !DIVIDE);
    RCC.modify(|r| r & !(CRYSTAL | SOURCE | MAIN_OFF) | 0xe << 6);
    RCC.modify(|r| r & !(PLL_OFF | OUTPUT_OFF));
    RCC.modify(|r| r & !DIVISOR | 3 << 23 | DIVIDE);
    while RIS.read() & LOCKED == 0 {}
    RCC.modify(|r| r & !BYPASS);
}

pub(super) fn start() {
    start_clock();
    RCGC1.modify(|r| r | 1);
    RCGC2.modify(|r| r | 1);
    cortex_m::asm::delay(8);
    AFSEL.modify(|r| r | 0b11);
    DEN.modify(|r| r | 0b11);
    CTL.write(0);
    // The divisor in 64ths: clock / (16 * baud), rounded.
    const DIVISOR: u32 = (CLOCK * 4 + 115_200 / 2) / 115_200;
    IBRD.write(DIVISOR / 64);
    FBRD.write(DIVISOR % 64);
    LCRH.write(0x70); // 8 bits, FIFOs on
    IM.write(RX_AND_RX_TIMEOUT | OVERRUN_INTERRUPT);
    CTL.write(0x301); // enable, TX, RX
}

pub(super) fn acknowledge() {
    ICR.write(RX_AND_RX_TIMEOUT | OVERRUN_INTERRUPT);
}

#[inline(always)]
pub(super) fn has_received() -> bool {
    FR.read() & RX_EMPTY == 0
}

#[inline(always)]
pub(super) fn received() -> Result<u8, Error> {
    const FRAMING: u32 = 1 << 8;
    const PARITY: u32 = 1 << 9;
    const BREAK: u32 = 1 << 10;
    const OVERRUN: u32 = 1 << 11;
    let word = DR.read();
    if word & OVERRUN != 0 {
        Err(Error::Overrun)
    } else if word & (FRAMING | BREAK) != 0 {
        Err(Error::Framing)
    } else if word & PARITY != 0 {
        Err(Error::Noise)
    } else {
        Ok(word as u8)
    }
}

pub(super) fn line_status() -> Result<(), Error> {
    Ok(()) // each byte carries its errors
}

#[inline(always)]
pub(super) fn send(byte: u8) {
    while FR.read() & TX_FULL != 0 {}
    DR.write(byte.into());
}

pub(super) fn flush() {
    while FR.read() & BUSY != 0 {}
}
