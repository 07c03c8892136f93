//! A disk under an embedded database. What was not synced when the power is cut is there, is not, or is there in
//! part, sector by sector.

use std::io;
use std::sync::{Arc, Mutex};

use redb::StorageBackend;

use super::world::{Life, Party, World, lock};

/// What a disk writes as a whole.
const SECTOR: usize = 512;

#[derive(Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>, mut keep: impl FnMut() -> bool) {
        match self {
            Self::Length(length) if keep() => bytes.resize(*length, 0),
            Self::Length(_) => {}
            Self::Write(at, data) => {
                for (index, sector) in data.chunks(SECTOR).enumerate() {
                    let place = at + index * SECTOR;
                    if keep() {
                        // The file may not have been made longer.
                        bytes.resize(bytes.len().max(place + sector.len()), 0);
                        bytes[place..place + sector.len()].copy_from_slice(sector);
                    }
                }
            }
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// As its party reads it.
    bytes: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

/// A disk, which outlives its party.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<State>>);

impl Disk {
    /// The power is cut.
    pub fn lose_power(&self, world: &World) {
        let mut state = lock(&self.0);
        let State { bytes, durable, unsynced } = &mut *state;
        // Mostly a cut finds all of the last writes, or none.
        let chance = [0, 500, 1000][world.below(3)];
        for change in unsynced.drain(..) {
            change.apply(durable, || world.per_mille(chance));
        }
        bytes.clone_from(durable);
    }

    /// Whether nothing was ever put on it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        lock(&self.0).durable.is_empty()
    }

    /// Takes on what another disk holds, durably and as a whole.
    pub fn replace(&self, by: &Self) {
        let bytes = lock(&by.0).durable.clone();
        *lock(&self.0) = State { durable: bytes.clone(), bytes, unsynced: Vec::new() };
    }

    /// The disk as a party sees it in one life.
    #[must_use]
    pub fn of(&self, life: &Arc<Life>) -> Mounted {
        Mounted { disk: self.clone(), life: Arc::clone(life) }
    }
}

/// A disk in one life of its party.
#[derive(Debug)]
pub struct Mounted {
    disk: Disk,
    life: Arc<Life>,
}

impl Mounted {
    fn step(&self, writes: bool) -> io::Result<()> {
        if !self.life.step() {
            return Err(io::Error::other("the power is cut"));
        }
        let world = &self.life.world;
        let full = writes && world.goes_wrong("DiskFull", |weather| weather.disk_full);
        let fails = world.goes_wrong("DiskFails", |weather| weather.disk_fails);
        if (full || fails) && self.life.party == Party::Server {
            lock(&world.watch).trouble();
        }
        match (full, fails) {
            (true, _) => Err(io::ErrorKind::StorageFull.into()),
            (_, true) => Err(io::Error::other("the disk fails")),
            _ => Ok(()),
        }
    }
}

impl StorageBackend for Mounted {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.disk.0).bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.step(false)?;
        let at = offset as usize;
        let state = lock(&self.disk.0);
        out.copy_from_slice(state.bytes.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.step(true)?;
        let mut state = lock(&self.disk.0);
        state.bytes.resize(len as usize, 0);
        state.unsynced.push(Change::Length(len as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.step(false)?;
        let mut state = lock(&self.disk.0);
        let State { durable, unsynced, .. } = &mut *state;
        unsynced.drain(..).for_each(|change| change.apply(durable, || true));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.step(true)?;
        let at = offset as usize;
        let mut state = lock(&self.disk.0);
        state.bytes.get_mut(at..at + data.len()).ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
        state.unsynced.push(Change::Write(at, data.to_vec()));
        Ok(())
    }
}
