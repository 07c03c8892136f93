//! A thin driver of a [`DeviceSession`] over any [`embedded_io`] link.
//!
//! One call moves bytes until something happened. Firmware with its own loop can do the same with
//! [`DeviceSession::io`], [`received`](DeviceSession::received) and
//! [`sent`](DeviceSession::sent); an async driver (`run_async`, feature `async`) differs only in
//! its `await`s.

use core::fmt;

use embedded_io::{Read, Write};

use crate::session::{Counters, DeviceSession, Event, SessionError};

/// Why [`run`] stopped.
#[derive(Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum DriverError<E> {
    /// The link's own error.
    Link(E),
    /// The session's.
    Session(SessionError),
}

impl<E> From<SessionError> for DriverError<E> {
    fn from(error: SessionError) -> Self {
        Self::Session(error)
    }
}

impl<E: fmt::Debug> fmt::Display for DriverError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(error) => write!(f, "the link failed: {error:?}"),
            Self::Session(error) => error.fmt(f),
        }
    }
}

impl<E: fmt::Debug> core::error::Error for DriverError<E> {}

/// Moves bytes between `link` and `session` until the session's next event. Writes before it
/// reads, so it needs a link that takes a frame while the peer is sending: any buffered one.
///
/// # Errors
/// [`DriverError`]; the session is then closed.
pub fn run<L: Read + Write, C: Counters>(
    link: &mut L,
    session: &mut DeviceSession<'_, C>,
) -> Result<Event, DriverError<L::Error>> {
    loop {
        let (wanted, pending) = session.io();
        let outcome = if !pending.is_empty() {
            match link.write(pending) {
                Ok(0) => session.link_ended()?,
                Ok(count) => session.sent(count)?,
                Err(error) => return Err(failed(session, error)),
            }
        } else if wanted.is_empty() {
            // Nothing to send and nothing wanted: no request is under way.
            return Err(SessionError::Busy.into());
        } else {
            if let Err(error) = link.flush() {
                return Err(failed(session, error));
            }
            let (wanted, _) = session.io();
            match link.read(wanted) {
                Ok(0) => session.link_ended()?,
                Ok(count) => session.received(count)?,
                Err(error) => return Err(failed(session, error)),
            }
        };
        if let Some(event) = outcome {
            return Ok(event);
        }
    }
}

/// As [`run`], over an async link.
///
/// Dropping the future between two bytes is safe: what was moved was reported, and the session
/// goes on with the next call.
///
/// # Errors
/// [`DriverError`]; the session is then closed.
#[cfg(feature = "async")]
pub async fn run_async<L, C>(
    link: &mut L,
    session: &mut DeviceSession<'_, C>,
) -> Result<Event, DriverError<<L as embedded_io::ErrorType>::Error>>
where
    L: embedded_io_async::Read + embedded_io_async::Write,
    C: Counters,
{
    loop {
        let (wanted, pending) = session.io();
        let outcome = if !pending.is_empty() {
            match link.write(pending).await {
                Ok(0) => session.link_ended()?,
                Ok(count) => session.sent(count)?,
                Err(error) => return Err(failed(session, error)),
            }
        } else if wanted.is_empty() {
            return Err(SessionError::Busy.into());
        } else {
            if let Err(error) = link.flush().await {
                return Err(failed(session, error));
            }
            let (wanted, _) = session.io();
            match link.read(wanted).await {
                Ok(0) => session.link_ended()?,
                Ok(count) => session.received(count)?,
                Err(error) => return Err(failed(session, error)),
            }
        };
        if let Some(event) = outcome {
            return Ok(event);
        }
    }
}

fn failed<C: Counters, E>(session: &mut DeviceSession<'_, C>, error: E) -> DriverError<E> {
    session.close();
    DriverError::Link(error)
}
