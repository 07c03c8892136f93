//! SecureRouter's kernel: two-party inference over secret shares, for a device of tens of kilobytes.
//!
//! It never allocates, never blocks, does no I/O, reads no clock and draws no entropy that it was not
//! handed. A firmware supplies six things to a [`session::DeviceSession`]: its keys
//! ([`session::DeviceIdentity`]), the buffers that it works in ([`session::DeviceMemory`]), a tile, a
//! store of counters ([`session::Counters`]), a generator for 32 bytes, and a link ([`driver`], or its
//! own loop).
//!
//! | layer | modules |
//! | --- | --- |
//! | ring and randomness | [`ring`], [`prg`], [`keys`] |
//! | public shapes and policies | [`spec`], [`routing`], [`quota`] |
//! | inputs | [`value`], [`text`], [`motion`] |
//! | programs and gates | [`circuit`], [`model`], [`gate`] |
//! | what each role does with a program | [`device`], [`server`], [`dealer`], [`clear`], [`cost`] |
//! | between the parties | [`channel`], [`session`], [`driver`] |
//!
//! # Memory budget of a device
//!
//! | what | bytes | set by |
//! | --- | --- | --- |
//! | incoming and outgoing frame | 2 x [`session::DeviceMemory::FRAME_BYTES`] (1,043) | the protocol |
//! | work space | 4 x [`device::work_words`] | the largest program and the tile |
//! | input | 2 x the pool's input length | the pool |
//! | session | [`session::SESSION_BYTES`]: about 1.9 KB on 32 bits | |
//! | stack | 6.7 to 7.1 KB at its peak, by `targets/measure.sh` on Cortex-M0 to M33 | |
//!
//! The work space is the larger of `tile x (outputs + columns)` words over the linear gates, and
//! `2 x tokens x depth` words and a few rows over the products. A smaller tile (tokens masked at a
//! time) takes less and draws more pseudo-random words, since the weight masks are drawn once per
//! tile. [`cost::Cost::device_ram_bytes`] adds it up; a pool that does not fit is refused with the
//! name of the buffer and what it needs. Nothing grows with weights, tables or layers.
//!
//! # Features
//!
//! `async`: a driver over `embedded_io_async`. `defmt`: formats errors and events. None by default.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod channel;
pub mod circuit;
pub mod clear;
pub mod cost;
pub mod dealer;
pub mod device;
pub mod driver;
pub mod error;
pub mod gate;
pub mod keys;
pub mod model;
pub mod motion;
pub mod prg;
pub mod quota;
pub mod ring;
pub mod routing;
pub mod server;
pub mod session;
pub mod spec;
pub mod text;
pub mod value;

pub use rand_core;

#[cfg(test)]
extern crate self as secure_router_core;
#[cfg(test)]
mod positions;
