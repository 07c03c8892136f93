//! The server's stock: what inferences use up, kept in an embedded store.
//!
//! An item is the dealer's part and the device's part of one inference. It is taken out in the same
//! transaction that raises the slot's lowest counter, durably, before a byte that depends on it is
//! sent; so an item is used at most once, whatever crashes when. The same transaction counts a device's
//! answers against its budget.

use std::path::Path;

use redb::{Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, Table, TableDefinition};
use secure_router_core::channel::PublicKey;
use secure_router_core::circuit::Slot;
use secure_router_core::session::SlotStock;

use crate::database::{self, Durable};

/// Device, slot and counter to an item: the length of the device's part, it, and the dealer's.
const ITEMS: TableDefinition<'_, ([u8; 32], u8, u64), &[u8]> = TableDefinition::new("items");
/// The same keys to the fingerprint of the item's pool. Apart from the items, which are megabytes,
/// so that counting stock does not read them.
const POOLS: TableDefinition<'_, ([u8; 32], u8, u64), [u8; 32]> = TableDefinition::new("pools");
/// Device and slot to its lowest unspent and its lowest unprepared counter.
const COUNTERS: TableDefinition<'_, ([u8; 32], u8), (u64, u64)> = TableDefinition::new("counters");
/// Device to the answers that were spent on it.
const ANSWERS: TableDefinition<'_, [u8; 32], u64> = TableDefinition::new("answers");

/// The store failed or refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StockError {
    /// The store failed.
    #[error("the stock store failed: {0}")]
    Store(#[from] redb::Error),
    /// The counter was spent or prepared before, or is not the next.
    #[error("counter {0} is not the next one")]
    Counter(u64),
    /// There is no such item.
    #[error("nothing is in stock")]
    Empty,
    /// The device got all answers that it may get.
    #[error("the device's answers are used up")]
    Budget,
}

macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for StockError {
            fn from(error: $error) -> Self {
                Self::Store(error.into())
            }
        }
    )*};
}
from_redb!(
    redb::DatabaseError,
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError,
    redb::SetDurabilityError
);

/// One inference's stock.
#[derive(Clone, PartialEq, Eq)]
pub struct Item {
    /// The dealer's part.
    pub correlations: Vec<u8>,
    /// The device's part.
    pub corrections: Vec<u8>,
}

/// What a run takes of its device's budget of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charge {
    /// Nothing.
    Free,
    /// One answer, of at most so many over the device's life if there is a limit.
    Answer {
        /// The limit.
        most: Option<u64>,
    },
}

/// The store.
#[derive(Debug)]
pub struct Store {
    database: Durable,
}

impl Store {
    /// Opens the store at `path`, or makes it.
    ///
    /// # Errors
    /// [`StockError::Store`].
    pub fn open(path: &Path) -> Result<Self, StockError> {
        let path = path.to_owned();
        Self::over(move || database::open(&path))
    }

