//! Keys, and the random source they come from.

use core::fmt;

use noise_protocol::{DH, U8Array};
use zeroize::ZeroizeOnDrop;

use super::*;
use crate::channel::noise::X25519;
use crate::channel::secret::Secret;

/// A source that gives a pattern over and over.
struct Stuck(&'static [u8]);

impl TryRng for Stuck {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(0)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(0)
    }

    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Infallible> {
        dst.iter_mut().zip(self.0.iter().cycle()).for_each(|(slot, byte)| *slot = *byte);
        Ok(())
    }
}

impl TryCryptoRng for Stuck {}

/// A source that fails, after leaving something half-written.
struct Broken;

#[derive(Debug)]
struct SeedError;

impl fmt::Display for SeedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("seed error")
    }
}

impl core::error::Error for SeedError {}

impl TryRng for Broken {
    type Error = SeedError;

    fn try_next_u32(&mut self) -> Result<u32, SeedError> {
        Err(SeedError)
    }

    fn try_next_u64(&mut self) -> Result<u64, SeedError> {
        Err(SeedError)
    }

    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), SeedError> {
        dst[0] = 1;
        Err(SeedError)
    }
}

impl TryCryptoRng for Broken {}

fn both_ends<R: TryCryptoRng>(rng: &mut R) -> [Option<ChannelError>; 3] {
    let mut buffers = [[0; 102]; 2];
    let [a, b] = &mut buffers;
    let dialled = Channel::initiator(LINK, &device_key(), server_name(), rng, a, b).err();
    let answering = Channel::responder(LINK, &server_key(), rng, a, b).err();
    [dialled, answering, StaticSecret::generate(rng).err()]
}

#[test]
fn a_source_that_stands_still_opens_nothing() {
    let patterns: [&[u8]; 5] = [&[0], &[0xff], &[0x5a], &[0xde, 0xad, 0xbe, 0xef], &[1, 2, 3, 4, 5, 6, 7, 8]];
    for pattern in patterns {
        assert_eq!(both_ends(&mut Stuck(pattern)), [Some(ChannelError::RandomStuck); 3]);
    }
    assert_eq!(both_ends(&mut Chance(0)), [None; 3]);
}

#[test]
fn a_source_that_fails_opens_nothing() {
    assert_eq!(both_ends(&mut Broken), [Some(ChannelError::RandomFailed); 3]);
}

#[test]
fn the_system_source_will_do() {
    assert_eq!(both_ends(&mut getrandom::SysRng), [None; 3]);
}

#[test]
fn blank_storage_is_no_key() {
    for blank in [[0; 32], [0xff; 32]] {
        assert_eq!(StaticSecret::from_bytes(&blank).err(), Some(ChannelError::BlankSecret));
    }
    let key = secret(1);
    let stored = StaticSecret::from_bytes(key.expose_bytes()).unwrap();
    assert_eq!(stored.public_key(), key.public_key());
}

#[test]
fn keys_print_no_secret() {
    let key = secret(1);
    assert_eq!(std::format!("{key:?}"), "StaticSecret(..)");
    let name = PublicKey([0xab; 32]);
    assert_eq!(std::format!("{name:?}"), "PublicKey(abababab..)");
    assert_eq!(std::format!("{name}"), "ab".repeat(32));
    with_friends(8, |device, _| {
        let told = std::format!("{device:?}");
        assert!(told.contains("open") && told.len() < 160, "{told}");
    });
}

#[test]
fn secrets_wipe_themselves_and_come_in_one_length() {
    fn wipes<T: ZeroizeOnDrop>() {}
    wipes::<Secret<32>>();
    wipes::<Secret<64>>();
    assert_eq!(Secret::<32>::from_slice(&[1; 31]).bytes(), &[0; 32]);
    assert_eq!(Secret::<32>::from_slice(&[1; 32]).bytes(), &[1; 32]);
}

/// There is no source behind `genkey`: what it makes must not work.
#[test]
fn an_ephemeral_key_nobody_drew_agrees_on_nothing() {
    assert!(X25519::dh(&X25519::genkey(), &server_name().0).is_err());
}

#[test]
fn the_state_stays_small() {
    // On this host; a 32-bit target needs less.
    assert!(size_of::<Channel>() <= 656, "{}", size_of::<Channel>());
    assert!(size_of::<ChannelError>() <= 24);
}
