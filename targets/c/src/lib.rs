//! The device party for firmware in C: a static library and `include/secure_router.h`.
//!
//! `abi` says what crosses the border, `code` what the numbers mean, `ffi` holds the functions and
//! all of the `unsafe`. The header is made from these files; `tests/header.rs` keeps it so.
#![cfg_attr(target_os = "none", no_std)]

pub mod abi;
pub mod code;
pub mod ffi;
mod session;
