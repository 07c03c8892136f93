//! Seeds that two parties share, and the stream keys derived from them.
//!
//! `key = BLAKE2s-MAC(seed; label, pool fingerprint, program, counter)`. The fingerprint covers
//! every shape of the pool and the edition of its contents, so that no two pools, programs or
//! inferences share a key.

use blake2::Blake2sMac256;
use blake2::digest::{KeyInit, Mac};
use rand_core::{TryCryptoRng, TryRng};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::circuit::Slot;

/// A 32-byte secret that two parties share for the life of a provisioning.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Seed([u8; 32]);

impl Seed {
    /// Wraps 32 secret bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Draws a seed.
    ///
    /// # Errors
    /// The generator's own error.
    pub fn generate<R: TryCryptoRng>(rng: &mut R) -> Result<Self, <R as TryRng>::Error> {
        let mut bytes = [0; 32];
        rng.try_fill_bytes(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The bytes, for storage by whoever provisions.
    #[must_use]
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    fn derive(&self, label: &[u8], pool: &[u8; 32], slot: Slot, counter: u64) -> StreamKey {
        // A key of exactly the block's 32 bytes is always accepted.
        let mut mac = Blake2sMac256::new(&self.0.into());
        mac.update(&[label.len() as u8]);
        mac.update(label);
        mac.update(pool);
        mac.update(&[slot.code()]);
        mac.update(&counter.to_le_bytes());
        let mut bytes: [u8; 32] = mac.finalize().into_bytes().into();
        let key = StreamKey(bytes);
        bytes.zeroize();
        key
    }
}

impl core::fmt::Debug for Seed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Seed(..)")
    }
}

/// The key of a set of streams.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct StreamKey([u8; 32]);

impl StreamKey {
    /// Wraps 32 secret bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl core::fmt::Debug for StreamKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("StreamKey(..)")
    }
}

/// The seeds that a device holds.
#[derive(Clone, Debug)]
pub struct DeviceSeeds {
    /// `k_DT`: shared with the dealer.
    pub dealer: Seed,
    /// `k_DS`: shared with the server; expands to the weight masks.
    pub server: Seed,
}

/// The device's keys for one program and counter.
#[derive(Clone, Debug)]
pub struct DeviceKeys {
    /// Masks and pads of this inference.
    pub run: StreamKey,
    /// The weight masks.
    pub weights: StreamKey,
}

impl DeviceSeeds {
    /// The keys of inference `counter` of `slot`.
    #[must_use]
    pub fn keys(&self, pool: &[u8; 32], slot: Slot, counter: u64) -> DeviceKeys {
        DeviceKeys {
            run: self.dealer.derive(b"device-dealer", pool, slot, counter),
            weights: weight_key(&self.server, pool, slot),
        }
    }
}

/// The key of the weight masks `B`, which device and server share.
#[must_use]
pub fn weight_key(device_server: &Seed, pool: &[u8; 32], slot: Slot) -> StreamKey {
    device_server.derive(b"device-server weights", pool, slot, 0)
}

/// The server's key for one program and counter, from the seed it shares with the dealer for one
/// device.
#[must_use]
pub fn server_key(server_dealer: &Seed, pool: &[u8; 32], slot: Slot, counter: u64) -> StreamKey {
    server_dealer.derive(b"server-dealer", pool, slot, counter)
}

/// The seeds that the dealer holds for one device.
#[derive(Clone, Debug)]
pub struct DealerSeeds {
    /// `k_DT`: shared with the device.
    pub device: Seed,
    /// `k_ST`: shared with the server.
    pub server: Seed,
}

/// The dealer's keys for one program and counter.
#[derive(Clone, Debug)]
pub struct DealerKeys {
    /// What the device derives as its run key.
    pub device: StreamKey,
    /// What the server derives.
    pub server: StreamKey,
}

impl DealerSeeds {
    /// The keys of inference `counter` of `slot`.
    #[must_use]
    pub fn keys(&self, pool: &[u8; 32], slot: Slot, counter: u64) -> DealerKeys {
        DealerKeys {
            device: self.device.derive(b"device-dealer", pool, slot, counter),
            server: server_key(&self.server, pool, slot, counter),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_two_derivations_share_a_key() {
        let seed = Seed::from_bytes([1; 32]);
        let mut seen = HashSet::new();
        for label in [&b"device-dealer"[..], b"server-dealer", b"device-server weights"] {
            for pool in [[0; 32], [1; 32]] {
                for slot in [Slot::Router, Slot::Model(0), Slot::Model(1)] {
                    for counter in [0, 1, 256, u64::MAX] {
                        assert!(seen.insert(*seed.derive(label, &pool, slot, counter).bytes()));
                    }
                }
            }
        }
    }

    #[test]
    fn version_1_stays_version_1() {
        // Computed by another implementation of keyed BLAKE2s-256 over length | label | pool | slot | counter.
        let vectors: [(&[u8], &str); 3] = [
            (b"device-dealer", "f87547d05a54de7b4155508699cba4d4d5f2ca49fa1233bf8dfc407eb2ee83f9"),
            (b"server-dealer", "d55c293ec039404a528383ec01b4fea7550c881547eb967dd48cb8d617456869"),
            (b"device-server weights", "950bcc46d25c250fb2035405ed3c357bfa2bf5435b5424227cfa3ef155bbf149"),
        ];
        let pool = core::array::from_fn(|at| at as u8);
        for (label, expected) in vectors {
            let key = Seed::from_bytes([1; 32]).derive(label, &pool, Slot::Model(2), 0x0102_0304_0506_0708);
            let hex: std::string::String = key.bytes().iter().map(|byte| std::format!("{byte:02x}")).collect();
            assert_eq!(hex, expected);
        }
    }
}