    /// The store in the database that `open` opens, now and after each failure.
    ///
    /// # Errors
    /// [`StockError::Store`].
    pub fn over(
        open: impl Fn() -> Result<Database, DatabaseError> + Send + Sync + 'static,
    ) -> Result<Self, StockError> {
        let store = Self { database: Durable::new(open)? };
        store.with(|database| {
            let write = database.begin_write()?;
            write.open_table(ITEMS)?;
            write.open_table(POOLS)?;
            write.open_table(COUNTERS)?;
            write.open_table(ANSWERS)?;
            Ok(write.commit()?)
        })?;
        Ok(store)
    }

    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, StockError>) -> Result<T, StockError> {
        self.database.with(|error| matches!(error, StockError::Store(_)), work)
    }

    /// Raises the counters of a slot to what the device says it has spent, and drops items that it
    /// spent or that belong to another pool. Returns the slot's stock.
    ///
    /// # Errors
    /// [`StockError::Store`].
    pub fn meet(
        &self,
        device: &PublicKey,
        slot: Slot,
        pool: &[u8; 32],
        device_next: u64,
    ) -> Result<SlotStock, StockError> {
        self.with(|database| {
            let key = (device.0, slot.code());
            let write = database.begin_write()?;
            {
                let mut counters = write.open_table(COUNTERS)?;
                let (spent, fresh) = counters.get(key)?.map_or((0, 0), |pair| pair.value());
                let spent = spent.max(device_next);
                counters.insert(key, (spent, fresh.max(spent)))?;
                let mut pools = write.open_table(POOLS)?;
                let mut items = write.open_table(ITEMS)?;
                let mut stale = Vec::new();
                for entry in pools.range(all(device, slot))? {
                    let (place, fingerprint) = entry?;
                    let (_, _, counter) = place.value();
                    if counter < spent || fingerprint.value() != *pool {
                        stale.push(place.value());
                    }
                }
                for place in stale {
                    pools.remove(place)?;
                    items.remove(place)?;
                }
            }
            Ok(write.commit()?)
        })?;
        self.stock(device, slot)
    }

    /// The stock of a slot: the first item and how many follow it without a gap.
    ///
    /// # Errors
    /// [`StockError::Store`].
    pub fn stock(&self, device: &PublicKey, slot: Slot) -> Result<SlotStock, StockError> {
        self.with(|database| {
            let read = database.begin_read()?;
            let counters = read.open_table(COUNTERS)?.get((device.0, slot.code()))?;
            let (_, fresh) = counters.map_or((0, 0), |pair| pair.value());
            let mut stock = SlotStock { slot, first: fresh, fresh, ready: 0 };
            for entry in read.open_table(POOLS)?.range(all(device, slot))? {
                let (_, _, counter) = entry?.0.value();
                if stock.ready == 0 {
                    stock.first = counter;
                } else if counter != stock.first.saturating_add(u64::from(stock.ready)) {
                    break;
                }
                stock.ready = stock.ready.saturating_add(1);
            }
            Ok(stock)
        })
    }

    /// Gives up on preparing `counter` and those after it below `next`: they are not offered again.
    ///
    /// # Errors
    /// [`StockError::Counter`] when `counter` is not the slot's next.
    pub fn skip(&self, device: &PublicKey, slot: Slot, counter: u64, next: u64) -> Result<(), StockError> {
        self.with(|database| {
            let write = database.begin_write()?;
            claim(&mut write.open_table(COUNTERS)?, device, slot, counter, next)?;
            Ok(write.commit()?)
        })
    }

    /// Puts the item of the slot's next counter in stock.
    ///
    /// # Errors
    /// [`StockError::Counter`] when `counter` is not the next.
    pub fn put(
        &self,
        device: &PublicKey,
        slot: Slot,
        counter: u64,
        pool: &[u8; 32],
        item: &Item,
    ) -> Result<(), StockError> {
        let place = (device.0, slot.code(), counter);
        let mut bytes = Vec::with_capacity(4 + item.corrections.len() + item.correlations.len());
        bytes.extend_from_slice(&(item.corrections.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&item.corrections);
        bytes.extend_from_slice(&item.correlations);
        self.with(|database| {
            let mut write = database.begin_write()?;
            // A crash may lose an item and its claim; the dealer then refuses the counter and it is
            // skipped. It never brings a spent one back, because spending is durable.
            write.set_durability(Durability::None)?;
            claim(&mut write.open_table(COUNTERS)?, device, slot, counter, counter)?;
            write.open_table(ITEMS)?.insert(place, bytes.as_slice())?;
            write.open_table(POOLS)?.insert(place, pool)?;
            Ok(write.commit()?)
        })
    }

    /// Takes an item out, durably: it and all before it are spent, and its `charge` is counted.
    ///
    /// # Errors
    /// [`StockError::Counter`] for a counter that is spent, [`StockError::Empty`] for one that is
    /// not in stock or belongs to another pool, [`StockError::Budget`].
    pub fn spend(
        &self,
        device: &PublicKey,
        slot: Slot,
        counter: u64,
        pool: &[u8; 32],
        charge: Charge,
    ) -> Result<Item, StockError> {
        let key = (device.0, slot.code());
        self.with(|database| {
            let write = database.begin_write()?;
            let item = {
                if let Charge::Answer { most } = charge {
                    let mut answers = write.open_table(ANSWERS)?;
                    let given = answers.get(device.0)?.map_or(0, |given| given.value());
                    if most.is_some_and(|most| given >= most) {
                        return Err(StockError::Budget);
                    }
                    answers.insert(device.0, given.saturating_add(1))?;
                }
                let mut counters = write.open_table(COUNTERS)?;
                let (spent, fresh) = counters.get(key)?.map_or((0, 0), |pair| pair.value());
                if counter < spent {
                    return Err(StockError::Counter(counter));
                }
                let place = (device.0, slot.code(), counter);
                if write.open_table(POOLS)?.remove(place)?.is_none_or(|fingerprint| fingerprint.value() != *pool) {
                    return Err(StockError::Empty);
                }
                let mut items = write.open_table(ITEMS)?;
                let item = items.remove(place)?.and_then(|item| parse(item.value())).ok_or(StockError::Empty)?;
                let next = counter.saturating_add(1);
                counters.insert(key, (next, fresh.max(next)))?;
                item
            };
            write.commit()?;
            Ok(item)
        })
    }
}

