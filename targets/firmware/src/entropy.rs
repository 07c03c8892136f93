//! The session's randomness under QEMU: fresh bytes from the host in a file, which stands for a
//! board's generator.

use embedded_io::{Read, ReadExactError, Write};
use secure_router_core::rand_core::{TryCryptoRng, TryRng};

use crate::semi::{Error, File};

/// Draws from the start of a file and overwrites what was drawn with zeros. A file that is used
/// again, blank or short therefore fails, here or by the kernel's check for a source that repeats
/// itself; no session ever starts on bytes of an earlier one.
pub struct Entropy<'n> {
    name: &'n str,
}

impl<'n> Entropy<'n> {
    /// The file of this name.
    pub fn of(name: &'n str) -> Self {
        Self { name }
    }
}

impl TryRng for Entropy<'_> {
    type Error = Error;

    fn try_next_u32(&mut self) -> Result<u32, Error> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Error> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        File::open(self.name)?.read_exact(bytes).map_err(|error| match error {
            ReadExactError::UnexpectedEof => Error::Read,
            ReadExactError::Other(error) => error,
        })?;
        let mut spent = File::update(self.name)?;
        bytes.iter().try_for_each(|_| spent.write_all(&[0]))
    }
}

impl TryCryptoRng for Entropy<'_> {}
