//! Positions in seekable pseudo-random streams.
//!
//! Every pseudo-random value of the protocol is one word of a ChaCha20 keystream (RFC 8439): the
//! key is derived per inference (see [`crate::keys`]), the nonce names the gate, the purpose and
//! the term, and the word's place in the stream is the element (an embedding's pads and weight masks leave places out, so that each
//! vector takes as many blocks). No position is used for two
//! things, so no value is ever used twice.

use chacha20::cipher::{KeyIvInit, StreamCipherCore};
use chacha20::variants::Ietf;
use chacha20::{ChaChaCore, R20};
use core::convert::Infallible;
use rand_core::TryRng;
use zeroize::Zeroize;

use crate::keys::StreamKey;

type Core = ChaChaCore<R20, Ietf>;

/// Words in one ChaCha block.
pub const BLOCK_WORDS: usize = 16;

/// What a stream's values are for. Together with the key this is the domain separation: the same
/// gate may draw for several purposes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Purpose {
    /// `r`: the device's mask of a wire. Key of device and dealer.
    WireMask = 1,
    /// `u`: hides `B·r` in a linear gate, and the device's share in a product. Key of device and
    /// dealer.
    OperandPad = 2,
    /// `rho_D` (key of device and dealer) or `rho_S` (key of server and dealer); `sigma` of an embedding's words (key of device and
    /// dealer).
    IndexMask = 3,
    /// The pads of a table's or embedding's entries, or of a requantisation's two. Key of device and dealer.
    TablePad = 4,
    /// `P_x`: the server's mask of a product's left operand. Key of server and dealer.
    LeftMask = 5,
    /// `P_y`: the server's mask of a product's right operand. Key of server and dealer.
    RightMask = 6,
    /// `B`: the weight masks. Key of device and server, the same for every inference of a pool.
    WeightMask = 7,
}

/// A stream within a key: gate, purpose, and the term of a linear gate (0 elsewhere).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    /// The gate's number in its program.
    pub gate: u16,
    /// What the values are for.
    pub purpose: Purpose,
    /// Term of a linear gate.
    pub term: u16,
}

impl StreamId {
    /// The stream of a gate's `purpose`.
    #[must_use]
    pub const fn new(gate: u16, purpose: Purpose) -> Self {
        Self { gate, purpose, term: 0 }
    }

    /// The weight masks of one term of a linear gate.
    #[must_use]
    pub const fn weights(gate: u16, term: u16) -> Self {
        Self { gate, purpose: Purpose::WeightMask, term }
    }

    fn nonce(self) -> [u8; 12] {
        let mut nonce = [0; 12];
        let (gate, rest) = nonce.split_at_mut(4);
        let (purpose, term) = rest.split_at_mut(4);
        gate.copy_from_slice(&u32::from(self.gate).to_le_bytes());
        purpose.copy_from_slice(&(self.purpose as u32).to_le_bytes());
        term.copy_from_slice(&u32::from(self.term).to_le_bytes());
        nonce
    }
}

/// A reader of one stream, at any element, one block at a time.
///
/// It is also a [`rand_core::Rng`], infallible, for code that draws in sequence.
pub struct Stream {
    core: Core,
    block: [u32; BLOCK_WORDS],
    /// Next word of `block`; `BLOCK_WORDS` when the block is used up or not made yet.
    next: usize,
    #[cfg(test)]
    trace: trace::Trace,
}

impl Stream {
    /// The stream `id` of `key`, at element 0.
    #[must_use]
    pub fn new(key: &StreamKey, id: StreamId) -> Self {
        Self {
            core: Core::new(&(*key.bytes()).into(), &id.nonce().into()),
            block: [0; BLOCK_WORDS],
            next: BLOCK_WORDS,
            #[cfg(test)]
            trace: trace::Trace::new(key, id),
        }
    }

    /// Moves to `element`. Costs one block at the next draw, whatever the element.
    #[inline]
    pub fn seek(&mut self, element: u64) {
        let skip = self.find(element);
        if skip != 0 {
            self.refill();
            self.next = skip;
        }
    }

