//! A whole device, for firmware with a UART and samples of its own.
#![no_std]

use core::convert::Infallible;

use embedded_io::{Read, Write};
use secure_router_core::circuit::Slot;
use secure_router_core::driver::{DriverError, run};
use secure_router_core::rand_core::TryCryptoRng;
use secure_router_core::session::{Counters, DeviceIdentity, DeviceMemory, DeviceSession};
use secure_router_core::session::{Event, LinkProfile, RECOMMENDED_LAMBDA, Refusal, Request, SessionError};

const FRAME: usize = DeviceMemory::FRAME_BYTES;
/// Values of a sample.
pub const VALUES: usize = 416;
/// What the router reckons with: 115,200 baud, eight bits, no parity.
const LINE: LinkProfile = LinkProfile { bytes_per_second: 11_520, round_trip_us: 0 };

/// The static memory of a session; `work` and `input` are sized for the largest model to run.
pub struct Memory {
    rx: [u8; FRAME],
    tx: [u8; FRAME],
    work: [u32; 1280],
    input: [i16; VALUES],
}

impl Memory {
    /// For a `static`.
    pub const EMPTY: Self = Self { rx: [0; FRAME], tx: [0; FRAME], work: [0; 1280], input: [0; VALUES] };
}

/// Why a session is over.
#[derive(Debug)]
pub enum Ended<E> {
    /// The line, the server or this device failed.
    Failed(DriverError<E>),
    /// The server does not do what was asked, and says why.
    Refused(Refusal),
}

impl<E> From<DriverError<E>> for Ended<E> {
    fn from(error: DriverError<E>) -> Self {
        Self::Failed(error)
    }
}

impl<E> From<SessionError> for Ended<E> {
    fn from(error: SessionError) -> Self {
        Self::Failed(error.into())
    }
}

/// Connects once and shows the class of one `sample` after the other, for which the server's router chooses a model, until
/// something fails. `uart` is your driver, whose `read` gives up a silent server: the kernel has no clock. `flash` is your
/// store of spent counters, `rng` your generator, `identity` what provisioning left in your flash.
pub fn serve<U: Read + Write>(
    uart: &mut U,
    flash: impl Counters,
    rng: &mut impl TryCryptoRng,
    identity: DeviceIdentity<'_>,
    memory: &mut Memory,
    mut sample: impl FnMut() -> [i16; VALUES],
    mut show: impl FnMut(usize),
) -> Result<Infallible, Ended<U::Error>> {
    let Memory { rx, tx, work, input } = memory;
    let memory = DeviceMemory { rx, tx, work, input };
    let mut session = DeviceSession::connect(identity, memory, 4, flash, rng)?;
    event(uart, &mut session)?; // Event::Ready
    loop {
        // Before the sample is there: one inference in stock of whatever may run.
        for code in 0..9 {
            let slot = Slot::from_code(code);
            if session.fits(slot).is_ok() && session.ready(slot) == 0 {
                session.prepare(slot)?;
                event(uart, &mut session)?; // Event::Prepared
            }
        }
        session.infer(Request { slot: Slot::Router, lambda: RECOMMENDED_LAMBDA, link: LINE }, &sample())?;
        // Event::Routed: the model's part follows by itself.
        while event(uart, &mut session)? != Event::Answer {}
        show(session.class().ok_or(SessionError::Closed)?);
    }
}

fn event<U: Read + Write, C: Counters>(
    uart: &mut U,
    session: &mut DeviceSession<'_, C>,
) -> Result<Event, Ended<U::Error>> {
    match run(uart, session)? {
        Event::Refused(refusal) => Err(Ended::Refused(refusal)),
        event => Ok(event),
    }
}
