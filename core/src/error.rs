//! Errors that several parties share.

use core::fmt;

/// A lent buffer is too small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct BufferError {
    /// Which buffer.
    pub buffer: &'static str,
    /// Elements (bytes for byte buffers) that it must hold.
    pub needed: usize,
    /// Elements lent.
    pub have: usize,
}

impl BufferError {
    pub(crate) const fn check(buffer: &'static str, needed: usize, have: usize) -> Result<(), Self> {
        if have < needed { Err(Self { buffer, needed, have }) } else { Ok(()) }
    }
}

impl fmt::Display for BufferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} holds {} elements, this pool needs {}", self.buffer, self.have, self.needed)
    }
}

impl core::error::Error for BufferError {}
