//! What must never happen, seen over all crashes and restarts.

use std::collections::BTreeMap;

use secure_router_core::circuit::Slot;
use tokio::time::Instant;

use super::link::Seen;

type Key = (usize, u8, u64);

/// One input under one counter.
#[derive(Debug)]
struct Use {
    /// How often the device had been put back to an old state.
    put_back: usize,
    input: Vec<i16>,
    since: Instant,
    /// When the server took in the first byte that depends on the input.
    seen: Seen,
    answered: bool,
}

/// Every use of a counter.
#[derive(Debug, Default)]
pub struct Watch {
    uses: BTreeMap<Key, Vec<Use>>,
    put_back: BTreeMap<usize, usize>,
    /// When the server crashed, or its disk failed.
    troubles: Vec<Instant>,
    /// What each device burned last.
    last: BTreeMap<usize, (Slot, u64)>,
}

impl Watch {
    /// A device burned a counter for `input`; `seen` tells when the server takes in the first byte of it.
    ///
    /// # Panics
    /// When it burned it before.
    pub fn burned(&mut self, device: usize, slot: Slot, counter: u64, input: &[i16], seen: Seen) {
        let put_back = self.put_back.get(&device).copied().unwrap_or(0);
        let uses = self.uses.entry((device, slot.code(), counter)).or_default();
        assert!(
            uses.iter().all(|before| before.put_back != put_back),
            "mask reuse: device {device} burned {slot:?} {counter} twice"
        );
        uses.push(Use { put_back, input: input.to_vec(), since: Instant::now(), seen, answered: false });
        self.last.insert(device, (slot, counter));
    }

    /// What a device burned last.
    #[must_use]
    pub fn last(&self, device: usize) -> Option<(Slot, u64)> {
        self.last.get(&device).copied()
    }

    /// The server answered under a counter.
    ///
    /// # Panics
    /// When no device burned it.
    pub fn answered(&mut self, device: usize, (slot, counter): (Slot, u64)) {
        let uses = self.uses.get_mut(&(device, slot.code(), counter)).and_then(|uses| uses.last_mut());
        uses.expect("answered without a burn").answered = true;
    }

    /// A device's memory was put back to an old state.
    pub fn put_back(&mut self, device: usize) {
        *self.put_back.entry(device).or_default() += 1;
    }

    /// The server crashed, or its disk failed: what it did at this moment may not be stored.
    pub fn trouble(&mut self) {
        self.troubles.push(Instant::now());
    }

    /// Judges all uses of a device's counters. A server that has taken in a byte of an input has stored before that its
    /// counter is spent, unless it crashed or its disk failed at that moment. So even a device that was put back
    /// shows it one input under each counter.
    ///
    /// # Panics
    /// When two inputs were shown.
    pub fn judge(&self, device: usize) {
        let of_device = (device, 0, 0)..=(device, u8::MAX, u64::MAX);
        for ((_, slot, counter), uses) in self.uses.range(of_device).filter(|(_, uses)| uses.len() > 1) {
            let shown = uses.iter().filter(|one| {
                let excused = |seen: &Instant| self.troubles.iter().any(|at| one.since <= *at && at <= seen);
                one.answered || one.seen.get().is_some_and(|seen| !excused(seen))
            });
            let shown: Vec<_> = shown.map(|one| &one.input).collect();
            assert!(shown.len() < 2, "mask reuse: {shown:?} of device {device} under slot {slot}, counter {counter}");
        }
    }
}
