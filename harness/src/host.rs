//! What a party takes from the machine that it runs on: links, chance, and a thread for work that blocks.

use std::fmt::Display;
use std::future::Future;
use std::io;
use std::net::SocketAddr;

use rand_core::{TryCryptoRng, UnwrapErr};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

/// A machine.
pub trait Host: Send + Sync + 'static {
    /// A link to another party.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// A source of randomness.
    type Random: TryCryptoRng + Send;

    /// Dials a listener.
    fn dial(&self, address: &str) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Randomness for one link's keys.
    fn random(&self) -> Self::Random;

    /// Does work that may block its thread, while other tasks go on.
    fn block<T>(&self, work: impl FnOnce() -> T) -> T;
}

/// Where links arrive.
pub trait Listen: Send {
    /// A link.
    type Stream;
    /// Who dialled, for the log.
    type From: Display + Send + 'static;

    /// The next link.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Stream, Self::From)>> + Send;
}

/// The machine that this process runs on. Needs tokio's multi-threaded runtime.
#[derive(Clone, Copy, Debug)]
pub struct Machine;

impl Host for Machine {
    type Stream = TcpStream;
    type Random = UnwrapErr<getrandom::SysRng>;

    async fn dial(&self, address: &str) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn random(&self) -> Self::Random {
        crate::provision::random()
    }

    fn block<T>(&self, work: impl FnOnce() -> T) -> T {
        tokio::task::block_in_place(work)
    }
}

impl Listen for TcpListener {
    type Stream = TcpStream;
    type From = SocketAddr;

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, from) = Self::accept(self).await?;
        stream.set_nodelay(true)?;
        Ok((stream, from))
    }
}
