//! The three primitives behind the Noise name, adapted to `noise-protocol`'s traits.
//!
//! The traits allow panics on wrong lengths. These implementations fail closed instead: no lengths that this
//! module passes are wrong, and if a change made one so, the result would be an error or zeros, never plaintext.

use blake2::Blake2s256;
use blake2::Digest;
use chacha20poly1305::{AeadInOut, ChaCha20Poly1305, KeyInit, Nonce, Tag};
use noise_protocol::{Cipher, DH, Hash};
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use super::secret::Secret;

/// Bytes of a ChaCha20-Poly1305 tag.
pub(crate) const TAG_BYTES: usize = 16;

/// The public key of a secret.
pub(crate) fn public_of(secret: &Secret<32>) -> [u8; 32] {
    let secret = x25519_dalek::StaticSecret::from(*secret.bytes());
    x25519_dalek::PublicKey::from(&secret).to_bytes()
}

/// X25519 that refuses low-order points, which RFC 7748 and Noise leave to the implementation.
pub(crate) enum X25519 {}

impl DH for X25519 {
    type Key = Secret<32>;
    type Pubkey = [u8; 32];
    type Output = Secret<32>;

    fn name() -> &'static str {
        "25519"
    }

    // There is no random source here. Ephemeral keys are always handed in; should one ever be missing, this key
    // makes the `dh` that follows in every message of the pattern fail.
    fn genkey() -> Self::Key {
        Secret::zero()
    }

    fn pubkey(secret: &Self::Key) -> Self::Pubkey {
        public_of(secret)
    }

    fn dh(secret: &Self::Key, public: &Self::Pubkey) -> Result<Self::Output, ()> {
        if bool::from(secret.bytes().ct_eq(&[0; 32])) {
            return Err(());
        }
        let secret = x25519_dalek::StaticSecret::from(*secret.bytes());
        let shared = secret.diffie_hellman(&x25519_dalek::PublicKey::from(*public));
        if !shared.was_contributory() {
            return Err(());
        }
        let mut output = Secret::zero();
        output.bytes_mut().copy_from_slice(shared.as_bytes());
        Ok(output)
    }
}

/// ChaCha20-Poly1305 with Noise's nonce: four zero bytes, then the counter in little-endian order.
pub(crate) enum ChaChaPoly {}

fn nonce_of(counter: u64) -> Nonce {
    let mut nonce = Nonce::default();
    for (slot, byte) in nonce.iter_mut().skip(4).zip(counter.to_le_bytes()) {
        *slot = byte;
    }
    nonce
}

impl Cipher for ChaChaPoly {
    type Key = Secret<32>;

    fn name() -> &'static str {
        "ChaChaPoly"
    }

    fn encrypt(key: &Self::Key, nonce: u64, ad: &[u8], plaintext: &[u8], out: &mut [u8]) {
        match out.get_mut(..plaintext.len()) {
            Some(body) => body.copy_from_slice(plaintext),
            None => return out.zeroize(),
        }
        if Self::encrypt_in_place(key, nonce, ad, out, plaintext.len()) != out.len() {
            out.zeroize();
        }
    }

    /// Returns 0, with the buffer wiped, where the trait would panic.
    fn encrypt_in_place(key: &Self::Key, nonce: u64, ad: &[u8], in_out: &mut [u8], plaintext_len: usize) -> usize {
        let sealed = in_out.split_at_mut_checked(plaintext_len).and_then(|(body, rest)| {
            let slot = rest.get_mut(..TAG_BYTES)?;
            let cipher = ChaCha20Poly1305::new(key.bytes().into());
            let tag = cipher.encrypt_inout_detached(&nonce_of(nonce), ad, body.into()).ok()?;
            slot.copy_from_slice(&tag);
            Some(plaintext_len + TAG_BYTES)
        });
        sealed.unwrap_or_else(|| {
            in_out.zeroize();
            0
        })
    }

    fn decrypt(key: &Self::Key, nonce: u64, ad: &[u8], ciphertext: &[u8], out: &mut [u8]) -> Result<(), ()> {
        let (body, tag) = ciphertext.split_last_chunk::<TAG_BYTES>().ok_or(())?;
        if body.len() != out.len() {
            return Err(());
        }
        out.copy_from_slice(body);
        ChaCha20Poly1305::new(key.bytes().into())
            .decrypt_inout_detached(&nonce_of(nonce), ad, out.into(), &Tag::from(*tag))
            .map_err(|_| ())
    }

    fn decrypt_in_place(
        key: &Self::Key,
        nonce: u64,
        ad: &[u8],
        in_out: &mut [u8],
        ciphertext_len: usize,
    ) -> Result<usize, ()> {
        let sealed = in_out.get_mut(..ciphertext_len).ok_or(())?;
        let (body, tag) = sealed.split_last_chunk_mut::<TAG_BYTES>().ok_or(())?;
        ChaCha20Poly1305::new(key.bytes().into())
            .decrypt_inout_detached(&nonce_of(nonce), ad, (&mut *body).into(), &Tag::from(*tag))
            .map_err(|_| ())?;
        Ok(body.len())
    }
}

/// BLAKE2s-256; `noise-protocol` builds HMAC and HKDF on it.
#[derive(Default)]
pub(crate) struct Blake2s(Blake2s256);

impl Hash for Blake2s {
    type Block = Secret<64>;
    type Output = Secret<32>;

    fn name() -> &'static str {
        "BLAKE2s"
    }

    fn input(&mut self, data: &[u8]) {
        Digest::update(&mut self.0, data);
    }

    fn result(&mut self) -> Self::Output {
        let mut output = Secret::zero();
        // Written in place: a returned array would stay behind on the stack.
        Digest::finalize_into(core::mem::take(&mut self.0), output.bytes_mut().into());
        output
    }
}
