//! The desktop device: the kernel's session over a tokio stream, with its counters in a file.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use secure_router_core::circuit::{SLOTS, Slot};
use secure_router_core::session::{CounterError, Counters, DeviceSession, Event, SessionError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::files::{Disk, Files, replace};
use crate::link::Moved;

/// Why the device stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// The link failed.
    #[error("the link failed: {0}")]
    Link(#[from] std::io::Error),
    /// The server neither sent nor took anything for too long.
    #[error("the server fell silent")]
    Silent,
    /// The session failed.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// How long a device waits for its server to send or take something. The server itself may have to wait for its
/// dealer.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Moves bytes between `stream` and `session` until the session's next event; counts them. The server must not fall
/// silent for `patience`.
///
/// # Errors
/// [`DriverError`]; the session is then closed.
pub async fn run<S: AsyncRead + AsyncWrite + Unpin, C: Counters>(
    stream: &mut S,
    session: &mut DeviceSession<'_, C>,
    moved: &mut Moved,
    patience: Duration,
) -> Result<Event, DriverError> {
    loop {
        let (wanted, pending) = session.io();
        let sending = !pending.is_empty();
        if !sending && wanted.is_empty() {
            return Err(SessionError::Busy.into());
        }
        let moving = async { if sending { stream.write(pending).await } else { stream.read(wanted).await } };
        let count = timeout(patience, moving).await.map_err(|_| DriverError::Silent);
        let outcome = match count.and_then(|moved| Ok(moved?)) {
            Err(error) => {
                session.close();
                return Err(error);
            }
            Ok(0) => session.link_ended()?,
            Ok(count) if sending => {
                moved.sent += count as u64;
                session.sent(count)?
            }
            Ok(count) => {
                moved.received += count as u64;
                session.received(count)?
            }
        };
        if let Some(event) = outcome {
            return Ok(event);
        }
    }
}

/// Spent counters in a file that is replaced durably at each burn.
#[derive(Debug)]
pub struct FileCounters<F = Disk> {
    files: F,
    path: PathBuf,
    next: [u64; SLOTS],
    /// Held as long as the counters are: of two processes each would burn what the other is about to use.
    _lock: Option<File>,
}

impl FileCounters {
    /// Reads the counters at `path`, for this process alone; a file that does not exist is a device that never ran.
    ///
    /// # Errors
    /// A file that another process has open, that cannot be read or is damaged: a device must not guess its counters.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        // The file itself is replaced at each burn, and its lock would go with it.
        let beside = path.with_extension("lock");
        let lock = File::create(&beside).with_context(|| format!("cannot make {}", beside.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("another process is using the counters in {}: a device does one thing at a time", path.display())
            }
            Err(TryLockError::Error(error)) => return Err(error).context(format!("cannot lock {}", beside.display())),
        }
        Ok(Self { _lock: Some(lock), ..Self::on(Disk, path)? })
    }
}

impl<F: Files> FileCounters<F> {
    /// As [`open`](FileCounters::open), on any file system.
    ///
    /// # Errors
    /// As [`open`](FileCounters::open).
    pub fn on(files: F, path: &Path) -> anyhow::Result<Self> {
        let mut next = [0; SLOTS];
        match files.read(path) {
            Ok(bytes) => {
                let stored: Vec<u64> = serde_json::from_slice(&bytes)
                    .ok()
                    .filter(|stored: &Vec<u64>| stored.len() == SLOTS)
                    .with_context(|| format!("the counters in {} are damaged, or a board's", path.display()))?;
                next.copy_from_slice(&stored);
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => bail!("cannot read the counters in {}: {error}", path.display()),
        }
        Ok(Self { files, path: path.to_owned(), next, _lock: None })
    }
}

impl<F: Files> Counters for FileCounters<F> {
    fn next(&mut self, slot: Slot) -> Result<u64, CounterError> {
        self.next.get(usize::from(slot.code())).copied().ok_or(CounterError)
    }

    fn burn(&mut self, slot: Slot, counter: u64) -> Result<(), CounterError> {
        let mut next = self.next;
        let lowest = next.get_mut(usize::from(slot.code())).ok_or(CounterError)?;
        *lowest = counter.checked_add(1).ok_or(CounterError)?.max(*lowest);
        let text = serde_json::to_string(&next.as_slice()).map_err(|_| CounterError)?;
        replace(&self.files, &self.path, text.as_bytes()).map_err(|_| CounterError)?;
        self.next = next;
        Ok(())
    }
}
