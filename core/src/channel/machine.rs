//! The channel itself: a state machine that never touches a wire.

use rand_core::TryCryptoRng;
use zeroize::Zeroize;

use super::error::ChannelError;
use super::frame::{
    self, FRAME_OVERHEAD, KIND_BYTES, LENGTH_BYTES, Link, MAX_FRAME_BYTES, MIN_BODY_BYTES, MIN_BUFFER_BYTES,
    PAYLOAD_OFFSET, PREAMBLE_BYTES, Role,
};
use super::handshake::{Handshake, TransportKeys};
use super::keys::{PublicKey, StaticSecret};
use super::noise::TAG_BYTES;

/// What the bytes just received amounted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing yet: ask for [`Channel::wanted`] again.
    NeedMore,
    /// Responder only: an initiator proved that it holds this key. Look it up, then [`Channel::accept`] or
    /// [`Channel::refuse`]; until then nothing is wanted.
    Identity(PublicKey),
    /// Initiator only: the responder answered and proved that it holds the expected key. Payloads may be sent.
    Established,
    /// A frame arrived and is authentic; [`Channel::payload`] holds its `len` bytes until more is wanted.
    Frame {
        /// The sender's frame kind, opaque to the channel.
        kind: u8,
        /// Bytes of payload.
        len: usize,
    },
}

/// One end of an encrypted, authenticated, ordered link, over two buffers lent by the caller.
///
/// The two directions are independent: [`Channel::io`] lends both sides at once, so that a driver can wait for
/// either. Any error is final, see [`ChannelError`]. Dropping or closing the channel wipes its keys and both
/// buffers. (What the compiler copied to the stack while a channel was moved is out of reach: build it where it
/// stays.)
pub struct Channel<'b> {
    link: Link,
    role: Role,
    phase: Phase,
    peer: Option<PublicKey>,
    rx: Receiving<'b>,
    tx: Sending<'b>,
}

// Without an allocator the larger variant cannot be boxed away; the handshake sets the size of the state.
#[allow(clippy::large_enum_variant)]
enum Phase {
    Handshaking(Handshake),
    Open(TransportKeys),
    Closed,
}

/// The receive buffer, `length | body`, and what it is being filled with.
struct Receiving<'b> {
    buffer: &'b mut [u8],
    stage: Stage,
    filled: usize,
}

#[derive(Clone, Copy)]
enum Stage {
    Preamble,
    Length,
    Body {
        len: usize,
    },
    /// Opened and lent to the caller, at `PAYLOAD_OFFSET`.
    Payload {
        len: usize,
    },
    /// An initiator waits for the caller's verdict.
    Verdict,
    /// Closed.
    Nothing,
}

impl Receiving<'_> {
    fn target(&self) -> core::ops::Range<usize> {
        match self.stage {
            Stage::Preamble => 0..PREAMBLE_BYTES,
            Stage::Length => 0..LENGTH_BYTES,
            Stage::Body { len } => LENGTH_BYTES..LENGTH_BYTES.saturating_add(len),
            Stage::Payload { .. } | Stage::Verdict | Stage::Nothing => 0..0,
        }
    }

    fn wanted(&mut self) -> &mut [u8] {
        if let Stage::Payload { .. } = self.stage {
            self.enter(Stage::Length);
        }
        let target = self.target();
        let start = target.start.saturating_add(self.filled);
        self.buffer.get_mut(start..target.end).unwrap_or_default()
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.filled = 0;
    }

    /// Counts received bytes; true when the current target is full.
    fn count(&mut self, reported: usize) -> Result<bool, ChannelError> {
        let size = self.target().len();
        let offered = size.saturating_sub(self.filled);
        if reported > offered {
            return Err(ChannelError::BadCount { reported, offered });
        }
        self.filled = self.filled.saturating_add(reported);
        Ok(size > 0 && self.filled == size)
    }

    fn body(&mut self, len: usize) -> &mut [u8] {
        self.buffer.get_mut(LENGTH_BYTES..LENGTH_BYTES.saturating_add(len)).unwrap_or_default()
    }

    fn payload(&self) -> &[u8] {
        match self.stage {
            Stage::Payload { len } => {
                self.buffer.get(PAYLOAD_OFFSET..PAYLOAD_OFFSET.saturating_add(len)).unwrap_or_default()
            }
            _ => &[],
        }
    }
}

