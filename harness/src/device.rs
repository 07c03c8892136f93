//! The desktop device: the kernel's session over a tokio stream, with its counters in a file.

use std::path::{Path, PathBuf};

use secure_router_core::circuit::{SLOTS, Slot};
use secure_router_core::session::{CounterError, Counters, DeviceSession, Event, SessionError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::link::Moved;
use crate::provision::replace;

/// Why the device stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// The link failed.
    #[error("the link failed: {0}")]
    Link(#[from] std::io::Error),
    /// The session failed.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// Moves bytes between `stream` and `session` until the session's next event; counts them.
///
/// # Errors
/// [`DriverError`]; the session is then closed.
pub async fn run<S: AsyncRead + AsyncWrite + Unpin, C: Counters>(
    stream: &mut S,
    session: &mut DeviceSession<'_, C>,
    moved: &mut Moved,
) -> Result<Event, DriverError> {
    loop {
        let (wanted, pending) = session.io();
        let outcome = if !pending.is_empty() {
            let count = stream.write(pending).await?;
            moved.sent += count as u64;
            session.sent(count)?
        } else if wanted.is_empty() {
            return Err(SessionError::Busy.into());
        } else {
            match stream.read(wanted).await? {
                0 => session.link_ended()?,
                count => {
                    moved.received += count as u64;
                    session.received(count)?
                }
            }
        };
        if let Some(event) = outcome {
            return Ok(event);
        }
    }
}

/// Spent counters in a file that is replaced durably at each burn.
#[derive(Debug)]
pub struct FileCounters {
    path: PathBuf,
    next: [u64; SLOTS],
}

impl FileCounters {
    /// Reads the counters at `path`; a file that does not exist is a device that never ran.
    ///
    /// # Errors
    /// A file that cannot be read or is damaged: a device must not guess its counters.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let mut next = [0; SLOTS];
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let stored: Vec<u64> = serde_json::from_str(&text)
                    .map_err(|_| anyhow::anyhow!("the counters in {} are damaged", path.display()))?;
                if stored.len() != SLOTS {
                    anyhow::bail!("the counters in {} are damaged", path.display());
                }
                next.copy_from_slice(&stored);
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => anyhow::bail!("cannot read the counters in {}: {error}", path.display()),
        }
        Ok(Self { path: path.to_owned(), next })
    }
}

impl Counters for FileCounters {
    fn next(&mut self, slot: Slot) -> Result<u64, CounterError> {
        self.next.get(usize::from(slot.code())).copied().ok_or(CounterError)
    }

    fn burn(&mut self, slot: Slot, counter: u64) -> Result<(), CounterError> {
        let mut next = self.next;
        let lowest = next.get_mut(usize::from(slot.code())).ok_or(CounterError)?;
        *lowest = counter.checked_add(1).ok_or(CounterError)?.max(*lowest);
        let text = serde_json::to_string(&next.as_slice()).map_err(|_| CounterError)?;
        replace(&self.path, text.as_bytes()).map_err(|_| CounterError)?;
        self.next = next;
        Ok(())
    }
}
