//! A whole device, for firmware with a UART and samples of its own.
#![no_std]

use embedded_io::{Read, Write};
use secure_router_core::circuit::Slot;
use secure_router_core::driver::{DriverError, run};
use secure_router_core::rand_core::TryCryptoRng;
use secure_router_core::session::{Counters, DeviceIdentity, DeviceMemory, DeviceSession};
use secure_router_core::session::{Event, LinkProfile, Request, SessionError};

const FRAME: usize = DeviceMemory::FRAME_BYTES;

/// The static memory of a session; `work` and `input` are sized for the largest model to run.
pub struct Memory {
    rx: [u8; FRAME],
    tx: [u8; FRAME],
    work: [u32; 1280],
    input: [i16; 416],
}

impl Memory {
    /// For a `static`.
    pub const EMPTY: Self = Self { rx: [0; FRAME], tx: [0; FRAME], work: [0; 1280], input: [0; 416] };
}

/// Lets the server's router choose a model for `sample`, and returns the class. `uart` is your
/// driver, `flash` your store of spent counters, `rng` your generator, `identity` what provisioning
/// left in your flash.
pub fn classify<U: Read + Write>(
    uart: &mut U,
    flash: impl Counters,
    rng: &mut impl TryCryptoRng,
    identity: DeviceIdentity<'_>,
    memory: &mut Memory,
    sample: &[i16],
) -> Result<usize, DriverError<U::Error>> {
    let Memory { rx, tx, work, input } = memory;
    let memory = DeviceMemory { rx, tx, work, input };
    let mut session = DeviceSession::connect(identity, memory, 4, flash, rng)?;
    run(uart, &mut session)?; // Event::Ready

    // Before the sample is there: one inference in stock of whatever may run.
    for code in 0..9 {
        let slot = Slot::from_code(code);
        if session.fits(slot).is_ok() && session.ready(slot) == 0 {
            session.prepare(slot)?;
            run(uart, &mut session)?; // Event::Prepared
        }
    }
    session.infer(Request { slot: Slot::Router, lambda: 64, link: LinkProfile::UART }, sample)?;
    loop {
        match run(uart, &mut session)? {
            Event::Answer => return session.class().ok_or(SessionError::Closed.into()),
            Event::Refused(_) => return Err(SessionError::StockEmpty(Slot::Router).into()),
            _ => {} // Event::Routed: the model's part follows by itself
        }
    }
}
