//! A session behind the border: what the functions do that needs no `unsafe`.

use core::ffi::c_char;
use core::fmt;
use core::mem::MaybeUninit;

use secure_router_core::channel::{PublicKey, StaticSecret};
use secure_router_core::circuit::{SLOTS, Slot};
use secure_router_core::keys::{DeviceSeeds, Seed};
use secure_router_core::routing::Routing;
use secure_router_core::session::{DeviceIdentity, DeviceMemory, DeviceSession, Event, SessionError};

use crate::abi::{SR_PROVISIONING_BYTES, sr_config};
use crate::code::*;
use crate::ffi::{Callbacks, Random};

/// An error's number.
#[derive(Clone, Copy)]
pub(crate) struct Failed(pub(crate) i32);

impl From<SessionError> for Failed {
    fn from(error: SessionError) -> Self {
        Self(crate::code::error(&error))
    }
}

pub(crate) type Outcome<T = i32> = Result<T, Failed>;

pub(crate) const ARGUMENT: Failed = Failed(SR_ERROR_ARGUMENT);

pub(crate) fn returned(outcome: Outcome) -> i32 {
    outcome.unwrap_or_else(|Failed(code)| code)
}

/// Addresses from the first up to the second.
#[derive(Clone, Copy)]
pub(crate) struct Span(usize, usize);

impl Span {
    /// Where `count` of `T` lie; fails for what no object can be.
    pub(crate) fn of<T>(at: *const T, count: usize) -> Outcome<Self> {
        let bytes = count.checked_mul(size_of::<T>()).filter(|bytes| *bytes <= isize::MAX as usize).ok_or(ARGUMENT)?;
        if at.is_null() || !at.is_aligned() {
            return Err(ARGUMENT);
        }
        Ok(Self(at.addr(), at.addr().checked_add(bytes).ok_or(ARGUMENT)?))
    }

    pub(crate) const fn meets(self, other: Self) -> bool {
        self.0 < other.1 && other.0 < self.1
    }
}

/// What lies in a session's storage.
pub(crate) struct Held {
    pub(crate) session: DeviceSession<'static, Callbacks>,
    pub(crate) error: Option<SessionError>,
    pub(crate) detail: i32,
    /// The memory that only the session may touch: its storage, and what it was lent.
    pub(crate) own: [Span; 5],
}

impl Held {
    /// Fails if `count` of `T` cannot lie there, or lie where the session or its memory does.
    pub(crate) fn apart<T>(&self, at: *const T, count: usize) -> Outcome<()> {
        let asked = Span::of(at, count)?;
        if self.own.iter().any(|own| own.meets(asked)) { Err(ARGUMENT) } else { Ok(()) }
    }

    /// Keeps an error for [`sr_error_text`].
    pub(crate) fn kept<T>(&mut self, outcome: Result<T, SessionError>) -> Outcome<T> {
        outcome.map_err(|error| {
            self.error = Some(error);
            error.into()
        })
    }

    pub(crate) fn event(&mut self, outcome: Result<Option<Event>, SessionError>) -> Outcome {
        let event = self.kept(outcome)?;
        let (event, detail) = event.map_or((SR_EVENT_NONE, self.detail), crate::code::event);
        self.detail = detail;
        Ok(event)
    }
}

/// Text in the caller's memory, cut to fit and ended by NUL.
pub(crate) struct Text<'t> {
    pub(crate) at: &'t mut [MaybeUninit<c_char>],
    pub(crate) length: usize,
}

impl fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            let mut bytes = [0; 4];
            let bytes = character.encode_utf8(&mut bytes).as_bytes();
            let room = self.at.get_mut(self.length..).unwrap_or(&mut []);
            if room.len() <= bytes.len() {
                return Err(fmt::Error);
            }
            for (place, byte) in room.iter_mut().zip(bytes.iter().chain(&[0])) {
                place.write(*byte as c_char);
            }
            self.length += bytes.len();
        }
        Ok(())
    }
}

/// The generator failed.
#[derive(Debug)]
pub(crate) struct RandomError;

impl fmt::Display for RandomError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the random source failed")
    }
}

impl core::error::Error for RandomError {}

pub(crate) fn connected(
    provisioning: &[u8; SR_PROVISIONING_BYTES],
    memory: DeviceMemory<'static>,
    config: &sr_config,
) -> Outcome<DeviceSession<'static, Callbacks>> {
    let (b"SRK2", rest) = provisioning.split_first_chunk().ok_or(ARGUMENT)? else {
        return Err(Failed(SR_ERROR_PROVISIONING));
    };
    let ([secret, server, dealer_seed, server_seed], leak) = rest.as_chunks::<32>() else {
        return Err(Failed(SR_ERROR_PROVISIONING));
    };
    let leak = leak.try_into().ok().map(u32::from_le_bytes);
    let routing = leak.and_then(Routing::of_leak).ok_or(Failed(SR_ERROR_PROVISIONING))?;
    let secret = StaticSecret::from_bytes(secret).map_err(|_| Failed(SR_ERROR_PROVISIONING))?;
    let seeds = DeviceSeeds { dealer: Seed::from_bytes(*dealer_seed), server: Seed::from_bytes(*server_seed) };
    let identity = DeviceIdentity { secret: &secret, server: PublicKey(*server), seeds: &seeds, routing };
    let counters = Callbacks(config.counters);
    Ok(DeviceSession::connect(identity, memory, config.tile, counters, &mut Random(config.random))?)
}

pub(crate) fn slot(program: u8) -> Outcome<Slot> {
    if usize::from(program) < SLOTS { Ok(Slot::from_code(program)) } else { Err(Failed(SR_ERROR_NO_SUCH_PROGRAM)) }
}
