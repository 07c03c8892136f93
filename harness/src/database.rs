//! The parties' embedded database, opened anew after a failure.
//!
//! redb refuses everything once a read or a write failed, until its file is opened again: without this, a disk that
//! was full for a moment would stop a party for good. What was committed without being durable is lost then, as in a
//! crash.

use std::fmt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use redb::{Database, DatabaseError};

use crate::files::{Disk, Files};

/// Opens the database at `path`. Where there is none it is made under another name first: redb cannot open what a crash
/// kept it from finishing.
///
/// # Errors
/// redb's.
pub fn open(path: &Path) -> Result<Database, DatabaseError> {
    if !path.try_exists()? {
        let part = path.with_extension("part");
        Disk.write(&part, &[])?;
        drop(Database::create(&part)?);
        Disk.sync(&part)?;
        Disk.rename(&part, path)?;
        Disk.sync_name(path)?;
    }
    Database::create(path)
}

type Open = dyn Fn() -> Result<Database, DatabaseError> + Send + Sync;

/// A database, and how to open it.
pub struct Durable {
    open: Box<Open>,
    database: Mutex<Option<Database>>,
}

impl Durable {
    /// Opens it a first time.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn new(
        open: impl Fn() -> Result<Database, DatabaseError> + Send + Sync + 'static,
    ) -> Result<Self, redb::Error> {
        let database = open()?;
        Ok(Self { open: Box::new(open), database: Mutex::new(Some(database)) })
    }

    /// Hands the database to `work`, one caller at a time. An error that `failed` tells from a refusal closes it.
    ///
    /// # Errors
    /// Those of `work`, and of opening it again.
    pub fn with<T, E: From<redb::Error>>(
        &self,
        failed: impl FnOnce(&E) -> bool,
        work: impl FnOnce(&Database) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut place = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = match place.take() {
            Some(database) => database,
            None => (self.open)().map_err(redb::Error::from)?,
        };
        let outcome = work(&database);
        if !outcome.as_ref().is_err_and(failed) {
            *place = Some(database);
        }
        outcome
    }
}

impl fmt::Debug for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Durable").finish_non_exhaustive()
    }
}
