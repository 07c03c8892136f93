//! A byte queue between one interrupt handler and the program it interrupts.

use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

/// Holds up to `N` bytes; `N` is a power of two. One side pushes, the other pops; neither waits.
///
/// Needs no compare-and-swap, which the Cortex-M0 does not have.
pub struct Ring<const N: usize> {
    bytes: [AtomicU8; N],
    // Positions count up for ever and wrap with usize; only the pusher moves `head`, only the
    // popper `tail`.
    head: AtomicUsize,
    tail: AtomicUsize,
}

impl<const N: usize> Ring<N> {
    const POWER_OF_TWO: () = assert!(N.is_power_of_two());

    /// An empty ring.
    pub const fn new() -> Self {
        let () = Self::POWER_OF_TWO;
        Self { bytes: [const { AtomicU8::new(0) }; N], head: AtomicUsize::new(0), tail: AtomicUsize::new(0) }
    }

    /// Whether a push would fail.
    pub fn is_full(&self) -> bool {
        let head = self.head.load(Ordering::Relaxed);
        head.wrapping_sub(self.tail.load(Ordering::Acquire)) == N
    }

    /// Whether a pop would find nothing.
    pub fn is_empty(&self) -> bool {
        self.head.load(Ordering::Acquire) == self.tail.load(Ordering::Relaxed)
    }

    /// Adds a byte; false if the ring is full.
    pub fn push(&self, byte: u8) -> bool {
        if self.is_full() {
            return false;
        }
        let head = self.head.load(Ordering::Relaxed);
        self.bytes[head % N].store(byte, Ordering::Relaxed);
        self.head.store(head.wrapping_add(1), Ordering::Release);
        true
    }

    /// Takes the oldest bytes, as many as there are and `out` holds; returns how many.
    pub fn pop(&self, out: &mut [u8]) -> usize {
        let tail = self.tail.load(Ordering::Relaxed);
        let held = self.head.load(Ordering::Acquire).wrapping_sub(tail);
        let count = held.min(out.len());
        for (i, byte) in out[..count].iter_mut().enumerate() {
            *byte = self.bytes[tail.wrapping_add(i) % N].load(Ordering::Relaxed);
        }
        self.tail.store(tail.wrapping_add(count), Ordering::Release);
        count
    }

    /// Forgets every byte; for the popping side.
    pub fn clear(&self) {
        self.tail.store(self.head.load(Ordering::Acquire), Ordering::Release);
    }
}

impl<const N: usize> Default for Ring<N> {
    fn default() -> Self {
        Self::new()
    }
}
