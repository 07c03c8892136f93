//! A device's counters, with a record for the test of what was burned.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use secure_router::device::FileCounters;
use secure_router_core::circuit::Slot;
use secure_router_core::session::{CounterError, Counters};

/// Counters in a file, or of a device that forgets; clones share them.
#[derive(Clone, Debug)]
pub struct Ledger(Arc<Mutex<Kept>>);

#[derive(Debug)]
struct Kept {
    file: Option<FileCounters>,
    burned: Vec<(Slot, u64)>,
}

impl Ledger {
    /// Counters in the file at `path`.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self::of(Some(FileCounters::open(path)?)))
    }

    /// A device that forgets every counter at once: the server alone keeps it from using one twice.
    #[must_use]
    pub fn forgetful() -> Self {
        Self::of(None)
    }

    fn of(file: Option<FileCounters>) -> Self {
        Self(Arc::new(Mutex::new(Kept { file, burned: Vec::new() })))
    }

    fn with<T>(&self, work: impl FnOnce(&mut Kept) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Programs and counters burned since the last call, in order.
    pub fn take(&self) -> Vec<(Slot, u64)> {
        self.with(|kept| std::mem::take(&mut kept.burned))
    }
}

impl Counters for Ledger {
    fn next(&mut self, slot: Slot) -> Result<u64, CounterError> {
        self.with(|kept| kept.file.as_mut().map_or(Ok(0), |file| file.next(slot)))
    }

    fn burn(&mut self, slot: Slot, counter: u64) -> Result<(), CounterError> {
        self.with(|kept| {
            kept.burned.push((slot, counter));
            kept.file.as_mut().map_or(Ok(()), |file| file.burn(slot, counter))
        })
    }
}
