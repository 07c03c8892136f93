//! Channels over tokio streams.
//!
//! [`Link`] is one end of a [`Channel`] over a byte stream, for parties that handle whole messages:
//! frames to send gather in a buffer that goes out in one piece, and while it goes, what arrives is
//! taken in, so that two ends that both send never wait for each other.

use std::io;
use std::time::Duration;

use rand_core::TryCryptoRng;
use secure_router_core::channel::{Channel, ChannelError, Event, Link as Kind, PublicKey, StaticSecret};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::warn;

use crate::host::Listen;

/// Most bytes taken in ahead of the frame being handled.
const READ_AHEAD: usize = 1 << 16;
/// Room for the bytes of one read.
const READ_AT_ONCE: usize = 1 << 12;

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
    /// The peer neither sent nor took anything for too long.
    #[error("the peer fell silent")]
    Silent,
    /// A frame came that this turn does not expect.
    #[error("a frame came out of turn, or with the wrong length")]
    Frame,
}

/// How long a party waits for a peer that says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For the handshake, for each frame that is due, and for the peer to take some of what is sent to it.
    pub exchange: Duration,
    /// For the next request.
    pub idle: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { exchange: Duration::from_secs(30), idle: Duration::from_secs(600) }
    }
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
pub async fn accept<L: Listen, F: Future<Output = ()> + Send + 'static>(
    mut listener: L,
    session: impl Fn(L::Stream, L::From) -> F,
) {
    let mut sessions = JoinSet::new();
    loop {
        let accepted = listener.accept().await;
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
    patience: Patience,
}

impl<'b, S: AsyncRead + AsyncWrite + Unpin> Link<'b, S> {
    /// Dials `peer` over `stream`, whose frames are as long as `rx` and `tx` at most.
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
        patience: Patience,
    ) -> Result<Self, LinkError> {
        let mut link = Self::over(stream, Channel::initiator(kind, own, peer, rng, rx, tx)?, patience);
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
        patience: Patience,
    ) -> Result<Self, LinkError> {
        let mut link = Self::over(stream, Channel::responder(kind, own, rng, rx, tx)?, patience);
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

    fn over(stream: S, channel: Channel<'b>, patience: Patience) -> Self {
        let (outgoing, incoming) = (Vec::new(), Vec::new());
        let mut link = Self { stream, channel, outgoing, incoming, taken: 0, patience };
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
    /// [`LinkError::Io`], and [`LinkError::Silent`] for a peer that takes nothing.
    pub async fn flush(&mut self) -> Result<(), LinkError> {
        let (mut read, mut write) = tokio::io::split(&mut self.stream);
        let mut gone = 0;
        let mut arrived = [0; READ_AT_ONCE];
        let mut deadline = Instant::now() + self.patience.exchange;
        while let Some(rest @ [_, ..]) = self.outgoing.get(gone..) {
            let room = self.incoming.len() < READ_AHEAD;
            tokio::select! {
                biased;
                sent = write.write(rest) => match sent? {
                    0 => return Err(LinkError::Ended),
                    count => {
                        gone += count;
                        deadline = Instant::now() + self.patience.exchange;
                    }
                },
                received = read.read(&mut arrived), if room => match received? {
                    0 => return Err(LinkError::Ended),
                    count => self.incoming.extend_from_slice(arrived.get(..count).unwrap_or(&[])),
                },
                () = sleep_until(deadline) => return Err(LinkError::Silent),
            }
        }
        timeout(self.patience.exchange, write.flush()).await.map_err(|_| LinkError::Silent)??;
        self.outgoing.clear();
        Ok(())
    }

    /// Waits for the first byte of the peer's next request.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn request(&mut self) -> Result<(), LinkError> {
        if self.taken < self.incoming.len() {
            return Ok(());
        }
        self.fill(Instant::now() + self.patience.idle).await
    }

    async fn fill(&mut self, deadline: Instant) -> Result<(), LinkError> {
        self.incoming.clear();
        self.taken = 0;
        // An empty vector would offer the stream 64 bytes at a time.
        self.incoming.reserve(READ_AT_ONCE);
        let arrived = timeout_at(deadline, self.stream.read_buf(&mut self.incoming)).await;
        let count = arrived.map_err(|_| LinkError::Silent)??;
        if count == 0 {
            self.channel.end_of_input()?;
            return Err(LinkError::Ended);
        }
        Ok(())
    }

    async fn event(&mut self) -> Result<Event, LinkError> {
        let deadline = Instant::now() + self.patience.exchange;
        loop {
            if let Some(rest @ [_, ..]) = self.incoming.get(self.taken..) {
                let (taken, event) = self.channel.feed(rest)?;
                self.taken += taken;
                if event != Event::NeedMore {
                    return Ok(event);
                }
                continue;
            }
            self.fill(deadline).await?;
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;
    use crate::provision::random;

    const SIZE: usize = 1024;
    const BUFFER: usize = secure_router_core::channel::buffer_bytes(SIZE);
    const PATIENCE: Patience = Patience { exchange: Duration::from_secs(5), idle: Duration::from_secs(60) };

    type Ends = (Link<'static, DuplexStream>, Link<'static, DuplexStream>);

    fn buffers() -> (&'static mut [u8], &'static mut [u8]) {
        (vec![0; BUFFER].leak(), vec![0; BUFFER].leak())
    }

    async fn ends(room: usize) -> Ends {
        let (ours, theirs) = duplex(room);
        let (own, peer) =
            (StaticSecret::generate(&mut random()).unwrap(), StaticSecret::generate(&mut random()).unwrap());
        let (kind, mut rng, mut peers_rng) = (Kind::DeviceServer, random(), random());
        let answered = Link::answer(kind, &peer, |_| true, &mut peers_rng, theirs, buffers(), PATIENCE);
        let dialled = Link::dial(kind, &own, peer.public_key(), &mut rng, ours, buffers(), PATIENCE);
        let (dialled, answered) = tokio::join!(dialled, answered);
        (dialled.unwrap(), answered.unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_dials_and_says_nothing_is_given_up() {
        let (_ours, theirs) = duplex(SIZE);
        let own = StaticSecret::generate(&mut random()).unwrap();
        let mut rng = random();
        let answered = Link::answer(Kind::DeviceServer, &own, |_| true, &mut rng, theirs, buffers(), PATIENCE);
        let start = Instant::now();
        assert!(matches!(answered.await, Err(LinkError::Silent)));
        assert_eq!(start.elapsed(), PATIENCE.exchange);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_may_take_long_and_a_message_may_not() {
        let (mut device, mut server) = ends(1 << 16).await;
        tokio::time::advance(PATIENCE.idle / 2).await;
        device.queue(1, &[7; 10]).unwrap();
        device.flush().await.unwrap();
        server.request().await.unwrap();
        assert_eq!(server.frame().await.unwrap(), (1, &[7; 10][..]));
        device.queue_message(2, &[8; 100], 50).unwrap();
        device.flush().await.unwrap();
        let start = Instant::now();
        assert!(matches!(server.message(2, 150, 50).await, Err(LinkError::Silent)));
        assert_eq!(start.elapsed(), PATIENCE.exchange);
        let start = Instant::now();
        assert!(matches!(server.request().await, Err(LinkError::Silent)));
        assert_eq!(start.elapsed(), PATIENCE.idle);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_given_up_even_if_it_talks() {
        let (mut device, mut server) = ends(2 * SIZE).await;
        device.queue_message(2, &[8; 8 * SIZE], SIZE).unwrap();
        server.queue_message(2, &[9; SIZE], SIZE).unwrap();
        server.flush().await.unwrap();
        assert!(matches!(device.flush().await, Err(LinkError::Silent)));
    }
}