/// The send buffer and how much of it waits.
struct Sending<'b> {
    buffer: &'b mut [u8],
    sent: usize,
    total: usize,
}

impl Sending<'_> {
    fn pending(&self) -> &[u8] {
        self.buffer.get(self.sent..self.total).unwrap_or_default()
    }

    fn is_idle(&self) -> bool {
        self.sent == self.total
    }

    /// The part of the buffer that one frame can use.
    fn usable(&self) -> usize {
        self.buffer.len().min(MAX_FRAME_BYTES)
    }

    fn room(&mut self) -> &mut [u8] {
        let end = self.usable().saturating_sub(TAG_BYTES);
        self.buffer.get_mut(PAYLOAD_OFFSET..end).unwrap_or_default()
    }

    fn count(&mut self, reported: usize) -> Result<(), ChannelError> {
        let offered = self.total.saturating_sub(self.sent);
        if reported > offered {
            return Err(ChannelError::BadCount { reported, offered });
        }
        self.sent = self.sent.saturating_add(reported);
        if self.is_idle() {
            self.clear();
        }
        Ok(())
    }

    fn clear(&mut self) {
        (self.sent, self.total) = (0, 0);
    }

    /// Writes `preamble | length | handshake message`.
    fn put_handshake(
        &mut self,
        preamble: [u8; PREAMBLE_BYTES],
        message: usize,
        handshake: &mut Handshake,
    ) -> Result<(), ChannelError> {
        let needed = PREAMBLE_BYTES + LENGTH_BYTES + message;
        let have = self.buffer.len();
        let short = ChannelError::BufferTooSmall { needed, have };
        let out = self.buffer.get_mut(..needed).ok_or(short)?;
        let (head, rest) = out.split_first_chunk_mut::<PREAMBLE_BYTES>().ok_or(short)?;
        let (length, body) = rest.split_first_chunk_mut::<LENGTH_BYTES>().ok_or(short)?;
        *head = preamble;
        *length = u16::try_from(message).map_err(|_| short)?.to_le_bytes();
        handshake.write(body)?;
        (self.sent, self.total) = (0, needed);
        Ok(())
    }

    /// Seals the first `len` bytes of the room as one frame.
    fn put_frame(&mut self, kind: u8, len: usize, keys: &mut TransportKeys) -> Result<(), ChannelError> {
        let needed = frame::frame_bytes(len);
        let have = self.usable();
        let large = ChannelError::PayloadTooLarge { needed, have };
        if needed > have {
            return Err(large);
        }
        let out = self.buffer.get_mut(..needed).ok_or(large)?;
        let (length, body) = out.split_first_chunk_mut::<LENGTH_BYTES>().ok_or(large)?;
        *length = u16::try_from(body.len()).map_err(|_| large)?.to_le_bytes();
        *body.first_mut().ok_or(large)? = kind;
        keys.seal(body)?;
        (self.sent, self.total) = (0, needed);
        Ok(())
    }
}

impl<'b> Channel<'b> {
    /// Dials: this side knows the responder's public key. Message 1 is pending at once.
    ///
    /// Each buffer sets the longest payload of its direction ([`frame::buffer_bytes`]) and holds at least
    /// [`MIN_BUFFER_BYTES`]. An infallible `CryptoRng` is a `TryCryptoRng` too.
    pub fn initiator<R: TryCryptoRng + ?Sized>(
        link: Link,
        own: &StaticSecret,
        responder: PublicKey,
        rng: &mut R,
        rx: &'b mut [u8],
        tx: &'b mut [u8],
    ) -> Result<Self, ChannelError> {
        check_buffers(rx, tx)?;
        let handshake = Handshake::initiator(link, own, responder, rng)?;
        let mut channel = Self::start(link, Role::Initiator, handshake, rx, tx);
        channel.peer = Some(responder);
        channel.send_handshake()?;
        Ok(channel)
    }

