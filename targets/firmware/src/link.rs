//! The session's link over the UART.

use embedded_io::{ErrorType, Read, ReadExactError, Write};

use crate::uart::{Error, Uart};

/// The UART as the session's link: counts bytes, and reads all that is asked for at once. The
/// session never asks for more than its peer must send, and so one read is one message part
/// however its bytes happened to come.
pub struct Link<'u> {
    uart: &'u mut Uart,
    /// Bytes that went out.
    pub sent: u32,
    /// Bytes that came.
    pub received: u32,
}

impl<'u> Link<'u> {
    /// A new session's link: forgets what the UART held of the last one.
    pub fn new(uart: &'u mut Uart) -> Self {
        uart.clear();
        Self { uart, sent: 0, received: 0 }
    }
}

impl ErrorType for Link<'_> {
    type Error = Error;
}

impl Read for Link<'_> {
    fn read(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        match self.uart.read_exact(out) {
            Ok(()) => {}
            Err(ReadExactError::Other(error)) => return Err(error),
            Err(ReadExactError::UnexpectedEof) => return Ok(0),
        }
        self.received = self.received.wrapping_add(out.len() as u32);
        Ok(out.len())
    }
}

impl Write for Link<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        let count = self.uart.write(bytes)?;
        self.sent = self.sent.wrapping_add(count as u32);
        Ok(count)
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.uart.flush()
    }
}