    /// Moves to the first element of `block`, which may be a secret: it is a number that the cipher takes in, and neither an address
    /// nor a branch.
    #[inline]
    pub fn seek_block(&mut self, block: u32) {
        self.core.set_block_pos(block);
        self.next = BLOCK_WORDS;
        #[cfg(test)]
        self.trace.seek(u64::from(block) * BLOCK_WORDS as u64);
    }

    /// The value at `element`; the next draw continues behind it. Takes the same instructions wherever in its block the element is.
    #[inline]
    pub fn at(&mut self, element: u64) -> u32 {
        let skip = self.find(element);
        self.refill();
        self.next = skip;
        self.draw()
    }

    /// Moves to the block of `element`, which is yet to be made, and returns the place within it.
    #[inline]
    fn find(&mut self, element: u64) -> usize {
        self.seek_block((element / BLOCK_WORDS as u64) as u32);
        #[cfg(test)]
        self.trace.seek(element);
        (element % BLOCK_WORDS as u64) as usize
    }

    /// The next value.
    #[inline]
    pub fn draw(&mut self) -> u32 {
        if self.next >= BLOCK_WORDS {
            self.refill();
        }
        let word = self.block.get(self.next).copied().unwrap_or(0);
        self.next += 1;
        #[cfg(test)]
        let word = word.wrapping_add(self.trace.words(1));
        word
    }

    /// Fills `out` with the next values.
    pub fn fill(&mut self, out: &mut [u32]) {
        /// Enough for the wide backends; small enough for a microcontroller's stack.
        const WIDE: usize = 4;
        let mut out = out;
        while !out.is_empty() && self.next < BLOCK_WORDS {
            let (first, rest) = out.split_at_mut(1);
            first.fill(self.draw());
            out = rest;
        }
        let mut wide = out.chunks_exact_mut(WIDE * BLOCK_WORDS);
        for chunk in &mut wide {
            let mut blocks = [[0u8; 64]; WIDE].map(Into::into);
            self.core.write_keystream_blocks(&mut blocks);
            for (words, block) in chunk.chunks_exact_mut(BLOCK_WORDS).zip(&mut blocks) {
                unpack_block(block, words);
                block.as_mut_slice().zeroize();
            }
            #[cfg(test)]
            self.trace.wide(chunk);
        }
        for word in wide.into_remainder() {
            *word = self.draw();
        }
    }

    fn refill(&mut self) {
        let mut block = [0u8; 64].into();
        self.core.write_keystream_block(&mut block);
        #[cfg(test)]
        self.trace.blocks(1);
        unpack_block(&block, &mut self.block);
        block.as_mut_slice().zeroize();
        self.next = 0;
    }
}

fn unpack_block(block: &[u8], words: &mut [u32]) {
    let (bytes, _) = block.as_chunks::<4>();
    for (word, bytes) in words.iter_mut().zip(bytes) {
        *word = u32::from_le_bytes(*bytes);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.block.zeroize();
    }
}

impl core::fmt::Debug for Stream {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

impl TryRng for Stream {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.draw())
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(u64::from(self.draw()) | u64::from(self.draw()) << 32)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for chunk in bytes.chunks_mut(4) {
            let word = self.draw().to_le_bytes();
            for (byte, value) in chunk.iter_mut().zip(word) {
                *byte = value;
            }
        }
        Ok(())
    }
}

/// What tests see of the streams: every draw and every block, and one word that they may change.
#[cfg(test)]
pub(crate) mod trace {
    use super::{BLOCK_WORDS, StreamId, StreamKey};
    use std::cell::RefCell;