    /// Answers: this side learns the initiator's key and decides then. Buffers as for [`Channel::initiator`].
    ///
    /// The random source is used now, so that a broken one is found before anybody is kept waiting.
    pub fn responder<R: TryCryptoRng + ?Sized>(
        link: Link,
        own: &StaticSecret,
        rng: &mut R,
        rx: &'b mut [u8],
        tx: &'b mut [u8],
    ) -> Result<Self, ChannelError> {
        check_buffers(rx, tx)?;
        let handshake = Handshake::responder(link, own, rng)?;
        Ok(Self::start(link, Role::Responder, handshake, rx, tx))
    }

    fn start(link: Link, role: Role, handshake: Handshake, rx: &'b mut [u8], tx: &'b mut [u8]) -> Self {
        Self {
            link,
            role,
            phase: Phase::Handshaking(handshake),
            peer: None,
            rx: Receiving { buffer: rx, stage: Stage::Preamble, filled: 0 },
            tx: Sending { buffer: tx, sent: 0, total: 0 },
        }
    }

    /// An end whose handshake is behind it, under keys that everyone knows: a fuzzer cannot spend its time on X25519.
    #[cfg(fuzzing)]
    pub fn established(link: Link, initiates: bool, rx: &'b mut [u8], tx: &'b mut [u8]) -> Result<Self, ChannelError> {
        check_buffers(rx, tx)?;
        let role = if initiates { Role::Initiator } else { Role::Responder };
        Ok(Self {
            link,
            role,
            phase: Phase::Open(TransportKeys::known(role)),
            peer: None,
            rx: Receiving { buffer: rx, stage: Stage::Length, filled: 0 },
            tx: Sending { buffer: tx, sent: 0, total: 0 },
        })
    }

    // ---- receiving

    /// Where the next received bytes belong: never more than the current preamble, length or body still lacks.
    ///
    /// Empty while an initiator waits for a verdict, and after the channel closed. Asking gives up the last
    /// payload.
    pub fn wanted(&mut self) -> &mut [u8] {
        self.rx.wanted()
    }

    /// Reports that the first `count` bytes of [`Channel::wanted`] were filled. Report the end of the input with
    /// [`Channel::end_of_input`], not with zero.
    pub fn received(&mut self, count: usize) -> Result<Event, ChannelError> {
        let outcome = self.advance(count);
        self.settle(outcome)
    }

