//! The ring Z_2^32 and its low bits on the wire.
//!
//! Shares are `u32` under wrapping arithmetic. A message carries only the low `k` bits of each
//! element, least significant bit first, elements packed without gaps and the last byte padded with
//! zeros. Because shares are uniform, their low bits are shares modulo 2^k.

/// The low `bits` bits (0 to 32) of `value`.
#[inline]
#[must_use]
pub const fn low_bits(value: u32, bits: u8) -> u32 {
    // Shifting a u64 keeps 32 a legal width.
    value & (((1u64 << bits) - 1) as u32)
}

/// The value of `bits` (1 to 32) low bits read as two's complement.
#[inline]
#[must_use]
pub const fn signed(value: u32, bits: u8) -> i32 {
    let unused = 32 - bits as u32;
    ((value << unused) as i32) >> unused
}

/// Bytes of a packed message of `elements` elements of `bits` bits.
#[must_use]
pub const fn packed_bytes(elements: u32, bits: u8) -> usize {
    ((elements as u64 * bits as u64).div_ceil(8)) as usize
}

/// Packs elements into bytes, keeping what did not fit, so that a message can be cut into frames
/// at any byte.
#[derive(Clone, Debug, Default)]
pub struct Packer {
    pending: u64,
    pending_bits: u8,
}

impl Packer {
    /// Adds the low `bits` bits (at most 32) of `value`; completed bytes go to `out` from `at`,
    /// which advances. Does nothing and returns `false` while `out` is too full for what earlier
    /// pushes completed.
    #[inline]
    #[must_use]
    pub fn push(&mut self, value: u32, bits: u8, out: &mut [u8], at: &mut usize) -> bool {
        if !self.ready(out, at) {
            return false;
        }
        self.pending |= u64::from(low_bits(value, bits)) << self.pending_bits;
        self.pending_bits += bits;
        self.drain(out, at);
        true
    }

    /// Whether the next [`push`](Self::push) will be taken.
    #[inline]
    #[must_use]
    pub fn ready(&mut self, out: &mut [u8], at: &mut usize) -> bool {
        self.drain(out, at);
        self.pending_bits < 8
    }

    /// Ends a message: the rest goes to `out`, its last byte padded with zeros. Returns `false`
    /// while `out` is too full.
    #[must_use]
    pub fn finish(&mut self, out: &mut [u8], at: &mut usize) -> bool {
        self.drain(out, at);
        if self.pending_bits == 0 {
            return true;
        }
        let Some(byte) = out.get_mut(*at) else { return false };
        if self.pending_bits >= 8 {
            return false;
        }
        *byte = self.pending as u8;
        *at += 1;
        *self = Self::default();
        true
    }

    #[inline]
    fn drain(&mut self, out: &mut [u8], at: &mut usize) {
        while self.pending_bits >= 8 {
            let Some(byte) = out.get_mut(*at) else { return };
            *byte = self.pending as u8;
            *at += 1;
            self.pending >>= 8;
            self.pending_bits -= 8;
        }
    }
}

/// Reads packed elements from bytes that arrive in pieces.
#[derive(Clone, Debug, Default)]
pub struct Unpacker {
    pending: u64,
    pending_bits: u8,
}

impl Unpacker {
    /// The next element of `bits` bits, taking bytes off the front of `input` as needed. `None`
    /// when `input` runs out first; what was taken is kept.
    #[inline]
    #[must_use]
    pub fn pull(&mut self, bits: u8, input: &mut &[u8]) -> Option<u32> {
        while self.pending_bits < bits {
            let (byte, rest) = input.split_first()?;
            self.pending |= u64::from(*byte) << self.pending_bits;
            self.pending_bits += 8;
            *input = rest;
        }
        let value = low_bits(self.pending as u32, bits);
        self.pending >>= bits;
        self.pending_bits -= bits;
        Some(value)
    }

    /// Ends a message. The padding must be zero bits of an unfinished byte; anything else means
    /// that the peer packed another message than this one.
    #[must_use]
    pub fn finish(&mut self) -> bool {
        let clean = self.pending == 0 && self.pending_bits < 8;
        *self = Self::default();
        clean
    }
}

/// Packs whole elements into a lent slice; for parties that hold whole messages.
#[derive(Debug)]
pub struct BitWriter<'b> {
    packer: Packer,
    out: &'b mut [u8],
    at: usize,
    overflow: bool,
}

impl<'b> BitWriter<'b> {
    /// Starts at the first byte of `out`.
    pub fn new(out: &'b mut [u8]) -> Self {
        Self { packer: Packer::default(), out, at: 0, overflow: false }
    }

