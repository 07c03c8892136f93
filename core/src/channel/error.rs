//! What can go wrong on a channel. No variant carries a secret, and nothing here is ever sent to the peer.

use core::fmt;

/// Why a channel closed, or could not be opened.
///
/// Every error is final: the channel that returned it has wiped its keys and buffers, and answers every further
/// call with [`ChannelError::Closed`]. The peer is told nothing but the silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum ChannelError {
    /// The channel is closed.
    Closed,
    /// A lent buffer cannot hold the handshake.
    BufferTooSmall {
        /// Bytes the handshake needs.
        needed: usize,
        /// Bytes lent.
        have: usize,
    },
    /// The first two bytes are not this protocol's.
    WrongMagic {
        /// What arrived.
        found: [u8; 2],
        /// The protocol version this side speaks.
        ours: u8,
    },
    /// The peer speaks another version of this protocol.
    WrongVersion {
        /// The version this side speaks.
        ours: u8,
        /// The version the peer announced.
        theirs: u8,
    },
    /// The peer announced another link, or the same end of it.
    WrongKind {
        /// The kind byte this side expects.
        expected: u8,
        /// The kind byte that arrived.
        found: u8,
    },
    /// A handshake frame announced an impossible length.
    HandshakeLength {
        /// The only length this handshake message can have.
        expected: usize,
        /// The length announced.
        found: usize,
    },
    /// A handshake message did not authenticate.
    HandshakeForged,
    /// A key of the peer is a point of low order: the shared secret would be known to everyone.
    WeakKey,
    /// The stored secret key is blank or repeats itself.
    BlankSecret,
    /// The random source reported a failure.
    RandomFailed,
    /// The random source repeats itself.
    RandomStuck,
    /// A frame announced fewer bytes than a frame kind and a tag.
    FrameTooShort {
        /// Bytes the shortest body needs.
        needed: usize,
        /// Bytes announced.
        have: usize,
    },
    /// A frame announced more bytes than the lent receive buffer holds.
    FrameTooLarge {
        /// Bytes of receive buffer this frame needs.
        needed: usize,
        /// Bytes of receive buffer lent.
        have: usize,
    },
    /// The payload to send does not fit the lent send buffer.
    PayloadTooLarge {
        /// Bytes of send buffer this payload needs.
        needed: usize,
        /// Bytes of send buffer that can be used.
        have: usize,
    },
    /// A frame did not authenticate: altered, dropped, repeated, reordered, or sealed by somebody else.
    FrameForged,
    /// The input ended inside the handshake or inside a frame.
    Truncated,
    /// All nonces of one direction are spent.
    NonceExhausted,
    /// A payload was to be sent before the handshake finished.
    NotEstablished,
    /// A payload was to be written while the previous frame still waits to be sent.
    SendPending,
    /// There is no initiator waiting for an answer.
    NothingToAccept,
    /// The driver reported more bytes than it was offered.
    BadCount {
        /// Bytes reported.
        reported: usize,
        /// Bytes offered.
        offered: usize,
    },
}

impl fmt::Display for ChannelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Closed => f.write_str("the channel is closed; open a new one"),
            Self::BufferTooSmall { needed, have } => {
                write!(f, "the handshake needs {needed} bytes of buffer and got {have}; lend a larger one")
            }
            Self::WrongMagic { found, ours } => write!(
                f,
                "expected SecureRouter version {ours}, but the first bytes were {:02x}{:02x}: the peer speaks \
                 another protocol (version unknown), or the line is noisy; check address and baud rate",
                found[0], found[1]
            ),
            Self::WrongVersion { ours, theirs } => {
                write!(f, "this side speaks protocol version {ours}, the peer version {theirs}; update the older side")
            }
            Self::WrongKind { expected, found } => {
                write!(f, "expected a peer of kind {expected:#04x}, found {found:#04x}; check which end dials which")
            }
            Self::HandshakeLength { expected, found } => {
                write!(f, "the handshake message must be {expected} bytes and announced {found}; reconnect")
            }
            Self::HandshakeForged => f.write_str(
                "the handshake did not authenticate; check that the responder's public key is the provisioned one",
            ),
            Self::WeakKey => f.write_str("a public key is of low order; provision a genuine key"),
            Self::BlankSecret => f.write_str("the stored secret key is blank; provision the key first"),
            Self::RandomFailed => f.write_str("the random source failed; do not connect until it works"),
            Self::RandomStuck => f.write_str("the random source repeats itself; do not connect until it works"),
            Self::FrameTooShort { needed, have } => {
                write!(f, "a frame body must be at least {needed} bytes and announced {have}; reconnect")
            }
            Self::FrameTooLarge { needed, have } => {
                write!(f, "the frame needs {needed} bytes of receive buffer and there are {have}; lend a larger one")
            }
            Self::PayloadTooLarge { needed, have } => {
                write!(f, "the payload needs {needed} bytes of send buffer and {have} can be used; split it")
            }
            Self::FrameForged => {
                f.write_str("a frame did not authenticate (altered, lost, repeated or out of order); reconnect")
            }
            Self::Truncated => f.write_str("the peer stopped in the middle; reconnect"),
            Self::NonceExhausted => f.write_str("this channel's nonces are spent; reconnect for new keys"),
            Self::NotEstablished => f.write_str("the handshake is not finished; finish it before sending"),
            Self::SendPending => f.write_str("the previous frame still waits; send all pending bytes first"),
            Self::NothingToAccept => f.write_str("no initiator waits; accept only after its identity arrived"),
            Self::BadCount { reported, offered } => {
                write!(f, "{reported} bytes were reported where {offered} were offered; correct the driver")
            }
        }
    }
}

impl core::error::Error for ChannelError {}
