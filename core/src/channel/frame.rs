//! The bytes around the ciphertext: preamble, lengths, and the sizes that follow from them.

use super::error::ChannelError;
use super::noise::TAG_BYTES;

/// The version in the preamble. Any change of the channel's own bytes changes it; of what it carries, [`SPEC_VERSION`](crate::spec::SPEC_VERSION).
pub const PROTOCOL_VERSION: u8 = 1;

const MAGIC: [u8; 2] = *b"SR";

/// Bytes of the clear preamble, sent once in each direction.
pub(crate) const PREAMBLE_BYTES: usize = 4;
/// Bytes of a frame's length.
pub(crate) const LENGTH_BYTES: usize = 2;
/// Bytes of a frame's kind, the first of the plaintext.
pub(crate) const KIND_BYTES: usize = 1;
/// Where the payload begins in a buffer that holds a frame.
pub(crate) const PAYLOAD_OFFSET: usize = LENGTH_BYTES + KIND_BYTES;
/// Bytes of the shortest transport body: a kind, no payload, a tag.
pub(crate) const MIN_BODY_BYTES: usize = KIND_BYTES + TAG_BYTES;
/// Bytes of the longest frame, set by the two bytes of its length.
pub(crate) const MAX_FRAME_BYTES: usize = LENGTH_BYTES + u16::MAX as usize;

const KEY_BYTES: usize = 32;
/// `e, es, s, ss`: the ephemeral key, the sealed static key, an empty sealed payload.
pub(crate) const MESSAGE_1_BYTES: usize = KEY_BYTES + (KEY_BYTES + TAG_BYTES) + TAG_BYTES;
/// `e, ee, se`: the ephemeral key, an empty sealed payload.
pub(crate) const MESSAGE_2_BYTES: usize = KEY_BYTES + TAG_BYTES;

/// Bytes the initiator sends before its first frame.
pub const HANDSHAKE_INITIATOR_BYTES: usize = PREAMBLE_BYTES + LENGTH_BYTES + MESSAGE_1_BYTES;

/// Bytes the responder sends before its first frame.
pub const HANDSHAKE_RESPONDER_BYTES: usize = PREAMBLE_BYTES + LENGTH_BYTES + MESSAGE_2_BYTES;

/// Bytes on the wire of a frame beyond its payload: length, kind, tag.
pub const FRAME_OVERHEAD: usize = LENGTH_BYTES + KIND_BYTES + TAG_BYTES;

/// The longest payload that the wire format can carry, whatever the buffers.
pub const MAX_PAYLOAD_BYTES: usize = MAX_FRAME_BYTES - FRAME_OVERHEAD;

/// The smallest buffer that a channel accepts, for either direction.
pub const MIN_BUFFER_BYTES: usize = HANDSHAKE_INITIATOR_BYTES;

/// Bytes that a frame with this payload takes on the wire.
#[must_use]
pub const fn frame_bytes(payload: usize) -> usize {
    payload.saturating_add(FRAME_OVERHEAD)
}

/// Bytes to lend, for each direction, so that payloads up to this length pass.
#[must_use]
pub const fn buffer_bytes(payload: usize) -> usize {
    let frame = frame_bytes(payload);
    if frame < MIN_BUFFER_BYTES { MIN_BUFFER_BYTES } else { frame }
}

/// Which two parties a channel joins. Both ends must name the same link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Link {
    /// A device dials the server.
    DeviceServer,
    /// The server dials the dealer.
    ServerDealer,
}

/// Which end of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Initiator,
    Responder,
}

impl Role {
    pub(crate) const fn peer(self) -> Self {
        match self {
            Self::Initiator => Self::Responder,
            Self::Responder => Self::Initiator,
        }
    }

    /// Bytes of the handshake message this end sends.
    pub(crate) const fn message_bytes(self) -> usize {
        match self {
            Self::Initiator => MESSAGE_1_BYTES,
            Self::Responder => MESSAGE_2_BYTES,
        }
    }
}

/// The preamble that one end of a link sends.
pub(crate) const fn preamble(link: Link, role: Role) -> [u8; PREAMBLE_BYTES] {
    let link = match link {
        Link::DeviceServer => 0x10,
        Link::ServerDealer => 0x20,
    };
    let role = match role {
        Role::Initiator => 0x01,
        Role::Responder => 0x02,
    };
    [MAGIC[0], MAGIC[1], PROTOCOL_VERSION, link | role]
}

/// Both preambles, initiator's first: what each side believes was said in the clear.
pub(crate) fn prologue(link: Link) -> [u8; 2 * PREAMBLE_BYTES] {
    let mut prologue = [0; 2 * PREAMBLE_BYTES];
    let (first, second) = prologue.split_at_mut(PREAMBLE_BYTES);
    first.copy_from_slice(&preamble(link, Role::Initiator));
    second.copy_from_slice(&preamble(link, Role::Responder));
    prologue
}

/// Checks the peer's preamble, in the order in which its fields explain each other.
pub(crate) fn check_preamble(found: [u8; PREAMBLE_BYTES], link: Link, sender: Role) -> Result<(), ChannelError> {
    let [m0, m1, version, kind] = found;
    let [_, _, ours, expected] = preamble(link, sender);
    if [m0, m1] != MAGIC {
        return Err(ChannelError::WrongMagic { found: [m0, m1], ours });
    }
    if version != ours {
        return Err(ChannelError::WrongVersion { ours, theirs: version });
    }
    if kind != expected {
        return Err(ChannelError::WrongKind { expected, found: kind });
    }
    Ok(())
}
