//! Board support for the device party: one UART with a receive ring, panics and faults that end
//! loudly, and, under QEMU, the host's files by semihosting.
//!
//! UART 0 carries protocol bytes and nothing else. What the device keeps to itself, its inputs
//! and answers, goes another way: a sensor and a display on a real board, semihosting in QEMU.
//!
//! This crate is the only part of the device in QEMU with `unsafe` in it: registers, the semihosting trap
//! and the linker's symbols. The kernel it runs forbids it.
#![no_std]

pub mod board;
#[cfg(feature = "qemu")]
pub mod counters;
#[cfg(feature = "qemu")]
pub mod entropy;
mod fault;
pub mod link;
pub mod provisioning;
mod register;
pub mod ring;
#[cfg(feature = "qemu")]
pub mod semi;
pub mod span;
pub mod stack;
mod tick;
pub mod uart;
