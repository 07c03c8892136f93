//! SecureRouter's kernel.
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
pub mod prg;
pub mod ring;
pub mod server;
pub mod session;
pub mod spec;
pub mod value;

pub use rand_core;

#[cfg(test)]
extern crate self as secure_router_core;
#[cfg(test)]
mod positions;
