//! The device party on an STM32F405, with a UART and an input (pin PA4) of its own. What firmware
//! has anyway (clocks, counters, generator, keys) is in `board.rs`.
#![no_std]
#![no_main]

mod board;

use board::{Backup, Generator, get, set};
use embedded_io::{ErrorKind, ErrorType, Read, Write};
use secure_router_example::{Memory, serve};
use static_cell::ConstStaticCell;

/// USART1 with RTS and CTS: a byte waits at the server until there is room. A lost one is an error.
struct Uart;

impl ErrorType for Uart {
    type Error = ErrorKind;
}

impl Read for Uart {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, ErrorKind> {
        let Some(first) = bytes.first_mut() else { return Ok(0) };
        // A server that is silent for about a minute is gone.
        (0..60 * board::POLLS).find(|_| get(0x4001_1000) & 1 << 5 != 0).ok_or(ErrorKind::TimedOut)?;
        let lost = get(0x4001_1000) & 0b1111 != 0;
        *first = get(0x4001_1004) as u8;
        if lost { Err(ErrorKind::Other) } else { Ok(1) }
    }
}

impl Write for Uart {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, ErrorKind> {
        let Some(first) = bytes.first() else { return Ok(0) };
        (0..60 * board::POLLS).find(|_| get(0x4001_1000) & 1 << 7 != 0).ok_or(ErrorKind::TimedOut)?;
        set(0x4001_1004, u32::from(*first));
        Ok(1)
    }

    fn flush(&mut self) -> Result<(), ErrorKind> {
        Ok(())
    }
}

/// One reading of the pin, as 8 bits with a sign.
fn reading() -> i16 {
    set(0x4001_2008, 1 << 30 | 1);
    while get(0x4001_2000) & 1 << 1 == 0 {}
    (get(0x4001_204c) >> 4) as i16 - 128
}

#[cortex_m_rt::entry]
fn main() -> ! {
    static MEMORY: ConstStaticCell<Memory> = ConstStaticCell::new(Memory::EMPTY);
    let (memory, keys, sample) = (MEMORY.take(), board::start(), || core::array::from_fn(|_| reading()));
    let mut session = || serve(&mut Uart, Backup, &mut Generator, keys.identity(), memory, sample, board::show);
    loop {
        let Err(_) = session();
        board::pause(); // what the old session still gets is not the new one's
    }
}
