//! USART1 of the STM32F4, on PA9 and PA10. It has no FIFO.

use super::Error;
use crate::board::BASE;
use crate::register::Register;

const CLOCKS: usize = 0x4002_3800;
const PORT_A: usize = 0x4002_0000;
// SAFETY: the registers of an STM32F4 USART at `BASE`.
const SR: Register = unsafe { Register::new(BASE, 0x00) };
// SAFETY: as above.
const DR: Register = unsafe { Register::new(BASE, 0x04) };
// SAFETY: as above.
const BRR: Register = unsafe { Register::new(BASE, 0x08) };
// SAFETY: as above.
const CR1: Register = unsafe { Register::new(BASE, 0x0c) };
// SAFETY: the clock registers of an STM32F4.
const AHB1ENR: Register = unsafe { Register::new(CLOCKS, 0x30) };
// SAFETY: as above.
const APB2ENR: Register = unsafe { Register::new(CLOCKS, 0x44) };
// SAFETY: the registers of port A.
const MODER: Register = unsafe { Register::new(PORT_A, 0x00) };
// SAFETY: as above.
const AFRH: Register = unsafe { Register::new(PORT_A, 0x24) };

const FRAMING: u32 = 1 << 1;
const PARITY_OR_NOISE: u32 = 1 << 0 | 1 << 2;
const OVERRUN: u32 = 1 << 3;
const RX_FULL: u32 = 1 << 5;
const TX_DONE: u32 = 1 << 6;
const TX_EMPTY: u32 = 1 << 7;

pub(super) fn start() {
    const OSCILLATOR: u32 = 16_000_000; // what feeds the USART after reset
    AHB1ENR.modify(|r| r | 1);
    APB2ENR.modify(|r| r | 1 << 4);
    AFRH.modify(|r| r & !0xff0 | 0x770);
    MODER.modify(|r| r & !(0b1111 << 18) | 0b1010 << 18);
    BRR.write((OSCILLATOR + 115_200 / 2) / 115_200);
    CR1.write(1 << 13 | 1 << 5 | 1 << 3 | 1 << 2); // enable, RX interrupt, TX, RX
}

pub(super) fn acknowledge() {}

#[inline(always)]
pub(super) fn has_received() -> bool {
    SR.read() & RX_FULL != 0
}

#[inline(always)]
pub(super) fn received() -> Result<u8, Error> {
    // Reading the data register after the status register clears the flags.
    let status = SR.read();
    let byte = DR.read() as u8;
    if status & OVERRUN != 0 {
        Err(Error::Overrun)
    } else if status & FRAMING != 0 {
        Err(Error::Framing)
    } else if status & PARITY_OR_NOISE != 0 {
        Err(Error::Noise)
    } else {
        Ok(byte)
    }
}

pub(super) fn line_status() -> Result<(), Error> {
    if SR.read() & OVERRUN != 0 {
        let _ = DR.read();
        return Err(Error::Overrun);
    }
    Ok(())
}

#[inline(always)]
pub(super) fn send(byte: u8) {
    while SR.read() & TX_EMPTY == 0 {}
    DR.write(byte.into());
}

pub(super) fn flush() {
    while SR.read() & TX_DONE == 0 {}
}