/// Moves the slot's next counter, which `counter` must be, past it and to `next` at least.
fn claim(
    counters: &mut Table<'_, ([u8; 32], u8), (u64, u64)>,
    device: &PublicKey,
    slot: Slot,
    counter: u64,
    next: u64,
) -> Result<(), StockError> {
    let key = (device.0, slot.code());
    let (spent, fresh) = counters.get(key)?.map_or((0, 0), |pair| pair.value());
    let after = counter.checked_add(1).filter(|_| counter == fresh).ok_or(StockError::Counter(counter))?;
    counters.insert(key, (spent, after.max(next)))?;
    Ok(())
}

fn parse(bytes: &[u8]) -> Option<Item> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let (corrections, correlations) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    Some(Item { correlations: correlations.to_vec(), corrections: corrections.to_vec() })
}

/// Every counter of a slot.
fn all(device: &PublicKey, slot: Slot) -> std::ops::RangeInclusive<([u8; 32], u8, u64)> {
    (device.0, slot.code(), 0)..=(device.0, slot.code(), u64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use super::*;

    const DEVICE: PublicKey = PublicKey([1; 32]);
    const POOL: [u8; 32] = [2; 32];
    const SLOT: Slot = Slot::Model(3);

    fn item(value: u8) -> Item {
        Item { correlations: vec![value; 100], corrections: vec![value; 10] }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("stock")).unwrap();
        (directory, store)
    }

    fn prepare(store: &Store, counter: u64) {
        store.put(&DEVICE, SLOT, counter, &POOL, &item(counter as u8)).unwrap();
    }

    #[test]
    fn an_item_is_spent_once_and_its_counter_never_comes_back() {
        let (directory, store) = store();
        prepare(&store, 0);
        prepare(&store, 1);
        assert_eq!(store.stock(&DEVICE, SLOT).unwrap(), SlotStock { slot: SLOT, first: 0, fresh: 2, ready: 2 });
        assert!(store.spend(&DEVICE, SLOT, 0, &POOL, Charge::Free).unwrap() == item(0));
        assert!(matches!(store.spend(&DEVICE, SLOT, 0, &POOL, Charge::Free), Err(StockError::Counter(0))));
        assert!(matches!(store.skip(&DEVICE, SLOT, 0, 0), Err(StockError::Counter(0))));
        assert!(matches!(store.spend(&DEVICE, SLOT, 7, &POOL, Charge::Free), Err(StockError::Empty)));
        drop(store);
        let store = Store::open(&directory.path().join("stock")).unwrap();
        assert!(matches!(store.spend(&DEVICE, SLOT, 0, &POOL, Charge::Free), Err(StockError::Counter(0))));
        assert!(store.spend(&DEVICE, SLOT, 1, &POOL, Charge::Free).unwrap() == item(1));
    }

    #[test]
    fn stock_of_another_pool_or_behind_the_device_is_dropped() {
        let (_directory, store) = store();
        (0..4).for_each(|counter| prepare(&store, counter));
        assert_eq!(
            store.meet(&DEVICE, SLOT, &POOL, 2).unwrap(),
            SlotStock { slot: SLOT, first: 2, fresh: 4, ready: 2 }
        );
        assert!(matches!(store.spend(&DEVICE, SLOT, 2, &[9; 32], Charge::Free), Err(StockError::Empty)));
        assert_eq!(
            store.meet(&DEVICE, SLOT, &[9; 32], 2).unwrap(),
            SlotStock { slot: SLOT, first: 4, fresh: 4, ready: 0 }
        );
    }

    #[test]
    fn a_device_ahead_of_the_store_moves_it() {
        let (_directory, store) = store();
        assert_eq!(
            store.meet(&DEVICE, SLOT, &POOL, 9).unwrap(),
            SlotStock { slot: SLOT, first: 9, fresh: 9, ready: 0 }
        );
    }

    #[test]
    fn a_gap_ends_the_run() {
        let (_directory, store) = store();
        prepare(&store, 0);
        store.skip(&DEVICE, SLOT, 1, 0).unwrap();
        prepare(&store, 2);
        assert_eq!(store.stock(&DEVICE, SLOT).unwrap(), SlotStock { slot: SLOT, first: 0, fresh: 3, ready: 1 });
    }

    #[test]
    fn answers_are_counted_to_the_last_over_programs_pools_and_restarts() {
        let (directory, store) = store();
        (0..5).for_each(|counter| prepare(&store, counter));
        store.put(&DEVICE, Slot::Model(0), 0, &[9; 32], &item(0)).unwrap();
        let charge = Charge::Answer { most: Some(3) };
        store.spend(&DEVICE, SLOT, 0, &POOL, charge).unwrap();
        // Neither what is refused nor what is free counts.
        assert!(matches!(store.spend(&DEVICE, SLOT, 0, &POOL, charge), Err(StockError::Counter(0))));
        assert!(matches!(store.spend(&DEVICE, SLOT, 7, &POOL, charge), Err(StockError::Empty)));
        store.spend(&DEVICE, SLOT, 1, &POOL, Charge::Free).unwrap();
        store.spend(&DEVICE, Slot::Model(0), 0, &[9; 32], charge).unwrap();
        drop(store);
        let store = Store::open(&directory.path().join("stock")).unwrap();
        store.spend(&DEVICE, SLOT, 2, &POOL, charge).unwrap();
        assert!(matches!(store.spend(&DEVICE, SLOT, 3, &POOL, charge), Err(StockError::Budget)));
        // The item is still there for a higher limit.
        assert!(matches!(store.stock(&DEVICE, SLOT), Ok(SlotStock { first: 3, ready: 2, .. })));
        store.spend(&DEVICE, SLOT, 3, &POOL, Charge::Answer { most: Some(4) }).unwrap();
        assert!(matches!(
            store.spend(&DEVICE, SLOT, 4, &POOL, Charge::Answer { most: Some(4) }),
            Err(StockError::Budget)
        ));
        assert!(store.spend(&DEVICE, SLOT, 4, &POOL, Charge::Answer { most: None }).is_ok());
    }

    #[test]
    fn counters_that_were_dealt_and_lost_are_skipped_at_once() {
        let (_directory, store) = store();
        store.skip(&DEVICE, SLOT, 0, 5).unwrap();
        assert_eq!(store.stock(&DEVICE, SLOT).unwrap().fresh, 5);
        store.skip(&DEVICE, SLOT, 5, 2).unwrap();
        assert_eq!(store.stock(&DEVICE, SLOT).unwrap().fresh, 6);
    }

    /// A file that refuses writes while `full`.
    #[derive(Debug)]
    struct Disk {
        file: redb::backends::FileBackend,
        full: Arc<AtomicBool>,
    }

    impl redb::StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            self.file.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.file.read(offset, out)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.file.set_len(len)
        }
        fn sync_data(&self) -> io::Result<()> {
            self.file.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            if self.full.load(Relaxed) { Err(io::ErrorKind::StorageFull.into()) } else { self.file.write(offset, data) }
        }
    }

    #[test]
    fn a_disk_that_was_full_for_a_moment_does_not_stop_the_store() {
        let directory = tempfile::tempdir().unwrap();
        let (path, full) = (directory.path().join("stock"), Arc::new(AtomicBool::new(false)));
        let disk = full.clone();
        let store = Store::over(move || {
            let file = std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            let disk = Disk { file: redb::backends::FileBackend::new(file)?, full: disk.clone() };
            redb::Builder::new().create_with_backend(disk)
        });
        let store = store.unwrap();
        prepare(&store, 0);
        // A durable commit, which takes the item with it.
        store.skip(&DEVICE, SLOT, 1, 2).unwrap();
        full.store(true, Relaxed);
        assert!(matches!(store.spend(&DEVICE, SLOT, 0, &POOL, Charge::Free), Err(StockError::Store(_))));
        full.store(false, Relaxed);
        assert!(store.spend(&DEVICE, SLOT, 0, &POOL, Charge::Free).unwrap() == item(0));
        assert!(matches!(store.spend(&DEVICE, SLOT, 0, &POOL, Charge::Free), Err(StockError::Counter(0))));
    }
}