    /// Adds the low `bits` bits of `value`.
    #[inline]
    pub fn push(&mut self, value: u32, bits: u8) {
        let packer = &mut self.packer;
        packer.pending |= u64::from(low_bits(value, bits)) << packer.pending_bits;
        packer.pending_bits += bits;
        if packer.pending_bits >= 32 {
            match self.out.get_mut(self.at..self.at + 4) {
                Some(word) => word.copy_from_slice(&(packer.pending as u32).to_le_bytes()),
                None => self.spill(),
            }
            self.at += 4;
            self.packer.pending >>= 32;
            self.packer.pending_bits -= 32;
        }
    }

    /// Fewer than four bytes are left: the end of the last section.
    #[cold]
    fn spill(&mut self) {
        let word = (self.packer.pending as u32).to_le_bytes();
        for (offset, byte) in word.iter().enumerate() {
            match self.out.get_mut(self.at + offset) {
                Some(slot) => *slot = *byte,
                None => self.overflow = true,
            }
        }
    }

    /// Pads to a whole byte: the next element starts a section of its own.
    pub fn align(&mut self) {
        while self.packer.pending_bits > 0 {
            match self.out.get_mut(self.at) {
                Some(byte) => *byte = self.packer.pending as u8,
                None => self.overflow = true,
            }
            self.at += 1;
            self.packer.pending >>= 8;
            self.packer.pending_bits = self.packer.pending_bits.saturating_sub(8);
        }
    }

    /// Bytes written, or `None` if the slice was too small.
    #[must_use]
    pub fn finish(mut self) -> Option<usize> {
        self.align();
        (!self.overflow).then_some(self.at)
    }
}

/// The `bits`-bit element that starts at bit `bit` of packed bytes; bits beyond the end are 0.
#[inline]
#[must_use]
pub fn bits_at(bytes: &[u8], bit: u64, bits: u8) -> u32 {
    let first = (bit / 8) as usize;
    let mut word = [0u8; 8];
    if let Some(full) = bytes.get(first..first.saturating_add(8)) {
        word.copy_from_slice(full);
    } else {
        let tail = bytes.get(first..).unwrap_or(&[]);
        for (slot, byte) in word.iter_mut().zip(tail) {
            *slot = *byte;
        }
    }
    low_bits((u64::from_le_bytes(word) >> (bit % 8)) as u32, bits)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn packed_elements_come_back(values: Vec<u32>, bits in 1u8..=32, cut in 0usize..9) {
            let mut whole = vec![0; packed_bytes(values.len() as u32, bits)];
            let mut writer = BitWriter::new(&mut whole);
            values.iter().for_each(|v| writer.push(*v, bits));
            prop_assert_eq!(writer.finish(), Some(packed_bytes(values.len() as u32, bits)));
            for (index, value) in values.iter().enumerate() {
                prop_assert_eq!(bits_at(&whole, index as u64 * u64::from(bits), bits), low_bits(*value, bits));
            }

            let mut packer = Packer::default();
            let mut pieces = Vec::new();
            let mut frame = [0; 8];
            let mut at = 0;
            for value in &values {
                while !packer.push(*value, bits, &mut frame, &mut at) {
                    pieces.extend_from_slice(&frame[..at]);
                    at = 0;
                }
            }
            while !packer.finish(&mut frame, &mut at) {
                pieces.extend_from_slice(&frame[..at]);
                at = 0;
            }
            pieces.extend_from_slice(&frame[..at]);
            prop_assert_eq!(&pieces, &whole);

            let mut unpacker = Unpacker::default();
            let mut rest = pieces.as_slice();
            let mut piece: &[u8] = &[];
            for value in &values {
                let pulled = loop {
                    if let Some(v) = unpacker.pull(bits, &mut piece) { break v; }
                    let take = (cut + 1).min(rest.len());
                    (piece, rest) = rest.split_at(take);
                };
                prop_assert_eq!(pulled, low_bits(*value, bits));
            }
            prop_assert!(rest.is_empty() && piece.is_empty() && unpacker.finish());
        }

        #[test]
        fn signed_inverts_low_bits(value in -(1i64 << 31)..(1i64 << 31), bits in 1u8..=32) {
            let half = 1i64 << (bits - 1);
            let folded = (value + half).rem_euclid(2 * half) - half;
            prop_assert_eq!(i64::from(signed(low_bits(value as u32, bits), bits)), folded);
        }
    }

    #[test]
    fn a_writer_reports_a_slice_that_is_too_small() {
        let mut bytes = [0; 4];
        let mut writer = BitWriter::new(&mut bytes);
        (0..5).for_each(|v| writer.push(v, 7));
        assert_eq!(writer.finish(), None);
    }

    #[test]
    fn nonzero_padding_is_refused() {
        let mut unpacker = Unpacker::default();
        let mut input: &[u8] = &[0b1000_0001];
        assert_eq!(unpacker.pull(3, &mut input), Some(1));
        assert!(!unpacker.finish());
    }
}