    /// Consecutive words drawn from one stream, or blocks computed for it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub(crate) struct Drawn {
        pub(crate) key: [u8; 32],
        pub(crate) id: StreamId,
        pub(crate) first: u64,
        pub(crate) words: u64,
        pub(crate) blocks: u64,
    }

    #[derive(Default)]
    struct Log {
        on: bool,
        drawn: Vec<Drawn>,
        changed: Option<([u8; 32], StreamId, u64)>,
    }

    thread_local!(static LOG: RefCell<Log> = RefCell::default());

    /// What `run` draws on this thread.
    pub(crate) fn record<T>(run: impl FnOnce() -> T) -> (T, Vec<Drawn>) {
        LOG.with_borrow_mut(|log| *log = Log { on: true, ..Log::default() });
        let result = run();
        (result, LOG.with_borrow_mut(core::mem::take).drawn)
    }

    /// Runs `run` with 1 added to one word.
    pub(crate) fn change<T>(key: [u8; 32], id: StreamId, element: u64, run: impl FnOnce() -> T) -> T {
        LOG.with_borrow_mut(|log| log.changed = Some((key, id, element)));
        let result = run();
        LOG.with_borrow_mut(|log| log.changed = None);
        result
    }

    pub(super) struct Trace {
        key: [u8; 32],
        id: StreamId,
        element: u64,
    }

    impl Trace {
        pub(super) fn new(key: &StreamKey, id: StreamId) -> Self {
            Self { key: *key.bytes(), id, element: 0 }
        }

        pub(super) fn seek(&mut self, element: u64) {
            self.element = element;
        }

        /// Notes the next words; returns what to add to the first.
        pub(super) fn words(&mut self, words: u64) -> u32 {
            let Self { key, id, element: first } = *self;
            self.element += words;
            LOG.with_borrow_mut(|log| {
                match log.drawn.last_mut() {
                    Some(last) if (last.key, last.id, last.first + last.words) == (key, id, first) => {
                        last.words += words
                    }
                    _ if log.on => log.drawn.push(Drawn { key, id, first, words, blocks: 0 }),
                    _ => {}
                }
                u32::from(log.changed == Some((key, id, first)))
            })
        }

        pub(super) fn wide(&mut self, chunk: &mut [u32]) {
            self.blocks((chunk.len() / BLOCK_WORDS) as u64);
            chunk.iter_mut().for_each(|word| *word = word.wrapping_add(self.words(1)));
        }

        pub(super) fn blocks(&self, blocks: u64) {
            let Self { key, id, element: first } = *self;
            LOG.with_borrow_mut(|log| {
                if log.on {
                    log.drawn.push(Drawn { key, id, first, words: 0, blocks });
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> Stream {
        Stream::new(&StreamKey::from_bytes([7; 32]), StreamId::new(3, Purpose::WireMask))
    }

    #[test]
    fn seeking_filling_and_drawing_agree() {
        let mut drawn = [0; 200];
        let mut source = stream();
        drawn.iter_mut().for_each(|word| *word = source.draw());
        for start in [0usize, 1, 15, 16, 17, 63, 64, 65] {
            let mut filled = [0; 130];
            let mut source = stream();
            source.seek(start as u64);
            source.fill(&mut filled);
            assert_eq!(filled[..], drawn[start..start + 130]);
            assert_eq!(source.at(start as u64), drawn[start]);
        }
    }

    #[test]
    fn every_label_is_a_stream_of_its_own() {
        let key = StreamKey::from_bytes([7; 32]);
        let first = |gate, purpose, term| Stream::new(&key, StreamId { gate, purpose, term }).draw();
        let base = first(1, Purpose::WireMask, 0);
        assert_ne!(base, first(2, Purpose::WireMask, 0));
        assert_ne!(base, first(1, Purpose::OperandPad, 0));
        assert_ne!(base, first(1, Purpose::WireMask, 1));
    }

    /// RFC 8439, 2.3.2: key 00..1f, block 1, nonce 00:00:00:09:00:00:00:4a:00:00:00:00.
    #[test]
    fn the_keystream_is_chacha20() {
        let mut key = [0; 32];
        key.iter_mut().zip(0..).for_each(|(byte, value)| *byte = value);
        let nonce = [0, 0, 0, 9, 0, 0, 0, 0x4a, 0, 0, 0, 0];
        let mut source = Stream {
            core: Core::new(&key.into(), &nonce.into()),
            block: [0; 16],
            next: 16,
            trace: trace::Trace::new(&StreamKey::from_bytes(key), StreamId::new(0, Purpose::WireMask)),
        };
        assert_eq!(source.at(16), 0xe4e7_f110);
        assert_eq!(source.at(31), 0x4e3c_50a2);
    }
}
