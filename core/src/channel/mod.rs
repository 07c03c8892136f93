//! The secure channel: what runs on the wire between a device and the server, and between the server and the
//! dealer.
//!
//! A sans-I/O state machine over two buffers that the caller lends. It allocates nothing, never blocks, and does
//! not panic on any input; firmware drives it from a UART, the host from a socket, with the same few calls.
//!
//! # Wire format, version 1
//!
//! `Noise_IK_25519_ChaChaPoly_BLAKE2s`. The initiator knows the responder's public key; the responder learns the
//! initiator's, encrypted, and may refuse it before it answers anything.
//!
//! | sent | bytes | content |
//! | --- | --- | --- |
//! | by each end, once, in the clear | 2 | magic `SR` |
//! | | 1 | protocol version, 1 |
//! | | 1 | kind: link (`0x10` device to server, `0x20` server to dealer) + end (`0x01` initiator, `0x02` responder) |
//! | initiator, then | 2 | length, little-endian: 96 |
//! | | 96 | `e` 32, sealed `s` 32 + 16, sealed empty payload 16 |
//! | responder, then | 2 | length: 48 |
//! | | 48 | `e` 32, sealed empty payload 16 |
//! | each frame, either way | 2 | length of the body, little-endian: 17 to 65535 |
//! | | n | body: ciphertext of `kind (1 byte)`, then `payload (n - 17 bytes)`, then the tag (16 bytes) |
//!
//! The Noise prologue is the initiator's preamble followed by the responder's (8 bytes), so both ends agree on
//! every byte that was said in the clear. A frame carries no number: the Noise nonce counts them, each direction
//! from 0, and a frame that was altered, cut, dropped, repeated, reordered or reflected fails to authenticate. Its
//! length is not sent as associated data, since the tag covers exactly the announced bytes.
//!
//! Exact costs: [`HANDSHAKE_INITIATOR_BYTES`], [`HANDSHAKE_RESPONDER_BYTES`], [`FRAME_OVERHEAD`]. Lengths and
//! times of frames are visible to everyone; hiding them is up to the layer that chooses payloads.
//!
//! # What is and is not promised
//!
//! - Any error is final: keys and buffers are wiped, the peer is told nothing.
//! - A recorded message 1 can be replayed and will yield [`Event::Identity`] again, as Noise IK has it. That
//!   gains nothing: without the initiator's keys nobody can read the answer or produce a frame. So a responder
//!   treats the initiator as present, and spends state on it (an inference counter, say), only when the first
//!   frame arrives. A replayer does make the responder do the arithmetic; limit the rate of connections outside.
//! - Message 1 has no forward secrecy against the loss of the responder's static key: whoever gets that key can
//!   learn which initiators once dialled. Frames are forward secret in both directions.
//! - Ephemeral keys come from the caller's random source only; one that fails, stands still or repeats a word is
//!   refused. A source that is merely predictable cannot be recognised.
//! - Keys are not renewed within a channel; after 2^64 - 1 frames in one direction it must be reopened.
//!
//! # Example
//!
//! ```
//! use secure_router_core::channel::{Channel, ChannelError, Event, Link, StaticSecret, buffer_bytes};
//!
//! # fn main() -> Result<(), ChannelError> {
//! let mut rng = getrandom::SysRng;
//! let device_key = StaticSecret::generate(&mut rng)?;
//! let server_key = StaticSecret::generate(&mut rng)?;
//!
//! let mut buffers = [[0; buffer_bytes(256)]; 4];
//! let [a, b, c, d] = &mut buffers;
//! let link = Link::DeviceServer;
//! let mut device = Channel::initiator(link, &device_key, server_key.public_key(), &mut rng, a, b)?;
//! let mut server = Channel::responder(link, &server_key, &mut rng, c, d)?;
//!
//! // A driver reads from a wire into `wanted`, and writes `pending` to it. Here one channel is the other's wire.
//! fn carry(from: &mut Channel, to: &mut Channel) -> Result<Event, ChannelError> {
//!     loop {
//!         let wanted = to.wanted();
//!         let count = wanted.len().min(from.pending().len());
//!         wanted[..count].copy_from_slice(&from.pending()[..count]);
//!         from.sent(count)?;
//!         match to.received(count)? {
//!             Event::NeedMore if count > 0 => {}
//!             event => return Ok(event),
//!         }
//!     }
//! }
//!
//! match carry(&mut device, &mut server)? {
//!     Event::Identity(key) if key == device_key.public_key() => server.accept()?,
//!     _ => server.refuse(),
//! }
//! assert_eq!(carry(&mut server, &mut device)?, Event::Established);
//!
//! const HELLO: u8 = 7;
//! device.outgoing()?[..5].copy_from_slice(b"hello");
//! device.seal(HELLO, 5)?;
//! assert_eq!(carry(&mut device, &mut server)?, Event::Frame { kind: HELLO, len: 5 });
//! assert_eq!(server.payload(), b"hello");
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

mod error;
mod frame;
mod handshake;
mod keys;
mod machine;
mod noise;
mod secret;
#[cfg(test)]
mod tests;

pub use error::ChannelError;
pub use frame::{
    FRAME_OVERHEAD, HANDSHAKE_INITIATOR_BYTES, HANDSHAKE_RESPONDER_BYTES, Link, MAX_PAYLOAD_BYTES, MIN_BUFFER_BYTES,
    PROTOCOL_VERSION, buffer_bytes, frame_bytes,
};
pub use keys::{PublicKey, StaticSecret};
pub use machine::{Channel, Event};
