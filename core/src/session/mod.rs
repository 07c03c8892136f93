//! What device and server say to each other around the gates.
//!
//! Over a [`Channel`](crate::channel), every frame is either one control message (postcard, fixed
//! lengths) or a piece of a packed protocol message. A protocol message is cut into frames of
//! exactly [`FRAME_PAYLOAD`] bytes and a last, shorter one, so both sides know the length of every
//! frame beforehand and refuse any other.
//!
//! | device | server | |
//! | --- | --- | --- |
//! | `Hello` | | its counters |
//! | | `Welcome` | the pool and its stock |
//! | `Prepare`, corrections | | offline, per inference |
//! | | `Prepared` | |
//! | `Infer`, masked input | | then the gates' messages, in turn |
//! | | `Refused` | at any of the server's turns; ends the request, not the session |
//!
//! The server refuses only when it has taken the device's whole message; but for an input whose counter
//! it cannot spend, which it does not read: the session ends with that refusal. A device that is refused
//! while it still sends ends the session.

mod counters;
mod device;
mod message;

pub use counters::{CounterError, Counters, MAX_COUNTER_SKIP};
pub use device::{DeviceIdentity, DeviceMemory, DeviceSession, Event, Request, SESSION_BYTES, SessionError};
pub use message::{
    Control, FRAME_CONTROL, FRAME_DATA, FRAME_PAYLOAD, Hello, Infer, LinkProfile, MAX_CONTROL_BYTES, MessageError,
    Prepare, PreparedStock, RECOMMENDED_LAMBDA, Refusal, SlotStock, ToDevice, ToServer, Welcome, encoded_bytes,
};

use crate::channel::FRAME_OVERHEAD;

/// Bytes on the link of a protocol message of `payload` bytes.
#[must_use]
pub const fn framed_bytes(payload: u64) -> u64 {
    payload + payload.div_ceil(FRAME_PAYLOAD as u64) * FRAME_OVERHEAD as u64
}
