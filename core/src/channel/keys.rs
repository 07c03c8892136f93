//! The long-lived identity of a party.

use core::fmt;

use rand_core::TryCryptoRng;

use super::error::ChannelError;
use super::noise;
use super::secret::Secret;

/// A party's long-lived X25519 secret: wiped on drop, never printed, never copied.
pub struct StaticSecret(Secret<32>);

impl StaticSecret {
    /// Draws a new secret. A source that fails or repeats itself is refused.
    pub fn generate<R: TryCryptoRng + ?Sized>(rng: &mut R) -> Result<Self, ChannelError> {
        Secret::draw(rng).map(Self)
    }

    /// Loads a provisioned secret. Blank storage (all zero, all ones, one repeated word) is refused.
    ///
    /// The bytes stay with the caller, who should wipe them.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, ChannelError> {
        let mut secret = Secret::zero();
        secret.bytes_mut().copy_from_slice(bytes);
        if secret.repeats() { Err(ChannelError::BlankSecret) } else { Ok(Self(secret)) }
    }

    /// The bytes to store when provisioning. Whoever holds them can pose as this party.
    #[must_use]
    pub const fn expose_bytes(&self) -> &[u8; 32] {
        self.0.bytes()
    }

    /// The public half, by which peers know this party.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        PublicKey(noise::public_of(&self.0))
    }

    pub(crate) const fn secret(&self) -> &Secret<32> {
        &self.0
    }
}

impl fmt::Debug for StaticSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StaticSecret(..)")
    }
}

/// A party's public key, which is its name on the network.
///
/// `Debug` shows the first four bytes, `Display` all of them, both in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "PublicKey({a:02x}{b:02x}{c:02x}{d:02x}..)")
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
