//! Noise IK: two messages, then a key for each direction.
//!
//! `noise-protocol` panics on a message of the wrong length, on a message out of turn, on a missing key, and when
//! a nonce runs out. This file is the only one that calls it, and checks each of these first.

use noise_protocol::patterns::noise_ik;
use noise_protocol::{CipherState, ErrorKind, HandshakeState};
use rand_core::TryCryptoRng;

use super::error::ChannelError;
use super::frame::{self, KIND_BYTES, Link, Role};
use super::keys::{PublicKey, StaticSecret};
use super::noise::{Blake2s, ChaChaPoly, TAG_BYTES, X25519};
use super::secret::Secret;

/// One side's handshake in progress.
pub(crate) struct Handshake {
    state: HandshakeState<X25519, ChaChaPoly, Blake2s>,
    role: Role,
}

impl Handshake {
    /// Starts as the end that knows the other's key.
    pub(crate) fn initiator<R: TryCryptoRng + ?Sized>(
        link: Link,
        own: &StaticSecret,
        responder: PublicKey,
        rng: &mut R,
    ) -> Result<Self, ChannelError> {
        Self::start(link, Role::Initiator, own, Some(responder), rng)
    }

    /// Starts as the end that learns the other's key.
    pub(crate) fn responder<R: TryCryptoRng + ?Sized>(
        link: Link,
        own: &StaticSecret,
        rng: &mut R,
    ) -> Result<Self, ChannelError> {
        Self::start(link, Role::Responder, own, None, rng)
    }

    fn start<R: TryCryptoRng + ?Sized>(
        link: Link,
        role: Role,
        own: &StaticSecret,
        responder: Option<PublicKey>,
        rng: &mut R,
    ) -> Result<Self, ChannelError> {
        let ephemeral = Secret::draw(rng)?;
        let state = HandshakeState::new(
            noise_ik(),
            role == Role::Initiator,
            frame::prologue(link),
            Some(noise_protocol::U8Array::clone(own.secret())),
            Some(ephemeral),
            responder.map(|key| key.0),
            None,
        );
        Ok(Self { state, role })
    }

    /// Writes this side's message, which is exactly `role.message_bytes()` long.
    pub(crate) fn write(&mut self, out: &mut [u8]) -> Result<(), ChannelError> {
        let expected = self.role.message_bytes();
        if out.len() != expected {
            return Err(ChannelError::HandshakeLength { expected, found: out.len() });
        }
        if self.state.completed() || !self.state.is_write_turn() {
            return Err(ChannelError::NothingToAccept);
        }
        self.state.write_message(&[], out).map_err(explain)
    }

    /// Reads the peer's message.
    pub(crate) fn read(&mut self, message: &[u8]) -> Result<(), ChannelError> {
        let expected = self.role.peer().message_bytes();
        if message.len() != expected {
            return Err(ChannelError::HandshakeLength { expected, found: message.len() });
        }
        if self.state.completed() || self.state.is_write_turn() {
            return Err(ChannelError::HandshakeForged);
        }
        self.state.read_message(message, &mut []).map_err(explain)
    }

    /// The peer's identity: known from the start, or proved by message 1.
    pub(crate) fn peer(&self) -> Option<PublicKey> {
        self.state.get_rs().map(PublicKey)
    }

    /// The transport keys, once both messages have passed.
    pub(crate) fn split(&self) -> Result<TransportKeys, ChannelError> {
        if !self.state.completed() {
            return Err(ChannelError::NotEstablished);
        }
        let (to_responder, to_initiator) = self.state.get_ciphers();
        Ok(match self.role {
            Role::Initiator => TransportKeys { seal: to_responder, open: to_initiator },
            Role::Responder => TransportKeys { seal: to_initiator, open: to_responder },
        })
    }
}

fn explain(error: noise_protocol::Error) -> ChannelError {
    match error.kind() {
        ErrorKind::DH => ChannelError::WeakKey,
        // The other two kinds need a pre-shared key or an unchecked length, of which there are none.
        _ => ChannelError::HandshakeForged,
    }
}

/// A key and a counter for each direction.
pub(crate) struct TransportKeys {
    seal: CipherState<ChaChaPoly>,
    open: CipherState<ChaChaPoly>,
}

impl TransportKeys {
    /// Keys that everyone knows.
    #[cfg(fuzzing)]
    pub(crate) fn known(role: Role) -> Self {
        let (to_responder, to_initiator) = (CipherState::new(&[1; 32], 0), CipherState::new(&[2; 32], 0));
        match role {
            Role::Initiator => Self { seal: to_responder, open: to_initiator },
            Role::Responder => Self { seal: to_initiator, open: to_responder },
        }
    }

    /// Seals a body in place: `plaintext | room for the tag`.
    pub(crate) fn seal(&mut self, body: &mut [u8]) -> Result<(), ChannelError> {
        spend(&self.seal)?;
        let plaintext = body.len().saturating_sub(TAG_BYTES);
        // A transport message of Noise has no associated data, and the length needs none: the tag covers exactly
        // the bytes that the length announced, so another length is another, unauthentic, message.
        let sealed = self.seal.encrypt_ad_in_place(&[], body, plaintext);
        if sealed == body.len() { Ok(()) } else { Err(ChannelError::FrameForged) }
    }

    /// Opens a body in place; returns its frame kind and the length of the payload that follows it.
    pub(crate) fn open(&mut self, body: &mut [u8]) -> Result<(u8, usize), ChannelError> {
        spend(&self.open)?;
        let length = body.len();
        let plaintext = self.open.decrypt_ad_in_place(&[], body, length).map_err(|()| ChannelError::FrameForged)?;
        let kind = *body.first().ok_or(ChannelError::FrameForged)?;
        let payload = plaintext.checked_sub(KIND_BYTES).ok_or(ChannelError::FrameForged)?;
        Ok((kind, payload))
    }

    #[cfg(test)]
    pub(crate) fn fast_forward(&mut self, nonce: u64) {
        let jump = |state: &CipherState<ChaChaPoly>| {
            let (key, _) = Clone::clone(state).extract();
            CipherState::new(key.bytes(), nonce)
        };
        self.seal = jump(&self.seal);
        self.open = jump(&self.open);
    }
}

/// Refuses the last counter, which Noise reserves and `noise-protocol` would use once before it panics.
fn spend(state: &CipherState<ChaChaPoly>) -> Result<(), ChannelError> {
    if state.get_next_n() == u64::MAX { Err(ChannelError::NonceExhausted) } else { Ok(()) }
}
