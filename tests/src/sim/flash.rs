//! A device's files. A power cut between any two steps loses what was not synced, wholly or in part: contents, and
//! the names that they were given.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use secure_router::files::Files;

use super::world::{Life, World, lock};

#[derive(Clone, Debug, Default)]
struct File {
    contents: Vec<u8>,
    synced: Vec<u8>,
}

/// Names and the files that they stand for.
type Names = BTreeMap<PathBuf, usize>;

#[derive(Clone, Debug, Default)]
struct State {
    files: Vec<File>,
    names: Names,
    /// What a power cut leaves, and the states since, in order.
    durable: Names,
    since: Vec<Names>,
}

impl State {
    fn rename(&mut self, change: impl FnOnce(&mut Names)) {
        change(&mut self.names);
        self.since.push(self.names.clone());
    }
}

/// A device's memory, which outlives its sessions.
#[derive(Clone, Debug, Default)]
pub struct Flash(Arc<Mutex<State>>);

impl Flash {
    /// The power is cut.
    pub fn lose_power(&self, world: &World) {
        let mut state = lock(&self.0);
        let State { files, names, durable, since } = &mut *state;
        let kept = world.below(since.len() + 1);
        if let Some(last) = since.drain(..).take(kept).next_back() {
            *durable = last;
        }
        names.clone_from(durable);
        for file in files.iter_mut().filter(|file| file.contents != file.synced) {
            if world.per_mille(500) {
                // Sizes are often kept where contents are not.
                let kept = world.below(file.contents.len() + 1);
                file.synced = file.contents[..kept].to_vec();
            }
            file.contents.clone_from(&file.synced);
        }
    }

    /// A copy of what is durable, as a backup would hold it.
    #[must_use]
    pub fn backup(&self) -> Self {
        Self(Arc::new(Mutex::new(lock(&self.0).clone())))
    }

    /// The memory as the device sees it in one life.
    #[must_use]
    pub fn of(&self, life: &Arc<Life>) -> Mounted {
        Mounted { flash: self.clone(), life: Arc::clone(life) }
    }
}

/// A device's memory in one of its lives.
#[derive(Debug)]
pub struct Mounted {
    flash: Flash,
    life: Arc<Life>,
}

impl Mounted {
    fn step(&self) -> io::Result<()> {
        if !self.life.step() {
            return Err(io::Error::other("the power is cut"));
        }
        if self.life.world.goes_wrong("FlashFails", |weather| weather.flash_fails) {
            return Err(io::Error::other("the memory fails"));
        }
        Ok(())
    }
}

impl Files for Mounted {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.step()?;
        let state = lock(&self.flash.0);
        let file = state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(state.files[*file].contents.clone())
    }

    fn write(&self, path: &Path, contents: &[u8]) -> io::Result<()> {
        self.step()?;
        let mut state = lock(&self.flash.0);
        let file = state.names.get(path).copied().unwrap_or(state.files.len());
        if file == state.files.len() {
            state.files.push(File::default());
            state.rename(|names| {
                names.insert(path.to_owned(), file);
            });
        }
        state.files[file].contents = contents.to_vec();
        Ok(())
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        let mut state = lock(&self.flash.0);
        let file = *state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        state.files[file].synced = state.files[file].contents.clone();
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        let mut state = lock(&self.flash.0);
        let file = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.rename(|names| {
            names.remove(from);
            names.insert(to.to_owned(), file);
        });
        Ok(())
    }

    fn sync_name(&self, _: &Path) -> io::Result<()> {
        self.step()?;
        let mut state = lock(&self.flash.0);
        state.durable = state.names.clone();
        state.since.clear();
        Ok(())
    }
}
