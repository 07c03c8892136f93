//! Inference counters that survive a power cut.

use core::fmt;

use crate::circuit::Slot;

/// How far beyond the lowest unburned counter the server may go. A server that offers more would
/// spend the device's counters for good.
pub const MAX_COUNTER_SKIP: u64 = 1 << 20;

/// The store of the counters failed; nothing was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct CounterError;

impl fmt::Display for CounterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the device's counter store failed; no inference starts before it works again")
    }
}

impl core::error::Error for CounterError {}

/// The device's non-volatile memory of spent counters.
///
/// A mask hides at most one input because its counter is burned here *before* the first byte that
/// depends on the input leaves the device. (The offline corrections depend on seeds and counter
/// alone: sent again, they are the same bytes.) Counters belong to a slot and go on rising when the pool
/// changes, so that a pool that comes back meets counters it has never seen.
pub trait Counters {
    /// The lowest counter of `slot` that was never burned.
    ///
    /// # Errors
    /// [`CounterError`].
    fn next(&mut self, slot: Slot) -> Result<u64, CounterError>;

    /// Burns every counter of `slot` up to and with `counter`. Must not return before that is
    /// durable: a power cut right after the return must not bring it back.
    ///
    /// # Errors
    /// [`CounterError`].
    fn burn(&mut self, slot: Slot, counter: u64) -> Result<(), CounterError>;
}

impl<C: Counters + ?Sized> Counters for &mut C {
    fn next(&mut self, slot: Slot) -> Result<u64, CounterError> {
        (**self).next(slot)
    }
    fn burn(&mut self, slot: Slot, counter: u64) -> Result<(), CounterError> {
        (**self).burn(slot, counter)
    }
}
