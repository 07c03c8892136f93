//! Channels over tokio streams.
//!
//! [`Link`] is one end of a [`Channel`] over a byte stream, for parties that handle whole messages:
//! frames to send gather in a buffer that goes out in one piece, and while it goes, what arrives is
//! taken in, so that two ends that both send never wait for each other.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rand_core::TryCryptoRng;
use secure_router_core::channel::{Channel, ChannelError, Event, Link as Kind, PublicKey, StaticSecret};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tracing::warn;

/// Most bytes taken in ahead of the frame being handled.
const READ_AHEAD: usize = 1 << 16;

/// A link failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The stream failed.
    #[error("the link failed: {0}")]
    Io(#[from] io::Error),
    /// The channel failed.
    #[error("{0}")]
    Channel(#[from] ChannelError),
    /// The peer ended the link between two frames.
    #[error("the peer ended the link")]
    Ended,
    /// The peer's key is not known here.
    #[error("the peer's key is not provisioned here")]
    UnknownPeer,
    /// A frame came that this turn does not expect.
    #[error("a frame came out of turn, or with the wrong length")]
    Frame,
}

/// Bytes moved, counted where they cross the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Moved {
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
}

/// Starts a session for every connection, until it is dropped; all sessions end with it. A failure
/// to accept, such as too many open files, passes: others are still served.
pub async fn accept<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    session: impl Fn(TcpStream, SocketAddr) -> F,
) {
    let mut sessions = JoinSet::new();
    loop {
        let accepted = listener.accept().await.and_then(|(stream, from)| {
            stream.set_nodelay(true)?;
            Ok((stream, from))
        });
        while sessions.try_join_next().is_some() {}
        match accepted {
            Ok((stream, from)) => {
                sessions.spawn(session(stream, from));
            }
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// One end of an encrypted link.
pub struct Link<'b, S> {
    stream: S,
    channel: Channel<'b>,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    /// Bytes of `incoming` that the channel has.
    taken: usize,
    moved: Moved,
}

impl<'b, S: AsyncRead + AsyncWrite + Unpin> Link<'b, S> {
    /// Dials `peer` over `stream`, whose ends are `rx` and `tx` long at most per frame.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn dial<R: TryCryptoRng>(
        kind: Kind,
        own: &StaticSecret,
        peer: PublicKey,
        rng: &mut R,
        stream: S,
        (rx, tx): (&'b mut [u8], &'b mut [u8]),
    ) -> Result<Self, LinkError> {
        let mut link = Self::over(stream, Channel::initiator(kind, own, peer, rng, rx, tx)?);
        link.flush().await?;
        match link.event().await? {
            Event::Established => Ok(link),
            _ => Err(LinkError::Frame),
        }
    }

    /// Answers an initiator whose key `known` accepts.
    ///
    /// # Errors
    /// [`LinkError`]; an unknown peer gets no byte of answer.
    pub async fn answer<R: TryCryptoRng>(
        kind: Kind,
        own: &StaticSecret,
        known: impl FnOnce(&PublicKey) -> bool,
        rng: &mut R,
        stream: S,
        (rx, tx): (&'b mut [u8], &'b mut [u8]),
    ) -> Result<Self, LinkError> {
        let mut link = Self::over(stream, Channel::responder(kind, own, rng, rx, tx)?);
        match link.event().await? {
            Event::Identity(peer) if known(&peer) => link.channel.accept()?,
            _ => {
                link.channel.refuse();
                return Err(LinkError::UnknownPeer);
            }
        }
        link.gather()?;
        link.flush().await?;
        Ok(link)
    }

    fn over(stream: S, channel: Channel<'b>) -> Self {
        let mut link =
            Self { stream, channel, outgoing: Vec::new(), incoming: Vec::new(), taken: 0, moved: Moved::default() };
        // Of a new initiator: the handshake.
        link.outgoing.extend_from_slice(link.channel.pending());
        let pending = link.outgoing.len();
        let _ = link.channel.sent(pending);
        link
    }

    /// The peer's key.
    #[must_use]
    pub fn peer(&self) -> Option<PublicKey> {
        self.channel.peer()
    }

    /// Bytes moved so far.
    #[must_use]
    pub const fn moved(&self) -> Moved {
        self.moved
    }

    /// Seals one frame; it goes with the next [`flush`](Self::flush).
    ///
    /// # Errors
    /// [`LinkError::Channel`].
    pub fn queue(&mut self, kind: u8, payload: &[u8]) -> Result<(), LinkError> {
        self.channel.send(kind, payload)?;
        self.gather()
    }

    /// Seals a message in frames of `size` bytes.
    ///
    /// # Errors
    /// [`LinkError::Channel`].
    pub fn queue_message(&mut self, kind: u8, message: &[u8], size: usize) -> Result<(), LinkError> {
        message.chunks(size).try_for_each(|piece| self.queue(kind, piece))
    }

    fn gather(&mut self) -> Result<(), LinkError> {
        self.outgoing.extend_from_slice(self.channel.pending());
        let pending = self.channel.pending().len();
        Ok(self.channel.sent(pending)?)
    }

    /// Sends all that is queued, taking in what arrives meanwhile.
    ///
    /// # Errors
    /// [`LinkError::Io`].
    pub async fn flush(&mut self) -> Result<(), LinkError> {
        let (mut read, mut write) = tokio::io::split(&mut self.stream);
        let mut gone = 0;
        let mut arrived = [0; 4096];
        while let Some(rest @ [_, ..]) = self.outgoing.get(gone..) {
            let room = self.incoming.len() < READ_AHEAD;
            tokio::select! {
                sent = write.write(rest) => match sent? {
                    0 => return Err(LinkError::Ended),
                    count => gone += count,
                },
                received = read.read(&mut arrived), if room => match received? {
                    0 => return Err(LinkError::Ended),
                    count => {
                        self.moved.received += count as u64;
                        self.incoming.extend_from_slice(arrived.get(..count).unwrap_or(&[]));
                    }
                },
            }
        }
        write.flush().await?;
        self.moved.sent += gone as u64;
        self.outgoing.clear();
        Ok(())
    }

    async fn event(&mut self) -> Result<Event, LinkError> {
        loop {
            if let Some(rest @ [_, ..]) = self.incoming.get(self.taken..) {
                let (taken, event) = self.channel.feed(rest)?;
                self.taken += taken;
                if event != Event::NeedMore {
                    return Ok(event);
                }
                continue;
            }
            self.incoming.clear();
            self.taken = 0;
            let count = self.stream.read_buf(&mut self.incoming).await?;
            if count == 0 {
                self.channel.end_of_input()?;
                return Err(LinkError::Ended);
            }
            self.moved.received += count as u64;
        }
    }

    /// The next frame's kind and payload.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn frame(&mut self) -> Result<(u8, &[u8]), LinkError> {
        match self.event().await? {
            Event::Frame { kind, .. } => Ok((kind, self.channel.payload())),
            _ => Err(LinkError::Frame),
        }
    }

    /// A message of `len` bytes in frames of `size`: each full but the last.
    ///
    /// # Errors
    /// [`LinkError::Frame`] for any other frame.
    pub async fn message(&mut self, kind: u8, len: usize, size: usize) -> Result<Vec<u8>, LinkError> {
        let mut message = Vec::with_capacity(len);
        while message.len() < len {
            let expected = (len - message.len()).min(size);
            match self.frame().await? {
                (found, piece) if found == kind && piece.len() == expected => message.extend_from_slice(piece),
                _ => return Err(LinkError::Frame),
            }
        }
        Ok(message)
    }
}
