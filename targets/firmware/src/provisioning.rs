//! What provisioning leaves on the device: 136 bytes.

use secure_router_core::channel::{PublicKey, StaticSecret};
use secure_router_core::keys::{DeviceSeeds, Seed};
use secure_router_core::routing::Routing;
use secure_router_core::session::DeviceIdentity;
use zeroize::Zeroizing;

/// How the bytes begin.
pub const MAGIC: [u8; 4] = *b"SRK2";
/// Their number: the magic, the device's secret, the server's public key, the seeds shared with
/// dealer and server, the most that a route may tell the server.
pub const BYTES: usize = 4 + 4 * 32 + 4;

/// Who the device is, and whom it trusts.
pub struct Provisioning {
    secret: StaticSecret,
    server: PublicKey,
    seeds: DeviceSeeds,
    routing: Routing,
}

impl Provisioning {
    /// Reads provisioned bytes; `None` for blank memory and anything that is not a provisioning.
    pub fn from_bytes(bytes: &Zeroizing<[u8; BYTES]>) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk()?;
        let (parts, leak) = rest.as_chunks::<32>();
        let [secret, server, dealer_seed, server_seed] = parts else {
            return None;
        };
        if *magic != MAGIC {
            return None;
        }
        Some(Self {
            secret: StaticSecret::from_bytes(secret).ok()?,
            server: PublicKey(*server),
            seeds: DeviceSeeds { dealer: Seed::from_bytes(*dealer_seed), server: Seed::from_bytes(*server_seed) },
            routing: Routing::of_leak(u32::from_le_bytes(leak.try_into().ok()?))?,
        })
    }

    /// As a session takes it.
    pub fn identity(&self) -> DeviceIdentity<'_> {
        DeviceIdentity { secret: &self.secret, server: self.server, seeds: &self.seeds, routing: self.routing }
    }
}
