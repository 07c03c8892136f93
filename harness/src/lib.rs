//! The std side of SecureRouter: server, dealer, desktop device, and what they store.
//!
//! The protocol itself is in [`secure_router_core`]; nothing here knows what a gate computes.

pub mod board;
pub mod database;
pub mod dealer;
pub mod device;
pub mod examples;
pub mod files;
pub mod host;
pub mod link;
pub mod pool;
pub mod provision;
pub mod server;
pub mod stock;
