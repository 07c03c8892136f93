//! Spent counters under QEMU: a file of the host that is used as a board's flash would be, which
//! is appended to and never rewritten.
//!
//! A record of 16 bytes says which counter of a program is the next that is still good. A power
//! cut leaves the last record incomplete: it was never acted on, since a burn returns only after
//! its record is whole, so the rest of it is filled with zeros and it is passed over. A record
//! that is complete and wrong means damaged memory, and nothing starts.

use embedded_io::{Read, Write};
use secure_router_core::circuit::{SLOTS, Slot};
use secure_router_core::session::{CounterError, Counters};

use crate::semi::File;
use crate::span::paused;

const RECORD: usize = 16;
/// Last byte of a complete record; a torn one has 0 there.
const WHOLE: u8 = 0x5a;

/// The counters in a file.
pub struct CounterLog<'n> {
    name: &'n str,
    next: [u64; SLOTS],
    /// A write failed: what stands at the end is known again only after the next start.
    broken: bool,
}

impl<'n> CounterLog<'n> {
    /// Reads the counters. The file must be there, empty for a device that never ran.
    ///
    /// # Errors
    /// No file, or a damaged one.
    pub fn open(name: &'n str) -> Result<Self, CounterError> {
        let mut log = Self { name, next: [0; SLOTS], broken: false };
        let mut file = File::open(name).map_err(|_| CounterError)?;
        loop {
            let mut record = [0; RECORD];
            let mut filled = 0;
            while let Some(rest) = record.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                match file.read(rest).map_err(|_| CounterError)? {
                    0 => break,
                    count => filled += count,
                }
            }
            match filled {
                0 => return Ok(log),
                RECORD => log.apply(&record)?,
                _ => {
                    let zeros = [0; RECORD];
                    let rest = zeros.get(filled..).unwrap_or(&[]);
                    return log.append(rest).map(|()| log);
                }
            }
        }
    }

    fn apply(&mut self, record: &[u8; RECORD]) -> Result<(), CounterError> {
        let &[slot, a, b, c, d, e, f, g, h, .., end] = record;
        if end == 0 {
            return Ok(());
        }
        let next = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let lowest =
            self.next.get_mut(usize::from(slot)).filter(|_| encode(slot, next) == *record).ok_or(CounterError)?;
        *lowest = next.max(*lowest);
        Ok(())
    }

    fn append(&self, bytes: &[u8]) -> Result<(), CounterError> {
        let written = File::update(self.name).and_then(|mut file| {
            file.seek_end()?;
            file.write_all(bytes)
        });
        written.map_err(|_| CounterError)
    }
}

/// Slot, next counter, FNV-1a of both, padding, mark.
fn encode(slot: u8, next: u64) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    let mut check = 0x811c_9dc5u32;
    for (place, byte) in record.iter_mut().zip([slot].into_iter().chain(next.to_le_bytes())) {
        *place = byte;
        check = (check ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    let tail = check.to_le_bytes().into_iter().chain([0xff, 0xff, WHOLE]);
    for (place, byte) in record.iter_mut().skip(9).zip(tail) {
        *place = byte;
    }
    record
}

impl Counters for CounterLog<'_> {
    fn next(&mut self, slot: Slot) -> Result<u64, CounterError> {
        let next = self.next.get(usize::from(slot.code()));
        next.filter(|_| !self.broken).copied().ok_or(CounterError)
    }

    fn burn(&mut self, slot: Slot, counter: u64) -> Result<(), CounterError> {
        let code = slot.code();
        let next = counter.checked_add(1).ok_or(CounterError)?;
        if self.broken {
            return Err(CounterError);
        }
        self.broken = true;
        paused(|| self.append(&encode(code, next)))?;
        self.broken = false;
        let lowest = self.next.get_mut(usize::from(code)).ok_or(CounterError)?;
        *lowest = next.max(*lowest);
        Ok(())
    }
}
