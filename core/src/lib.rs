//! SecureRouter's kernel.
#![no_std]
#![forbid(unsafe_code)]

pub mod channel;
pub mod circuit;
pub mod clear;
pub mod dealer;
pub mod device;
pub mod error;
pub mod gate;
pub mod keys;
pub mod model;
pub mod prg;
pub mod ring;
pub mod server;
pub mod spec;

pub use rand_core;
