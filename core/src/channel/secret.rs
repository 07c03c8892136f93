//! Fixed-size secret bytes that wipe themselves, in the shape `noise-protocol` asks for.

use noise_protocol::U8Array;
use rand_core::TryCryptoRng;
use subtle::{Choice, ConstantTimeEq};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::error::ChannelError;

/// `N` secret bytes: wiped on drop, without `Debug`, `Clone` or `==`.
///
/// `noise-protocol` keeps keys, chaining keys, hash outputs and HMAC pads in whatever array types it is given, so
/// giving it this one makes it wipe them all.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct Secret<const N: usize>([u8; N]);

impl<const N: usize> Secret<N> {
    pub(crate) const fn zero() -> Self {
        Self([0; N])
    }

    pub(crate) const fn bytes(&self) -> &[u8; N] {
        &self.0
    }

    pub(crate) const fn bytes_mut(&mut self) -> &mut [u8; N] {
        &mut self.0
    }
}

impl Secret<32> {
    /// Draws a secret and refuses the output of a source that failed or stands still.
    pub(crate) fn draw<R: TryCryptoRng + ?Sized>(rng: &mut R) -> Result<Self, ChannelError> {
        let mut secret = Self::zero();
        rng.try_fill_bytes(&mut secret.0).map_err(|_| ChannelError::RandomFailed)?;
        if secret.repeats() { Err(ChannelError::RandomStuck) } else { Ok(secret) }
    }

    /// Whether the bytes repeat with a period of 1, 2, 4 or 8: a source stuck at a byte or at a machine word, or
    /// blank flash. An honest draw does so with probability 2^-192.
    pub(crate) fn repeats(&self) -> bool {
        let (words, _) = self.0.as_chunks::<8>();
        let same = words.windows(2).fold(Choice::from(1), |same, pair| match pair {
            [a, b] => same & a.as_slice().ct_eq(b.as_slice()),
            _ => same,
        });
        same.into()
    }
}

impl<const N: usize> U8Array for Secret<N> {
    fn new() -> Self {
        Self::zero()
    }

    fn new_with(byte: u8) -> Self {
        Self([byte; N])
    }

    // The trait allows a panic on another length; nothing asks for one, and zeros are the safer answer.
    fn from_slice(bytes: &[u8]) -> Self {
        let mut secret = Self::zero();
        if bytes.len() == N {
            secret.0.copy_from_slice(bytes);
        }
        secret
    }

    fn len() -> usize {
        N
    }

    fn as_slice(&self) -> &[u8] {
        &self.0
    }

    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