    /// Takes bytes that the driver already holds, up to the first event. Returns how many were taken, and the
    /// event; call again with the rest once the event was dealt with. Takes nothing while an initiator waits.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(usize, Event), ChannelError> {
        let mut taken = 0;
        loop {
            let rest = bytes.get(taken..).unwrap_or_default();
            if rest.is_empty() {
                // Not a reason to give up the last payload.
                return self.received(0).map(|event| (taken, event));
            }
            let wanted = self.wanted();
            let count = wanted.len().min(rest.len());
            for (slot, byte) in wanted.iter_mut().zip(rest) {
                *slot = *byte;
            }
            taken = taken.saturating_add(count);
            match self.received(count)? {
                Event::NeedMore if count > 0 => {}
                event => return Ok((taken, event)),
            }
        }
    }

    /// The last frame's payload, until more is wanted.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        self.rx.payload()
    }

    /// Reports that the peer will send no more, and closes. An error unless the last frame was complete.
    ///
    /// Anyone can cut a line between two frames: a conversation needs a last frame of its own.
    pub fn end_of_input(&mut self) -> Result<(), ChannelError> {
        let outcome = match (&self.phase, self.rx.stage, self.rx.filled) {
            (Phase::Closed, ..) => Err(ChannelError::Closed),
            (Phase::Open(_), Stage::Length, 0) | (Phase::Open(_), Stage::Payload { .. }, _) => Ok(()),
            _ => Err(ChannelError::Truncated),
        };
        self.close();
        outcome
    }

    fn advance(&mut self, count: usize) -> Result<Event, ChannelError> {
        if matches!(self.phase, Phase::Closed) {
            return Err(ChannelError::Closed);
        }
        if !self.rx.count(count)? {
            return Ok(Event::NeedMore);
        }
        match self.rx.stage {
            Stage::Preamble => {
                let found = self.rx.buffer.first_chunk().ok_or(ChannelError::Truncated)?;
                frame::check_preamble(*found, self.link, self.role.peer())?;
                self.rx.enter(Stage::Length);
                Ok(Event::NeedMore)
            }
            Stage::Length => {
                let field = self.rx.buffer.first_chunk().ok_or(ChannelError::Truncated)?;
                let len = usize::from(u16::from_le_bytes(*field));
                self.check_length(len)?;
                self.rx.enter(Stage::Body { len });
                Ok(Event::NeedMore)
            }
            Stage::Body { len } => self.open_body(len),
            Stage::Payload { .. } | Stage::Verdict | Stage::Nothing => Ok(Event::NeedMore),
        }
    }

    /// Judges an announced length before a byte of the body is awaited.
    fn check_length(&self, len: usize) -> Result<(), ChannelError> {
        if let Phase::Handshaking(_) = self.phase {
            let expected = self.role.peer().message_bytes();
            if len != expected {
                return Err(ChannelError::HandshakeLength { expected, found: len });
            }
        } else if len < MIN_BODY_BYTES {
            return Err(ChannelError::FrameTooShort { needed: MIN_BODY_BYTES, have: len });
        }
        let (needed, have) = (LENGTH_BYTES.saturating_add(len), self.rx.buffer.len());
        if needed > have {
            return Err(ChannelError::FrameTooLarge { needed, have });
        }
        Ok(())
    }

    fn open_body(&mut self, len: usize) -> Result<Event, ChannelError> {
        match &mut self.phase {
            Phase::Closed => Err(ChannelError::Closed),
            Phase::Open(keys) => {
                let (kind, len) = keys.open(self.rx.body(len))?;
                self.rx.enter(Stage::Payload { len });
                Ok(Event::Frame { kind, len })
            }
            Phase::Handshaking(handshake) => {
                handshake.read(self.rx.body(len))?;
                match self.role {
                    Role::Initiator => {
                        let keys = handshake.split()?;
                        self.phase = Phase::Open(keys);
                        self.rx.enter(Stage::Length);
                        Ok(Event::Established)
                    }
                    Role::Responder => {
                        let peer = handshake.peer().ok_or(ChannelError::HandshakeForged)?;
                        self.peer = Some(peer);
                        self.rx.enter(Stage::Verdict);
                        Ok(Event::Identity(peer))
                    }
                }
            }
        }
    }

    // ---- the responder's verdict

    /// Answers the initiator whose identity arrived. Message 2 is pending, and after it payloads may be sent.
    pub fn accept(&mut self) -> Result<(), ChannelError> {
        let outcome = match (&self.phase, self.rx.stage) {
            (Phase::Closed, _) => Err(ChannelError::Closed),
            (Phase::Handshaking(_), Stage::Verdict) => self.send_handshake(),
            _ => Err(ChannelError::NothingToAccept),
        };
        self.settle(outcome)
    }

    /// Turns the initiator away: closes without a byte of answer.
    pub fn refuse(&mut self) {
        self.close();
    }

    fn send_handshake(&mut self) -> Result<(), ChannelError> {
        let Phase::Handshaking(handshake) = &mut self.phase else {
            return Err(ChannelError::NothingToAccept);
        };
        let preamble = frame::preamble(self.link, self.role);
        self.tx.put_handshake(preamble, self.role.message_bytes(), handshake)?;
        if self.role == Role::Responder {
            let keys = handshake.split()?;
            self.phase = Phase::Open(keys);
            self.rx.enter(Stage::Length);
        }
        Ok(())
    }

    // ---- sending

    /// Whether a payload may be written now: the handshake is done and nothing is pending.
    #[must_use]
    pub fn can_send(&self) -> bool {
        self.check_sendable().is_ok()
    }

    /// Room for the next payload, in the send buffer itself. Write it, then [`Channel::seal`] it.
    pub fn outgoing(&mut self) -> Result<&mut [u8], ChannelError> {
        let outcome = self.check_sendable();
        self.settle(outcome)?;
        Ok(self.tx.room())
    }

    /// The last payload received and room for the next to send: to answer without a copy.
    pub fn exchange(&mut self) -> Result<(&[u8], &mut [u8]), ChannelError> {
        let outcome = self.check_sendable();
        self.settle(outcome)?;
        Ok((self.rx.payload(), self.tx.room()))
    }

    /// Seals the first `len` bytes of [`Channel::outgoing`] as one frame. They are now pending and no longer
    /// plaintext.
    pub fn seal(&mut self, kind: u8, len: usize) -> Result<(), ChannelError> {
        let outcome = self.check_sendable().and_then(|()| match &mut self.phase {
            Phase::Open(keys) => self.tx.put_frame(kind, len, keys),
            _ => Err(ChannelError::NotEstablished),
        });
        self.settle(outcome)
    }

    /// Copies a payload and seals it: for callers that hold it already.
    pub fn send(&mut self, kind: u8, payload: &[u8]) -> Result<(), ChannelError> {
        for (slot, byte) in self.outgoing()?.iter_mut().zip(payload) {
            *slot = *byte;
        }
        self.seal(kind, payload.len())
    }

    /// The bytes that wait to be put on the wire.
    #[must_use]
    pub fn pending(&self) -> &[u8] {
        self.tx.pending()
    }

    /// Reports that the first `count` bytes of [`Channel::pending`] are on the wire.
    pub fn sent(&mut self, count: usize) -> Result<(), ChannelError> {
        let outcome = match self.phase {
            Phase::Closed => Err(ChannelError::Closed),
            _ => self.tx.count(count),
        };
        self.settle(outcome)
    }

    fn check_sendable(&self) -> Result<(), ChannelError> {
        match self.phase {
            Phase::Closed => Err(ChannelError::Closed),
            Phase::Handshaking(_) => Err(ChannelError::NotEstablished),
            Phase::Open(_) if !self.tx.is_idle() => Err(ChannelError::SendPending),
            Phase::Open(_) => Ok(()),
        }
    }

    // ---- both

    /// [`Channel::wanted`] and [`Channel::pending`] at once, for a driver that waits for either.
    pub fn io(&mut self) -> (&mut [u8], &[u8]) {
        (self.rx.wanted(), self.tx.pending())
    }

    /// The peer's identity, once it is known.
    #[must_use]
    pub fn peer(&self) -> Option<PublicKey> {
        self.peer
    }

    /// Whether the handshake is done and the channel not closed.
    #[must_use]
    pub fn is_established(&self) -> bool {
        matches!(self.phase, Phase::Open(_))
    }

    /// Whether the channel is closed, by an error or by request.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    /// Wipes keys and buffers. Pending bytes are lost; every further call answers [`ChannelError::Closed`].
    pub fn close(&mut self) {
        // The assignment drops the keys where they lie, and their types wipe themselves.
        self.phase = Phase::Closed;
        self.rx.enter(Stage::Nothing);
        self.rx.buffer.zeroize();
        self.tx.clear();
        self.tx.buffer.zeroize();
    }

    fn settle<T>(&mut self, outcome: Result<T, ChannelError>) -> Result<T, ChannelError> {
        if outcome.is_err() {
            self.close();
        }
        outcome
    }

    #[cfg(test)]
    pub(crate) fn fast_forward(&mut self, nonce: u64) {
        if let Phase::Open(keys) = &mut self.phase {
            keys.fast_forward(nonce);
        }
    }
}

impl Drop for Channel<'_> {
    fn drop(&mut self) {
        self.close();
    }
}

impl core::fmt::Debug for Channel<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let phase = match self.phase {
            Phase::Handshaking(_) => "handshaking",
            Phase::Open(_) => "open",
            Phase::Closed => "closed",
        };
        f.debug_struct("Channel")
            .field("link", &self.link)
            .field("role", &self.role)
            .field("phase", &phase)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

fn check_buffers(rx: &[u8], tx: &[u8]) -> Result<(), ChannelError> {
    let have = rx.len().min(tx.len());
    if have < MIN_BUFFER_BYTES {
        return Err(ChannelError::BufferTooSmall { needed: MIN_BUFFER_BYTES, have });
    }
    Ok(())
}

// The layout in the send buffer is the layout on the wire.
const _: () = assert!(FRAME_OVERHEAD == LENGTH_BYTES + KIND_BYTES + TAG_BYTES);
